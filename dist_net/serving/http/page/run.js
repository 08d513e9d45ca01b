// Follows a run, and draws it as it is now, or as it was at the time that the slider shows.

import { byId, element, write } from "./elements.js";
import { eventsOf, rememberToken, requested } from "./followed.js";
import { clock, drawCluster, drawCurves, drawOutcome, drawTime } from "./pictures.js";
import { Timeline, grouped, named, sentence } from "./timeline.js";
import { count, duration, percent, perSecond } from "./words.js";

const AGAIN_MS = 1000;
const QUIET_S = 15;  // a run that writes nothing for longer does not run
const EVENTS_SHOWN = 200;
const OVER = ["finished", "stopping"];
const PLURAL = ["no workers", "one worker", "two workers", "three workers", "four workers"];

const timeline = new Timeline();
let chosen = null;  // the time that is shown; null: the newest
let playing = 0;
let scheduled = false;

function schedule() {
  if (scheduled) return;
  scheduled = true;
  const later = document.hidden ? (draw) => setTimeout(draw, 1000) : requestAnimationFrame;
  later(() => {
    scheduled = false;
    draw();
  });
}

function draw() {
  byId("empty").hidden = !timeline.isEmpty;
  byId("data").hidden = byId("replay").hidden = timeline.isEmpty;
  write(byId("name"), `run ${timeline.about.name ?? ""}`);
  document.title = `${timeline.about.name ?? "run"} · dist_net`;
  const isOver = timeline.isEmpty || OVER.includes(timeline.moments.at(-1).state);
  byId("report").hidden = !(timeline.about.is_folder && isOver);
  if (timeline.isEmpty) return;
  const picture = timeline.until(chosen ?? timeline.ends);
  drawNow(picture);
  drawCurves(picture);
  byId("cluster").hidden = byId("time").hidden = Boolean(picture.facts.is_old);
  drawCluster(picture);
  const length = Number(byId("window").value);
  drawTime(picture, timeline, [Math.max(timeline.begins, length ? picture.at - length : 0), picture.at]);
  drawEvents(picture);
  drawOutcome(picture);
  drawReplay(picture);
}

function drawNow({ facts, records, perEpoch }) {
  const tests = records.filter((record) => record.kind === "test");
  const done = facts.samples + (facts.samples_under_way ?? 0);
  const share = Math.min(1, done / facts.samples_total);
  byId("progress").value = share;
  const workers = facts.worker_count;
  const parts = [`Epoch ${(done / perEpoch).toFixed(1)} of ${count(Math.round(facts.epochs))}`];
  const accuracy = tests.at(-1)?.accuracy;
  if (accuracy !== undefined && accuracy !== null) parts.push(`${percent(accuracy)} right on the test samples`);
  const isOver = OVER.includes(facts.state);
  if (!isOver && facts.samples_per_s) {
    parts.push(`${duration((facts.samples_total - done) / facts.samples_per_s)} left`);
  }
  const ending = facts.state === "finished" ? "The run is done. " : "";
  const helpers = isOver || workers === undefined ? ""
    : `; ${PLURAL[workers] ?? `${count(workers)} workers`}`;
  write(byId("sentence"), `${ending}${parts.join(", ")}${helpers}.`);
  write(byId("learning"), learning(tests, perEpoch, facts));
  const slow = Object.entries(facts.slow ?? {});
  const words = slow.map(([who, why]) => `${named(who)} is slow${why ? `: ${why}` : ""}.`);
  write(byId("slowest"), words.join(" ") ||
    (Object.keys(facts.workers ?? {}).length > 1 ? "No worker is slow." : ""));
  byId("slowest").className = slow.length ? "bad" : "good";
  const rounds = facts.samples_per_update && facts.consistency !== "async"
    ? `A round has ${count(Math.round(facts.samples_per_update))} samples` : "";
  const cost = facts.consistency === "async"
    ? `Staleness is ${facts.staleness_mean?.toFixed(1)} on average`
    : `${rounds}; workers wait ${percent(facts.waiting_share ?? 0)} of their time`;
  write(byId("exchange"), facts.consistency ? `${cost}. Mean speed: ${perSecond(facts.samples_per_s)} samples/s.` : "");
}

/** Whether the loss on the test samples still falls. */
function learning(tests, perEpoch, { state }) {
  const known = tests.filter((record) => Number.isFinite(record.loss));
  byId("learning").className = "";
  if (known.length < 2 && timeline.about.is_elsewhere) return "Its own host evaluates it: these are the figures of training.";
  if (known.length < 2 && OVER.includes(state)) return "";
  if (known.length < 2) return "It is too early to tell whether it learns: the first evaluations are missing.";
  const best = known.reduce((least, each) => each.loss < least.loss ? each : least);
  const since = known.length - 1 - known.indexOf(best);
  const epoch = (record) => (record.samples / perEpoch).toFixed(1);
  byId("learning").className = since > 3 ? "bad" : "good";
  if (since > 3) {
    return `The test loss was lowest at epoch ${epoch(best)} (${best.loss.toPrecision(3)}), ` +
      `${since} evaluations before: more training does not help.`;
  }
  const earlier = known[Math.max(0, known.length - 6)];
  const words = state === "finished" ? "It learned until the end" : "It is still learning";
  return `${words}: the test loss fell from ${earlier.loss.toPrecision(3)} at epoch ${epoch(earlier)} ` +
    `to ${best.loss.toPrecision(3)}.`;
}

