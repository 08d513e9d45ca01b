// Several images at once: a table with an answer for each, and the same as a CSV file.

import { byId, element } from "./elements.js";
import { classify } from "./gateway.js";
import { label, percent } from "./words.js";

const AT_ONCE = 4;
// Excel reads a file as UTF-8 only if it begins with this mark.
const BYTE_ORDER_MARK = "\ufeff";

/** Asks for each image, a few at a time, and shows the answers in the order of the images. */
export async function askSeveral(model, images, signal) {
  const rows = images.map(({ name }) => ({ name, answer: "…", probability: "" }));
  const cells = rows.map(({ name, answer }) => {
    const row = document.createElement("tr");
    row.append(element("td", name), element("td", answer), element("td", ""));
    return row;
  });
  byId("several").querySelector("tbody").replaceChildren(...cells);
  byId("several").hidden = false;
  let next = 0;
  const ask = async () => {
    while (next < images.length) {
      const at = next++;
      rows[at] = { name: images[at].name, ...await answerTo(model, images[at], signal) };
      cells[at].children[1].textContent = rows[at].answer;
      cells[at].children[2].textContent =
        rows[at].probability === "" ? "" : percent(rows[at].probability);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, ask));
  offerFile(rows);
}

async function answerTo(model, image, signal) {
  try {
    const { predictions: [first], unknown } = await classify(model, image, signal);
    return { answer: unknown ? "unknown" : label(first.label), probability: first.probability };
  } catch (refusal) {
    if (refusal.name === "AbortError" || refusal.status === 401) throw refusal;
    return { answer: refusal.reason || refusal.message, probability: "" };
  }
}

function offerFile(rows) {
  const lines = [["image", "class", "probability"], ...rows.map((row) => Object.values(row))];
  const text = lines.map((line) => line.map(quoted).join(",")).join("\r\n");
  const link = byId("csv");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([BYTE_ORDER_MARK + text], { type: "text/csv" }));
}

/** A field of RFC 4180; a leading quote keeps a spreadsheet from computing a name. */
function quoted(value) {
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : `${value}`;
  return `"${text.replaceAll('"', '""')}"`;
}
