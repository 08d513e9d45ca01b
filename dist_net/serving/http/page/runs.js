// Lists the runs of a directory, and lays the curves of chosen ones over each other.

import { byId, element, write } from "./elements.js";
import { eventsOf, rememberToken, requested } from "./followed.js";
import { curve, plot } from "./plots.js";
import { Timeline } from "./timeline.js";
import { count, percent } from "./words.js";

const WIDE = 1000;
const COLOURS = 6;
const NOT_COMPARED = ["recipe_files", "recipe", "data"];
const timelines = new Map();  // of the chosen runs, in the order of choice
let runs = [];

const text = (value) => value === null || value === undefined ? "default" : String(value);

/** The settings in which the chosen runs differ. */
function differing() {
  const chosen = runs.filter(({ name }) => timelines.has(name));
  const names = new Set(chosen.flatMap(({ settings }) => Object.keys(settings)));
  return [...names].filter((name) => !NOT_COMPARED.includes(name) &&
    new Set(chosen.map(({ settings }) => text(settings[name]))).size > 1);
}

function drawTable() {
  const settings = differing();
  const head = ["", "Run", "Recipe", "Test accuracy", "Test loss", ...settings.map((name) => name.replaceAll("_", " "))];
  document.querySelector("#runs thead tr").replaceChildren(...head.map((words) => {
    const cell = element("th", words);
    cell.scope = "col";
    return cell;
  }));
  document.querySelector("#runs tbody").replaceChildren(...runs.map((run) => {
    const row = document.createElement("tr");
    const choice = element("input", "");
    Object.assign(choice, { type: "checkbox", checked: timelines.has(run.name) });
    choice.setAttribute("aria-label", `Compare ${run.name}`);
    choice.addEventListener("change", () => choose(run.name, choice.checked));
    const link = element("a", run.name);
    link.href = `run.html?${new URLSearchParams({ run: run.name })}`;
    const place = [...timelines.keys()].indexOf(run.name);
    const first = element("td", ""), named = element("th", "");
    named.scope = "row";
    first.append(choice, element("i", "", place < 0 ? "" : `swatch of-${place % COLOURS}`));
    named.append(link);
    const accuracy = run.test?.accuracy;
    row.append(first, named, ...[
      String(run.settings.recipe ?? "").split("/").at(-1),
      typeof accuracy === "number" ? percent(accuracy) : "–",
      run.test?.loss?.toPrecision?.(4) ?? "–",
      ...settings.map((name) => timelines.has(run.name) ? text(run.settings[name]) : ""),
    ].map((words) => element("td", words)));
    return row;
  }));
}

function drawCurves() {
  byId("none").hidden = timelines.size > 0;
  byId("curves").hidden = timelines.size === 0;
  for (const name of ["loss", "accuracy"]) {
    const place = byId(name);
    const series = [...timelines.values()].map((timeline) => {
      if (timeline.isEmpty) return [];
      const { perEpoch } = timeline.until(timeline.ends);
      return timeline.records.filter((each) => each.kind === "test" && typeof each[name] === "number")
        .map((each) => [each.samples / perEpoch, each[name]]);
    });
    const values = series.flat().map(([, value]) => value), epochs = series.flat().map(([epoch]) => epoch);
    const low = Math.min(...values), high = Math.max(...values), end = Math.max(1e-9, ...epochs);
    place.hidden = !values.length;
    const words = (value) => name === "loss" ? value.toPrecision(3) : percent(value);
    const drawn = place.querySelector(".plot");
    drawn.replaceChildren();
    if (values.length) Object.assign(drawn.dataset, { top: words(high), bottom: words(low) });
    const paths = plot(drawn, WIDE, series.map((_, i) => `line of-${i % COLOURS}`));
    series.forEach((points, i) => paths[i].setAttribute("d", curve(points.map(([epoch, value]) =>
      [epoch / end, 0.02 + 0.96 * (value - low) / (high - low || 1)]), WIDE)));
    write(place.querySelector(".until"), `epoch ${end.toFixed(1)}`);
  }
}

async function choose(name, isChosen) {
  timelines.delete(name);
  if (isChosen) {
    const timeline = new Timeline();
    timelines.set(name, timeline);
    for await (const [, data] of eventsOf(await requested(`timeline?${new URLSearchParams({ run: name })}`))) {
      timeline.take(JSON.parse(data));
      break;  // as it is now; its own page follows it
    }
  }
  drawTable();
  drawCurves();
}

async function list() {
  try {
    runs = await (await requested("runs")).json();
    byId("token-form").hidden = true;
    write(byId("state"), runs.length === 1 ? "1 run" : `${count(runs.length)} runs`);
    drawTable();
  } catch (error) {
    byId("token-form").hidden = error.status !== 401;
    write(byId("state"), error.status === 401 ? "Locked" : "The command cannot be reached");
  }
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberToken(byId("token").value);
  list();
});
list();
