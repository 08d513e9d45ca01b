// The report of a run, or of a model that is taught, whose wrong and doubtful labels can be corrected.

import { byId, element } from "./elements.js";
import { classNames, labels, reportOfModel, reportOfRun, setLabel } from "./gateway.js";
import { count, label as readable } from "./words.js";

const query = new URLSearchParams(location.search);
const [model, run] = [query.get("model"), query.get("run")];

async function show() {
  const [[text, written], names, latest] = await (model === null
    ? Promise.all([reportOfRun(run ?? ""), [], []])
    : Promise.all([
      reportOfModel(model), classNames(model).catch(() => []), labels(model).catch(() => []),
    ]));
  if (run) byId("back").href = `./?${new URLSearchParams({ run })}`;
  // This page's policy permits no inline style: a sheet and properties of elements take its place.
  const [, style = ""] = text.match(/<style>([^]*?)<\/style>/) ?? [];
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(style);
  document.adoptedStyleSheets = [sheet];
  const rest = text.replace(style, "").replaceAll(' style="--share: ', ' data-share="');
  const page = new DOMParser().parseFromString(rest, "text/html");
  document.title = page.title;
  const newer = latest.filter(({ at }) => 1000 * at > written).length;
  byId("describes").textContent = `The figures describe the model of ${written.toLocaleString()}` +
    (newer ? `. Newer labels: ${count(newer)}; load this page again in a moment.` : ".");
  byId("page").replaceChildren(...page.body.childNodes);
  for (const each of document.querySelectorAll("[data-share]")) {
    each.style.setProperty("--share", each.dataset.share);
  }
  for (const answer of document.querySelectorAll("[data-image]")) {
    if (model !== null && answer.dataset.image) offerCorrection(answer, names);
  }
}

function offerCorrection(answer, names) {
  const choice = document.createElement("select");
  choice.setAttribute("aria-label", `The class of this image, answered ${answer.textContent}`);
  choice.append(new Option("Which class is it?", ""));
  choice.append(...names.map((each) => new Option(readable(each), each)));
  const status = element("small", "");
  status.setAttribute("role", "status");
  choice.addEventListener("change", async () => {
    try {
      const { label } = await setLabel(model, answer.dataset.image, choice.value, false);
      status.textContent = ` Labelled as ${readable(label)}.`;
    } catch (refusal) {
      status.textContent = ` ${refusal.reason || refusal.message}`;
    }
  });
  answer.parentElement.append(element("br", ""), choice, status);
}

show().catch((refusal) => { byId("page").textContent = refusal.reason || refusal.message; });
