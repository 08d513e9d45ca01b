// The last minute of the pool: one sample a second, as this page received them.

export const SECONDS = 60;

/** Samples by name; a name that is gone is forgotten. */
export class History {
  #samples = new Map();

  /** Adds a sample for each thing; returns all samples of each by name, oldest first. */
  add(things) {
    const known = new Map();
    for (const thing of things) {
      const before = this.#samples.get(thing.name) ?? [];
      known.set(thing.name, [...before, thing].slice(-1 - SECONDS));
    }
    this.#samples = known;
    return known;
  }
}

/** A count's growth per second from each sample to the next; null if it restarted. */
export function rates(samples, countOf) {
  return samples.slice(1).map((sample, i) => {
    const grown = countOf(sample) - countOf(samples[i]);
    const seconds = (sample.received - samples[i].received) / 1000;
    return grown < 0 || seconds <= 0 ? null : grown / seconds;
  });
}

/** How often each batch size was used in the last minute, or since the start. */
export function recentBatches(samples) {
  const now = samples.at(-1).batch_rows;
  const then = samples.length > SECONDS ? samples[0].batch_rows : {};
  const grown = Object.entries(now)
    .map(([rows, times]) => [Number(rows), times - (then[rows] ?? 0)]);
  return grown.filter(([, times]) => times > 0).sort(([a], [b]) => a - b);
}
