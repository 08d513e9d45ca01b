// Images to try: kept by the chosen model's run, or else the page's own of its classes.

import { byId, element } from "./elements.js";
import { sampleLabels, sampleImage } from "./gateway.js";
import { label } from "./words.js";

const place = byId("samples");
const legend = place.querySelector("legend");
const drawn = { legend: legend.textContent, buttons: [...place.querySelectorAll("button")] };
// One of the first classes of each data set that the page has images of; ImageNet's classes come
// in two orders.
const CLASSES = { ImageNet: ["tench", "kit fox"], clothes: ["T-shirt/top"] };
let shown = null;  // which samples are shown, or on their way

/** Offers the samples of a model in its version; hides the group if there are none. */
export async function offerSamples(model) {
  const wanted = model?.samples ? `${model.name} ${model.version}` : `drawn ${model?.labels}`;
  if (wanted === shown) return;
  shown = wanted;
  const offered = model?.samples ? await heldOut(model.name).catch(() => null) : drawnFor(model);
  if (wanted !== shown) return;  // another model was chosen meanwhile
  if (!offered) shown = null;  // so that it is tried again
  const { buttons, legend: text } = offered ?? drawnFor(model);
  const images = [...place.querySelectorAll("img")];
  place.replaceChildren(legend, ...buttons);
  place.hidden = !buttons.length;
  legend.textContent = text;
  for (const { src } of images) if (src.startsWith("blob:")) URL.revokeObjectURL(src);
}

function drawnFor(model) {
  const fits = ({ dataset }) => CLASSES[dataset.of].some((name) => model?.labels?.includes(name));
  return { ...drawn, buttons: drawn.buttons.filter(fits) };
}

/** The file of the sample whose button was clicked; null if none was. */
export async function sampleAt(target) {
  const button = target.closest("button");
  if (!button || button.image) return button?.image ?? null;
  const { src } = button.querySelector("img");
  const image = await (await fetch(src)).blob();
  return new File([image], src.split("/").at(-1), { type: image.type });
}

async function heldOut(model) {
  const labels = await sampleLabels(model);
  const buttons = labels.map(async (shown, i) => {
    const name = `${shown.replace(/[^\p{L}\p{N}]+/gu, "-")}-${i + 1}.png`;
    const image = await sampleImage(model, i);
    return newButton(shown, new File([image], name, { type: "image/png" }));
  });
  return { legend: "Or try an image of the folder that the model was made from", buttons: await Promise.all(buttons) };
}

function newButton(shown, image) {
  const button = element("button", "");
  const thumbnail = element("img", "");
  Object.assign(button, { type: "button", image });
  Object.assign(thumbnail, { src: URL.createObjectURL(image), alt: "" });
  button.append(thumbnail, element("span", label(shown)));
  return button;
}
