// The queue: images whose labels would teach most, one after another.

import { showQueued } from "./ask.js";
import { byId } from "./elements.js";
import { queue } from "./gateway.js";
import { offerTeaching } from "./teach.js";
import { count } from "./words.js";

const FEW = 10;
const done = new Set();
let waiting = [];
let asked = null;  // the model of `waiting`

/** Shows the first image that has no label yet. */
export async function showNext(model) {
  if (asked !== model.name) waiting = [];
  asked = model.name;
  waiting = waiting.filter(({ image }) => !done.has(image));
  if (!waiting.length) await refill();
  else if (waiting.length < FEW) refill().catch(() => {});
  const [first] = waiting;
  byId("queue-left").textContent = first ? `${count(waiting.length)} wait` :
    "No image waits for a label.";
  if (!first) {
    byId("teach").hidden = byId("preview").hidden = true;
    return;
  }
  showQueued(`data:image/jpeg;base64,${first.picture}`, first);
  await offerTeaching(model, first.image, first, (labelled) => {
    for (const each of labelled) done.add(each);
    showNext(model).catch((refusal) => { byId("queue-left").textContent = refusal.message; });
  });
}

async function refill() {
  const found = await queue(asked);
  waiting = found.filter(({ image }) => !done.has(image));
}
