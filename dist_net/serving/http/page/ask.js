// The form: takes an image by drop, paste, file choice or sample, and shows the answer below.

import { byId, element, fromTemplate, write } from "./elements.js";
import { drawAsSeen } from "./fitting.js";
import { classify } from "./gateway.js";
import { showNext } from "./queue.js";
import { offerCopies, showRequest } from "./request.js";
import { offerSamples, sampleAt } from "./samples.js";
import { askSeveral } from "./several.js";
import { offerTeaching } from "./teach.js";
import { count, label, milliseconds, percent } from "./words.js";

const [form, input, drop, preview] = ["ask-form", "image", "drop", "preview"].map(byId);
const [problem, verdict, answer] = ["problem", "verdict", "answer"].map(byId);
const SHOWN_LABELS = 10;
const IMAGELESS = "does not take images. Use /v2/models/…/infer or dist_net.Client.";
let models = [];
let running = null;

/** Sets up the form. `whenRefused` gets each Problem before it is shown. */
export function startAsking(whenRefused) {
  input.addEventListener("change", () => { if (input.files.length) begin(); });
  form.addEventListener("submit", (event) => { event.preventDefault(); begin(); });
  byId("model").addEventListener("change", () => { showModel(); if (input.files.length) begin(); });
  byId("samples").addEventListener("click", async ({ target }) => {
    const sample = await sampleAt(target);
    if (sample) take([sample]);
  });
  offerCopies();
  preview.addEventListener("error", () => { preview.hidden = true; });
  document.addEventListener("paste", (event) => take(event.clipboardData.files, event));
  document.addEventListener("dragover", dragged);
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) dragged(); });
  document.addEventListener("drop", (event) => {
    dragged();
    take(event.dataTransfer.files, event);
  });
  byId("label-next").addEventListener("click", () => showNext(chosenModel()).catch(showProblem));
  const begin = () => ask().catch((refusal) => {
    if (refusal.name === "AbortError") return;
    whenRefused(refusal);
    showProblem(refusal);
  }).finally(() => form.removeAttribute("aria-busy"));
}

/** Lists the models; the chosen one stays chosen if it is still there. An image may wait for them. */
export function offerModels(served) {
  const select = byId("model");
  const areAwaited = !models.length && served.length && input.files.length;
  const unchanged = served.length === models.length &&
    served.every(({ name }, i) => name === models[i].name);
  models = served;
  if (!unchanged) {
    const chosen = select.value;
    select.replaceChildren(...served.map(({ name }) => new Option(name)));
    if (served.some(({ name }) => name === chosen)) select.value = chosen;
    else select.selectedIndex = Math.max(0, served.findIndex((model) => model.takes_images));
    byId("model-field").hidden = served.length < 2;
  }
  showModel();
  if (areAwaited) form.requestSubmit();
}

const chosenModel = () => models.find(({ name }) => name === byId("model").value);

function showModel() {
  const model = chosenModel();
  const canAsk = !model || model.version === null || model.takes_images;
  form.classList.toggle("imageless", !canAsk);
  byId("submit").disabled = !canAsk;
  byId("knows").hidden = !model;
  if (model) write(byId("knows"), canAsk ? classesOf(model) : `${model.name} ${IMAGELESS}`);
  offerSamples(model);
  byId("queue-field").hidden = !model?.is_taught;
  byId("collects").hidden = !model?.is_collected;
}

/** Shows a queued image in the place of an asked one, with its answer. */
export function showQueued(picture, found) {
  running?.abort();
  problem.replaceChildren();
  [answer, byId("no-answer"), byId("several"), byId("seen")].forEach((each) => {
    each.hidden = true;
  });
  preview.src = picture;
  preview.hidden = false;
  byId("image-name").textContent = "An image to label";
  const [first] = found.predictions;
  verdict.classList.toggle("unknown", !found.label);
  verdict.replaceChildren(element("strong", label(first.label)), ` ${percent(first.probability)}` +
    (found.label ? `, labelled ${label(found.label)}` : ""));
}

function classesOf({ classes, labels = [], unknown_below: threshold }) {
  const some = labels.slice(0, SHOWN_LABELS).map(label).join(", ");
  const more = classes > SHOWN_LABELS ? ", …" : "";
  const sure = threshold ? `; below ${percent(threshold)} the class is unknown` : "";
  return `${count(classes)} classes${some && `: ${some}${more}`}${sure}`;
}

