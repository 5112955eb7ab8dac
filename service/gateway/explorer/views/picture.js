// A picture of the visitor's: its posterior, reconstruction, difference, score, styles, and the sample
// that is nearest to it.

import { operation } from "../api.js";
import { fromLink, row, toLink } from "../arrays.js";
import { encode, reconstructCall } from "../calls.js";
import { classPicker, columnsOf, labelsOf } from "../classes.js";
import { button, h, labelled, panel, save, shown, svg, toggle } from "../dom.js";
import { Latest } from "../latest.js";
import * as link from "../link.js";
import { fromFile, paint, paintDifference, paintSheet, picture, pixelsOf, psnr, receiveFiles, squaredError, toPng } from "../pictures.js";
import { Sketch } from "../sketch.js";
import { byActivity, priorRange } from "../sliders.js";

const SAMPLES = 256; // that the nearest are sought among
const NEAREST = 5;
const MOST_SHOWN = 20; // dimensions of the posterior
const MOST_LINKED = 6000; // bytes of a picture that is written into the address

export const title = "Your picture";

export function suits(model) {
  return model.posterior !== "none" && !model.sizes;
}

export function open({ api, model, map, root, snippet, fail, signal }) {
  const channels = Number(model.imageShape.channels);
  const [height, width] = [Number(model.imageShape.height), Number(model.imageShape.width)];
  const classes = labelsOf(model);
  let label = model.conditional ? link.getNumber("label", 0, 0, classes.length - 1) : -1;
  let centred = model.dataset === "mnist";
  const unreadable = fail("file");
  let drawing = null; // a canvas of the model's size; null as long as nothing is drawn

  const sketch = new Sketch({ channels, height, width }, () => changed(sketch.drawn(width, height, centred)));
  const input = h("input", { type: "file", accept: "image/*" });
  const target = labelled("Or choose, drop, paste or photograph a picture", input, { class: "field drop" });
  const seen = picture("The picture, as the model sees it");
  const again = picture("Its reconstruction");
  const difference = picture("Where they differ");
  const told = h("p", { class: "quiet" }, "Draw something, or choose a picture.");
  const posterior = h("div", {});
  const styles = picture("This style in all classes", { class: "picture sheet" });
  const nearest = h("ol", { class: "nearest" });
  const results = h("div", { hidden: true });

  results.append(
    h("div", { class: "triple" },
      h("figure", {}, seen, h("figcaption", {}, "Your picture")),
      h("figure", {}, again, h("figcaption", {}, "Reconstruction")),
      h("figure", {}, difference, h("figcaption", {}, "Difference"))),
    h("p", { class: "quiet" }, "orange: lighter in the reconstruction, blue: darker"),
  );
  root.append(
    h("div", { class: "columns" },
      h("div", {},
        panel("Draw", sketch.element,
          h("div", { class: "row" },
            button("Invert", () => sketch.invert()),
            channels === 1 ? toggle("Centre as MNIST does", centred, (on) => { centred = on; changed(sketch.drawn(width, height, on)); }) : null,
            button("Save", async () => drawing && save(await toPng(drawing), "picture.png"))),
          target,
          model.conditional
            ? h("div", {}, h("p", {}, "What it shows:"), classPicker(classes, label, (chosen) => { label = chosen; link.set({ label }); if (drawing) ask(); }))
            : null)),
      h("div", {},
        h("div", { "aria-live": "polite" }, panel("What the model makes of it", told, results)),
        model.conditional ? panel("This style, all classes", styles) : null,
        model.prior !== "none" ? panel(`The nearest of ${Math.min(SAMPLES, Number(model.maxRows))} samples of the model`, nearest) : null)),
    panel("Its posterior: mean ± standard deviation", posterior),
  );
  receiveFiles(target, input, ([file]) => put(file), unreadable, signal);

  const labels = () => (model.conditional ? [label] : []);
  const samples = once(() =>
    api.array(operation(model, "sample"), {
      query: { count: Math.min(SAMPLES, Number(model.maxRows)), seed: 0, format: "uint8" }, signal,
    }));
  const latest = new Latest(examine, show, fail("picture"));
  signal.addEventListener("abort", () => latest.close());

  async function put(file) {
    const canvas = await fromFile(file, () => [width, height]);
    sketch.show(canvas);
    changed(canvas);
  }

  function changed(canvas) {
    unreadable(null);
    drawing = canvas;
    ask();
  }

  async function ask() {
    const canvas = drawing;
    const file = await toPng(canvas);
    if (signal.aborted || canvas !== drawing) return;
    latest.ask({ file, pixels: pixelsOf(canvas, channels), labels: labels() });
    const bytes = new Uint8Array(await file.arrayBuffer());
    link.set({ picture: bytes.length <= MOST_LINKED ? toLink(bytes) : "" });
    snippet.show(reconstructCall(model, file, labels()));
  }

  async function examine({ file, labels: mine }, aborted) {
    const query = { resize: true, labels: mine.join(",") };
    const sent = { type: file.type, body: file, signal: aborted };
    const scored = model.likelihood !== "none" && model.posterior === "gaussian" && model.prior !== "none";
    const [images, encoded, score, styled] = await Promise.all([
      api.array(operation(model, "reconstruct"), { ...sent, query: { ...query, format: "uint8" } }),
      encode(api, model, file, mine, aborted),
      scored ? api.call(operation(model, "score"), { ...sent, query }).then((reply) => reply.json()) : null,
      model.conditional
        ? api.array(operation(model, "restyle"), { ...sent, query: { ...query, to: classes.map((_, index) => index).join(","), format: "uint8" } })
        : null,
    ]);
    return { images, encoded, score, styled };
  }

  function show({ images, encoded, score, styled }, { pixels }) {
    results.hidden = false;
    paint(seen, pixels);
    paint(again, images);
    paintDifference(difference, pixels, images);
    told.textContent = verdict(score, psnr(pixels.data, images.data), channels * height * width);
    if (styled) paintSheet(styles, styled, columnsOf(classes));
    // These need a call of their own at first, which the next picture does not wait for.
    map().then((found) => posterior.replaceChildren(posteriorTable(model, encoded, byActivity(model, found).slice(0, MOST_SHOWN))));
    if (model.prior !== "none") samples().then((all) => showNearest(pixels, all), fail("nearest"));
  }

  function showNearest(pixels, all) {
    fail("nearest")(null);
    const errors = [...Array(all.shape[0]).keys()].map((index) => [squaredError(row(all, index), pixels.data), index]);
    errors.sort((a, b) => a[0] - b[0]);
    nearest.replaceChildren(...errors.slice(0, NEAREST).map(([, index]) => {
      const canvas = picture(`Sample ${index} of seed 0`);
      paint(canvas, all, index);
      return h("li", {}, canvas, h("span", { class: "quiet" }, `sample ${index}`));
    }));
  }

  const linked = fromLink(link.get("picture"));
  if (linked?.length) put(new Blob([linked], { type: "image/png" })).catch(unreadable);
}

