// Makes elements. Texts become text nodes only, never markup: the page's policy refuses that too.

import { fill } from "./texts.js";

const SVG = "http://www.w3.org/2000/svg";
const ICONS = new URL("icons.svg", import.meta.url).pathname;

/**
 * Returns a new element.
 * `text`, `label` (aria-label), `placeholder` and `tip` (title) are keys of the texts, `values` what their {gaps} get,
 * `raw` is a text as it stands, `on` maps events to handlers, `data` are data attributes. The rest are attributes:
 * false and null leave one out, true sets it empty.
 */
export function el(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  const { text, label, placeholder, tip, values, raw, on = {}, data = {}, ...attributes } = options;
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    node.setAttribute(name, value === true ? "" : value);
  }
  for (const [name, value] of Object.entries(data)) node.dataset[name] = value;
  for (const [name, handler] of Object.entries(on)) node.addEventListener(name, handler);
  if (raw != null) node.textContent = raw;
  say(node, { text, label, placeholder, tip }, values);
  node.append(...children.filter((child) => child != null));
  return node;
}

/** Gives an element texts by key: it keeps the keys, so that another language can replace the texts. */
export function say(node, keys, values) {
  for (const [what, key] of Object.entries(keys)) if (key) node.dataset[what] = key;
  if (values) node.dataset.values = JSON.stringify(values);
  fill(node);
}

/** Returns a picture of icons.svg. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `${ICONS}#${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** Returns a button that shows an icon alone; `label` is the key of its name. */
export function iconButton(name, label, click, attributes = {}) {
  const kind = { type: "button", class: "quiet icon", ...attributes };
  return el("button", { ...kind, label, tip: label, on: { click } }, icon(name));
}

export const byId = (id) => document.getElementById(id);

/** Says something to users of screen readers. */
export function announce(text) {
  byId("status").textContent = text;
}

/** Shows a message for some seconds; `kind` is "error" or "note". `raw` is a text as it stands, of the server. */
export function message(raw, kind = "note") {
  const box = el("p", { class: `message ${kind}` }, el("span", { raw }));
  box.append(iconButton("close", "close", () => box.remove()));
  byId("messages").append(box);
  if (kind !== "error") setTimeout(() => box.remove(), 6000);
  while (byId("messages").children.length > 4) byId("messages").firstChild.remove();
}

/**
 * Makes arrow keys move the focus among the children of `box` that `selector` finds: one stop of the Tab key for all.
 * `chosen`: called with the element that gets the focus. Returns what must be called after the children changed.
 */
export function rove(box, selector, chosen = () => {}) {
  const all = () => [...box.querySelectorAll(selector)].filter((one) => !one.disabled && !one.hidden);
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  box.addEventListener("keydown", (event) => {
    const here = all().indexOf(event.target.closest(selector));
    if (here < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = all().length - 1;
    const next = event.key === "Home" ? 0 : event.key === "End" ? last : here + (steps[event.key] ?? NaN);
    if (Number.isNaN(next)) return;
    event.preventDefault();
    const one = all()[Math.max(0, Math.min(last, next))];
    stop(one);
    one.focus();
    chosen(one);
  });
  const stop = (one) => all().forEach((other) => (other.tabIndex = other === one ? 0 : -1));
  const settle = (one) => {
    const present = all();
    stop(one ?? present.find((other) => other.getAttribute("aria-selected") === "true") ?? present[0]);
  };
  box.addEventListener("focusin", (event) => {
    const one = event.target.closest(selector);
    if (one) stop(one);
  });
  settle();
  return settle;
}