function drawEvents({ events, records, facts, perEpoch }) {
  const tests = records.filter((record) => record.kind === "test");
  const evaluations = (byId("with-evaluations").checked ? tests : tests.slice(-1)).map((record) => ({
    at: timeline.timeOf(record.samples),
    what: "evaluation",
    text: `Epoch ${(record.samples / perEpoch).toFixed(1)}: ` + (record.accuracy === null ? "" :
      `${percent(record.accuracy)} right on the test samples, `) + `loss ${record.loss?.toPrecision(4)}.`,
  }));
  const all = [...grouped(events), ...evaluations].sort((a, b) => a.at - b.at).slice(-EVENTS_SHOWN).reverse();
  byId("no-events").hidden = all.length > 0;
  const list = byId("events");
  const key = (event) => `${event.at} ${event.what} ${event.who} ${event.count} ${event.text}`;
  const left = new Map([...list.children].map((item) => [item.dataset.key, item]));
  list.replaceChildren(...all.map((event) => {
    const made = left.get(key(event)) ?? element("li", "", event.what ?? "notice");
    if (!made.dataset.key) {
      made.dataset.key = key(event);
      const button = element("button", clock(event.at, facts));
      button.type = "button";
      button.title = "Show the run at this time";
      button.addEventListener("click", () => choose(event.at));
      made.append(button, element("span", sentence(event)));
    }
    return made;
  }));
}

function drawReplay({ at, facts }) {
  const length = timeline.ends - timeline.begins;
  byId("at").value = length ? 1000 * (at - timeline.begins) / length : 1000;
  write(byId("shown"), clock(at, facts));
  byId("at").setAttribute("aria-valuetext", clock(at, facts));
  write(byId("play"), playing ? "Pause" : "Play");
  byId("newest").disabled = chosen === null;
}

function choose(at) {
  stop();
  chosen = at >= timeline.ends ? null : at;
  schedule();
}

function stop() {
  cancelAnimationFrame(playing);
  playing = 0;
}

function play() {
  const length = timeline.ends - timeline.begins, before = performance.now();
  const from = chosen === null ? timeline.begins : chosen;
  const step = (now) => {
    const at = from + length * (now - before) / (1000 * Number(byId("seconds").value));
    if (at >= timeline.ends) {
      stop();
      chosen = null;
    } else {
      chosen = at;
      playing = requestAnimationFrame(step);
    }
    draw();
  };
  playing = requestAnimationFrame(step);
}

byId("play").addEventListener("click", () => {
  if (playing) stop();
  else play();
  schedule();
});
byId("at").addEventListener("input", () => {
  const share = byId("at").value / 1000;
  choose(timeline.begins + share * (timeline.ends - timeline.begins));
});
byId("newest").addEventListener("click", () => choose(Infinity));
byId("window").addEventListener("change", schedule);
byId("with-evaluations").addEventListener("change", schedule);
byId("replay").addEventListener("submit", (event) => event.preventDefault());
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberToken(byId("token").value);
  byId("token-form").reset();
  byId("token-form").hidden = true;
  follow();
});
for (const link of document.querySelectorAll('a[href^="#term"]')) {
  link.addEventListener("click", () => { byId("terms").open = true; });
}

function showState(state, text) {
  document.body.dataset.state = state;
  write(byId("state"), text);
}

/** How the run is, by what was heard last. */
function showRun() {
  if (timeline.isEmpty) return showState("connecting", "The run begins…");
  const { state, at, is_old: isOld } = timeline.moments.at(-1);
  const silent = Date.now() / 1000 - at;
  if (state === "finished") return showState("ready", "Finished");
  if (isOld || silent > QUIET_S) return showState("unready", isOld ? "Over" : `Not running since ${clock(at)}`);
  if (state === "waiting") return showState("unready", "Waiting for a worker");
  showState("ready", state === "stopping" ? "Stopping" : "Training");
}

/** Reads server-sent events again and again; EventSource could not send a token. */
async function follow() {
  const run = new URLSearchParams(location.search).get("run") ?? "";
  byId("report").querySelector("a").href = `report.html?${new URLSearchParams({ run })}`;
  let seen = "";
  for (;;) {
    try {
      const stream = await requested(`timeline?${new URLSearchParams({ seen, run })}`);
      showRun();
      for await (const [id, data] of eventsOf(stream)) {
        seen = id;
        timeline.take(JSON.parse(data));
        showRun();
        schedule();
      }
      showRun();
    } catch (error) {
      if (error.status === 401) {
        byId("token-form").hidden = false;
        return showState("locked", "Locked");
      }
      const last = timeline.moments.at(-1);
      if (last && OVER.includes(last.state)) showState("ready", "Finished; dist-net watch shows it again");
      else showState("offline", error.status ? error.message : "The run's command cannot be reached");
    }
    await new Promise((resume) => { setTimeout(resume, AGAIN_MS); });
  }
}

if (globalThis.exportedRun) {
  timeline.take(globalThis.exportedRun);
  showRun();
  draw();
} else {
  follow();
}
