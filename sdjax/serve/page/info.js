// What a picture says about how it was made, and putting that into the form.

import { api } from "./api.js";
import { announce, byId, el, message } from "./dom.js";
import { dropBox } from "./drop.js";
import { chooseModel, writeSettings } from "./form.js";
import { findModel } from "./library.js";
import { TASKS } from "./schema.js";
import { has, t } from "./texts.js";

// Settings of tasks that the form or the other settings can have. What else a picture records of its making, such as the
// size of the picture that it was made from, is no setting.
const OF_TASK = ["strength", "only_masked", "padding", "feather", "expand", "overlap", "composite", "method", "image_scale",
  "noise_level", "grow", "most", "fill"];
const MODES = Object.fromEntries(Object.entries(TASKS).map(([mode, task]) => [task, mode]));

/** Makes the mode work. `restored` is called with the mode of the settings that were put into the form. */
export function startInfo(restored) {
  const box = dropBox({ label: "info.choose", chosen: (file) => (file ? read(file, restored) : byId("info-found").replaceChildren()) });
  byId("info-drop").append(box);
  return {
    open(file) {
      box.put(file);
      return read(file, restored);
    },
  };
}

async function read(file, restored) {
  let found;
  try {
    found = await api.readPicture(file);
  } catch (error) {
    byId("info-found").replaceChildren(el("p", { class: "hint", raw: error.message }));
    return;
  }
  const use = el("button", {
    type: "button", class: "primary", text: "info.use", on: { click: async () => restored(await restore(found)) },
  });
  const items = Object.entries(flat(found)).map(([name, value]) => [
    el("dt", { raw: has(`field.${name}`) ? t(`field.${name}`) : name }), el("dd", { raw: typeof value === "string" ? value : JSON.stringify(value) }),
  ]);
  const unknown = (found.unknown ?? []).map((one) => (typeof one === "string" ? one : `${one.name ?? ""} ${one.text ?? ""}`.trim()));
  byId("info-found").replaceChildren(
    el("p", { class: "hint", raw: t("info.from", { tool: found.tool ?? t("info.no_tool"), name: file.name ?? "" }) }),
    items.length ? use : el("p", { text: "info.nothing" }),
    el("dl", { class: "facts" }, ...items.flat()),
  );
  if (unknown.length) {
    byId("info-found").append(
      el("h3", { text: "info.unknown" }), el("ul", {}, ...unknown.map((one) => el("li", { raw: one }))),
    );
  }
}

/** Returns all settings of what the server understood: of the sampling, of the task, and of the second pass. */
function flat(found) {
  const own = Object.entries(found.of_task ?? {}).filter(([name, value]) => OF_TASK.includes(name) && value !== null);
  const settings = { ...found.settings, ...Object.fromEntries(own) };
  if (found.hires && Object.keys(found.hires).length) settings.hires = found.hires;
  return settings;
}

/** Puts what the server understood of a picture into the form, and chooses its model. Returns the mode that it is for. */
export async function restore(found) {
  const settings = flat(found);
  const mode = MODES[found.task ?? found.of_task?.task] ?? "text";
  if (Array.isArray(settings.expand)) {
    const [left, top, right, bottom] = settings.expand;
    settings.expand = { left, top, right, bottom };
  }
  writeSettings(settings);
  const { name, hash } = found.model ?? {};
  if (!name && !hash) return mode;
  const model = await findModel({ name, hash });
  if (model) chooseModel(model);
  else message(t("info.no_model", { name: name ?? hash }));
  return mode;
}

/** Reads a picture and puts its settings into the form at once. Returns the mode, or null if it says nothing. */
export async function restoreFrom(blob) {
  try {
    const found = await api.readPicture(blob);
    if (!Object.keys(flat(found)).length) {
      message(t("info.nothing"));
      return null;
    }
    const mode = await restore(found);
    message(t("info.restored"));
    announce(t("info.restored"));
    return mode;
  } catch (error) {
    message(error.message, "error");
    return null;
  }
}
