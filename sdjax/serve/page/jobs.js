// Jobs: giving them to the server, following their events, cancelling them, and the list of the queue.

import { api, ApiError, listen } from "./api.js";
import { announce, byId, el, message } from "./dom.js";
import { remember, remembered } from "./storage.js";
import { duration, t } from "./texts.js";

const ENDED = ["done", "failed", "cancelled"];
const PAUSE = 2000; // milliseconds between two looks at the queue
const TRIES = 5; // times that a full server is asked again
const mine = new Map(); // id -> the job as last known, of this browser

/**
 * Gives a job to the server and follows it. Returns it when it has ended. `seen` is called with the job after each
 * event: {id, state, done, total, position, seconds_left, preview, pictures, notes, error}.
 */
export async function run(work, seen = () => {}) {
  const { id, position } = await submit(work);
  return follow({ id, position, state: "waiting", prompt: work.settings.prompt ?? "", task: work.task }, seen);
}

async function submit(work) {
  for (let tried = 1; ; tried++) {
    try {
      return await api.submit(work);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 429 || tried === TRIES) throw error;
      announce(t("full", { time: duration(error.retryAfter ?? 5) }));
      await new Promise((resolve) => setTimeout(resolve, 1000 * (error.retryAfter ?? 5)));
    }
  }
}

const pause = () => new Promise((resolve) => setTimeout(resolve, PAUSE));

/** Follows a job that the server has. Returns it when it has ended. */
export async function follow(given, seen = () => {}) {
  const job = { done: 0, total: 0, pictures: [], notes: [], ...given };
  mine.set(job.id, job);
  keepIds();
  const tell = () => {
    seen(job);
    document.dispatchEvent(new CustomEvent("job", { detail: job }));
  };
  tell();
  watchQueue();
  while (!ENDED.includes(job.state)) {
    try {
      await listen(job.id, (kind, data) => {
        take(job, kind, data);
        tell();
      });
      if (!ENDED.includes(job.state)) await pause(); // the connection was cut: go on where the server is now
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) Object.assign(job, { state: "failed", error: error.message });
      else await pause(); // the server restarts: its queue is on disk
    }
  }
  mine.delete(job.id);
  keepIds();
  tell();
  watchQueue();
  if (job.state === "failed") message(job.error ?? t("error.failed"), "error");
  for (const note of job.notes) message(note);
  return job;
}

function take(job, kind, data) {
  if (kind === "state") Object.assign(job, data);
  else if (kind === "waiting") Object.assign(job, { state: "waiting", position: data.position });
  else if (kind === "started") job.state = "running";
  else if (kind === "progress") Object.assign(job, { state: "running", ...data });
  else if (kind === "preview") job.preview = pictureOf(data);
  else if (kind === "picture") job.pictures[data.index] = data;
  else if (kind === "note") job.notes.push(data.text);
  else if (ENDED.includes(kind)) Object.assign(job, { ...data, state: kind });
}

/** Returns the address of a preview: only data of a picture, whatever came. */
function pictureOf({ image, type = "image/jpeg" }) {
  const known = ["image/jpeg", "image/png", "image/webp"].includes(type) ? type : "image/png";
  return `data:${known};base64,${String(image).replace(/^data:[^,]*,/, "")}`;
}

/** Follows again what this browser had given to the server before it was closed. */
export async function followAgain() {
  const jobs = await api.jobs();
  const ids = remembered("jobs", []);
  for (const job of jobs) if (ids.includes(job.id)) follow(job);
}

const keepIds = () => remember("jobs", [...mine.keys()]);

/** Returns the job of this browser that runs, or else the next. */
export const current = () => [...mine.values()].find((job) => job.state === "running") ?? [...mine.values()][0] ?? null;

/** Cancels a job; without one, the present one. */
export async function cancel(job = current()) {
  if (!job) return;
  try {
    await api.cancel(job.id);
    announce(t("cancelling"));
  } catch (error) {
    message(error.message, "error");
  }
}

/** Cancels all jobs of this browser, the last first, so that none of them starts meanwhile. */
export const cancelAll = () => Promise.all([...mine.values()].reverse().map(cancel));

/** Returns how far a job is, as a text. */
export function progressText(job) {
  if (job.state === "waiting") return job.position > 0 ? t("waiting.behind", { n: job.position }) : t("waiting");
  const share = job.total ? Math.round((100 * job.done) / job.total) : 0;
  if (job.seconds_left == null) return t("running", { share });
  return t("running.left", { share, time: duration(job.seconds_left) });
}

let timer = 0;

/** Shows the queue of the server, as long as there is something in it. */
async function watchQueue() {
  clearTimeout(timer);
  try {
    showQueue(await api.jobs());
  } catch {
    // the next look may succeed
  }
  if (mine.size) timer = setTimeout(watchQueue, PAUSE);
  else byId("queue").hidden = true;
}

function showQueue(jobs) {
  byId("queue").hidden = jobs.length < 2;
  byId("queue-list").replaceChildren(...jobs.map((job) => {
    const own = mine.get(job.id);
    const name = job.settings?.prompt || job.prompt || own?.prompt || t(`task.${job.task ?? own?.task ?? "txt2img"}`);
    const button = el("button", { type: "button", class: "quiet", text: "cancel", on: { click: () => cancel(job) } });
    return el("li", {}, el("span", { class: "queue-name", raw: name }), el("span", { class: "hint", raw: progressText(job) }),
      own || !mine.size ? button : null);
  }));
  if (jobs.length > 1) {
    const all = el("button", { type: "button", class: "quiet", text: "cancel.all", on: { click: cancelAll } });
    byId("queue-list").append(el("li", { class: "end" }, all));
  }
}
