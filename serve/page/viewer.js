// A view of one image: window and level by drag, zoom by wheel, all of it by keys too.

import { element } from "./common.js";
import { full, paint } from "./image.js";

// Centre / width on the Hounsfield scale, where an image has it.
const HOUNSFIELD = [["soft tissue 40/400", 40, 400], ["lung -600/1500", -600, 1500], ["mediastinum 90/150", 90, 150], ["bone 480/2500", 480, 2500], ["brain 40/80", 40, 80]];
// Otherwise shares of the image's own levels: from, to.
const SHARES = [["dark half", 0, 0.5], ["middle half", 0.25, 0.75], ["bright half", 0.5, 1]];
const STEP = 0.05, ZOOM = 1.25;

export class Viewer {
  constructor(canvas, label) {
    this.canvas = canvas;
    canvas.viewer = this;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    this.native = document.createElement("canvas");
    this.image = null;
    this.changed = () => {};
    this.linked = [this];
    this.overlay = null;
    this.reset(false);
    canvas.addEventListener("pointerdown", (event) => this.#grab(event));
    canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.all((v) => v.zoomBy(event.deltaY < 0 ? ZOOM : 1 / ZOOM)); }, { passive: false });
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  all(work) { for (const viewer of this.linked) work(viewer); }

  // Shows an image; resolves when it is on the screen.
  show(image, { keep = false } = {}) {
    this.image = image;
    if (!keep) this.reset(false);
    this.repaint();
    return new Promise((painted) => requestAnimationFrame(() => requestAnimationFrame(() => painted(performance.now()))));
  }

  reset(repaint = true) {
    Object.assign(this, { zoom: 1, x: 0, y: 0, flipX: false, flipY: false, inverted: Boolean(this.image && this.image.inverted) });
    this.window = this.image ? full(this.image) : [127.5, 255];
    if (repaint) this.repaint();
  }

  setWindow(centre, width) {
    this.window = [centre, Math.max(width, this.range() / 4096)];
    this.repaint();
  }

  range() { return this.image ? Math.max(full({ ...this.image, window: null })[1], 1e-6) : 255; }

  repaint() {
    if (!this.image) return;
    paint(this.native, this.image, this.window, this.inverted);
    this.draw();
    this.changed(this);
  }

  zoomBy(factor) { this.setZoom(this.zoom * factor); }

  setZoom(zoom) {
    this.zoom = Math.min(Math.max(zoom, 1 / 64), 64);
    if (this.zoom <= 1) { this.x = 0; this.y = 0; }
    this.draw();
    this.changed(this);
  }

  // Device pixels of one image pixel when it fits.
  fit() { return this.image ? Math.min(this.canvas.width / this.image.width, this.canvas.height / this.image.height) : 1; }

  actual() { this.setZoom(1 / this.fit()); }

