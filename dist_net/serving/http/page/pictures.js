// Draws a run as it was at a time: curves, the cluster, and what each worker did.

import { byId, element, fromTemplate, write } from "./elements.js";
import { box, curve, dot, plot } from "./plots.js";
import { absences, hostAndName } from "./timeline.js";
import { bytes, count, label, milliseconds, percent, perSecond } from "./words.js";

const WIDE = 1000;
const MANY = 24;  // beyond so many workers, rows and chips are small
const SILENT_S = 1.5;

const FIGURES = {
  loss: { value: (record) => record.loss, words: (loss) => loss.toPrecision(3) },
  accuracy: { value: (record) => record.accuracy, words: percent, top: 1 },
  speed: { value: (record) => record.samples_per_s, words: (rate) => `${perSecond(rate)}/s`, bottom: 0 },
};
const KINDS = [["train", "training"], ["test", "test"]];

/** Draws one curve for each kind of record; the newest numbers stand above them. */
export function drawCurves(picture) {
  for (const [name, figure] of Object.entries(FIGURES)) {
    const place = byId(name);
    place.paths ??= plot(place.querySelector(".plot"), WIDE, ["line train", "line test"]);
    const series = KINDS.map(([kind]) => picture.records
      .filter((record) => record.kind === kind && Number.isFinite(figure.value(record)))
      .map((record) => [record.samples / picture.perEpoch, figure.value(record)]));
    const values = series.flat().map(([, value]) => value);
    place.hidden = values.length === 0;
    if (!values.length) continue;
    const low = figure.bottom ?? Math.min(...values);
    const high = Math.max(...values, low + 1e-9);
    const epochs = Math.max(picture.facts.samples / picture.perEpoch, 1e-9);
    const share = ([epoch, value]) => [epoch / epochs, 0.02 + 0.96 * (value - low) / (high - low)];
    series.forEach((points, i) => place.paths[i].setAttribute("d",
      curve(thinned(points).map(share), WIDE)));
    Object.assign(place.querySelector(".plot").dataset,
      { top: figure.words(high), bottom: figure.words(low) });
    const newest = KINDS.map(([, words], i) => [words, series[i].at(-1)?.[1]])
      .filter(([, value]) => value !== undefined).reverse();
    write(place.querySelector(".now b"), figure.words(newest[0][1]));
    write(place.querySelector(".now small"), newest.length > 1
      ? ` ${newest[0][0]}, ${figure.words(newest[1][1])} ${newest[1][0]}` : ` ${newest[0][0]}`);
    write(place.querySelector(".until"), `epoch ${epochs.toFixed(1)}`);
    Object.assign(place, { series, epochs, words: figure.words });
    place.onpointermove ??= (event) => point(place, event);
    place.onpointerleave ??= () => write(place.querySelector(".pointed"), "");
  }
}

/** Writes the values under the pointer. */
function point(place, event) {
  const bounds = place.querySelector(".plot").getBoundingClientRect();
  const epoch = place.epochs * Math.min(1, Math.max(0, (event.clientX - bounds.left) / bounds.width));
  const near = place.series.map((points) => points.length && points.reduce((best, each) =>
    Math.abs(each[0] - epoch) < Math.abs(best[0] - epoch) ? each : best));
  const words = near.map((each, i) => each && `${KINDS[i][1]} ${place.words(each[1])}`);
  write(place.querySelector(".pointed"), `epoch ${epoch.toFixed(1)}: ${words.filter(Boolean).join(", ")}`);
}

/** At most 300 points, each the mean of neighbours: more is noise. */
function thinned(points) {
  const size = Math.ceil(points.length / 300);
  if (size <= 1) return points;
  const means = [];
  for (let i = 0; i < points.length; i += size) {
    const part = points.slice(i, i + size);
    means.push([0, 1].map((axis) => part.reduce((sum, each) => sum + each[axis], 0) / part.length));
  }
  return means;
}

/** Draws the server, the standbys and the hosts with their workers. */
export function drawCluster(picture) {
  const { facts } = picture;
  const workers = Object.entries(facts.workers ?? {});
  const { open: lost } = absences(picture.events, picture.at);
  const hosts = new Map();
  const onHost = (host) => hosts.get(host) ?? hosts.set(host, []).get(host);
  const serverHost = facts.host || hostAndName(workers[0]?.[0] ?? "this host/")[0];
  onHost(serverHost);
  for (const [host] of facts.standbys ?? []) onHost(host);
  for (const [who, known] of workers) {
    onHost(hostAndName(who)[0]).push(workerChip(who, known, facts.slow?.[who], lost.has(who)));
  }
  for (const who of lost.keys()) {
    if (!(who in (facts.workers ?? {}))) onHost(hostAndName(who)[0]).push(workerChip(who, null, null, true));
  }
  const cards = [...hosts].map(([host, chips]) => {
    const card = fromTemplate("host-template");
    const roles = card.querySelector(".roles");
    write(card.querySelector("h3"), host || "unknown host");
    if (host === serverHost) {
      card.dataset.role = "server";
      roles.append(chip("server", "parameter server", `version ${count(facts.version ?? 0)}, term ${facts.term_number ?? 1}`));
    }
    for (const [standby, hasCopy, arrived, versions, seconds] of facts.standbys ?? []) {
      if (standby !== host) continue;
      roles.append(chip("standby", "standby", hasCopy
        ? `${count(versions)} versions, ${(seconds ?? 0).toFixed(1)} s behind`
        : `copying: ${percent(arrived)} has arrived`));
    }
    const list = card.querySelector(".workers");
    list.append(...chips);
    list.classList.toggle("many", workers.length > MANY);
    write(card.querySelector(".link"), linkOf(host, serverHost, facts));
    return card;
  });
  byId("cluster-hosts").replaceChildren(...cards);
}

