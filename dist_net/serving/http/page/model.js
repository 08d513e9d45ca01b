// Draws one model: rate of answers, latency, batch sizes, and how its requests ended.

import { element as newElement, fromTemplate, write } from "./elements.js";
import { SECONDS, rates, recentBatches } from "./history.js";
import { area, band, line, linear, logarithmic, plot } from "./plots.js";
import { count, milliseconds, perSecond, percent } from "./words.js";

const COUNTS = ["admitted", "answered", "refused", "expired", "failed", "cancelled"];
const SEPARATE_SIZES = 12;

export function newModel() {
  const model = fromTemplate("model-template");
  model.paths = {
    rate: plot(model.querySelector(".rate .plot"), SECONDS, ["area answered", "line refused"]),
    latency: plot(model.querySelector(".latency .plot"), SECONDS,
      ["band outer", "band inner", "line answered"]),
  };
  return model;
}

export function drawModel(element, samples) {
  const model = samples.at(-1);
  element.dataset.ready = model.is_ready;
  write(element.querySelector(".name"), model.name);
  const version = model.version === null ? "" : `version ${model.version}`;
  write(element.querySelector(".version"), version);
  write(element.querySelector(".condition"), model.is_ready ? "ready" : "not ready");
  write(element.querySelector(".reason"), model.reason || changed(model.drift));
  drawRate(element, samples);
  drawLatency(element, samples);
  drawBatches(element, samples);
  drawCounts(element, model);
}

function changed(drift) {
  if (!drift?.is_alarm) return "";
  return `The images have changed: of the last ${drift.images}, ${percent(drift.unknown)} are ` +
    `unknown (promised: at most ${percent(drift.unknown_at_most)}), and the answers have a ` +
    `probability of ${percent(drift.probability)} (promised: at least ` +
    `${percent(drift.probability_at_least)}). Label some of them.`;
}

function drawRate(element, samples) {
  const answered = rates(samples, (sample) => sample.answered);
  const refused = rates(samples, (sample) => sample.refused);
  const scale = linear(Math.max(0, ...answered, ...refused), 5);
  const [answers, refusals] = element.paths.rate;
  answers.setAttribute("d", area(answered, SECONDS, scale.height));
  const anyRefused = refused.some(Boolean);
  refusals.setAttribute("d", anyRefused ? line(refused, SECONDS, scale.height) : "");
  writeAmount(element, "rate", perSecond(samples.at(-1).requests_per_s), "per second");
  element.querySelector(".rate .key").hidden = !anyRefused;
  write(element.querySelector(".refusals"), `${perSecond(refused.at(-1) ?? 0)}/s`);
  element.querySelector(".rate .plot").dataset.top = `${count(Math.round(scale.top))}/s`;
}

function drawLatency(element, samples) {
  const all = (name) => samples.map((sample) => sample.latency_ms?.[name] ?? null);
  const [p50, p90, p99] = [all("p50"), all("p90"), all("p99")];
  const scale = logarithmic([...p50, ...p99]);
  const [outer, inner, middle] = element.paths.latency;
  outer.setAttribute("d", band(p90, p99, SECONDS, scale.height));
  inner.setAttribute("d", band(p50, p90, SECONDS, scale.height));
  middle.setAttribute("d", line(p50, SECONDS, scale.height));
  const data = element.querySelector(".latency .plot").dataset;
  data.top = milliseconds(scale.top).replace(/\.0+ /, " ");
  data.bottom = milliseconds(scale.bottom).replace(/\.0+ /, " ");
  writeAmount(element, "latency", milliseconds(p50.at(-1)), "median");
  write(element.querySelector(".percentiles"), p50.at(-1) === null
    ? "no answer in the last ten seconds"
    : `90 % in ${milliseconds(p90.at(-1))}, 99 % in ${milliseconds(p99.at(-1))}`);
}

function drawBatches(element, samples) {
  const used = recentBatches(samples);
  const bins = binned(used);
  const most = Math.max(1, ...bins.map(([, times]) => times));
  const place = element.querySelector(".columns");
  while (place.children.length > bins.length) place.lastElementChild.remove();
  while (place.children.length < bins.length) place.append(newColumn());
  bins.forEach(([name, times], i) => {
    const column = place.children[i];
    column.style.setProperty("--share", times / most);
    write(column.querySelector("b"), name);
    write(column.querySelector("span"), `: ${count(times)} batches`);
  });
  const batches = used.reduce((sum, [, times]) => sum + times, 0);
  const rows = used.reduce((sum, [size, times]) => sum + size * times, 0);
  writeAmount(element, "batches", batches ? (rows / batches).toFixed(1) : "–", "mean");
}

function writeAmount(element, figure, amount, what) {
  const [number, unit] = element.querySelector(`.${figure} .now`).children;
  write(number, amount);
  write(unit, ` ${what}`);
}

function newColumn() {
  const column = newElement("li", "");
  column.append(newElement("b", ""), newElement("span", ""));
  return column;
}

/** Every size up to the largest in use; beyond a dozen, ranges that double. */
function binned(used) {
  const largest = Math.max(4, ...used.map(([rows]) => rows));
  const ranges = [];
  for (let low = 1, high = 1; low <= largest; low = high + 1) {
    high = largest <= SEPARATE_SIZES ? low : Math.max(1, 2 * (low - 1));
    ranges.push([low, high]);
  }
  return ranges.map(([low, high]) => [
    low === high ? `${low}` : `${low}–${high}`,
    used.reduce((sum, [rows, times]) => rows >= low && rows <= high ? sum + times : sum, 0),
  ]);
}

function drawCounts(element, model) {
  const place = element.querySelector(".counts");
  if (!place.children.length) {
    for (const name of COUNTS) {
      const pair = newElement("div", "", name);
      pair.append(newElement("dt", name), newElement("dd", ""));
      place.append(pair);
    }
  }
  COUNTS.forEach((name, i) => {
    place.children[i].classList.toggle("none", model[name] === 0);
    write(place.children[i].lastChild, count(model[name]));
  });
}
