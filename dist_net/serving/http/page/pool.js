// Draws the pool as it is now; leaves alone what has not changed.

import { byId, fromTemplate, write } from "./elements.js";
import { History, SECONDS, rates } from "./history.js";
import { drawModel, newModel } from "./model.js";
import { columns, linear, plot } from "./plots.js";
import { bytes, count, duration, heard } from "./words.js";

const models = new History();
const workers = new History();

/** Draws the gateway's answer to /pool. */
export function drawPool(pool) {
  byId("pool-empty").hidden = true;
  byId("pool-data").hidden = false;
  write(byId("since"), `; up ${duration(pool.uptime_s)}`);
  drawQueue(pool.queue);
  const seen = (things) => things.map((thing) => ({ ...thing, received: pool.received }));
  drawEach(byId("models"), models.add(seen(pool.models)), newModel, drawModel);
  drawWorkers(workers.add(seen(pool.workers)));
}

function drawQueue(queue) {
  const parts = [
    ["queue-requests", queue.requests, queue.request_limit, count],
    ["queue-bytes", queue.bytes, queue.byte_limit, bytes],
  ];
  for (const [id, value, limit, words] of parts) {
    const meter = byId(id);
    Object.assign(meter, { max: limit, low: 0.5 * limit, high: 0.9 * limit, optimum: 0, value });
    write(byId(`${id}-text`), `${words(value)} of ${words(limit)}`);
  }
}

/** One element for each name, in that order; `draw` gets its samples. */
function drawEach(parent, samplesByName, create, draw) {
  const left = new Map([...parent.children].map((element) => [element.dataset.name, element]));
  let position = parent.firstElementChild;
  for (const [name, samples] of samplesByName) {
    const element = left.get(name) ?? create();
    left.delete(name);
    element.dataset.name = name;
    if (element === position) position = position.nextElementSibling;
    else parent.insertBefore(element, position);
    draw(element, samples);
  }
  for (const gone of left.values()) gone.remove();
}

function drawWorkers(samplesByName) {
  byId("no-workers").hidden = samplesByName.size > 0;
  byId("workers").hidden = samplesByName.size === 0;
  const lanes = new Map([...samplesByName].map(([name, samples]) =>
    [name, rates(samples, (sample) => sample.batches)]));
  // All lanes share one scale, so that differences between workers show.
  const scale = linear(Math.max(0, ...[...lanes.values()].flat()), 4);
  drawEach(document.querySelector("#workers tbody"), samplesByName, newWorker,
    (row, samples) => drawWorker(row, samples, lanes.get(row.dataset.name), scale));
}

function newWorker() {
  const row = fromTemplate("worker-template");
  row.paths = plot(row.querySelector(".lane"), SECONDS, ["answered", "loading", "silent"]);
  return row;
}

function drawWorker(row, samples, batches, scale) {
  const worker = samples.at(-1);
  const part = (name) => row.querySelector(`.${name}`);
  row.dataset.state = worker.state;
  write(part("name"), worker.name);
  write(part("place"), `${worker.host} · ${worker.process_id}`);
  write(part("state"), worker.state);
  write(part("requests"), count(worker.requests));
  write(part("batches"), count(worker.batches));
  write(part("heard"), heard(worker.heard_s_ago));
  const states = samples.slice(1).map((sample) => sample.state);
  const marks = (state) => columns(states.map((each) => each === state), SECONDS, () => 0.14);
  const [answered, loading, silent] = row.paths;
  answered.setAttribute("d", columns(batches, SECONDS, scale.height));
  loading.setAttribute("d", marks("loading"));
  silent.setAttribute("d", marks("silent"));
}
