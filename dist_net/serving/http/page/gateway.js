// Requests to the gateway, and plain words for its errors.

const TOKEN = "dist_net token";
const POLL_TIMEOUT_MS = 5000;

const WORDS = {
  400: "The image could not be read.",
  401: "This pool needs a token.",
  403: "The pool does not accept requests from this page.",
  404: "The pool does not serve this model.",
  413: "The image is larger than the pool allows.",
  415: "The pool does not accept files of this kind.",
  503: "The pool cannot answer now.",
  504: "The answer took too long.",
};

/** Why there is no answer: `message` in our words, `reason` in the gateway's. */
export class Problem extends Error {
  constructor(status, reason = "", retryAfterS = 0) {
    super(status === 0 ? "The gateway cannot be reached."
      : WORDS[status] ?? `The pool failed to answer (${status}).`);
    this.status = status;
    this.reason = reason;
    this.retryAfterS = retryAfterS;
  }
}

export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;

/** Kept for this tab only, so that a reload does not ask again. */
export function useToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

/** The pool as it is now. Throws a Problem. */
export async function pool() {
  const answer = await send("pool", { signal: AbortSignal.timeout(POLL_TIMEOUT_MS) });
  return { ...answer, received: performance.now() };
}

// Relative, as all addresses here: a proxy may offer the pool below a path of its own.
export const classifyPath = (model) => `v1/models/${encodeURIComponent(model)}/classify?top=5`;
const samplesPath = (model) => `v1/models/${encodeURIComponent(model)}/samples`;

/** What each image shows that a model can be tried with. Throws a Problem. */
export async function sampleLabels(model) {
  return (await send(samplesPath(model), {})).map(({ label }) => label);
}

/** One of these images. Throws a Problem. */
export const sampleImage = (model, number) => content(`${samplesPath(model)}/${number}`);

/** The top five classes of an image, and `total_ms` as measured here. Throws a Problem. */
export async function classify(model, image, signal) {
  const before = performance.now();
  const answer = await send(classifyPath(model), {
    method: "POST",
    body: image,
    headers: { "Content-Type": image.type || "application/octet-stream" },
    signal,
  });
  return { ...answer, total_ms: performance.now() - before };
}

const labelsPath = (model, given) =>
  `v1/models/${encodeURIComponent(model)}/labels?${new URLSearchParams(given)}`;

/** Labels an image, a file or the digest of one; null: none of the classes. Throws a Problem. */
export function setLabel(model, image, label, isNew) {
  const isFile = image instanceof Blob;
  const given = { ...(label !== null && { label }), ...(isNew && { new: 1 }) };
  return send(labelsPath(model, isFile ? given : { ...given, image }), {
    method: "POST",
    ...(isFile && {
      body: image,
      headers: { "Content-Type": image.type || "application/octet-stream" },
    }),
  });
}

/** The images whose labels would teach a model most. Throws a Problem. */
export const queue = (model) => send(`v1/models/${encodeURIComponent(model)}/queue`, {});

/** The report of a model, as the text of a page, and when it was written. Throws a Problem. */
export const reportOfModel = (model) => report(`v1/models/${encodeURIComponent(model)}/report`);

/** The report of a run, likewise. */
export const reportOfRun = (run) => report(`report?${new URLSearchParams({ run })}`);

const report = (path) => send(path, {}, async (response) =>
  [await response.text(), new Date(response.headers.get("Last-Modified"))]);

/** The latest labels, the newest first. Throws a Problem. */
export const labels = (model) => send(labelsPath(model, {}), {});

export const withdrawLabel = (model, number) =>
  send(labelsPath(model, { number }), { method: "DELETE" });

/** The names of all classes of a model's newest version. Throws a Problem. */
export const classNames = async (model) =>
  (await send(`v1/models/${encodeURIComponent(model)}`, {})).described?.[0]?.labels ?? [];

/** The content at a path, for the browser to show. Throws a Problem. */
export const content = (path) => send(path, {}, (response) => response.blob());

async function send(path, options, read = (response) => response.json()) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  try {
    const response = await fetch(path, { ...options, headers, cache: "no-store" });
    if (!response.ok) throw await problem(response);
    return await read(response);
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    throw new Problem(0);  // no connection, cut off, or silent for too long
  }
}

async function problem(response) {
  const { error = "" } = await response.json().catch(() => ({}));
  return new Problem(response.status, String(error), Number(response.headers.get("Retry-After")));
}
