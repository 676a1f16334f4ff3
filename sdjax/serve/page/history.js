// The strip of pictures that were made, from the server's disk: newest first, with one stop of the Tab key.

import { addressOf, api, show } from "./api.js";
import { byId, el, message, rove } from "./dom.js";
import { t } from "./texts.js";

const PAGE = 24; // pictures that are asked for at once
let records = [];
let chosen = null;
let choose = () => {};
let settle = () => {};

/** Shows the history. `picked` is called with the record that the user chooses. */
export async function startHistory(picked) {
  choose = picked;
  settle = rove(byId("history"), "[role=option]", (node) => pick(node.dataset.name));
  byId("more").addEventListener("click", () => older().catch((error) => message(error.message, "error")));
  await older();
  if (records.length) select(records[0].name);
}

async function older() {
  const found = await api.history(records.at(-1)?.created, PAGE);
  const more = found.filter(({ name }) => !records.some((one) => one.name === name));
  records = [...records, ...more];
  byId("history").append(...more.map(option));
  byId("more").hidden = found.length < PAGE;
  refresh();
}

/** Puts a new picture before the others and selects it; `quiet`: without showing it. */
export function add(record, quiet = false) {
  if (records.some((one) => one.name === record.name)) return;
  records.unshift(record);
  byId("history").prepend(option(record));
  refresh();
  if (!quiet) pick(record.name);
}

/** Takes a picture out of the history, on the server's disk too. */
export async function forget(record) {
  await api.forget(record.name);
  const at = records.findIndex((one) => one.name === record.name);
  records.splice(at, 1);
  byId("history").children[at]?.remove();
  refresh();
  const next = records[Math.min(at, records.length - 1)];
  if (next) pick(next.name);
  return next ?? null;
}

function option(record) {
  const words = record.settings?.prompt || t(`task.${record.task}`);
  const image = el("img", { alt: "", loading: "lazy", decoding: "async" });
  const observer = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    show(image, record.thumbnail ?? addressOf(record.name)).catch(() => {});
  });
  observer.observe(image);
  return el("li", {
    role: "option", tabindex: -1, "aria-selected": "false", label: "picture.of", values: { prompt: words },
    data: { name: record.name }, on: { click: () => pick(record.name) },
  }, image);
}

function pick(name) {
  select(name);
  choose(records.find((one) => one.name === name));
}

function select(name) {
  chosen = name;
  for (const node of byId("history").children) node.setAttribute("aria-selected", String(node.dataset.name === name));
  settle(byId("history").querySelector(`[aria-selected="true"]`));
}

function refresh() {
  byId("history").hidden = !records.length;
  byId("history-empty").hidden = Boolean(records.length);
  if (chosen === null) settle();
}

export const newest = () => records[0] ?? null;
