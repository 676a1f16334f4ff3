// Pointers, wheel and keys on the canvas: drawing, panning, zooming with two fingers, drawing by arrow keys.

const KEY_STEP = 0.5; // of the brush's size, for one press of an arrow key
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * Connects a view with what the user does. `tool()` returns the stroke to draw, {tool, size, colour}, or {tool: "pan"}.
 * `changed` is called after each stroke.
 */
export function connect(view, tool, changed) {
  const { canvas } = view;
  const down = new Map(); // pointers that touch the canvas -> where
  let doing = null; // "draw", "pan", "pinch"
  let space = false;

  canvas.addEventListener("pointerdown", (event) => {
    if (!view.drawing) return;
    canvas.setPointerCapture(event.pointerId);
    canvas.focus({ preventScroll: true });
    down.set(event.pointerId, view.canvasPoint(event));
    if (down.size === 2) {
      if (doing === "draw") view.drawing.undo(); // the first finger of two drew a dot
      doing = "pinch";
    } else if (event.button === 1 || space || tool().tool === "pan") doing = "pan";
    else if (event.button === 0) {
      doing = "draw";
      view.drawing.begin(tool(), view.picturePoint(view.canvasPoint(event)));
    }
    move(event);
    event.preventDefault();
  });

  const move = (event) => {
    if (!view.drawing) return;
    const at = view.canvasPoint(event);
    const before = down.get(event.pointerId);
    if (before && doing === "pan") view.pan(at.x - before.x, at.y - before.y);
    if (before && doing === "pinch") pinch(event.pointerId, before, at);
    if (before) down.set(event.pointerId, at);
    if (before && doing === "draw") {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const one of events.length ? events : [event]) view.drawing.extend(view.picturePoint(view.canvasPoint(one)));
    }
    const { tool: name, size } = tool();
    view.cursor = name === "pan" || doing === "pan" ? null : { ...view.picturePoint(at), size };
    canvas.style.cursor = view.cursor ? "none" : "grab";
    redraw();
  };

  const pinch = (id, before, at) => {
    const [other] = [...down].filter(([key]) => key !== id).map(([, point]) => point);
    const distance = (one) => Math.hypot(one.x - other.x, one.y - other.y);
    const middle = (one) => ({ x: (one.x + other.x) / 2, y: (one.y + other.y) / 2 });
    view.pan(middle(at).x - middle(before).x, middle(at).y - middle(before).y);
    view.zoom(distance(at) / Math.max(1, distance(before)), middle(at));
  };

  const up = (event) => {
    if (!down.delete(event.pointerId)) return;
    if (doing === "draw") changed();
    if (!down.size) doing = null;
  };
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => {
    view.cursor = null;
    redraw();
  });

  let planned = false;
  const redraw = () => {
    if (planned) return;
    planned = true;
    requestAnimationFrame(() => {
      planned = false;
      view.draw();
    });
  };

  canvas.addEventListener("wheel", (event) => {
    if (!view.drawing) return;
    if (event.ctrlKey || event.metaKey) view.zoom(Math.exp(-event.deltaY / 300), view.canvasPoint(event));
    else if (!view.fitted) view.pan(-event.deltaX, -event.deltaY);
    else return; // the page scrolls
    event.preventDefault();
  }, { passive: false });

  canvas.addEventListener("keydown", (event) => {
    if (event.key === " " && !event.repeat) space = true;
    if (!view.drawing || event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = ARROWS[event.key];
    if (!arrow && event.key !== " ") return;
    event.preventDefault();
    const { size, tool: name } = tool();
    const { width, height } = view.drawing;
    const here = view.cursor ?? { x: width / 2, y: height / 2, size };
    if (name === "pan" && arrow) return view.pan(-40 * arrow[0], -40 * arrow[1]);
    if (arrow) {
      const step = Math.max(1, size * KEY_STEP);
      const inside = (value, high) => Math.max(0, Math.min(high, value));
      view.cursor = { x: inside(here.x + arrow[0] * step, width), y: inside(here.y + arrow[1] * step, height), size };
    } else view.cursor = here;
    if (!arrow || event.shiftKey) {
      view.drawing.begin(tool(), { x: here.x, y: here.y });
      view.drawing.extend({ x: view.cursor.x, y: view.cursor.y });
      changed();
    }
    redraw();
  });
  canvas.addEventListener("keyup", (event) => {
    if (event.key === " ") space = false;
  });
}
