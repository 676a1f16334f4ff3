// The editor of the input picture: its toolbar, its canvas, and what it gives to a job.

import { announce, el, iconButton, message, rove } from "../dom.js";
import { dropBox, dropInto } from "../drop.js";
import { EDITED } from "../schema.js";
import { t } from "../texts.js";
import { connect } from "./pointer.js";
import { Drawing, MASK, masked, PAINT, painted } from "./strokes.js";
import { View } from "./view.js";

const MASKED = ["inpaint", "detail"];
const PAINTED = EDITED.filter((mode) => mode !== "upscale");
const TOOLS = [
  { name: MASK, icon: "brush", key: "b", modes: MASKED },
  { name: PAINT, icon: "drop", key: "c", modes: PAINTED },
  { name: "erase", icon: "eraser", key: "e", modes: PAINTED },
  { name: "pan", icon: "hand", key: "h", modes: EDITED },
];
const FACTOR = 1.25; // of one press of a zoom button

/** The editor in `box`. `changed` is called when the picture changes. */
export class Editor {
  constructor(box, changed) {
    Object.assign(this, { mode: "image", tool: PAINT, size: 48, picture: null, drawing: null, changed });
    this.canvas = el("canvas", { tabindex: 0, role: "img", label: "canvas", "aria-describedby": "canvas-hint" });
    this.drop = dropBox({ label: "input.choose", chosen: (file) => file && this.open(file), removable: false });
    this.bar = this.#toolbar();
    const hint = el("p", { id: "canvas-hint", class: "visually-hidden", text: "hint.canvas" });
    this.frame = el("div", { class: "canvas-frame" }, this.canvas, hint);
    box.append(this.bar, this.frame, this.drop);
    dropInto(this.frame, (file) => this.open(file));
    this.view = new View(this.canvas);
    connect(this.view, () => this.#stroke(), () => this.#refresh());
    box.addEventListener("keydown", (event) => this.#key(event));
    this.#setSize(this.size);
    this.#refresh();
  }

  /** Opens a picture of a file or blob. */
  async open(blob) {
    try {
      const picture = await createImageBitmap(blob);
      this.picture = picture;
      this.blob = blob;
      this.drawing = new Drawing(picture.width, picture.height, this.drawing?.margins);
      this.#refresh();
      this.view.show(picture, this.drawing);
      this.changed();
      announce(t("input.opened", { width: picture.width, height: picture.height }));
    } catch {
      message(t("error.picture"), "error");
    }
  }

  /** Shows the tools of a mode. */
  setMode(mode) {
    this.mode = mode;
    for (const { name, modes } of TOOLS) this.buttons[name].hidden = !modes.includes(mode);
    this.choose(MASKED.includes(mode) ? MASK : PAINTED.includes(mode) ? PAINT : "pan");
    this.#refresh();
  }

  /** Shows by how many pixels the picture will grow. */
  setMargins(margins) {
    if (!this.drawing) return;
    this.drawing.margins = margins;
    this.view.fit();
  }

  choose(tool) {
    this.tool = tool;
    for (const [name, button] of Object.entries(this.buttons)) button.setAttribute("aria-pressed", String(name === tool));
    this.colour.closest("label").hidden = tool !== PAINT;
    this.settle(this.buttons[tool]);
  }

  /** Returns the pictures of a job as blobs: image, and mask if one is drawn and the mode has masks. */
  async inputs() {
    if (!this.picture) return {};
    const inputs = { image: this.drawing.has(PAINT) ? await painted(this.picture, this.drawing) : this.blob };
    if (MASKED.includes(this.mode) && this.drawing.has(MASK)) inputs.mask = await masked(this.drawing);
    return inputs;
  }

  #stroke() {
    const layers = [MASKED.includes(this.mode) ? MASK : null, PAINTED.includes(this.mode) ? PAINT : null].filter(Boolean);
    return { tool: this.tool, size: this.size, colour: this.colour.value, layers };
  }

  #toolbar() {
    this.buttons = {};
    for (const { name, icon: picture, key } of TOOLS) {
      this.buttons[name] = iconButton(picture, `tool.${name}`, () => this.choose(name), { "aria-keyshortcuts": key });
    }
    this.range = el("input", {
      type: "range", min: 2, max: 256, value: this.size, label: "tool.size",
      on: { input: () => this.#setSize(Number(this.range.value)) },
    });
    this.colour = el("input", { type: "color", value: "#e0483e", label: "tool.colour" });
    const does = {
      undo: iconButton("undo", "undo", () => this.undo()),
      redo: iconButton("redo", "redo", () => this.redo()),
      clear: iconButton("trash", "clear", () => this.#whole("clear")),
      invert: iconButton("half", "invert", () => this.#whole("invert")),
      in: iconButton("plus", "zoom.in", () => this.view.zoom(FACTOR)),
      out: iconButton("minus", "zoom.out", () => this.view.zoom(1 / FACTOR)),
      fit: iconButton("fit", "zoom.fit", () => this.view.fit()),
      other: iconButton("picture", "input.other", () => this.drop.input.click()),
    };
    this.does = does;
    const group = (...parts) => el("div", { class: "tools" }, ...parts);
    const bar = el("div", { class: "toolbar", role: "toolbar", label: "tools" },
      group(...Object.values(this.buttons)),
      group(el("label", { class: "size" }, el("span", { class: "dot" }), this.range), el("label", { class: "colour" }, this.colour)),
      group(does.undo, does.redo, does.invert, does.clear), group(does.out, does.fit, does.in), group(does.other));
    this.settle = rove(bar, "button");
    return bar;
  }

  undo() {
    this.drawing?.undo();
    this.#refresh();
  }

  redo() {
    this.drawing?.redo();
    this.#refresh();
  }

  #whole(what) {
    this.drawing?.whole(what);
    this.#refresh();
  }

  #refresh() {
    const { drawing } = this;
    this.bar.hidden = this.frame.hidden = !drawing;
    this.drop.hidden = Boolean(drawing);
    this.does.undo.disabled = !drawing?.done.length;
    this.does.redo.disabled = !drawing?.undone.length;
    this.does.invert.hidden = !MASKED.includes(this.mode);
    this.does.clear.hidden = this.range.closest("div").hidden = !PAINTED.includes(this.mode);
    this.view?.draw();
  }

  #key(event) {
    const typing = event.target.matches("input:not([type=range]), textarea");
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && !typing && ["z", "y"].includes(key)) {
      event.preventDefault();
      if (key === "y" || event.shiftKey) this.redo();
      else this.undo();
      return;
    }
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const tool = TOOLS.find((one) => one.key === key && one.modes.includes(this.mode));
    const act = { "+": () => this.view.zoom(FACTOR), "-": () => this.view.zoom(1 / FACTOR), 0: () => this.view.fit(),
      "[": () => this.#resize(1 / FACTOR), "]": () => this.#resize(FACTOR) }[key];
    if (tool) this.choose(tool.name);
    else if (act) act();
    else return;
    event.preventDefault();
  }

  #setSize(size) {
    this.size = this.range.value = size;
    const { min, max } = this.range;
    this.range.style.setProperty("--share", `${(100 * (size - min)) / (max - min)}%`);
  }

  #resize(factor) {
    this.#setSize(Math.max(2, Math.min(256, Math.round(this.size * factor))));
    if (this.view.cursor) this.view.cursor.size = this.size;
    this.view.draw();
  }
}