function linkOf(host, serverHost, facts) {
  if (host === serverHost) return "exchanges states in this host's memory";
  const workers = Object.entries(facts.workers ?? {});
  if (workers.some(([, known]) => known[6] !== undefined)) {
    const exchanged = workers.filter(([who]) => hostAndName(who)[0] === host)
      .reduce((sum, [, known]) => sum + known[6], 0);
    return `by network to ${serverHost}${exchanged ? `: ${bytes(exchanged)} since it joined` : ""}`;
  }
  const perSample = (facts.bytes_received_per_sample ?? 0) + (facts.bytes_sent_per_sample ?? 0);
  const rate = bytes(Math.round(perSample * (facts.samples_per_s ?? 0)));
  return `by network to ${serverHost}: ${rate}/s over all links`;
}

function chip(kind, name, text) {
  const made = element("p", "", `chip ${kind}`);
  made.append(element("b", name), " ", element("span", text));
  return made;
}

function workerChip(who, known, slow, isLost) {
  const made = fromTemplate("worker-template");
  const [processes, rate, heardAgo, exchange, lease] = known ?? [];
  const isSilent = isLost || heardAgo > SILENT_S;
  const state = isSilent ? "lost" : slow !== undefined && slow !== null ? "slow"
    : lease === null ? "waiting" : "computing";
  made.dataset.state = state;
  const name = hostAndName(who)[1];
  write(made.querySelector("b"), name);
  const speed = known ? `${perSecond(rate)} samples/s` : "";
  const more = processes > 1 ? `, ${processes} processes` : "";
  const words = isSilent ? (known ? `silent for ${heardAgo.toFixed(1)} s` : "lost")
    : `${state}, ${speed}${more}, exchange ${milliseconds(1000 * exchange)}`;
  write(made.querySelector("span"), words);
  made.title = `${name}: ${words}${slow ? `; ${slow}` : ""}`;
  return made;
}

/** Draws a row for the server and each worker between two times. */
export function drawTime(picture, timeline, [from, to]) {
  const share = (at) => (at - from) / Math.max(to - from, 1e-6);
  const inside = (at) => at >= from && at <= to;
  const bars = new Map();
  for (const { at, leases, workers } of picture.moments) {
    for (const who of Object.keys(workers ?? {})) if (!bars.has(who)) bars.set(who, []);
    for (const [who, pieces] of Object.entries(leases)) {
      const its = bars.get(who) ?? bars.set(who, []).get(who);
      for (const [began, ended, computed, exchanged] of pieces) {
        if (at + ended >= from && at + began <= to) its.push([at + began, at + ended, computed, exchanged]);
      }
    }
  }
  const { found } = absences(picture.events, picture.at);
  const rows = [...bars].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  const place = byId("lanes");
  place.classList.toggle("many", rows.length > MANY);
  const left = new Map([...place.children].map((row) => [row.dataset.key, row]));
  const keep = [];
  const rowOf = (key, name, host, classes) => {
    const row = left.get(key) ?? newRow(key, classes);
    write(row.querySelector("b"), name);
    write(row.querySelector("small"), host);
    keep.push(row);
    return row;
  };
  drawServer(picture, timeline, rowOf, share, inside, from, to);
  for (const [who, pieces] of rows) {
    const [host, name] = hostAndName(who);
    const row = rowOf(`worker ${who}`, name, host, ["computing", "exchanging", "fault"]);
    let computing = "", exchanging = "", spent = 0, waited = 0;
    for (const [began, ended, computed, exchanged] of pieces) {
      const length = ended - began || 1e-6, a = Math.max(0, share(began)), b = Math.min(1, share(ended));
      if (b - a > 0.012) {  // wide enough to show what came first
        const middle = a + (b - a) * computed / length;
        computing += box(a, middle, 0, 1, WIDE);
        exchanging += box(middle, a + (b - a) * Math.min(1, (computed + exchanged) / length), 0, 1, WIDE);
      } else {
        computing += box(a, b, 0, computed / length, WIDE);
        exchanging += box(a, b, computed / length, Math.min(1, (computed + exchanged) / length), WIDE);
      }
      spent += computed + exchanged;
      waited += length - computed - exchanged;
    }
    const faults = (found.get(who) ?? []).filter(([a, b]) => b >= from && a <= to)
      .map(([a, b]) => box(Math.max(0, share(a)), Math.min(1, Math.max(share(b), share(a) + 0.004)), 0, 1, WIDE));
    [computing, exchanging, faults.join("")].forEach((d, i) => row.paths[i].setAttribute("d", d));
    const gaps = pieces.slice(1).reduce((sum, each, i) => sum + Math.max(0, each[0] - pieces[i][1]), waited);
    write(row.querySelector(".share"), spent ? `busy ${Math.round(100 * spent / (spent + gaps))} %` : "");
  }
  place.replaceChildren(...keep);
  write(byId("from"), clock(from, picture.facts));
  write(byId("to"), clock(to, picture.facts));
}

