// The page's texts: texts/en.json and texts/zh.json have all of them, by key. {name} is a gap for a value.

import { remember, remembered } from "./storage.js";

const LANGUAGES = ["en", "zh"];
const ATTRIBUTES = [["label", "aria-label"], ["placeholder", "placeholder"], ["tip", "title"]];
let texts = {};
let language = "en";

/** Loads the texts of the language that was chosen before, or else of the browser's. */
export async function loadTexts(chosen = remembered("language", null)) {
  const wanted = chosen ?? navigator.languages.map((one) => one.slice(0, 2)).find((one) => LANGUAGES.includes(one));
  language = LANGUAGES.includes(wanted) ? wanted : "en";
  const answer = await fetch(new URL(`texts/${language}.json`, import.meta.url));
  texts = await answer.json();
  document.documentElement.lang = language === "zh" ? "zh-Hans" : language;
  translate(document);
}

/** Changes to the next language, and keeps the choice. */
export async function changeLanguage() {
  const next = LANGUAGES[(LANGUAGES.indexOf(language) + 1) % LANGUAGES.length];
  remember("language", next);
  await loadTexts(next);
}

/** Returns the text of a key with its gaps filled. */
export function t(key, values = {}) {
  const text = texts[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (gap, name) => values[name] ?? gap);
}

export const has = (key) => key in texts;

/** Fills the texts of all elements below `root` that have keys. */
export function translate(root) {
  for (const node of root.querySelectorAll("[data-text], [data-label], [data-placeholder], [data-tip]")) fill(node);
}

/** Fills one element's texts from its keys. */
export function fill(node) {
  const values = node.dataset.values ? JSON.parse(node.dataset.values) : {};
  if (node.dataset.text) node.textContent = t(node.dataset.text, values);
  for (const [name, attribute] of ATTRIBUTES) {
    if (node.dataset[name]) node.setAttribute(attribute, t(node.dataset[name], values));
  }
}

/** Returns a length of time in words. */
export function duration(seconds) {
  if (seconds < 90) return t("seconds", { n: Math.max(1, Math.round(seconds)) });
  return t("minutes", { n: Math.round(seconds / 60) });
}

/** Returns a number of bytes in words. */
export function bytes(count) {
  const units = ["B", "KB", "MB", "GB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, count)) / 3));
  return `${(count / 1000 ** power).toFixed(power > 1 ? 1 : 0)} ${units[power]}`;
}

/** Returns a moment, in seconds since 1970, as the language writes it. */
export function moment(seconds) {
  const style = { dateStyle: "medium", timeStyle: "short" };
  return new Intl.DateTimeFormat(document.documentElement.lang, style).format(new Date(seconds * 1000));
}
