// What this page knows of a run: its moments and records, and how they were at any time.

/** A run as the server describes it; `take` adds a message of /timeline. */
export class Timeline {
  about = {};
  moments = [];  // each with the facts of the moments before it
  records = [];
  events = [];
  #lostAt = new Map();

  take({ about, lines }) {
    if (about) Object.assign(this, { about, moments: [], records: [], events: [] });
    if (about) this.#lostAt.clear();
    for (const line of lines) {
      if ("at" in line) this.#addMoment(line);
      else this.records.push(line);
    }
    this.records.sort((a, b) => a.samples - b.samples);
    if (about && !this.moments.length) this.#addMomentsOfRecords();
  }

  #addMoment(line) {
    const before = this.moments.at(-1) ?? {};
    const moment = { ...before, leases: {}, ...line };
    this.moments.push(moment);
    for (const event of line.events ?? []) {
      this.events.push(event);
      if (event.what === "lost") this.#lostAt.set(event.who, event.at);
      else this.#lostAt.delete(event.who);
    }
    for (const [who, pieces] of Object.entries(line.leases ?? {})) {
      // A process of this name was lost, and another took its place before the server knew.
      const ended = line.at + Math.max(...pieces.map(([, end]) => end));
      if (ended > (this.#lostAt.get(who) ?? Infinity)) {
        this.#lostAt.delete(who);
        this.events.push({ at: ended, what: "back", who, text: "" });
      }
    }
    if (before.term_number && moment.term_number > before.term_number) {
      const where = moment.host === before.host
        ? `The server started again on ${moment.host}`
        : `${moment.host} took over from ${before.host}: it serves the run now`;
      this.events.push({ at: line.at, what: "takeover", text: `${where} (term ${moment.term_number}).` });
    }
  }

  /** A run of an earlier release has no moments: its records tell when its samples were done. */
  #addMomentsOfRecords() {
    const timed = this.records.filter((record) => record.kind === "train" && record.seconds > 0);
    for (const { seconds, samples, epoch, version } of timed) {
      this.#addMoment({
        at: seconds, samples, version, samples_under_way: 0, epochs: timed.at(-1).epoch,
        samples_total: timed.at(-1).samples, state: "finished", samples_per_s: samples / seconds,
        is_old: true, epoch,
      });
    }
  }

  get isEmpty() { return this.moments.length === 0; }
  get begins() { return this.moments[0]?.at ?? 0; }
  get ends() { return this.moments.at(-1)?.at ?? 0; }

  /** Everything as it was at a time: `facts`, `records`, `events` and `moments` until then. */
  until(at) {
    const moments = at >= this.ends ? this.moments : this.moments.filter((each) => each.at <= at);
    const facts = moments.at(-1) ?? this.moments[0];
    return {
      at, facts, moments,
      perEpoch: facts.samples_total / facts.epochs,
      records: this.records.filter((record) => record.samples <= facts.samples),
      events: this.events.filter((event) => event.at <= at).sort((a, b) => a.at - b.at),
    };
  }

  /** When so many samples were done. */
  timeOf(samples) {
    return (this.moments.find((moment) => moment.samples >= samples) ?? this.moments.at(-1)).at;
  }
}

export const hostAndName = (who) => {
  const slash = who.lastIndexOf("/");
  return [who.slice(0, slash), who.slice(slash + 1)];
};

/** A worker as people name it: worker-0 exists on each host. */
export function named(who) {
  const [host, name] = hostAndName(who);
  return host ? `${name} on ${host}` : name;
}

/** Events with those of several workers of a host, at the same time, as one with their `count`. */
export function grouped(events) {
  const groups = [];
  for (const event of events) {
    const last = groups.at(-1);
    const isSame = last && event.who && last.who && event.what === last.what &&
      event.at - last.at < 1 && hostAndName(event.who)[0] === hostAndName(last.who)[0];
    if (isSame) groups[groups.length - 1] = { ...last, count: (last.count ?? 1) + 1 };
    else groups.push(event);
  }
  return groups;
}

/** An event as a sentence. */
export function sentence({ what, who, text, count }) {
  const because = text ? `: ${text}` : "";
  if (count) {
    const workers = `${count} workers on ${hostAndName(who)[0]}`;
    switch (what) {
      case "lost": return `${workers} were lost${because}. Other workers do their leases again.`;
      case "back": return `${workers} are back.`;
      default: return `${workers} ${what}.`;
    }
  }
  switch (what) {
    case "joined": return `${named(who)} joined.`;
    case "lost": return `${named(who)} was lost${because}. Other workers do its lease again.`;
    case "back": return `${named(who)} is back${because}.`;
    case "left": return `${named(who)} left.`;
    default: return text;
  }
}

/** The time between two events of a worker in which it was lost: [from, to], in order. */
export function absences(events, ends) {
  const found = new Map(), open = new Map();
  for (const { at, what, who } of events) {
    if (!who) continue;
    if (what === "lost" && !open.has(who)) open.set(who, at);
    else if (what !== "lost" && open.has(who)) {
      found.set(who, [...(found.get(who) ?? []), [open.get(who), at]]);
      open.delete(who);
    }
  }
  for (const [who, at] of open) found.set(who, [...(found.get(who) ?? []), [at, ends]]);
  return { found, open };
}
