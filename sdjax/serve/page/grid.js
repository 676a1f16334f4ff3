// X/Y/Z grids: the axes in the form, the values of an axis, and the jobs of all combinations.

import { el, message } from "./dom.js";
import { entryOf, wholeOf } from "./fields.js";
import { bodyOf } from "./form.js";
import { makeGridView } from "./grid-view.js";
import { cancelAll, run } from "./jobs.js";
import { remember, remembered } from "./storage.js";
import { t } from "./texts.js";

const TOGETHER = 8; // jobs given to the server at once
const MOST = 400; // cells
// name of the axis: what its values are. A list is one of /choices; "search" replaces words of the prompt.
const AXES = {
  num_steps: "number", guidance_scale: "number", seed: "number", strength: "number", clip_skip: "number",
  eta: "number", guidance_rescale: "number", variation_strength: "number", "hires.strength": "number",
  sampler: "samplers", schedule: "schedules", guidance: "guidance", vae: "vaes", model: "models", prompt: "search",
};
const rows = [];

/** Builds the section. */
export function startGrid(choices) {
  const kept = remembered("grid", []);
  for (const [number, letter] of ["X", "Y", "Z"].entries()) {
    const names = Object.keys(AXES);
    const axis = el("select", { label: "grid.axis", values: { axis: letter } }, el("option", { value: "", text: "grid.none" }),
      ...names.map((name) => el("option", { value: name, text: name === "model" ? "model" : `field.${name}` })));
    const values = el("input", { type: "text", label: "grid.values", values: { axis: letter }, placeholder: "placeholder.grid" });
    const all = el("button", { type: "button", text: "grid.all", hidden: true });
    const list = () => (choices[AXES[axis.value]] ?? []).map((one) => entryOf(one).name);
    const changed = () => {
      all.hidden = !list().length;
      values.disabled = !axis.value;
      remember("grid", rows.map((row) => [row.axis.value, row.values.value]));
    };
    all.addEventListener("click", () => {
      values.value = list().map(quoted).join(", ");
      changed();
    });
    axis.addEventListener("change", changed);
    values.addEventListener("input", changed);
    rows.push({ axis, values });
    [axis.value, values.value] = kept[number] ?? ["", ""];
    bodyOf("grid").append(el("div", { class: "axis" }, el("span", { class: "letter", raw: letter }), axis, values, all));
    all.hidden = !list().length;
    values.disabled = !axis.value;
  }
  bodyOf("grid").append(el("p", { class: "hint", text: "hint.grid" }));
}

const quoted = (text) => (/[",]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/** Returns the texts between commas; a text in quotes may have commas. */
export function split(text) {
  const found = [...text.matchAll(/\s*(?:"((?:[^"]|"")*)"|([^,]*))\s*(?:,|$)/g)];
  const texts = found.map(([, inQuotes, plain]) => inQuotes?.replaceAll('""', '"') ?? plain.trim());
  return texts.filter((one) => one !== "");
}

/** Returns numbers: 1, 2, 3; ranges 1-5, with a step 10-30(+10), or with a count 1-10[4]. Raises RangeError. */
export function numbersOf(text) {
  const range = /^(-?[\d.]+)\s*-\s*(-?[\d.]+)\s*(?:\(([+-]?[\d.]+)\)|\[(\d+)\])?$/;
  return split(text).flatMap((one) => {
    const found = range.exec(one);
    if (!found) {
      if (!Number.isFinite(Number(one))) throw new RangeError(one);
      return [/^\d+$/.test(one) ? wholeOf(one) : Number(one)];
    }
    const [low, high] = [Number(found[1]), Number(found[2])];
    const count = found[4] ? Number(found[4]) : null;
    const step = found[3] ? Math.abs(Number(found[3])) : count ? Math.abs(high - low) / Math.max(1, count - 1) : 1;
    const steps = count ? count - 1 : step > 0 ? Math.floor(Math.abs(high - low) / step + 1e-9) : NaN;
    if (!(steps >= 0 && steps <= MOST)) throw new RangeError(one);
    const rounded = (value) => Number(value.toFixed(6));
    return Array.from({ length: steps + 1 }, (_, i) => rounded(low + i * step * Math.sign(high - low || 1)));
  });
}

/** Returns the axes that are in use: {name, values}. Raises RangeError for values that are no numbers. */
export function axesInUse() {
  const used = rows.filter((row) => row.axis.value && row.values.value.trim());
  return used.map((row) => {
    const name = row.axis.value;
    return { name, values: AXES[name] === "number" ? numbersOf(row.values.value) : split(row.values.value) };
  });
}

/** Returns a job with an axis' value in it. */
function changed(work, { name, values }, value) {
  if (name === "model") return { ...work, model: value };
  const settings = { ...work.settings };
  const [outer, inner] = name.split(".");
  if (name === "prompt") settings.prompt = settings.prompt.replaceAll(values[0], () => value);
  else if (inner) settings[outer] = { ...settings[outer], [inner]: value };
  else settings[name] = value;
  return { ...work, settings };
}

/** Returns the label of a value, such as "Steps: 20". */
const labelOf = ({ name }, value) => t("grid.label", { name: t(name === "model" ? "model" : `field.${name}`), value });

/** Makes a picture for each combination of the axes' values, and shows them as tables. */
export async function runGrid(work, axes, showElement, made) {
  const [x, y, z] = [0, 1, 2].map((at) => axes[at] ?? null);
  const values = (axis) => axis?.values ?? [null];
  const count = [x, y, z].reduce((product, axis) => product * values(axis).length, 1);
  if (count > MOST) return message(t("error.grid", { count, most: MOST }), "error");
  const labels = (axis) => values(axis).map((value) => (axis ? labelOf(axis, value) : ""));
  const view = makeGridView(labels(x), labels(y), labels(z));
  showElement(view.element);
  const cells = [];
  for (const [k, third] of values(z).entries()) {
    for (const [j, second] of values(y).entries()) {
      for (const [i, first] of values(x).entries()) {
        let one = { ...work, settings: { ...work.settings, num_images: 1 } };
        for (const [axis, value] of [[x, first], [y, second], [z, third]]) if (axis) one = changed(one, axis, value);
        cells.push({ one, at: [i, j, k] });
      }
    }
  }
  let stopped = false;
  const next = async () => {
    for (let cell = cells.shift(); cell && !stopped; cell = cells.shift()) {
      const job = await run(cell.one, (seen) => view.progress(cell.at, seen)).catch((error) => {
        if (!stopped) message(error.message, "error");
        stopped = true; // the others would fail for the same reason
        return { state: "failed", pictures: [] };
      });
      if (job.state === "cancelled" && !stopped) {
        stopped = true; // one press ends the whole grid
        cancelAll();
      }
      for (const picture of job.pictures) made(picture, job);
      view.finish(cell.at, job.pictures[0] ?? null);
    }
  };
  await Promise.all(Array.from({ length: TOGETHER }, next));
  view.end();
}
