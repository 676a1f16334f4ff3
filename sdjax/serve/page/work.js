// From the form and the editor to a job for the server.

import { api } from "./api.js";
import { currentMode, currentModel, readSettings } from "./form.js";
import { randomSeed } from "./fields.js";
import { addGuides } from "./guides.js";
import { TASKS } from "./schema.js";
import { withStyles } from "./styles.js";
import { t } from "./texts.js";

/** Something that the user has to do before a job can be made; its message is a text for them. */
export class NotReady extends Error {}

/** Returns {task, settings, inputs, model}. Raises NotReady, with what is missing. */
export async function makeWork(editor) {
  const mode = currentMode();
  let settings;
  try {
    settings = readSettings();
  } catch (error) {
    if (error instanceof SyntaxError) throw new NotReady(t("error.json"));
    throw error;
  }
  const inputs = {};
  if (mode !== "text") {
    const pictures = await editor.inputs();
    if (!pictures.image) throw new NotReady(t("error.no_picture"));
    const grows = mode === "inpaint" && takeMargins(settings);
    if (mode === "inpaint" && !pictures.mask && !grows) throw new NotReady(t("error.no_mask"));
    if (mode === "detail" && !pictures.mask && !settings.detector) throw new NotReady(t("error.no_detail"));
    for (const [name, blob] of Object.entries(pictures)) {
      inputs[name] = `upload:${(await api.upload(blob)).id}`;
    }
  }
  if (mode !== "upscale") {
    settings.seed ??= randomSeed();
    withStyles(settings);
    await addGuides(settings, inputs);
  }
  if (mode === "text" && !(settings.hires?.enlarge > 1)) delete settings.hires;
  return { task: TASKS[mode], settings, inputs, model: currentModel() };
}

/** Makes one list, (left, top, right, bottom), of the margins. Returns whether any is above 0. */
function takeMargins(settings) {
  const { left = 0, top = 0, right = 0, bottom = 0 } = settings.expand ?? {};
  delete settings.expand;
  if (!(left || top || right || bottom)) return false;
  settings.expand = [left, top, right, bottom];
  return true;
}
