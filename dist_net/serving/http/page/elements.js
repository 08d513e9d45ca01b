// The few things that every module does with elements of the page.

export const byId = (id) => document.getElementById(id);

/** A copy of what the template holds. */
export const fromTemplate = (id) => byId(id).content.firstElementChild.cloneNode(true);

export function element(tag, text, kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

/** Writes text only where it differs, so that selections and screen readers are left in peace. */
export function write(place, text) {
  if (place.textContent !== text) place.textContent = text;
}
