// Prompts: weights of words by Ctrl+Up and Ctrl+Down, the token counter, and tags of LoRA files.

import { api } from "./api.js";
import { announce, byId, el } from "./dom.js";
import { keep } from "./form.js";
import { t } from "./texts.js";

const STEP = 0.1;
const WEIGHT = /^\(([\s\S]*):(-?\d+(?:\.\d+)?)\)$/;
const TAG = /<(lora|hypernet):([^:<>]+)(?::(-?[\d.]+))?(?::[^<>]*)?>/g;
const PAUSE = 250; // milliseconds without typing before tokens are counted

/**
 * Returns {text, start, end}: the text with the weight of the words from start to end changed by `step`, in
 * AUTOMATIC1111's spelling (word:1.1). Without a selection it is the word at the cursor, or the brackets around it.
 */
export function weighted(text, start, end, step) {
  [start, end] = start === end ? around(text, start) : trimmed(text, start, end);
  if (start === end) return null;
  if (text[start - 1] === "(" && WEIGHT.test(text.slice(start - 1, closing(text, end)))) {
    [start, end] = [start - 1, closing(text, end)];
  }
  const found = WEIGHT.exec(text.slice(start, end));
  const [words, old] = found ? [found[1], Number(found[2])] : [text.slice(start, end), 1];
  const weight = Math.round((old + step) * 100) / 100;
  const made = weight === 1 ? words : `(${words}:${weight})`;
  return { text: text.slice(0, start) + made + text.slice(end), start, end: start + made.length, weight, words };
}

const closing = (text, from) => {
  const end = text.indexOf(")", from);
  return end < 0 ? from : end + 1;
};

function trimmed(text, start, end) {
  const part = text.slice(start, end);
  return [start + part.length - part.trimStart().length, end - part.length + part.trimEnd().length];
}

function around(text, cursor) {
  const open = text.lastIndexOf("(", cursor - (text[cursor] === "(" ? 0 : 1));
  const end = open < 0 ? -1 : text.indexOf(")", open);
  if (end >= cursor - 1 && end > open && WEIGHT.test(text.slice(open, end + 1))) return [open, end + 1];
  const before = /[^\s,()[\]<>|:]*$/.exec(text.slice(0, cursor))[0].length;
  const after = /^[^\s,()[\]<>|:]*/.exec(text.slice(cursor))[0].length;
  return [cursor - before, cursor + after];
}

/** Makes the two prompts weigh words and count tokens as one types. */
export function startPrompts() {
  for (const name of ["prompt", "negative_prompt"]) {
    const area = byId(name);
    area.addEventListener("keydown", (event) => {
      if (!(event.ctrlKey || event.metaKey) || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
      event.preventDefault();
      const step = event.key === "ArrowUp" ? STEP : -STEP;
      const made = weighted(area.value, area.selectionStart, area.selectionEnd, step);
      if (!made) return;
      area.setRangeText(made.text, 0, area.value.length, "end");
      area.setSelectionRange(made.start, made.end);
      area.dispatchEvent(new Event("input", { bubbles: true }));
      announce(t("weight.now", { words: made.words, weight: made.weight }));
    });
    let timer = 0;
    const count = () => {
      clearTimeout(timer);
      timer = setTimeout(() => countTokens(name), PAUSE);
    };
    area.addEventListener("input", count);
    document.addEventListener("form-changed", count);
    count();
  }
  document.addEventListener("form-changed", showTags);
  showTags();
}

const counted = {};

async function countTokens(name) {
  const text = byId(name).value;
  if (counted[name] === text) return;
  counted[name] = text;
  const out = byId(`${name}-tokens`);
  try {
    const { tokens, limit, chunks } = await api.tokens(text);
    if (byId(name).value !== text) return;
    const room = limit ?? 75 * Math.max(1, chunks);
    out.textContent = t("tokens", { tokens, limit: room });
    out.title = t("tokens.hint", { chunks: Math.max(1, chunks) });
  } catch {
    out.textContent = ""; // the prompt is unfinished, such as an open bracket
  }
}

/** Returns the tags of a prompt: {kind, name, weight, text}. */
export const tagsOf = (text) =>
  [...text.matchAll(TAG)].map(([whole, kind, name, weight]) => ({ kind, name, weight: Number(weight ?? 1), text: whole }));

/** Adds words to the prompt, or takes them out if they are there. Returns whether they are there now. */
export function toggleWords(words, pattern = words) {
  const area = byId("prompt");
  const there = area.value.includes(pattern);
  area.value = there
    ? area.value.replace(pattern, "").replace(/\s*,\s*(?=,|$)/g, "").replace(/ {2,}/g, " ").trim()
    : [area.value.trim().replace(/,$/, ""), words].filter(Boolean).join(area.value.trim() ? ", " : "");
  area.dispatchEvent(new Event("input", { bubbles: true }));
  return !there;
}

/** Shows a chip with a weight for each LoRA and hypernetwork of the prompt. */
function showTags() {
  const box = byId("in-use");
  const tags = tagsOf(byId("prompt").value);
  const shown = JSON.stringify(tags);
  if (box.dataset.shown === shown || box.contains(document.activeElement)) return;
  box.dataset.shown = shown;
  box.hidden = !tags.length;
  box.replaceChildren(...tags.map(chip));
}

function chip(tag) {
  const area = byId("prompt");
  let text = tag.text;
  const weight = el("input", {
    type: "number", step: 0.05, min: -4, max: 4, value: tag.weight, label: "weight.of", values: { name: tag.name },
    on: {
      input: (event) => {
        event.stopPropagation();
        if (event.target.value === "") return;
        const next = `<${tag.kind}:${tag.name}:${Number(event.target.value)}>`;
        area.value = area.value.replace(text, next);
        text = next;
        keep();
      },
    },
  });
  const remove = el("button", {
    type: "button", class: "quiet", label: "remove.name", values: { name: tag.name }, raw: "×",
    on: {
      click: () => {
        area.focus();
        toggleWords(text);
        keep();
      },
    },
  });
  return el("span", { class: "chip" }, el("span", { raw: tag.name }), weight, remove);
}
