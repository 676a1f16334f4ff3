// Light or dark: as the system says, or as the user chose. One column or two: as wide as the window is.

import { announce, byId } from "./dom.js";
import { remember, remembered } from "./storage.js";
import { t } from "./texts.js";

const NEXT = { auto: "light", light: "dark", dark: "auto" };

const narrow = matchMedia("(max-width: 900px)"); // as in style.css

/** Whether all stands in one column, so that the picture may be out of sight. */
export const isNarrow = () => narrow.matches;

/** Applies the choice that was made before, and puts the picture where the window has room for it. */
export function startAppearance() {
  document.documentElement.dataset.theme = remembered("theme", "auto");
  const place = () => {
    if (narrow.matches) byId("prompts").after(byId("workspace"));
    else byId("panel").after(byId("workspace"));
  };
  narrow.addEventListener("change", place);
  place();
}

/** Goes on to the next of: as the system, light, dark. */
export function changeAppearance() {
  const next = NEXT[document.documentElement.dataset.theme] ?? "auto";
  document.documentElement.dataset.theme = next;
  remember("theme", next);
  announce(t(`theme.${next}`));
}
