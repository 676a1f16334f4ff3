// Pictures that steer: ControlNets with preprocessors and their preview, and IP-Adapters. One row for each.

import { api } from "./api.js";
import { el, message } from "./dom.js";
import { dropBox } from "./drop.js";
import { entryOf } from "./fields.js";
import { bodyOf } from "./form.js";
import { t } from "./texts.js";

const NUMBERS = [
  { name: "weight", value: 1, low: 0, high: 2, step: 0.05 },
  { name: "start", value: 0, low: 0, high: 1, step: 0.05 },
  { name: "end", value: 1, low: 0, high: 1, step: 0.05 },
];
// section: where rows stand, and the setting's name. network: the setting's name of the file. library: kind of files.
const GUIDES = {
  controls: { network: "network", library: "control", picture: "hint", prepared: true },
  image_prompts: { network: "adapter", library: "ip_adapter", picture: "image", prepared: false },
};
const rows = { controls: [], image_prompts: [] };
let offered = {};

/** Builds both sections. `choices` are the server's lists, with the files of `libraries`. */
export function startGuides(choices) {
  offered = choices;
  for (const section of Object.keys(GUIDES)) {
    const list = el("div", { class: "guides" });
    const empty = el("p", { class: "hint", text: `${section}.empty` });
    const add = el("button", { type: "button", text: `${section}.add`, on: { click: () => addRow(section, list) } });
    const files = offered.libraries[GUIDES[section].library] ?? [];
    bodyOf(section).append(list, files.length ? add : empty);
  }
}

function addRow(section, list) {
  const guide = GUIDES[section];
  const number = rows[section].length + 1;
  const row = { section, picture: null };
  const files = offered.libraries[guide.library].map(entryOf);
  row.network = select(files);
  const fields = [labelled(`${section}.file`, row.network)];
  for (const one of NUMBERS) {
    row[one.name] = el("input", { type: "number", min: one.low, max: one.high, step: one.step, value: one.value });
  }
  const drop = dropBox({ label: `${section}.picture`, chosen: (file) => take(row, file) });
  row.preview = el("img", { class: "hint-preview", alt: t("preprocessor.preview"), hidden: true });
  if (guide.prepared) {
    const none = [{ name: "", title: t("preprocessor.none") }];
    row.preprocessor = select([...none, ...(offered.preprocessors ?? []).map(entryOf)]);
    row.preprocessor.addEventListener("change", () => {
      row.annotators.closest("label").hidden = !needs(row).length;
      preview(row);
    });
    const again = el("button", { type: "button", text: "preprocessor.show", on: { click: () => preview(row) } });
    fields.push(el("div", { class: "row end" }, labelled("preprocessor", row.preprocessor), again));
    fields.push(annotators(row));
  }
  const remove = el("button", {
    type: "button", class: "quiet", text: "remove",
    on: {
      click: () => {
        rows[section].splice(rows[section].indexOf(row), 1);
        row.box.remove();
      },
    },
  });
  const numbers = NUMBERS.map(({ name }) => labelled(`guide.${name}`, row[name]));
  row.box = el("fieldset", { class: "guide" }, el("legend", { text: `${section}.one`, values: { n: number } }),
    el("div", { class: "guide-pictures" }, drop, row.preview), ...fields, el("div", { class: "thirds" }, ...numbers), remove);
  rows[section].push(row);
  list.append(row.box);
  drop.input.focus();
}

function select(entries) {
  return el("select", {}, ...entries.map(({ name, title }) => el("option", { value: name, raw: title })));
}

/** Returns the kinds of networks that the row's preprocessor needs. */
const needs = (row) => (offered.preprocessors ?? []).map(entryOf).find(({ name }) => name === row.preprocessor.value)?.needs ?? [];

/** Returns the list of the networks of preprocessors, which is seen when one needs some. */
function annotators(row) {
  row.annotators = select((offered.libraries.detector ?? []).map(entryOf));
  row.annotators.multiple = true;
  row.annotators.size = 3;
  const box = labelled("preprocessor.networks", row.annotators);
  row.annotators.addEventListener("change", () => preview(row));
  box.hidden = true;
  return box;
}

const chosenIn = (select) => [...select.selectedOptions].map((option) => option.value);

const labelled = (key, input) => el("label", { class: "field" }, el("span", { text: key }), input);

function take(row, file) {
  row.picture = file;
  row.preview.hidden = true;
  if (file && row.preprocessor?.value) preview(row);
}

/** Shows what the preprocessor makes of the row's picture. */
async function preview(row) {
  row.preview.hidden = true;
  if (!row.picture || !row.preprocessor.value) return;
  if (needs(row).length > row.annotators.selectedOptions.length) return; // until the networks are chosen
  try {
    const { id } = await api.upload(row.picture);
    const wanted = { preprocessor: row.preprocessor.value, input: `upload:${id}` };
    if (needs(row).length) wanted.annotators = chosenIn(row.annotators);
    const { image } = await api.hint(wanted);
    row.preview.src = `data:image/png;base64,${String(image).replace(/^data:[^,]*,/, "")}`;
    row.preview.hidden = false;
  } catch (error) {
    message(error.message, "error");
  }
}

/** Adds the guides to the settings and pictures of a job. Rows without a picture are left out. */
export async function addGuides(settings, inputs) {
  for (const [section, guide] of Object.entries(GUIDES)) {
    const uses = [];
    for (const row of rows[section]) {
      if (!row.picture) continue;
      const name = `${guide.picture}${uses.length}`;
      inputs[name] = `upload:${(await api.upload(row.picture)).id}`;
      const use = { [guide.network]: row.network.value, [guide.picture]: name };
      for (const one of NUMBERS) use[one.name] = Number(row[one.name].value || one.value);
      if (row.preprocessor?.value) use.preprocess = row.preprocessor.value;
      if (row.preprocessor?.value && needs(row).length) use.annotators = chosenIn(row.annotators);
      uses.push(use);
    }
    if (uses.length) settings[section] = uses;
  }
}