function drawServer(picture, timeline, rowOf, share, inside, from, to) {
  const terms = [];
  for (const { at, host, term_number: term } of picture.moments) {
    if (!term) continue;
    const last = terms.at(-1);
    if (last?.term === term) last.ends = at;
    else terms.push({ host, term, begins: at, ends: at });
  }
  for (const host of new Set(terms.map((each) => each.host))) {
    const row = rowOf(`server ${host}`, "server", host,
      ["serving", "mark takeover", "mark checkpoint", "mark evaluation"]);
    const own = terms.filter((each) => each.host === host && each.ends >= from && each.begins <= to);
    const serving = own.map(({ begins, ends }) =>
      box(Math.max(0, share(begins)), Math.min(1, share(ends)), 0.42, 0.58, WIDE));
    const takeovers = own.filter((each) => each !== terms[0] && inside(each.begins))
      .map(({ begins }) => box(share(begins) - 0.002, share(begins) + 0.002, 0, 1, WIDE));
    const servedThen = (at) => terms.findLast((each) => each.begins <= at)?.host === host;
    let checkpoint;
    const checkpoints = picture.moments.filter((moment) => {
      const isNew = moment.checkpoint_version !== checkpoint;
      checkpoint = moment.checkpoint_version;
      return isNew && moment.host === host && inside(moment.at);
    }).map(({ at }) => dot(share(at), 0.2, WIDE));
    const evaluations = picture.records.filter((record) => record.kind === "test")
      .map((record) => timeline.timeOf(record.samples)).filter((at) => inside(at) && servedThen(at))
      .map((at) => dot(share(at), 0.8, WIDE));
    [serving, takeovers, checkpoints, evaluations]
      .forEach((all, i) => row.paths[i].setAttribute("d", all.join("")));
  }
}

/** Draws what the classifier gets wrong, and its first weights, once its run is evaluated. */
export function drawOutcome({ records }) {
  const place = byId("outcome"), outcome = records.findLast((record) => record.kind === "outcome");
  place.hidden = !outcome;
  if (!outcome || place.shown === outcome) return;
  place.shown = outcome;
  const { classes, confusion, mistakes, filters } = outcome;
  const header = (text, scope) => Object.assign(element("th", text), { scope });
  byId("by-class").hidden = !confusion.length;
  const head = document.createElement("tr");
  head.append(element("td", ""), ...classes.map((name) => {
    const made = header("", "col");
    made.append(element("span", label(name)));
    return made;
  }));
  document.querySelector("#confusion thead").replaceChildren(head);
  document.querySelector("#confusion tbody").replaceChildren(...confusion.map((counts, i) => {
    const row = document.createElement("tr"), total = counts.reduce((sum, each) => sum + each, 0);
    row.append(header(label(classes[i]), "row"), ...counts.map((number) => {
      const share = number / Math.max(1, total);
      const cell = element("td", count(number), share > 0.5 ? "dark" : number ? "" : "none");
      cell.style.setProperty("--share", share);
      return cell;
    }));
    return row;
  }));
  byId("wrong").hidden = !mistakes.length;
  byId("mistakes").replaceChildren(...mistakes.map(({ label: truth, answer, probability, image }) => {
    const made = element("li", ""), shown = element("img", "");
    Object.assign(shown, { src: image, alt: "" });
    made.append(shown, element("b", label(answer)), ` ${percent(probability)}`,
      element("small", `labelled ${label(truth)}`));
    return made;
  }));
  byId("filters").hidden = !filters;
  byId("filters").querySelector("img").src = filters;
}

function newRow(key, classes) {
  const row = fromTemplate("lane-template");
  row.dataset.key = key;
  row.paths = plot(row.querySelector(".lane"), WIDE, classes);
  return row;
}

/** A time as a clock shows it; of a run without moments, since its beginning. */
export function clock(at, { is_old: isOld } = {}) {
  if (isOld) return `${at.toFixed(1)} s`;
  return new Date(1000 * at).toLocaleTimeString("en-GB");
}
