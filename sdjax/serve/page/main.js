// Starts the page: texts, lists of the server, form, editor, history; and connects the parts.

import { api } from "./api.js";
import { changeAppearance, isNarrow, startAppearance } from "./appearance.js";
import { Editor } from "./canvas/editor.js";
import { byId, el, message, rove } from "./dom.js";
import { dropInto } from "./drop.js";
import { buildForm, currentMode, currentModel, keep, setValue, showMode, valueOf } from "./form.js";
import { axesInUse, runGrid, startGrid } from "./grid.js";
import { startGuides } from "./guides.js";
import * as history from "./history.js";
import { restoreFrom, startInfo } from "./info.js";
import { cancel, current, followAgain, run } from "./jobs.js";
import { startKeys } from "./keys.js";
import { startLibrary } from "./library.js";
import { startPrompts } from "./prompts.js";
import { EDITED, MODES } from "./schema.js";
import * as stage from "./stage.js";
import { startStyles } from "./styles.js";
import { changeLanguage, loadTexts, t } from "./texts.js";
import { makeWork, NotReady } from "./work.js";

const LIBRARIES = ["checkpoint", "vae", "control", "ip_adapter", "upscaler", "detector"];
let editor = null;
let info = null;
let settleModes = () => {};

async function start() {
  startAppearance();
  await loadTexts();
  const choices = await loadChoices();
  buildForm(choices);
  startStyles(choices);
  startGrid(choices);
  startGuides(choices);
  editor = new Editor(byId("editor"), takeSize);
  info = startInfo((mode) => openMode(mode));
  startModes();
  startPrompts();
  startLibrary();
  startButtons();
  stage.startStage({ restore: restoreRecord, image: (one) => edit(one, "image"), inpaint: (one) => edit(one, "inpaint"),
    upscale: (one) => edit(one, "upscale"), download: stage.download, forget });
  await history.startHistory((record) => showResult(() => stage.showRecord(record)));
  if (history.newest()) stage.showRecord(history.newest());
  document.addEventListener("job", ({ detail }) => takePictures(detail));
  await followAgain();
  document.body.dataset.ready = "";
}

/** Returns the server's lists, those of model files among them. */
async function loadChoices() {
  const [choices, status, ...files] = await Promise.all([api.choices(), api.status(), ...LIBRARIES.map(api.library)]);
  const libraries = Object.fromEntries(LIBRARIES.map((kind, at) => [kind, files[at]]));
  libraries.control = [...(choices.controls ?? []), ...libraries.control];
  const name = byId("model-name");
  name.dataset.current = status.model ?? "";
  const show = () => (name.textContent = (currentModel() ?? name.dataset.current).replace(/\.[^./]+$/, ""));
  document.addEventListener("form-changed", show);
  queueMicrotask(show);
  return {
    ...choices, libraries, models: libraries.checkpoint, vaes: libraries.vae,
    upscalers: [...libraries.upscaler, ...(choices.enlargers ?? [])], detectors: libraries.detector, axes: ["x", "y", "xy"],
  };
}

function startModes() {
  for (const [at, mode] of MODES.entries()) {
    byId("modes").append(el("button", {
      type: "button", role: "tab", id: `mode-${mode}`, "aria-controls": "panel", "aria-selected": "false", text: `mode.${mode}`,
      "aria-keyshortcuts": `Alt+${at + 1}`, data: { mode }, on: { click: () => openMode(mode) },
    }));
  }
  settleModes = rove(byId("modes"), "[role=tab]", (tab) => openMode(tab.dataset.mode));
  openMode(currentMode());
}

function openMode(mode) {
  showMode(mode);
  for (const tab of byId("modes").children) tab.setAttribute("aria-selected", String(tab.dataset.mode === mode));
  settleModes();
  byId("panel").setAttribute("aria-labelledby", `mode-${mode}`);
  const edits = EDITED.includes(mode);
  byId("views").hidden = !edits;
  if (edits) editor.setMode(mode);
  view(edits ? "canvas" : "result");
  margins();
  keep();
}

/** Shows the editor's canvas or the result. */
function view(which) {
  byId("editor").hidden = which !== "canvas";
  byId("stage").hidden = which === "canvas";
  if (which === "canvas") byId("picture-actions").hidden = true;
  else if (stage.shownRecord()) byId("picture-actions").hidden = false;
  byId("show-canvas").setAttribute("aria-pressed", String(which === "canvas"));
  byId("show-result").setAttribute("aria-pressed", String(which === "result"));
}

function showResult(show) {
  show();
  view("result");
}

function startButtons() {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  byId("form").addEventListener("input", margins);
  byId("show-canvas").addEventListener("click", () => view("canvas"));
  byId("show-result").addEventListener("click", () => view("result"));
  byId("theme").addEventListener("click", changeAppearance);
  byId("language").addEventListener("click", changeLanguage);
  dropInto(document.body, restoreFile); // everywhere but on places for pictures: a browser would leave the page
  document.addEventListener("paste", (event) => {
    const file = event.clipboardData.files[0];
    if (!file) return;
    if (byId("editor").hidden) restoreFile(file);
    else editor.open(file);
  });
  startKeys({ generate, cancel, mode: (at) => openMode(MODES[at]) });
}

function margins() {
  const sides = ["left", "top", "right", "bottom"];
  const now = Object.fromEntries(sides.map((side) => [side, currentMode() === "inpaint" ? valueOf(`expand.${side}`) : 0]));
  editor?.setMargins(now);
}

/** Makes the result as large as a picture that was opened, whatever size was chosen for others. */
function takeSize() {
  setValue("width", null);
  setValue("height", null);
  margins();
  keep();
}

async function generate() {
  if (currentMode() === "info") return;
  byId("generate").disabled = true;
  try {
    const axes = currentMode() === "upscale" ? [] : axesInUse();
    const work = await makeWork(editor);
    view("result");
    if (isNarrow()) byId("workspace").scrollIntoView({ block: "start" });
    byId("generate").disabled = false;
    if (axes.length) await runGrid(work, axes, stage.showElement, (picture, job) => history.add(recordOf(picture, job), true));
    else await run(work);
  } catch (error) {
    const values = error instanceof RangeError ? t("error.values", { value: error.message }) : error.message;
    message(values, "error");
    if (!(error instanceof NotReady || error instanceof RangeError)) console.error(error);
  } finally {
    byId("generate").disabled = false;
  }
}

const recordOf = (picture, job) => ({ task: job.task, created: Date.now() / 1000, settings: { prompt: job.prompt }, ...picture });

/** Shows the finished pictures of a job, also of one that is cancelled after them. */
function takePictures(job) {
  if (document.querySelector(".grids")) return; // a grid shows its own
  for (const picture of job.pictures.filter(Boolean)) history.add(recordOf(picture, job));
  if (current() || !document.querySelector("#shown .preview")) return;
  if (history.newest()) stage.showRecord(history.newest());
  else stage.showNothing();
}

async function forget(record) {
  const next = await history.forget(record);
  if (!next) stage.showNothing();
}

async function edit(record, mode) {
  const blob = await api.picture(record.name);
  openMode(mode);
  await editor.open(blob);
  byId("workspace").focus();
}

async function restoreRecord(record) {
  const mode = await restoreFrom(await api.picture(record.name));
  if (mode === "text") openMode(mode);
}

async function restoreFile(file) {
  if (currentMode() === "info") return info.open(file);
  const mode = await restoreFrom(file);
  if (mode) openMode(mode);
}

start().catch((error) => {
  message(error.message || t("error.offline"), "error");
  console.error(error);
});
