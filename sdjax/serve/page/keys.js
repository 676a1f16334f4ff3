// The keyboard: the shortcuts of the whole page, and the dialog that lists them.

import { byId, el } from "./dom.js";

const LISTED = [
  ["Ctrl Enter", "key.generate"], ["Esc", "key.cancel"], ["Ctrl ↑ / Ctrl ↓", "key.weight"], ["Alt 1 … Alt 9", "key.mode"],
  ["← → ↑ ↓", "key.move"], ["Alt P", "key.prompt"], ["B  C  E  H", "key.tools"], ["[  ]", "key.size"],
  ["Ctrl Z / Ctrl Shift Z", "key.undo"], ["+  −  0", "key.zoom"], ["Space", "key.space"], ["?", "key.help"],
];

/** `does` has generate, cancel, and mode(number). */
export function startKeys(does) {
  byId("shortcuts").append(...LISTED.flatMap(([keys, text]) => [
    el("dt", {}, ...keys.split(" / ").flatMap((one, at) => [at ? " / " : null, el("kbd", { raw: one })])), el("dd", { text }),
  ]));
  for (const button of document.querySelectorAll("dialog .close")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  byId("open-help").addEventListener("click", () => byId("help").showModal());
  document.addEventListener("keydown", (event) => {
    const open = document.querySelector("dialog[open]");
    const typing = event.target.matches("input, textarea, select, canvas");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !open) does.generate();
    else if (event.key === "Escape" && !open) does.cancel();
    else if (event.altKey && /^Digit[1-9]$/.test(event.code) && !open) does.mode(Number(event.code.at(-1)) - 1);
    else if (event.altKey && event.code === "KeyP" && !open) byId("prompt").focus();
    else if (event.key === "?" && !typing && !open) byId("help").showModal();
    else return;
    event.preventDefault();
  });
}
