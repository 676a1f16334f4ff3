// What was drawn on a picture: strokes on two layers, mask and paint, with undo and redo.

export const MASK = "mask";
export const PAINT = "paint";
const WHITE = "#ffffff";

/** The layers of a picture of this size. Strokes are kept as points, so that undoing draws the others again. */
export class Drawing {
  constructor(width, height, margins = { left: 0, top: 0, right: 0, bottom: 0 }) {
    Object.assign(this, { width, height, margins, done: [], undone: [] });
    this.layers = { [MASK]: layer(width, height), [PAINT]: layer(width, height) };
  }

  /** Begins a stroke {tool: "mask", "paint" or "erase", size, colour} at a point of the picture. */
  begin(stroke, point) {
    this.undone = [];
    this.done.push({ ...stroke, points: [point] });
    this.#line(this.done.at(-1), 0);
  }

  /** Continues the last stroke to a point. */
  extend(point) {
    const stroke = this.done.at(-1);
    stroke.points.push(point);
    this.#line(stroke, stroke.points.length - 2);
  }

  /** Fills the whole mask, or with "clear" empties both layers. It can be undone like a stroke. */
  whole(tool) {
    this.undone = [];
    this.done.push({ tool, points: [] });
    this.#whole(tool);
  }

  undo() {
    if (this.done.length) this.undone.push(this.done.pop());
    this.#again();
  }

  redo() {
    if (this.undone.length) this.done.push(this.undone.pop());
    this.#again();
  }

  /** Whether any part of a layer is drawn. */
  has(name) {
    const { context } = this.layers[name];
    const { data } = context.getImageData(0, 0, this.width, this.height);
    for (let at = 3; at < data.length; at += 4) if (data[at]) return true;
    return false;
  }

  #again() {
    for (const { context } of Object.values(this.layers)) context.clearRect(0, 0, this.width, this.height);
    for (const stroke of this.done) {
      if (!stroke.points.length) this.#whole(stroke.tool);
      else for (let at = 0; at < Math.max(1, stroke.points.length - 1); at++) this.#line(stroke, at);
    }
  }

  #whole(tool) {
    const { context } = this.layers[MASK];
    if (tool === "fill") {
      context.globalCompositeOperation = "source-over";
      context.fillStyle = WHITE;
      context.fillRect(0, 0, this.width, this.height);
    } else if (tool === "invert") {
      context.globalCompositeOperation = "xor";
      context.fillStyle = WHITE;
      context.fillRect(0, 0, this.width, this.height);
    } else {
      for (const one of Object.values(this.layers)) one.context.clearRect(0, 0, this.width, this.height);
    }
  }

  /** Draws the part of a stroke from one of its points to the next. */
  #line({ tool, size, colour, points, layers }, at) {
    const [from, to] = [points[at], points[at + 1] ?? points[at]];
    for (const name of tool === "erase" ? layers : [tool]) {
      const { context } = this.layers[name];
      context.globalCompositeOperation = tool === "erase" ? "destination-out" : "source-over";
      context.strokeStyle = name === MASK ? WHITE : colour;
      context.lineWidth = size;
      context.lineCap = context.lineJoin = "round";
      context.beginPath();
      context.moveTo(from.x, from.y);
      context.lineTo(to.x + (from === to ? 0.01 : 0), to.y);
      context.stroke();
    }
  }
}

function layer(width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  return { canvas, context: canvas.getContext("2d", { willReadFrequently: true }) };
}

/** Returns a PNG of the picture with the paint on it. */
export function painted(picture, drawing) {
  const { canvas, context } = layer(drawing.width, drawing.height);
  context.drawImage(picture, 0, 0);
  context.drawImage(drawing.layers[PAINT].canvas, 0, 0);
  return png(canvas);
}

/** Returns a PNG of the mask: white where it is drawn, black elsewhere, with hard edges. */
export function masked(drawing) {
  const { canvas, context } = layer(drawing.width, drawing.height);
  context.drawImage(drawing.layers[MASK].canvas, 0, 0);
  const pixels = context.getImageData(0, 0, drawing.width, drawing.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const level = pixels.data[at + 3] >= 128 ? 255 : 0;
    pixels.data.fill(level, at, at + 3);
    pixels.data[at + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return png(canvas);
}

const png = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
