// A conditional model: one style, all classes.

import { encode, decode, decodeCall, joined, latentsOf, sample } from "../calls.js";
import { columnsOf, labelsOf } from "../classes.js";
import { fromLink, fromTensor, row, toLink } from "../arrays.js";
import { button, h, labelled, panel, slider } from "../dom.js";
import { Latest } from "../latest.js";
import * as link from "../link.js";
import { fromFile, paintSheet, picture, receiveFiles, toPng } from "../pictures.js";
import { byActivity, priorMean, priorRange, sliders, TEMPERATURE } from "../sliders.js";

const SHOWN = 8;
const MOST_GIVEN = 8;

export const title = "Styles";

export function suits(model) {
  return Boolean(model.conditional);
}

export function open({ api, model, map, root, snippet, fail, signal }) {
  const classes = labelsOf(model);
  const all = classes.map((_, index) => index).slice(0, Number(model.maxRows));
  const { height, width } = model.imageShape;
  const columns = columnsOf(classes);
  let z = priorMean(model);
  const linked = fromLink(link.get("z"));
  let given = []; // {canvas, label}
  let uses = 0;
  let sliderSet = null;
  const failed = fail("pictures");

  // Styles of test images where the bundle has a map of them, else draws from the prior.
  let tests = null;
  const index = h("input", { type: "number", min: 0, step: 1, value: link.getNumber("style", 0, 0), onchange: () => draw() });
  const warmth = slider("Temperature", { min: 0, max: 1.5, step: 0.05, value: link.getNumber("temperature", TEMPERATURE, 0, 1.5), oninput: () => draw() });
  const source = h("div", { class: "row" });
  const sheet = picture(`One style in the classes ${classes.join(", ")}`, { class: "picture sheet" });
  const place = h("div", {});
  const list = h("ul", { class: "given" });
  const input = h("input", { type: "file", accept: "image/*", multiple: true });
  const target = labelled("Pictures of one style, each with its class: choose, drop or paste them", input, { class: "field drop" });

  root.append(
    panel("One style, all classes", sheet, source),
    h("div", { class: "columns" },
      panel("The style", model.hasLatentMap ? h("p", { class: "quiet" }, "The dimensions that test images use most.") : null, place),
      panel("The style of pictures", target, list,
        h("p", { class: "quiet" }, "Several pictures of one style are joined: each dimension comes mostly from the picture that shows it best."))),
  );

  const latest = new Latest(
    (latent, aborted) => decode(api, model, latentsOf(...all.map(() => latent)), all, aborted),
    (images) => paintSheet(sheet, images, columns), fail("sheet"),
  );
  const draws = new Latest(
    (options, aborted) => sample(api, model, options, aborted), ({ latents }) => show(Float32Array.from(latents.data)), fail("draw"),
  );
  signal.addEventListener("abort", () => [latest, draws].forEach((one) => one.close()));
  receiveFiles(target, input, receive, fail("file"), signal);

  function show(next) {
    z = next;
    sliderSet?.show(z);
    moved();
  }

  function moved() {
    link.set({ z: toLink(new Uint8Array(z.buffer, z.byteOffset, z.byteLength)) });
    latest.ask(z.slice());
    snippet.show(decodeCall(model, latentsOf(...all.map(() => z)), all));
  }

  // Of draws, pictures and sliders, the newest says what the style is.
  function slid(axis, value) {
    draws.drop();
    uses++;
    z[axis] = value;
    moved();
  }

  function draw() {
    uses++;
    link.set({ style: index.value, temperature: tests ? "" : warmth.input.value });
    if (tests) show(Float32Array.from(row(tests, Math.max(0, Math.min(Math.trunc(index.value), tests.shape[0] - 1)))));
    else draws.ask({ count: 1, seed: index.value, temperature: warmth.input.value, label: 0 });
  }

  function another() {
    index.value = Math.floor(Math.random() * (tests ? tests.shape[0] : 2 ** 31));
    draw();
  }

  async function receive(files) {
    const room = files.slice(0, MOST_GIVEN - given.length);
    const canvases = await Promise.all(room.map((file) => fromFile(file, () => [Number(width), Number(height)])));
    for (const canvas of canvases) given.push({ canvas, label: given.length % classes.length });
    showGiven();
    use();
  }

  function showGiven() {
    list.replaceChildren(...given.map((one) => {
      const select = h("select", { onchange: () => { one.label = Number(select.value); use(); } },
        ...classes.map((name, index) => h("option", { value: index, selected: index === one.label }, name)));
      one.canvas.className = "picture thumbnail";
      one.canvas.setAttribute("role", "img");
      one.canvas.setAttribute("aria-label", "A picture that was given");
      const remove = button("Remove", () => { given = given.filter((other) => other !== one); showGiven(); use(); });
      return h("li", {}, one.canvas, labelled("Its class", select), remove);
    }));
  }

  async function use() {
    const mine = ++uses;
    if (given.length) draws.drop();
    try {
      const posteriors = await Promise.all(given.map(async ({ canvas, label }) => {
        const { mean, logVar } = await encode(api, model, await toPng(canvas), [label], signal);
        return { mean: mean.data, logVar: logVar?.data };
      }));
      if (mine !== uses) return;
      // A plain autoencoder has no variances: its points, as narrow as can be, are averaged.
      const known = posteriors.map((one) => ({ ...one, logVar: one.logVar ?? new Float32Array(one.mean.length).fill(-80) }));
      if (known.length) show(Float32Array.from(joined(known)));
      failed(null);
    } catch (error) {
      if (mine === uses) failed(error);
    }
  }

  map().then((found) => {
    if (signal.aborted) return;
    if (found) tests = fromTensor(found.mean);
    source.append(labelled(tests ? "Style of test image" : "Seed", index), button("Another style", another));
    if (!tests) source.append(warmth.element);
    sliderSet = sliders(byActivity(model, found).slice(0, SHOWN), priorRange(model), slid);
    place.replaceChildren(sliderSet.element);
    if (linked && linked.length === 4 * z.length) show(new Float32Array(linked.buffer));
    else if (model.prior === "none" && !tests) show(z);
    else draw();
  });
}
