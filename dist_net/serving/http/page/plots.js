// Small plots in SVG without axes; their numbers stand beside them as text.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 100;

/** An SVG of `width` units by 100 that fills its place, with an empty path of each class. */
export function plot(place, width, classes) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const paths = classes.map((name) => {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", name);
    svg.append(path);
    return path;
  });
  place.append(svg);
  return paths;
}

/** `values` (null: a gap) as heights of the plot, the newest at the right edge. */
const points = (values, width, height) => values.map((value, i) =>
  value === null ? null : [width - values.length + 1 + i, HEIGHT * (1 - height(value))]);

/** The outline of each run without a gap, ended by what `close` returns for it. */
function runs(all, close) {
  let d = "", run = [];
  for (const point of [...all, null]) {
    if (point) run.push(point);
    else if (run.length) {
      d += `M${run.map(([x, y]) => `${x} ${y.toFixed(2)}`).join("L")}${close(run)}`;
      run = [];
    }
  }
  return d;
}

export const line = (values, width, height) =>
  runs(points(values, width, height), (run) => run.length === 1 ? "h.01" : "");

export const area = (values, width, height) =>
  runs(points(values, width, height), (run) => `V${HEIGHT}H${run[0][0]}Z`);

/** A line through points [x, y] that are shares of the plot's width and height; null: a gap. */
export const curve = (shares, width) =>
  runs(shares.map((point) => point && [(width * point[0]).toFixed(2), HEIGHT * (1 - point[1])]),
    (run) => run.length === 1 ? "h.01" : "");

/** A box from `left` to `right`, shares of the plot's width, between two shares of its height. */
export const box = (left, right, bottom, top, width) =>
  `M${(width * left).toFixed(2)} ${(HEIGHT * (1 - bottom)).toFixed(1)}` +
  `V${(HEIGHT * (1 - top)).toFixed(1)}H${(width * right).toFixed(2)}` +
  `V${(HEIGHT * (1 - bottom)).toFixed(1)}Z`;

/** A dot, whose size is that of the line. */
export const dot = (x, y, width) => `M${(width * x).toFixed(2)} ${(HEIGHT * (1 - y)).toFixed(1)}h.01`;

/** The space between two rows of values that have the same gaps. */
export function band(lower, upper, width, height) {
  const floor = points(lower, width, height).filter(Boolean);
  return runs(points(upper, width, height), (run) => {
    const below = floor.splice(0, run.length).reverse();
    return `L${below.map(([x, y]) => `${x} ${y.toFixed(2)}`).join("L")}Z`;
  });
}

/** One column for each value above 0. */
export const columns = (values, width, height) => values.map((value, i) => {
  if (!value) return "";
  const x = width - values.length + i, y = HEIGHT * (1 - height(value));
  return `M${x + 0.12} ${HEIGHT}V${y.toFixed(2)}h.76V${HEIGHT}Z`;
}).join("");

/** From 0 to the largest, but at least `atLeast`, so that noise does not look like load. */
export function linear(largest, atLeast) {
  const top = Math.max(largest, atLeast);
  return { top, height: (value) => 0.96 * value / top };
}

/** Logarithmic over whole decades around all values. */
export function logarithmic(values) {
  const known = values.filter((value) => value > 0);
  if (!known.length) return { bottom: 1, top: 10, height: () => 0 };
  const low = Math.floor(Math.log10(Math.min(...known)) + 1e-9);
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...known)) - 1e-9));
  return {
    bottom: 10 ** low,
    top: 10 ** high,
    height: (value) => Math.max(0, (Math.log10(value) - low) / (high - low)),
  };
}