function verdict(score, decibels, values) {
  const parts = [`The reconstruction is ${shown(decibels, 1)} dB from the picture.`];
  if (score) {
    const nats = Number(score.elbo[0]);
    parts.push(`Negative ELBO ${shown(nats, 1)} nats, ${shown(nats / values / Math.LN2, 3)} bits per dimension.`);
    const percentile = score.percentile?.[0];
    if (percentile != null) parts.push(`${shown(percentile, 0)} % of the training images are more likely.`);
  }
  return parts.join(" ");
}

/** Tables with a picture in each row: where mean ± standard deviation lie within the prior's range. */
function posteriorTable(model, { mean, logVar }, axes) {
  const range = priorRange(model);
  const rows = axes.map((axis) => {
    const middle = mean.data[axis];
    const spread = logVar ? Math.exp(logVar.data[axis] / 2) : 0;
    const { low, high } = range(axis);
    const at = (value) => Math.max(0, Math.min(100, (100 * (value - low)) / (high - low)));
    const bar = svg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("line", { class: "axis", x1: 50, x2: 50, y1: 0, y2: 10 }),
      svg("line", { class: "spread", x1: at(middle - spread), x2: at(middle + spread), y1: 5, y2: 5 }),
      svg("rect", { class: "mean", x: at(middle) - 0.75, width: 1.5, y: 1, height: 8 }));
    return h("tr", {}, h("th", { scope: "row" }, `z${axis}`), h("td", {}, bar),
      h("td", {}, logVar ? `${shown(middle)} ± ${shown(spread)}` : shown(middle)));
  });
  const half = Math.ceil(rows.length / 2);
  return h("div", { class: "columns" }, ...[rows.slice(0, half), rows.slice(half)].filter((part) => part.length)
    .map((part) => h("table", { class: "posterior" }, h("tbody", {}, ...part))));
}

function once(make) {
  let made = null;
  return () => (made ??= make().catch((error) => { made = null; throw error; }));
}
