// Speaks to the server: /api/v1 alone. Every answer that is no success becomes an ApiError with the server's sentence.

import { byId } from "./dom.js";
import { t } from "./texts.js";

const ROOT = "/api/v1";
let token = sessionToken();

/** What the server refused: a sentence, the HTTP status, and after how many seconds to try again, if it says so. */
export class ApiError extends Error {
  constructor(sentence, status, retryAfter) {
    super(sentence);
    Object.assign(this, { status, retryAfter });
  }
}

const json = (method, path, body) => call(method, path, JSON.stringify(body), "application/json").then(read);
const read = (answer) => answer.json();

export const api = {
  status: () => call("GET", "/status").then(read),
  choices: () => call("GET", "/choices").then(read),
  library: (kind) => call("GET", `/library/${kind}`).then(read).then(({ entries }) => entries),
  refresh: () => json("POST", "/library/refresh", {}),
  submit: (work) => json("POST", "/jobs", work),
  jobs: () => call("GET", "/jobs").then(read).then(({ jobs }) => jobs),
  job: (id) => call("GET", `/jobs/${encodeURIComponent(id)}`).then(read),
  cancel: (id) => call("DELETE", `/jobs/${encodeURIComponent(id)}`),
  history: (before, limit) =>
    call("GET", `/history?limit=${limit}${before ? `&before=${before}` : ""}`).then(read).then(({ records }) => records),
  forget: (name) => call("DELETE", `/pictures/${encodeURIComponent(name)}`),
  picture: (name) => call("GET", `/pictures/${encodeURIComponent(name)}`).then((answer) => answer.blob()),
  upload: (blob) => call("POST", "/uploads", blob, blob.type || "application/octet-stream").then(read),
  tokens: (prompt) => json("POST", "/tokens", { prompt }),
  readPicture: (blob) => call("POST", "/read-picture", blob, blob.type || "application/octet-stream").then(read),
  hint: (wanted) => json("POST", "/hints", wanted),
};

async function call(method, path, body, type) {
  const headers = type ? { "Content-Type": type } : {};
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path.startsWith("/api/") ? path : ROOT + path, { method, headers, body });
  } catch {
    throw new ApiError(t("error.offline"), 0);
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    await askForToken();
    return call(method, path, body, type);
  }
  const found = await answer.json().catch(() => ({}));
  const sentence = typeof found.error === "string" ? found.error : (found.error?.message ?? found.detail);
  throw new ApiError(sentence ?? t("error.status", { status: answer.status }), answer.status,
    Number(answer.headers.get("Retry-After")) || null);
}

/** Calls `heard(kind, data)` for each event of a job, until the job or `signal` ends. */
export async function listen(id, heard, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(`${ROOT}/jobs/${encodeURIComponent(id)}/events`, { headers, signal });
  if (!answer.ok) throw new ApiError(t("error.status", { status: answer.status }), answer.status);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (waiting + value.replace(/\r/g, "")).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const event = parse(block);
      if (event) heard(event.kind, event.data);
    }
  }
}

function parse(block) {
  let kind = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) kind = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  return data.length ? { kind, data: JSON.parse(data.join("\n")) } : null;
}

/** Shows a picture of the server in an <img>: by its address, or as a blob when requests need a token. */
export async function show(image, address) {
  if (!token) {
    image.src = address;
    return;
  }
  const blob = await (await call("GET", address)).blob();
  image.src = URL.createObjectURL(blob);
  image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
}

export const addressOf = (name) => `${ROOT}/pictures/${encodeURIComponent(name)}`;

let asking = null;

/** Asks for the server's token, once for all requests that wait for it. */
function askForToken() {
  const dialog = byId("sign-in");
  asking ??= new Promise((resolve) => {
    dialog.showModal();
    dialog.addEventListener("close", () => {
      token = byId("token").value.trim();
      try {
        sessionStorage.setItem("sdjax.token", token);
      } catch {
        // kept for this page alone
      }
      asking = null;
      resolve();
    }, { once: true });
  });
  return asking;
}

function sessionToken() {
  try {
    return sessionStorage.getItem("sdjax.token");
  } catch {
    return null;
  }
}
