// The form: fields of the table in sections, what they hold, and settings in and out of them.

import { byId, el } from "./dom.js";
import { makeField } from "./fields.js";
import { FIELDS, modesOf, SECTIONS } from "./schema.js";
import { remember, remembered } from "./storage.js";

const PROMPTS = ["prompt", "negative_prompt"];
const made = new Map(); // name of a field -> {field, box, read, write}
const sections = new Map(); // name -> {section, box, body}
let model = null; // library name of the checkpoint; null is the server's current one
let mode = "text";

/** Builds the form from the table. `choices` is what the server offers. */
export function buildForm(choices) {
  byId("fields").replaceChildren();
  for (const section of SECTIONS) {
    const body = el("div", { class: "fields", id: `section-${section.name}` });
    const box = section.plain
      ? el("div", { class: "group" }, body)
      : el("details", { class: "group" }, el("summary", { text: `section.${section.name}` }), body);
    sections.set(section.name, { section, box, body });
    byId("fields").append(box);
  }
  for (const field of FIELDS) {
    const one = makeField(field, choices);
    made.set(field.name, { field, ...one });
    sections.get(field.section).body.append(one.box);
  }
  const kept = remembered("form", {});
  for (const name of PROMPTS) byId(name).value = kept[name] ?? "";
  for (const [name, { write }] of made) write(name in kept ? kept[name] : initial(name));
  model = kept.model ?? null;
  byId("form").addEventListener("input", (event) => {
    if (["sampler", "schedule"].includes(event.target.name)) dropSamplerOptions();
    keep();
  });
  showMode(kept.mode ?? "text");
}

/** Returns the element in which a section's own parts stand (guides, styles, the grid). */
export const bodyOf = (section) => sections.get(section).body;

function initial(name) {
  const { field } = made.get(name);
  return field.optional ? null : (field.value ?? null);
}

/** Keeps the form for the next visit, and tells that it changed. */
export function keep() {
  const values = Object.fromEntries(PROMPTS.map((name) => [name, byId(name).value]));
  for (const [name, { read }] of made) {
    try {
      values[name] = read();
    } catch {
      // text that is no JSON yet
    }
  }
  remember("form", { ...values, mode, model });
  document.dispatchEvent(new Event("form-changed"));
}

export const currentMode = () => mode;
export const currentModel = () => model;

/** Chooses the checkpoint for the next pictures. */
export function chooseModel(name) {
  model = name;
  keep();
}

/** Shows the fields of a mode. */
export function showMode(name) {
  mode = name;
  byId("fields").hidden = byId("actions").hidden = name === "info";
  byId("prompts").hidden = name === "upscale" || name === "info";
  byId("info").hidden = name !== "info";
  for (const { section, box } of sections.values()) box.hidden = !section.modes.includes(name);
  for (const { field, box } of made.values()) box.hidden = !modesOf(field).includes(name);
}

/** Takes a restored sampler's options out of the other settings: they do not fit another sampler. */
function dropSamplerOptions() {
  try {
    const { sampler_options: _, ...others } = made.get("extra").read();
    made.get("extra").write(others);
  } catch {
    // no JSON yet: it stays as it is
  }
}

/** Returns one field's value. */
export const valueOf = (name) => (PROMPTS.includes(name) ? byId(name).value : made.get(name).read());

/** Writes one field's value. */
export function setValue(name, value) {
  if (PROMPTS.includes(name)) byId(name).value = value ?? "";
  else made.get(name).write(value);
}

/** Returns the settings of the mode's fields as the server takes them. Raises SyntaxError if "extra" is no JSON. */
export function readSettings() {
  const settings = mode === "upscale" ? {} : { ...made.get("extra").read() };
  if (mode !== "upscale") for (const name of PROMPTS) settings[name] = byId(name).value;
  for (const [name, { field, read }] of made) {
    if (field.kind === "json" || !modesOf(field).includes(mode)) continue;
    const value = read();
    if (value === null) continue;
    const [outer, inner] = name.split(".");
    if (inner) settings[outer] = { ...settings[outer], [inner]: value };
    else settings[name] = value;
  }
  return settings;
}

/** Puts settings into the form: those without a field go to the other settings. Fields not named get their defaults. */
export function writeSettings(settings) {
  const flat = {};
  for (const [name, value] of Object.entries(settings)) {
    const nested = value && typeof value === "object" && !Array.isArray(value);
    const entries = nested ? Object.entries(value) : [];
    const rest = entries.filter(([entry]) => !made.has(`${name}.${entry}`));
    for (const [entry, one] of entries) if (made.has(`${name}.${entry}`)) flat[`${name}.${entry}`] = one;
    if (rest.length === entries.length) flat[name] = value;
    else if (rest.length) flat[name] = Object.fromEntries(rest);
  }
  const extra = {};
  for (const [name, { field, write }] of made) {
    if (field.kind !== "json") write(name in flat ? flat[name] : initial(name));
  }
  for (const name of PROMPTS) byId(name).value = settings[name] ?? "";
  for (const [name, value] of Object.entries(flat)) {
    if (PROMPTS.includes(name)) continue;
    const simple = ["string", "number", "boolean"].includes(typeof value);
    if (!made.has(name) || !(simple || value === null)) extra[name] = value;
  }
  made.get("extra").write(extra);
  for (const [name, { section, box, body }] of sections) {
    if (section.plain) continue;
    const others = name === "other" && body.querySelector("textarea").value !== "";
    box.open ||= others || changed(name, flat);
  }
  keep();
}

const changed = (section, flat) =>
  FIELDS.some((field) => field.section === section && flat[field.name] != null && flat[field.name] !== initial(field.name));
