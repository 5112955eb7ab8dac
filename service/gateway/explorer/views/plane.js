// The latent plane of a model of two dimensions.

import { operation } from "../api.js";
import { row, fromTensor } from "../arrays.js";
import { decode, decodeCall, interpolate, interpolateCall, latentsOf } from "../calls.js";
import { classPicker, colour, labelsOf } from "../classes.js";
import { button, h, labelled, panel, shown, svg, toggle } from "../dom.js";
import { film } from "../film.js";
import { Latest } from "../latest.js";
import * as link from "../link.js";
import { paint, paintSheet, picture } from "../pictures.js";

const RANGE = 3; // standard deviations of the prior to either side
const WIDTH = 700; // pixels of the decoded plane, about
const FRAMES = 24;
const DIGITS = 4; // after the point of a latent: what is shown is what the address says

export const title = "Plane";

export function suits(model) {
  return Number(model.latentDim) === 2 && model.latentShape.length === 1;
}

export function open({ api, model, map, root, snippet, fail, signal }) {
  const { height, width } = model.imageShape;
  const rows = Number(model.maxRows); // of a request
  const wanted = Math.max(8, Math.min(25, Math.round(WIDTH / Math.max(width, height))));
  const steps = Math.max(2, Math.min(wanted, Math.floor(Math.sqrt(rows))));
  const frames = Math.min(FRAMES, rows);
  const scale = planeScale(model, steps);
  const names = model.classNames ?? [];
  let label = model.conditional ? link.getNumber("label", 0, 0, labelsOf(model).length - 1) : -1;
  const labels = () => (model.conditional ? [label] : []);
  let [z = scale.middle] = pointsOf(link.get("z"));
  let pins = pointsOf(link.get("pins")).slice(0, 2);

  const sheet = picture("The plane, decoded: a grid of images", { class: "picture sheet" });
  const points = h("canvas", { class: "points", "aria-hidden": "true" });
  const marks = svg("svg", { class: "marks", viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": "true" });
  const stage = h(
    "div", {
      class: "plane", tabindex: 0, role: "application",
      "aria-label": "Latent plane. Arrow keys move the point that is decoded, Enter pins it, Escape removes the pins.",
    },
    sheet, points, marks,
  );
  const now = picture("The image at the point");
  const inputs = [0, 1].map((axis) =>
    h("input", { type: "number", step: 0.05, onchange: () => move(axis ? [z[0], Number(inputs[1].value)] : [Number(inputs[0].value), z[1]]) }),
  );
  const told = h("p", { class: "quiet" });
  const movie = film("From one pin to the other", signal);
  const unpin = button("Remove the pins", () => setPins([]));
  const legend = h("div", { class: "row legend" });
  const hidden = new Set(link.get("hidden").split(",").filter(Boolean).map(Number));

  root.append(
    h("div", { class: "columns" },
      h("div", { class: "wide" }, stage, legend),
      h("div", { class: "beside" },
        panel("Here", h("div", { class: "here" }, now, h("div", { class: "row" }, labelled("z0", inputs[0]), labelled("z1", inputs[1]))),
          model.conditional ? classPicker(labelsOf(model), label, (chosen) => { label = chosen; link.set({ label }); plane(); move(z); showFilm(); }) : null),
        panel("Pins", told, unpin, movie.element)),
    ),
  );

  const latest = new Latest(
    (point, aborted) => decode(api, model, latentsOf(point), labels(), aborted),
    (images) => paint(now, images),
    fail("image"),
  );
  const planes = new Latest(
    (mine, aborted) => {
      const query = { steps, range: RANGE, format: "uint8", labels: mine.join(",") };
      return api.array(operation(model, "traverse"), { query, signal: aborted });
    },
    (images) => paintSheet(sheet, images, steps),
    fail("plane"),
  );
  const films = new Latest(
    ({ ends, labels: mine }, aborted) => interpolate(api, model, ends, frames, "linear", mine, aborted),
    (images, { ends, labels: mine }) => {
      movie.show(images);
      snippet.show(interpolateCall(model, ends, frames, "linear", mine));
    },
    fail("film"),
  );
  signal.addEventListener("abort", () => [latest, planes, films].forEach((one) => one.close()));

  function move(point) {
    z = point.map((value, axis) => Number(shown(Math.max(scale.low[axis], Math.min(scale.high[axis], value)), DIGITS)));
    inputs.forEach((input, axis) => (input.value = shown(z[axis])));
    link.set({ z: z.join(",") });
    latest.ask(z);
    if (pins.length < 2) snippet.show(decodeCall(model, latentsOf(z), labels()));
    drawMarks();
  }

  function setPins(next) {
    pins = next;
    link.set({ pins: pins.map((pin) => pin.join(",")).join(";") });
    drawMarks();
    showFilm();
  }

  function showFilm() {
    films.drop();
    unpin.disabled = pins.length === 0;
    told.textContent = [
      "A click, a tap or Enter pins a point; two pins are interpolated.",
      `One pin, at ${pins[0]?.map((value) => shown(value)).join(", ")}. Pin another point.`,
      `From ${pins[0]?.map((value) => shown(value)).join(", ")} to ${pins[1]?.map((value) => shown(value)).join(", ")}.`,
    ][pins.length];
    if (pins.length < 2) {
      movie.show(null);
      return;
    }
    films.ask({ ends: latentsOf(...pins), labels: labels() });
  }

  function drawMarks() {
    const cross = ([x, y], kind) => svg("circle", { class: kind, cx: x, cy: y, r: 0.012 });
    marks.replaceChildren(...pins.map((pin) => cross(scale.toStage(pin), "pin")), cross(scale.toStage(z), "here"));
    if (pins.length === 2) {
      const [[x1, y1], [x2, y2]] = pins.map(scale.toStage);
      marks.prepend(svg("line", { x1, y1, x2, y2 }));
    }
  }

  function plane() {
    planes.drop();
    planes.ask(labels());
  }

  async function scatter() {
    const found = await map();
    if (!found || signal.aborted) return;
    const mean = fromTensor(found.mean);
    const of = found.labels ?? [];
    const draw = () => {
      const side = Math.round(stage.clientWidth * devicePixelRatio);
      points.width = points.height = side;
      const context = points.getContext("2d");
      context.globalAlpha = 0.8;
      for (let index = 0; index < mean.shape[0]; index++) {
        const mine = of[index] ?? -1;
        if (hidden.has(mine)) continue;
        const [x, y] = scale.toStage(row(mean, index));
        context.fillStyle = colour(mine);
        context.beginPath();
        context.arc(x * side, y * side, 2.2 * devicePixelRatio, 0, 2 * Math.PI);
        context.fill();
      }
    };
    points.hidden = link.get("points") === "none";
    const all = toggle("Test images", !points.hidden, (on) => {
      points.hidden = !on;
      link.set({ points: on ? "" : "none" });
    });
    legend.append(all, ...names.map((name, index) => {
      const one = toggle(name, !hidden.has(index), (on) => {
        hidden[on ? "delete" : "add"](index);
        link.set({ hidden: [...hidden].join(",") });
        draw();
      });
      const dot = h("span", { class: "dot" });
      dot.style.background = colour(index);
      one.prepend(dot);
      return one;
    }));
    draw();
    const watch = new ResizeObserver(draw);
    watch.observe(stage);
    signal.addEventListener("abort", () => watch.disconnect());
  }

  const placeOf = (event) => {
    const box = stage.getBoundingClientRect();
    return scale.toLatent([(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
  };
  let pressed = null;
  stage.addEventListener("pointermove", (event) => move(placeOf(event)));
  stage.addEventListener("pointerdown", (event) => {
    pressed = [event.clientX, event.clientY];
    if (event.pointerType !== "mouse") stage.setPointerCapture(event.pointerId);
    move(placeOf(event));
  });
  stage.addEventListener("pointerup", (event) => {
    // A drag of a finger is no tap.
    const still = pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 8;
    pressed = null;
    if (still) pin();
  });
  stage.addEventListener("keydown", (event) => {
    const far = event.shiftKey ? 10 : 1;
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [0, 0];
    if (dx || dy) move([z[0] + far * dx * scale.step[0], z[1] + far * dy * scale.step[1]]);
    else if (event.key === "Enter") pin();
    else if (event.key === "Escape") setPins([]);
    else return;
    event.preventDefault();
  });
  function pin() {
    setPins(pins.length === 2 ? [z] : [...pins, z]);
  }

  plane();
  scatter();
  move(z);
  showFilm();
}

/** The points of an address, "0.5,1;-2,0"; without what are none. */
function pointsOf(text) {
  const points = text.split(";").map((point) => point.split(",").map(Number));
  return text ? points.filter((point) => point.length === 2 && point.every(Number.isFinite)) : [];
}

/** Between latents and places on the stage, which go from 0 to 1, to the right and downwards. */
function planeScale(model, steps) {
  const mean = model.priorMean ?? [0, 0];
  const std = model.priorStd ?? [1, 1];
  // The middle of each image of the grid is its point, so the stage ends half a step further out.
  const reach = std.map((one) => RANGE * one * (1 + 1 / (steps - 1)));
  const low = mean.map((one, axis) => one - reach[axis]);
  const high = mean.map((one, axis) => one + reach[axis]);
  return {
    low, high, middle: mean, step: reach.map((one) => one / 100),
    toStage: ([x, y]) => [(x - low[0]) / (high[0] - low[0]), (high[1] - y) / (high[1] - low[1])],
    toLatent: ([x, y]) => [low[0] + x * (high[0] - low[0]), high[1] - y * (high[1] - low[1])],
  };
}