  draw() {
    const { canvas } = this, ratio = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!this.image) return;
    const scale = this.fit() * this.zoom;
    context.setTransform(this.flipX ? -scale : scale, 0, 0, this.flipY ? -scale : scale, width / 2 + this.x, height / 2 + this.y);
    context.imageSmoothingEnabled = scale < 1;
    context.drawImage(this.native, -this.image.width / 2, -this.image.height / 2);
    if (this.overlay) {
      const { canvas: heat, left, top, size } = this.overlay;
      // The classifier's square may be larger than the image: what lies beside is not shown.
      context.beginPath();
      context.rect(-this.image.width / 2, -this.image.height / 2, this.image.width, this.image.height);
      context.save();
      context.clip();
      context.imageSmoothingEnabled = true;
      context.drawImage(heat, left - this.image.width / 2, top - this.image.height / 2, size[0], size[1]);
      context.restore();
    }
  }

  #grab(event) {
    if (event.button > 1) return;
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    const pans = event.button === 1 || event.shiftKey;
    let [x, y] = [event.clientX, event.clientY];
    const move = (moved) => {
      const dx = moved.clientX - x, dy = moved.clientY - y;
      [x, y] = [moved.clientX, moved.clientY];
      this.all((viewer) => (pans ? viewer.pan(dx, dy) : viewer.drag(dx, dy)));
    };
    const end = () => { this.canvas.removeEventListener("pointermove", move); };
    this.canvas.addEventListener("pointermove", move);
    this.canvas.addEventListener("pointerup", end, { once: true });
    this.canvas.addEventListener("pointercancel", end, { once: true });
  }

  drag(dx, dy) {
    const step = this.range() / Math.max(this.canvas.clientWidth, 1);
    this.setWindow(this.window[0] + dy * step, this.window[1] + dx * step);
  }

  pan(dx, dy) {
    const ratio = window.devicePixelRatio || 1;
    this.x += dx * ratio;
    this.y += dy * ratio;
    this.draw();
  }

  // What a key does here; false where it does nothing.
  key(event, keys = KEYS) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.image) return false;
    const step = this.range() * STEP, [centre, width] = this.window, key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const does = {
      "+": () => this.all((v) => v.zoomBy(ZOOM)), "-": () => this.all((v) => v.zoomBy(1 / ZOOM)), "=": () => this.all((v) => v.actual()),
      [keys.invert]: () => this.all((v) => { v.inverted = !v.inverted; v.repaint(); }),
      [keys.flipX]: () => this.all((v) => { v.flipX = !v.flipX; v.draw(); }),
      [keys.flipY]: () => this.all((v) => { v.flipY = !v.flipY; v.draw(); }),
      " ": () => this.all((v) => v.reset()),
      ArrowUp: () => this.all((v) => v.setWindow(centre + step, width)), ArrowDown: () => this.all((v) => v.setWindow(centre - step, width)),
      ArrowRight: () => this.all((v) => v.setWindow(centre, width + step)), ArrowLeft: () => this.all((v) => v.setWindow(centre, width - step)),
    }[key];
    if (!does) return false;
    does();
    event.preventDefault();
    return true;
  }
}

export const KEYS = { invert: "i", flipX: "h", flipY: "v" };

// Viewers that move together.
export function link(viewers) { for (const viewer of viewers) viewer.linked = viewers; }

export function presets(image) {
  if (!image) return [];
  if (image.unit === "HU") return HOUNSFIELD;
  const [centre, width] = full({ ...image, window: null }), low = centre - width / 2;
  const own = ["darkest to brightest", (image.low + image.high) / 2, Math.max(image.high - image.low, width / 4096)];
  return [own, ...SHARES.map(([name, from, to]) => [name, low + width * (from + to) / 2, width * (to - from)])];
}

// Buttons for what the keys do; `viewers()` gives those that are on the screen.
export function tools(container, viewers) {
  const each = (work) => () => viewers().forEach(work);
  const button = (name, title, work) => element("button", { type: "button", title, onclick: each(work) }, name);
  const choice = element("select", { ariaLabel: "Window" }), told = element("output", {});
  choice.addEventListener("change", () => {
    const found = presets(viewers()[0].image)[Number(choice.value)];
    viewers().forEach((v) => (found ? v.setWindow(found[1], found[2]) : v.reset()));
  });
  container.replaceChildren(choice,
    button("-", "Smaller (-)", (v) => v.zoomBy(1 / ZOOM)), button("+", "Larger (+)", (v) => v.zoomBy(ZOOM)), button("1:1", "One pixel for one (=)", (v) => v.actual()),
    button("Invert", "Invert (i)", (v) => { v.inverted = !v.inverted; v.repaint(); }),
    button("Flip \u2194", "Flip left and right (h)", (v) => { v.flipX = !v.flipX; v.draw(); }), button("Flip \u2195", "Flip up and down (v)", (v) => { v.flipY = !v.flipY; v.draw(); }),
    button("Reset", "Reset (space)", (v) => v.reset()), told);
  const refresh = () => {
    const [first] = viewers();
    if (!first || !first.image) return;
    const round = (value) => Number(value.toPrecision(4));
    told.textContent = `C ${round(first.window[0])} W ${round(first.window[1])} \u00b7 ${Math.round(first.zoom * first.fit() * 100)}%`;
    const names = ["window...", ...presets(first.image).map(([name]) => name)].join();
    if (choice.dataset.names !== names) {
      choice.dataset.names = names;
      choice.replaceChildren(element("option", { value: "" }, "window..."), ...presets(first.image).map(([name], n) => element("option", { value: String(n) }, name)));
    }
  };
  return { refresh, chosen: () => { choice.value = ""; } };
}
