// Labels: corrects the answer to an image, lists the latest labels, and withdraws them.

import { byId, element } from "./elements.js";
import { classNames, labels, setLabel, withdrawLabel } from "./gateway.js";
import { count, label as readable } from "./words.js";

const [form, name, isNew, status] = ["teach", "class-name", "is-new", "taught"].map(byId);
const SHOWN = 8;
let asked = null;  // the model, the image that a label is for, those like it, and what follows

export function startTeaching() {
  form.addEventListener("submit", (event) => { event.preventDefault(); teach(name.value); });
  byId("of-none").addEventListener("click", () => teach(null));
  document.addEventListener("keydown", ({ key, target, ctrlKey, metaKey, altKey }) => {
    const isTyping = target.matches("input, select, textarea") &&
      !["file", "checkbox"].includes(target.type);
    if (form.hidden || isTyping || ctrlKey || metaKey || altKey) return;
    byId("classes").querySelector(`[data-key="${CSS.escape(key)}"]`)?.click();
  });
}

/** Offers to label the image of an answer; without a taught model, nothing. */
export async function offerTeaching(model, image, answer, labelled = () => {}) {
  const { predictions, others = [] } = answer;
  form.hidden = !model?.is_taught;
  if (form.hidden) return;
  asked = { model: model.name, image, others, labelled };
  status.replaceChildren();
  byId("alike").hidden = !others.length;
  byId("alike-count").textContent = count(others.length);
  byId("report").href = `report/${encodeURIComponent(model.name)}`;
  byId("classes").replaceChildren(...predictions.map(({ label }, i) => {
    const button = element("button", `${i + 1} ${readable(label)}`);
    button.type = "button";
    button.dataset.key = i + 1;
    button.addEventListener("click", () => teach(label));
    return button;
  }));
  const known = await classNames(model.name).catch(() => []);
  byId("class-names").replaceChildren(...known.map((each) => new Option(each)));
  await listLabels().catch(() => {});
}

async function teach(label) {
  try {
    const { model, image, others, labelled } = asked;
    const images = [image, ...(byId("with-alike").checked ? others : [])];
    const [{ label: set, missing }] = await Promise.all(images.map((each) =>
      setLabel(model, each, label, isNew.checked)));
    labelled(images);
    status.textContent = `Labelled as ${set === null ? "none of these" : readable(set)}. ` +
      (missing ? `A new class takes part with ${missing} more of its images.`
        : "The next version has learned it.");
    name.value = "";
    isNew.checked = false;
    await listLabels();
  } catch (refusal) {
    status.textContent = refusal.reason || refusal.message;
  }
}

async function listLabels() {
  const { model } = asked;
  byId("labels").replaceChildren(...(await labels(model)).slice(0, SHOWN).map((each) => {
    const what = each.label === null ? "none of these" : readable(each.label);
    const item = element("li", `${what}, by ${each.teacher}, ${new Date(1000 * each.at)
      .toLocaleString()} `);
    const undo = element("button", each.withdrawn_by === null ? "Undo" : "Withdrawn");
    undo.type = "button";
    undo.disabled = each.withdrawn_by !== null;
    undo.setAttribute("aria-label", `Undo label ${each.number}, ${what}`);
    undo.addEventListener("click", async () => {
      await withdrawLabel(model, each.number);
      await listLabels();
    });
    item.append(undo);
    return item;
  }));
}
