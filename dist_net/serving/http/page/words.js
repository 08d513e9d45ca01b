// Numbers as people read them.

const whole = new Intl.NumberFormat("en");

export const count = (number) => whole.format(number);

/** Three digits are enough to compare: 0.42 ms, 8.31 ms, 142 ms, 1.43 s. */
export function milliseconds(ms) {
  if (ms === null || ms === undefined) return "–";
  return ms < 1000 ? `${threeDigits(ms)} ms` : `${threeDigits(ms / 1000)} s`;
}

export function perSecond(rate) {
  return rate < 100 ? threeDigits(rate) : count(Math.round(rate));
}

function threeDigits(number) {
  if (number < 10) return number.toFixed(2);
  return number < 100 ? number.toFixed(1) : number.toFixed(0);
}

export function percent(probability) {
  if (probability > 0 && probability < 0.0005) return "< 0.1 %";
  return `${(100 * probability).toFixed(1)} %`;
}

export function bytes(number) {
  if (number < 1024) return `${number} B`;
  const power = Math.min(3, Math.floor(Math.log2(number) / 10));
  const amount = number / 1024 ** power;
  const digits = amount < 10 && !Number.isInteger(amount) ? 1 : 0;
  return `${amount.toFixed(digits)} ${["B", "KiB", "MiB", "GiB"][power]}`;
}

/** The two largest units: 42 s, 3 min 5 s, 2 h 10 min, 4 d 3 h. */
export function duration(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = Math.max(0, parts.findIndex(([size]) => seconds >= size));
  if (seconds < 1) return "0 s";
  let left = seconds;
  return parts.slice(first, first + 2).map(([size, unit]) => {
    const amount = Math.floor(left / size);
    left -= amount * size;
    return amount ? `${amount} ${unit}` : "";
  }).filter(Boolean).join(" ");
}

export function heard(secondsAgo) {
  return secondsAgo < 1 ? "just now" : `${duration(secondsAgo)} ago`;
}

/** Class names come as "n02782093 balloon" or "hot_air_balloon" in some lists of labels. */
export const label = (text) => text.replaceAll("_", " ");
