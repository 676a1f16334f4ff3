// Where a picture stands in its canvas: pan and zoom, and drawing of picture, paint, mask and cursor.

import { MASK, PAINT } from "./strokes.js";

const SMALLEST = 0.05;
const LARGEST = 32;
const EDGE = 24; // pixels of the canvas around the whole picture

/** A canvas that shows a picture with its drawing, at `scale` canvas pixels for each of the picture. */
export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    Object.assign(this, { scale: 1, x: 0, y: 0, picture: null, drawing: null, cursor: null, fitted: true });
    new ResizeObserver(() => this.#resize()).observe(canvas);
  }

  show(picture, drawing) {
    Object.assign(this, { picture, drawing });
    this.fit();
  }

  /** Makes the whole picture with its margins visible. */
  fit() {
    this.fitted = true;
    if (!this.drawing) return this.draw();
    const { left, top, right, bottom } = this.drawing.margins;
    const [wide, high] = [this.drawing.width + left + right, this.drawing.height + top + bottom];
    const ratio = this.#ratio();
    const room = 2 * EDGE * ratio;
    this.scale = Math.min((this.canvas.width - room) / wide, (this.canvas.height - room) / high, 4 * ratio);
    this.scale = Math.max(SMALLEST, this.scale);
    this.x = (this.canvas.width - wide * this.scale) / 2 + left * this.scale;
    this.y = (this.canvas.height - high * this.scale) / 2 + top * this.scale;
    this.draw();
  }

  /** Zooms by a factor around a point of the canvas, or around its middle. */
  zoom(factor, at = { x: this.canvas.width / 2, y: this.canvas.height / 2 }) {
    const scale = Math.max(SMALLEST, Math.min(LARGEST, this.scale * factor));
    this.x = at.x - ((at.x - this.x) * scale) / this.scale;
    this.y = at.y - ((at.y - this.y) * scale) / this.scale;
    Object.assign(this, { scale, fitted: false });
    this.draw();
  }

  /** Moves the picture by canvas pixels. */
  pan(x, y) {
    Object.assign(this, { x: this.x + x, y: this.y + y, fitted: false });
    this.draw();
  }

  /** Returns the canvas pixel of a pointer's event. */
  canvasPoint(event) {
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.#ratio();
    return { x: (event.clientX - box.left) * ratio, y: (event.clientY - box.top) * ratio };
  }

  /** Returns the point of the picture under a pixel of the canvas. */
  picturePoint({ x, y }) {
    return { x: (x - this.x) / this.scale, y: (y - this.y) / this.scale };
  }

  draw() {
    const { context, canvas } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.picture) return;
    const { width, height, margins } = this.drawing;
    context.setTransform(this.scale, 0, 0, this.scale, this.x, this.y);
    context.imageSmoothingEnabled = this.scale < 3;
    this.#margins(width, height, margins);
    context.drawImage(this.picture, 0, 0);
    context.drawImage(this.drawing.layers[PAINT].canvas, 0, 0);
    context.globalAlpha = 0.55;
    context.drawImage(this.#tinted(), 0, 0);
    context.globalAlpha = 1;
    if (this.cursor) this.#cursor();
  }

  #margins(width, height, { left, top, right, bottom }) {
    if (!(left || top || right || bottom)) return;
    const { context } = this;
    context.fillStyle = "rgb(20 184 166 / 0.16)";
    context.fillRect(-left, -top, width + left + right, height + top + bottom);
    context.strokeStyle = "#14b8a6";
    context.lineWidth = 1.5 / this.scale;
    context.setLineDash([6 / this.scale, 5 / this.scale]);
    context.strokeRect(-left, -top, width + left + right, height + top + bottom);
    context.setLineDash([]);
  }

  /** Returns the mask in the colour in which it is seen. */
  #tinted() {
    const { width, height, layers } = this.drawing;
    this.tint ??= document.createElement("canvas");
    if (this.tint.width !== width || this.tint.height !== height) Object.assign(this.tint, { width, height });
    const context = this.tint.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.drawImage(layers[MASK].canvas, 0, 0);
    context.globalCompositeOperation = "source-in";
    context.fillStyle = "#14b8a6";
    context.fillRect(0, 0, width, height);
    return this.tint;
  }

  #cursor() {
    const { context, cursor } = this;
    for (const [colour, line] of [["rgb(0 0 0 / 0.7)", 3], ["#ffffff", 1.4]]) {
      context.strokeStyle = colour;
      context.lineWidth = line / this.scale;
      context.beginPath();
      context.arc(cursor.x, cursor.y, Math.max(cursor.size / 2, 2 / this.scale), 0, 2 * Math.PI);
      context.stroke();
    }
  }

  #ratio() {
    return this.canvas.width / Math.max(1, this.canvas.clientWidth);
  }

  #resize() {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth * ratio, this.canvas.clientHeight * ratio].map(Math.round);
    if (!width || (this.canvas.width === width && this.canvas.height === height)) return;
    Object.assign(this.canvas, { width, height });
    if (this.fitted) this.fit();
    else this.draw();
  }
}
