// Light or dark: as the system says, or as the user chose.

import { announce } from "./dom.js";
import { remember, remembered } from "./storage.js";
import { t } from "./texts.js";

const NEXT = { auto: "light", light: "dark", dark: "auto" };

/** Applies the choice that was made before. */
export function startAppearance() {
  document.documentElement.dataset.theme = remembered("theme", "auto");
}

/** Goes on to the next of: as the system, light, dark. */
export function changeAppearance() {
  const next = NEXT[document.documentElement.dataset.theme] ?? "auto";
  document.documentElement.dataset.theme = next;
  remember("theme", next);
  announce(t(`theme.${next}`));
}
