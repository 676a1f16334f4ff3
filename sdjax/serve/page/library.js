// The browser of model files: a card for each, by kind. A card chooses a file or puts it into the prompt.

import { api, show } from "./api.js";
import { announce, byId, el, icon, message, rove } from "./dom.js";
import { chooseModel, currentModel, keep, setValue, valueOf } from "./form.js";
import { tagsOf, toggleWords } from "./prompts.js";
import { bytes, t } from "./texts.js";

const KINDS = ["checkpoint", "lora", "embedding", "hypernetwork", "vae", "control", "ip_adapter", "upscaler"];
const TAGS = { lora: "lora", hypernetwork: "hypernet" };
let kind = "checkpoint";
let entries = []; // of the kind
let cards = []; // those that are shown: {entry, node}

const plain = (name) => name.replace(/\.[^./]+$/, "");

/** What choosing a card does, and whether it is in use. Kinds without an entry are for looking only. */
const USES = {
  checkpoint: {
    used: ({ name }) => name === (currentModel() ?? byId("model-name").dataset.current),
    use: ({ name }) => {
      chooseModel(name);
      byId("library").close();
    },
  },
  vae: { used: ({ name }) => valueOf("vae") === name, use: ({ name }) => setValue("vae", valueOf("vae") === name ? null : name) },
  upscaler: { used: ({ name }) => valueOf("upscaler") === name, use: ({ name }) => setValue("upscaler", name) },
  embedding: {
    used: ({ name }) => valueOf("prompt").split(/[\s,()]+/).includes(wordOf(name)),
    use: ({ name }) => toggleWords(wordOf(name)),
  },
  lora: { used: tagged, use: toggleTag },
  hypernetwork: { used: tagged, use: toggleTag },
};

/** Returns the name by which prompts call a file: without folders and ending. */
const wordOf = (name) => plain(name).split("/").at(-1);
const tagIn = ({ name }) => tagsOf(valueOf("prompt")).find((tag) => tag.kind === TAGS[kind] && tag.name === wordOf(name));

function tagged(entry) {
  return Boolean(tagIn(entry));
}

function toggleTag(entry) {
  const there = tagIn(entry);
  toggleWords(there?.text ?? `<${TAGS[kind]}:${wordOf(entry.name)}:1>`);
}

/** Makes the dialog work. */
export function startLibrary() {
  const tabs = byId("kinds");
  for (const one of KINDS) {
    tabs.append(el("button", {
      type: "button", role: "tab", id: `kind-${one}`, "aria-controls": "library-panel", "aria-selected": "false",
      text: `kind.${one}`, data: { kind: one }, on: { click: () => showKind(one) },
    }));
  }
  rove(tabs, "[role=tab]", (tab) => showKind(tab.dataset.kind));
  byId("library-search").addEventListener("input", showCards);
  byId("library-refresh").addEventListener("click", async () => {
    await api.refresh().catch((error) => message(error.message, "error"));
    showKind(kind);
  });
  byId("open-library").addEventListener("click", () => openLibrary(kind));
  byId("model").addEventListener("click", () => openLibrary("checkpoint"));
}

/** Opens the dialog at a kind of files. */
export function openLibrary(one) {
  byId("library").showModal();
  showKind(one);
}

/** Returns the library's name of the checkpoint that a picture names, by its hash or else its file's name; or null. */
export async function findModel({ name, hash }) {
  const all = await api.library("checkpoint");
  const byHash = all.find(({ title }) => hash && title?.includes(`[${hash.slice(0, 10)}]`));
  const byName = all.find((one) => name && wordOf(one.name) === wordOf(name));
  return (byHash ?? byName)?.name ?? null;
}

async function showKind(one) {
  kind = one;
  for (const tab of byId("kinds").children) {
    const chosen = tab.dataset.kind === one;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
  }
  byId("library-panel").setAttribute("aria-labelledby", `kind-${one}`);
  try {
    const found = await api.library(one);
    if (kind === one) entries = found;
  } catch (error) {
    entries = [];
    message(error.message, "error");
  }
  showCards();
}

/** Shows the cards of the files whose names have the words of the search. */
function showCards() {
  const wanted = byId("library-search").value.trim().toLowerCase();
  const shown = entries.filter(({ name, title }) => `${name} ${title ?? ""}`.toLowerCase().includes(wanted));
  cards = shown.map((entry) => ({ entry, node: card(entry) }));
  byId("cards").replaceChildren(...cards.map(({ node }) => el("li", {}, node)));
  byId("cards-empty").hidden = Boolean(shown.length);
}

function card(entry) {
  const uses = USES[kind];
  const preview = entry.preview ?? null;
  const image = preview ? el("img", { alt: "", loading: "lazy" }) : el("span", { class: "card-blank" }, icon("picture"));
  if (preview) show(image, preview).catch(() => {});
  const facts = [entry.details?.family ?? entry.family, entry.size ? bytes(entry.size) : null].filter(Boolean).join(" · ");
  const parts = [image, el("span", { class: "card-name", raw: plain(entry.name) }), el("span", { class: "hint", raw: facts })];
  if (!uses) return el("div", { class: "card" }, ...parts);
  const button = el("button", { type: "button", class: "card", "aria-pressed": String(uses.used(entry)) }, ...parts);
  button.addEventListener("click", () => {
    uses.use(entry);
    keep();
    const used = uses.used(entry);
    announce(t(used ? "library.used" : "library.unused", { name: plain(entry.name) }));
    for (const one of cards) one.node.setAttribute("aria-pressed", String(uses.used(one.entry)));
  });
  return button;
}
