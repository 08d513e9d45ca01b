// Small functions on elements of the page, for every module.

export const byId = (id) => document.getElementById(id);

/** A copy of a template's content. */
export const fromTemplate = (id) => byId(id).content.firstElementChild.cloneNode(true);

export function element(tag, text, kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

/** Writes text only if it changed, so as not to disturb selections and screen readers. */
export function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}
