// The large picture: the preview of what runs, the chosen picture of the history with what can be done with it.

import { addressOf, api, show } from "./api.js";
import { announce, byId, el, icon, message, rove } from "./dom.js";
import { cancel, current, progressText } from "./jobs.js";
import { moment, t } from "./texts.js";

let does = {}; // name of an action -> what is called with a record
let record = null;
let stepSaid = 0;

/** `actions` maps names (texts "action.NAME") to functions of the record that is shown. */
export function startStage(actions) {
  does = actions;
  showNothing();
  document.addEventListener("job", ({ detail }) => showProgress(detail));
  byId("cancel").addEventListener("click", () => cancel());
}

export const shownRecord = () => record;

/** Shows what to expect before there is any picture. */
export function showNothing() {
  record = null;
  byId("shown").replaceChildren(el("div", { class: "empty" }, icon("picture"), el("p", { text: "stage.empty" })));
  byId("caption").replaceChildren();
  byId("picture-actions").hidden = true;
}

/** Shows a picture of the history. */
export function showRecord(one) {
  record = one;
  const words = one.settings?.prompt || t(`task.${one.task}`);
  const image = el("img", { alt: t("picture.of", { prompt: words }), class: "large" });
  byId("shown").replaceChildren(image);
  show(image, one.url ?? addressOf(one.name)).catch((error) => message(error.message, "error"));
  const [width, height] = sizeOf(one);
  const steps = one.settings?.num_steps ?? one.settings?.steps;
  const facts = [
    one.seed != null ? t("fact.seed", { seed: one.seed }) : null,
    width ? t("fact.size", { width, height }) : null,
    steps ? t("fact.steps", { n: steps }) : null,
    one.settings?.sampler ?? null,
    one.created ? moment(one.created) : null,
  ];
  byId("caption").replaceChildren(
    el("p", { class: "caption-prompt", raw: words }),
    el("p", { class: "hint", raw: facts.filter(Boolean).join(" · ") }),
  );
  showActions();
}

function sizeOf(one) {
  const [height, width] = one.size ?? [one.settings?.height, one.settings?.width];
  return [width, height];
}

function showActions() {
  const box = byId("picture-actions");
  box.hidden = false;
  if (box.childElementCount) return;
  for (const [name, act] of Object.entries(does)) {
    const button = el("button", { type: "button", text: `action.${name}`, on: { click: () => perform(act) } });
    if (name === "forget") button.classList.add("quiet");
    box.append(button);
  }
  rove(box, "button");
}

async function perform(act) {
  try {
    await act(record);
  } catch (error) {
    message(error.message, "error");
  }
}

/** Shows an element in place of a picture: the grid. */
export function showElement(element) {
  record = null;
  byId("shown").replaceChildren(element);
  byId("caption").replaceChildren();
  byId("picture-actions").hidden = true;
}

function showProgress(job) {
  const now = current();
  byId("run").hidden = byId("cancel").hidden = !now;
  document.title = now ? `${progressText(now)} · sdjax` : "sdjax";
  document.body.classList.toggle("busy", Boolean(now));
  say(job);
  if (!now) return;
  const bar = byId("progress");
  if (now.state === "running" && now.total) bar.value = now.done / now.total;
  else bar.removeAttribute("value");
  byId("run-text").textContent = progressText(now);
  if (now.preview && !byId("shown").querySelector(".grids")) showPreview(now.preview);
}

function showPreview(address) {
  let image = byId("shown").querySelector("img.preview");
  if (!image) {
    image = el("img", { class: "large preview", alt: t("preview") });
    record = null;
    byId("shown").replaceChildren(image);
    byId("caption").replaceChildren();
    byId("picture-actions").hidden = true;
  }
  image.src = address;
}

/** Says the beginning, each quarter and the end of a job, and no more: a live region is for news. */
function say(job) {
  const quarter = job.total ? Math.floor((4 * job.done) / job.total) : 0;
  if (job.state === "running" && quarter !== stepSaid && quarter < 4) announce(progressText(job));
  else if (job.state === "waiting") announce(progressText(job));
  else if (["done", "cancelled"].includes(job.state)) announce(t(`ended.${job.state}`));
  stepSaid = job.state === "running" ? quarter : 0;
}

/** Saves a picture of the server as a file. */
export async function download(one) {
  const blob = await api.picture(one.name);
  saveBlob(blob, `sdjax-${one.seed ?? "picture"}.png`);
}

export function saveBlob(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