function dragged(event) {
  const hasFiles = Boolean(event?.dataTransfer.types.includes("Files"));
  if (hasFiles) event.preventDefault();  // else the browser would open the file itself
  drop.classList.toggle("over", hasFiles);
}

/** Puts the files into the form, as if the user had chosen them there. */
function take(files, event) {
  if (!files.length) return;
  event?.preventDefault();
  const taken = new DataTransfer();
  for (const file of files) taken.items.add(file);
  input.files = taken.files;
  input.dispatchEvent(new Event("change"));
}

async function ask() {
  const model = chosenModel();
  if (!input.reportValidity() || (model?.version != null && !model.takes_images)) return;
  const [image] = input.files;
  running?.abort();
  running = new AbortController();
  showImage(image, model);
  if (!model) return;  // until the models are listed
  form.setAttribute("aria-busy", "true");
  problem.replaceChildren();
  byId("no-answer").hidden = true;
  byId("several").hidden = byId("teach").hidden = true;
  answer.classList.add("old");
  if (input.files.length > 1) {
    answer.hidden = true;
    verdict.replaceChildren();
    await askSeveral(model.name, [...input.files], running.signal);
    return;
  }
  const found = await classify(model.name, image, running.signal);
  answer.classList.remove("old");
  showAnswer(found);
  offerTeaching(model, image, found);
  showRequest(found.model, image);
}

async function showImage(image, model) {
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(image);
  preview.hidden = false;
  byId("image-name").textContent = image.name;
  byId("submit").textContent = "Ask again";
  const canvas = document.createElement("canvas");
  const isSeen = model !== undefined && await drawAsSeen(canvas, image, model);
  if (image !== input.files[0] || model?.name !== chosenModel()?.name) return;  // overtaken
  byId("seen").hidden = !isSeen;
  byId("seen").querySelector("canvas").replaceWith(canvas);
  write(byId("seen-size"), `${canvas.width} × ${canvas.height}`);
}

function showProblem(refusal) {
  answer.hidden = byId("teach").hidden = true;
  verdict.replaceChildren();
  const lines = [refusal.message, refusal.reason && `Reason: ${refusal.reason}`];
  const seconds = Math.ceil(refusal.retryAfterS);
  if (seconds > 0) lines.push(`Try again in ${seconds} s.`);
  problem.replaceChildren(...lines.filter(Boolean).map((text, i) =>
    element(i ? "p" : "strong", text)));
}

function showAnswer(found) {
  const [first] = found.predictions;
  const { unknown_below: threshold } = found;
  const sure = `${percent(first.probability)}, in ${milliseconds(found.total_ms)}`;
  verdict.classList.toggle("unknown", Boolean(found.unknown));
  verdict.replaceChildren(...(found.unknown
    ? [element("strong", "Unknown"), ` The likeliest class is ${label(first.label)}: ${sure}. The ` +
      `model is certain from ${percent(threshold)} on. More training images lower this threshold.`]
    : [element("strong", label(first.label)), ` ${sure}`]));
  byId("bars").replaceChildren(...found.predictions.map(bar));
  byId("bars").classList.toggle("marked", threshold !== undefined);
  byId("bars").style.setProperty("--threshold", threshold ?? 0);
  showTimes(found);
  byId("answered-by").textContent = `Answered by ${found.model}, version ${found.version}`;
  answer.hidden = false;
  answer.scrollIntoView({ block: "nearest" });
}

function bar({ label: name, probability }) {
  const item = fromTemplate("bar-template");
  const meter = item.querySelector("meter");
  item.querySelector(".label").textContent = label(name);
  item.querySelector(".percent").textContent = percent(probability);
  meter.value = probability;
  meter.setAttribute("aria-label", label(name));
  return item;
}

/** What the gateway measured; the rest is HTTP, the network and this browser. */
function showTimes({ timings, total_ms: total }) {
  const parts = [
    ["queue", "Queue", timings.queue_ms],
    ["prepare", "Decoding", timings.prepare_ms],
    ["compute", "Compute", timings.compute_ms],
  ];
  const known = parts.reduce((sum, [, , ms]) => sum + ms, 0);
  parts.push(["way", "Network", Math.max(0, total - known)]);
  byId("split").replaceChildren(...parts.map(([kind, , ms]) => {
    const share = element("i", "", kind);
    share.style.flexGrow = ms;
    return share;
  }));
  byId("times").replaceChildren(...parts.map(([kind, name, ms]) => {
    const pair = element("div", "", kind);
    pair.append(element("dt", name), element("dd", milliseconds(ms)));
    return pair;
  }));
}
