// Styles: named pieces of prompts. Those of the server's table go by name; those saved here are put into the texts.

import { byId, el, iconButton } from "./dom.js";
import { entryOf } from "./fields.js";
import { bodyOf } from "./form.js";
import { remember, remembered } from "./storage.js";

const GAP = "{prompt}";
let known = [];
let own = [];
const chosen = new Set();

/** Builds the section. */
export function startStyles(choices) {
  known = (choices.styles ?? []).map(entryOf);
  own = remembered("styles", []);
  for (const name of remembered("chosen-styles", [])) chosen.add(name);
  const name = el("input", { type: "text", maxlength: 80, label: "style.name", placeholder: "style.name" });
  const save = el("button", { type: "button", text: "style.save", on: { click: () => keep(name) } });
  bodyOf("styles").append(
    el("div", { id: "styles", class: "chips", role: "group", label: "section.styles" }),
    el("p", { class: "hint", text: "hint.styles" }),
    el("div", { class: "row" }, name, save),
  );
  name.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.ctrlKey) return;
    event.preventDefault();
    keep(name);
  });
  refresh();
}

function keep(input) {
  const name = input.value.trim();
  if (!name) return input.focus();
  const style = { name, prompt: byId("prompt").value, negative_prompt: byId("negative_prompt").value };
  own = [...own.filter((one) => one.name !== name), style];
  remember("styles", own);
  input.value = "";
  refresh();
}

function refresh() {
  const names = [...known.map((one) => ({ ...one, own: false })), ...own.map((one) => ({ ...one, title: one.name, own: true }))];
  byId("styles").replaceChildren(...names.map(chip));
}

function chip({ name, title, own: removable }) {
  const id = `${removable ? "own" : "server"}:${name}`;
  const button = el("button", { type: "button", class: "chip-button", "aria-pressed": String(chosen.has(id)), raw: title });
  button.addEventListener("click", () => {
    if (!chosen.delete(id)) chosen.add(id);
    button.setAttribute("aria-pressed", String(chosen.has(id)));
    remember("chosen-styles", [...chosen]);
  });
  const remove = removable && iconButton("close", "remove", () => {
    own = own.filter((one) => one.name !== name);
    chosen.delete(id);
    remember("styles", own);
    refresh();
  });
  return el("span", { class: "chip" }, button, remove || null);
}

/** Puts the chosen styles into settings: the server's names, and the texts of those saved here. */
export function withStyles(settings) {
  const names = known.filter(({ name }) => chosen.has(`server:${name}`)).map(({ name }) => name);
  if (names.length) settings.styles = names;
  for (const style of own.filter(({ name }) => chosen.has(`own:${name}`))) {
    for (const key of ["prompt", "negative_prompt"]) settings[key] = joined(style[key] ?? "", settings[key] ?? "");
  }
}

/** Returns a style's text with the prompt in its gap, or after it. */
export function joined(style, prompt) {
  if (style.includes(GAP)) return style.replaceAll(GAP, () => prompt);
  return [prompt, style].filter((text) => text.trim()).join(", ");
}
