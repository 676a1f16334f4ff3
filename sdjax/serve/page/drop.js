// A place for a picture: chosen by a file dialog, dropped, or pasted.

import { el, icon, iconButton, message } from "./dom.js";
import { t } from "./texts.js";

const KINDS = ["image/png", "image/jpeg", "image/webp"];

/** Returns the picture among what was dropped or pasted, or null. */
export function fileIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => KINDS.includes(file.type)) ?? null;
}

/**
 * Returns a box for one picture. `chosen` is called with the file, or with null when it is taken away. It has
 * `put(blob, address)`, which shows a picture without a call.
 */
export function dropBox({ label, chosen, removable = true }) {
  const input = el("input", { type: "file", accept: KINDS.join(), class: "visually-hidden", label });
  const image = el("img", { alt: "", hidden: true });
  const words = el("span", { class: "drop-words" }, icon("picture"), el("span", { text: "drop" }));
  const box = el("label", { class: "drop" }, input, image, words);
  const remove = iconButton("close", "remove", () => give(null), { class: "quiet icon remove", hidden: true });
  const outer = el("div", { class: "drop-box" }, box, removable ? remove : null);

  const put = (blob) => {
    if (image.src) URL.revokeObjectURL(image.src);
    image.hidden = remove.hidden = !blob;
    words.hidden = Boolean(blob);
    if (blob) image.src = URL.createObjectURL(blob);
    else image.removeAttribute("src");
  };
  const give = (file) => {
    put(file);
    chosen(file);
  };
  input.addEventListener("change", () => {
    if (input.files[0]) give(input.files[0]);
    input.value = "";
  });
  dropInto(box, give);
  return Object.assign(outer, { put, input });
}

/** Makes an element take dropped pictures. */
export function dropInto(box, chosen) {
  box.addEventListener("dragover", (event) => {
    event.preventDefault();
    event.stopPropagation();
    box.classList.add("over");
  });
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    box.classList.remove("over");
    const file = fileIn(event.dataTransfer);
    if (file) chosen(file);
    else message(t("error.kind"), "error");
  });
}
