// A pad to draw on, with mouse, finger or keyboard.

import { button, h, labelled } from "./dom.js";

const SIDE = 280;

/**
 * A pad for pictures of a size.
 *
 * @param {{channels: number, height: number, width: number}} shape - Shape of the pictures.
 * @param {() => void} changed - Called when the drawing has changed.
 */
export class Sketch {
  #undo = [];
  #pen = null; // where the keyboard's pen is
  #down = false;
  #mark = h("span", { class: "pen", hidden: true }); // shows where that is

  constructor({ channels, height, width }, changed) {
    this.#changed = changed;
    const scale = SIDE / Math.max(height, width);
    this.canvas = h("canvas", {
      class: "pad", width: Math.round(scale * width), height: Math.round(scale * height), tabindex: 0,
      role: "application",
      "aria-label": "Drawing pad. Arrow keys move the pen, Space puts it down or lifts it, Delete clears.",
    });
    this.#context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.#context.lineCap = this.#context.lineJoin = "round";
    this.#size = h("input", { type: "range", min: 4, max: 60, value: channels === 1 ? 24 : 16 });
    this.#colour = h("input", { type: "color", value: channels === 1 ? "#ffffff" : "#e0732d" });
    this.#paper = channels === 1 ? "black" : "white";
    this.element = h(
      "div", { class: "sketch" }, h("div", { class: "paper" }, this.canvas, this.#mark),
      h("div", { class: "row" },
        labelled("Pen", this.#size), labelled("Colour", this.#colour),
        button("Undo", () => this.#takeBack()), button("Clear", () => this.clear())),
    );
    this.#listen();
    this.#blank();
  }

  #changed;
  #context;
  #size;
  #colour;
  #paper;

  /** Draws a picture into the pad. */
  show(canvas) {
    this.#remember();
    this.#context.drawImage(canvas, 0, 0, this.canvas.width, this.canvas.height);
  }

  /** Removes everything. */
  clear() {
    this.#remember();
    this.#blank();
    this.#changed();
  }

  /** Inverts the colours. */
  invert() {
    this.#remember();
    const { width, height } = this.canvas;
    const pixels = this.#context.getImageData(0, 0, width, height);
    for (let index = 0; index < pixels.data.length; index++) {
      if (index % 4 !== 3) pixels.data[index] = 255 - pixels.data[index];
    }
    this.#context.putImageData(pixels, 0, 0);
    this.#changed();
  }

  /** The drawing in a canvas of the model's size; `centred`: its ink is moved and scaled as in MNIST. */
  drawn(width, height, centred) {
    const small = h("canvas", { width, height });
    const context = small.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.fillStyle = this.#paper;
    context.fillRect(0, 0, width, height);
    const ink = centred ? this.#ink() : null;
    if (!ink) {
      context.drawImage(this.canvas, 0, 0, width, height);
      return small;
    }
    // The longer side of the ink is 20 of 28 pixels, and its centre of mass is in the middle.
    const scale = ((20 / 28) * Math.min(width, height)) / Math.max(ink.width, ink.height);
    context.drawImage(
      this.canvas, ink.left, ink.top, ink.width, ink.height,
      width / 2 - scale * (ink.x - ink.left), height / 2 - scale * (ink.y - ink.top),
      scale * ink.width, scale * ink.height,
    );
    return small;
  }

  /** Bounding box and centre of mass of what is lighter than the paper; null if nothing is. */
  #ink() {
    const { width, height } = this.canvas;
    const { data } = this.#context.getImageData(0, 0, width, height);
    let [left, top, right, bottom, mass, x, y] = [width, height, -1, -1, 0, 0, 0];
    for (let index = 0; index < width * height; index++) {
      const light = data[4 * index];
      if (light < 32) continue;
      const [column, line] = [index % width, Math.floor(index / width)];
      [left, right] = [Math.min(left, column), Math.max(right, column)];
      [top, bottom] = [Math.min(top, line), Math.max(bottom, line)];
      mass += light;
      x += light * column;
      y += light * line;
    }
    if (right < 0) return null;
    return { left, top, width: right - left + 1, height: bottom - top + 1, x: x / mass, y: y / mass };
  }

  #blank() {
    this.#context.fillStyle = this.#paper;
    this.#context.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }

  #remember() {
    const { width, height } = this.canvas;
    this.#undo.push(this.#context.getImageData(0, 0, width, height));
    if (this.#undo.length > 20) this.#undo.shift();
  }

  #takeBack() {
    const last = this.#undo.pop();
    if (!last) return;
    this.#context.putImageData(last, 0, 0);
    this.#changed();
  }

  #line(from, to) {
    this.#context.strokeStyle = this.#colour.value;
    this.#context.lineWidth = this.#size.value;
    this.#context.beginPath();
    this.#context.moveTo(...from);
    this.#context.lineTo(...to);
    this.#context.stroke();
    this.#changed();
  }

  #listen() {
    const { canvas } = this;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [
        ((event.clientX - box.left) / box.width) * canvas.width,
        ((event.clientY - box.top) / box.height) * canvas.height,
      ];
    };
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      this.#remember();
      last = place(event);
      this.#line(last, last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      for (const one of event.getCoalescedEvents?.() ?? [event]) {
        const next = place(one);
        this.#line(last, next);
        last = next;
      }
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (last = null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => (this.#mark.hidden = true));
  }

  #key(event) {
    const { width, height } = this.canvas;
    const step = width / 28;
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    this.#pen ??= [width / 2, height / 2];
    if (event.key === " ") {
      this.#down = !this.#down;
      if (this.#down) {
        this.#remember();
        this.#line(this.#pen, this.#pen);
      }
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else if (dx || dy) {
      const next = [
        Math.max(0, Math.min(width, this.#pen[0] + step * dx)),
        Math.max(0, Math.min(height, this.#pen[1] + step * dy)),
      ];
      if (this.#down) this.#line(this.#pen, next);
      this.#pen = next;
    } else {
      return;
    }
    event.preventDefault();
    this.#mark.hidden = false;
    this.#mark.classList.toggle("down", this.#down);
    this.#mark.style.left = `${(100 * this.#pen[0]) / width}%`;
    this.#mark.style.top = `${(100 * this.#pen[1]) / height}%`;
  }
}
