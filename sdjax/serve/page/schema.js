// The table of the form's fields: one entry for each setting that has a field of its own. All other settings that a
// picture may have are kept in the field "extra", as JSON.

export const TASKS = {
  text: "txt2img", image: "img2img", inpaint: "inpaint", depth: "depth2img", edit: "edit", detail: "detail",
  variations: "variations", upscale: "upscale",
};
export const MODES = [...Object.keys(TASKS), "info"];
const DRAWN = Object.keys(TASKS).filter((mode) => mode !== "upscale");
export const EDITED = Object.keys(TASKS).filter((mode) => mode !== "text"); // they begin with a picture
const SIZED = ["text", "image", "edit", "variations"];

// Sections in their order; `open`: shown at first. Those without `title` have no heading.
export const SECTIONS = [
  { name: "input", modes: EDITED, plain: true },
  { name: "main", modes: Object.keys(TASKS), plain: true },
  { name: "styles", modes: DRAWN },
  { name: "hires", modes: ["text"] },
  { name: "controls", modes: DRAWN },
  { name: "image_prompts", modes: DRAWN },
  { name: "grid", modes: DRAWN },
  { name: "more", modes: DRAWN },
  { name: "other", modes: DRAWN },
];

/*
 * name: the setting's name, with a dot for an entry of an object. kind: range, number, choice, check, seed, text, json.
 * from: the list of /choices. optional: may be empty; it is then not sent, and the model decides. value: what it is at
 * first, and where the slider of an empty range stands. empty: the text of an optional choice that is not made.
 * half: two in a row. where: of which modes, if not of all of the section.
 */
export const FIELDS = [
  { name: "expand.left", kind: "number", section: "input", value: 0, low: 0, high: 1024, step: 8, half: true, where: ["inpaint"] },
  { name: "expand.right", kind: "number", section: "input", value: 0, low: 0, high: 1024, step: 8, half: true, where: ["inpaint"] },
  { name: "expand.top", kind: "number", section: "input", value: 0, low: 0, high: 1024, step: 8, half: true, where: ["inpaint"] },
  { name: "expand.bottom", kind: "number", section: "input", value: 0, low: 0, high: 1024, step: 8, half: true, where: ["inpaint"] },
  { name: "strength", kind: "range", section: "input", value: 0.75, low: 0, high: 1, step: 0.01, where: ["image", "inpaint", "depth", "detail"] },
  { name: "image_scale", kind: "range", section: "input", value: 1.5, low: 1, high: 5, step: 0.1, where: ["edit"] },
  { name: "noise_level", kind: "range", section: "input", value: 0, low: 0, high: 999, step: 1, where: ["variations"] },
  { name: "detector", kind: "choice", section: "input", from: "detectors", optional: true, empty: "grid.none", where: ["detail"] },
  { name: "most", kind: "number", section: "input", optional: true, low: 1, high: 64, step: 1, half: true, where: ["detail"] },
  { name: "grow", kind: "number", section: "input", value: 4, low: 0, high: 64, step: 1, half: true, where: ["detail"] },
  { name: "only_masked", kind: "check", section: "input", value: false, where: ["inpaint"] },
  { name: "padding", kind: "number", section: "input", value: 32, low: 0, high: 256, step: 4, half: true, where: ["inpaint", "detail"] },
  { name: "feather", kind: "number", section: "input", value: 4, low: 0, high: 64, step: 1, half: true, where: ["inpaint", "detail"] },
  { name: "upscaler", kind: "choice", section: "input", from: "upscalers", where: ["upscale"] },
  { name: "times", kind: "range", section: "input", value: 2, low: 1, high: 8, step: 0.25, where: ["upscale"] },

  { name: "width", kind: "number", section: "main", optional: true, low: 64, high: 2048, step: 8, half: true, where: SIZED },
  { name: "height", kind: "number", section: "main", optional: true, low: 64, high: 2048, step: 8, half: true, where: SIZED },
  { name: "sampler", kind: "choice", section: "main", from: "samplers", optional: true, half: true, where: DRAWN },
  { name: "schedule", kind: "choice", section: "main", from: "schedules", optional: true, half: true, where: DRAWN },
  { name: "num_steps", kind: "range", section: "main", value: 20, low: 1, high: 150, step: 1, where: DRAWN },
  { name: "guidance_scale", kind: "range", section: "main", optional: true, value: 7.5, low: 1, high: 30, step: 0.5, where: DRAWN },
  { name: "seed", kind: "seed", section: "main", where: DRAWN },
  { name: "num_images", kind: "number", section: "main", value: 1, low: 1, high: 64, step: 1, where: DRAWN },

  { name: "hires.enlarge", kind: "range", section: "hires", value: 1, low: 1, high: 4, step: 0.05 },
  { name: "hires.upscale", kind: "choice", section: "hires", from: "upscales", optional: true, half: true },
  { name: "hires.hires_steps", kind: "number", section: "hires", optional: true, low: 1, high: 150, step: 1, half: true },
  { name: "hires.strength", kind: "range", section: "hires", value: 0.6, low: 0, high: 1, step: 0.01 },
  { name: "hires.hires_prompt", kind: "text", section: "hires", optional: true },

  { name: "vae", kind: "choice", section: "more", from: "vaes", optional: true },
  { name: "clip_skip", kind: "number", section: "more", optional: true, low: 1, high: 12, step: 1, half: true },
  { name: "eta", kind: "number", section: "more", optional: true, low: 0, high: 1, step: 0.05, half: true },
  { name: "guidance", kind: "choice", section: "more", from: "guidance", optional: true, half: true },
  { name: "guidance_rescale", kind: "number", section: "more", optional: true, low: 0, high: 1, step: 0.05, half: true },
  { name: "patches", kind: "choice", section: "more", from: "patches", optional: true, half: true },
  { name: "seamless", kind: "choice", section: "more", from: "axes", optional: true, half: true },
  { name: "variation_seed", kind: "number", section: "more", optional: true, low: 0, step: 1, half: true },
  { name: "variation_strength", kind: "number", section: "more", optional: true, low: 0, high: 1, step: 0.05, half: true },
  { name: "compat", kind: "choice", section: "more", from: "tools", optional: true, half: true },
  { name: "noise_source", kind: "choice", section: "more", from: "noise_sources", optional: true, half: true },

  { name: "extra", kind: "json", section: "other", optional: true },
];

export const modesOf = (field) => field.where ?? SECTIONS.find((section) => section.name === field.section).modes;
export const MAX_SEED = 2 ** 32 - 1;
