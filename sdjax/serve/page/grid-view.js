// The grid as tables, one for each value of Z, and as one labelled picture to save.

import { addressOf, api, show } from "./api.js";
import { el, message } from "./dom.js";
import { progressText } from "./jobs.js";
import { saveBlob } from "./stage.js";
import { t } from "./texts.js";

const GAP = 8; // pixels between pictures
const LINE = 40; // pixels of a line of labels
const SIDE = 180; // pixels of the labels of Y
const LARGEST = 16384; // pixels a side that browsers can draw

/** Returns {element, progress, finish, end}: cells are (column, row, table), labels are texts as they stand. */
export function makeGridView(xs, ys, zs) {
  const cells = new Map();
  const tables = zs.map((z, k) => {
    const heads = el("tr", {}, el("td"), ...xs.map((x) => el("th", { scope: "col", raw: x })));
    const lines = ys.map((y, j) => el("tr", {}, el("th", { scope: "row", raw: y }), ...xs.map((x, i) => {
      const node = el("td", {}, el("span", { class: "hint", text: "waiting" }));
      cells.set(`${i} ${j} ${k}`, { node, name: null, words: [x, y, z].filter(Boolean).join(", ") });
      return node;
    })));
    return el("table", {}, el("caption", { raw: z }), el("thead", {}, heads), el("tbody", {}, ...lines));
  });
  const save = el("button", { type: "button", text: "grid.save", hidden: true });
  const element = el("div", { class: "grids", tabindex: 0, role: "region", label: "section.grid" }, ...tables, save);
  save.addEventListener("click", () => draw(xs, ys, zs, cells).catch((error) => message(error.message, "error")));
  return {
    element,
    progress(at, job) {
      if (["running", "waiting"].includes(job.state)) cells.get(at.join(" ")).node.firstChild.textContent = progressText(job);
    },
    finish(at, picture) {
      const cell = cells.get(at.join(" "));
      cell.name = picture?.name ?? null;
      const image = picture && el("img", { alt: cell.words });
      cell.node.replaceChildren(image ?? el("span", { class: "hint", text: "grid.no_picture" }));
      if (image) show(image, addressOf(picture.name));
    },
    end() {
      save.hidden = ![...cells.values()].some((cell) => cell.name);
    },
  };
}

/** Saves all tables as one PNG, in the pictures' own size if a browser can draw it. */
async function draw(xs, ys, zs, cells) {
  const pictures = new Map();
  for (const [at, { name }] of cells) if (name) pictures.set(at, await createImageBitmap(await api.picture(name)));
  const sizes = [...pictures.values()];
  const [wide, high] = [Math.max(...sizes.map((one) => one.width)), Math.max(...sizes.map((one) => one.height))];
  const height = zs.length * (2 * LINE + ys.length * (high + GAP));
  const width = SIDE + xs.length * (wide + GAP);
  const scale = Math.min(1, LARGEST / width, LARGEST / height);
  const canvas = Object.assign(document.createElement("canvas"), { width: width * scale, height: height * scale });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, width, height);
  const write = (text, x, y, room) => {
    context.fillStyle = "#1c1917";
    context.font = `${LINE / 2}px system-ui, sans-serif`;
    context.textBaseline = "middle";
    context.fillText(text, x, y, room);
  };
  let top = 0;
  for (const [k, z] of zs.entries()) {
    write(z, GAP, top + LINE / 2, width);
    xs.forEach((x, i) => write(x, SIDE + i * (wide + GAP), top + 1.5 * LINE, wide));
    top += 2 * LINE;
    for (const [j, y] of ys.entries()) {
      write(y, GAP, top + high / 2, SIDE - 2 * GAP);
      xs.forEach((_, i) => {
        const picture = pictures.get(`${i} ${j} ${k}`);
        if (picture) context.drawImage(picture, SIDE + i * (wide + GAP), top);
      });
      top += high + GAP;
    }
  }
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new Error(t("error.grid_size"));
  saveBlob(blob, "sdjax-grid.png");
}
