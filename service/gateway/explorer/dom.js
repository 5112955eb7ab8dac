// Elements. Text is always text: nothing here, or anywhere on the page, reads markup.

/**
 * Makes an element.
 *
 * @param {string} tag - Name of the element.
 * @param {object} attributes - Attributes; functions listen to the event that the name says (`onclick`);
 *   `true` is an attribute without a value; `false`, `null` and `undefined` are left out.
 * @param {...(Node|string|number|null)} children - Elements and text.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Makes an SVG element. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A button that does something. */
export function button(text, onclick, attributes = {}) {
  return h("button", { type: "button", onclick, ...attributes }, text);
}

/** A button that is on or off. */
export function toggle(text, on, changed, attributes = {}) {
  const element = button(
    text,
    () => {
      const now = element.getAttribute("aria-pressed") !== "true";
      element.setAttribute("aria-pressed", now);
      changed(now);
    },
    { ...attributes, "aria-pressed": String(on) },
  );
  return element;
}

/** A labelled field; `field` is the input itself. */
export function labelled(text, field, attributes = {}) {
  return h("label", { class: "field", ...attributes }, h("span", {}, text), field);
}

/** A number as people read it: at most three digits after the point, and no minus before a zero. */
export function shown(number, digits = 2) {
  const text = Number(number).toFixed(digits);
  return Number(text) === 0 ? (0).toFixed(digits) : text;
}

/** A labelled slider that shows its value. */
export function slider(text, { min, max, step, value, oninput }) {
  const output = h("output", {}, shown(value));
  const input = h("input", { type: "range", min, max, step, value, oninput: () => (output.value = shown(input.value)) });
  if (oninput) input.addEventListener("change", oninput);
  return { input, element: h("label", { class: "field" }, h("span", {}, text), input, output) };
}

/** A panel with a heading. */
export function panel(title, ...children) {
  return h("section", { class: "panel" }, h("h2", {}, title), ...children);
}

/** Saves bytes as a file of the visitor's. */
export function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
