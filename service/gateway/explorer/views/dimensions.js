// Many latent dimensions: sliders, draws from the prior, and a film between two of them.

import { fromLink, toLink } from "../arrays.js";
import { decode, decodeCall, interpolate, interpolateCall, latentsOf, sample, sampleCall } from "../calls.js";
import { classPicker, labelsOf } from "../classes.js";
import { button, h, labelled, panel, slider, toggle } from "../dom.js";
import { film } from "../film.js";
import { Latest } from "../latest.js";
import * as link from "../link.js";
import { paint, paintDifference, picture } from "../pictures.js";
import { byActivity, priorMean, priorRange, sliders, TEMPERATURE } from "../sliders.js";

const SHOWN = 10; // sliders at first
const MOST_LINKED = 512; // dimensions of a latent that is written into the address
const FRAMES = 32;

export const title = "Dimensions";

export function suits(model) {
  // Of a model for pictures of any size, a dimension is a channel at one place.
  return Number(model.latentDim) !== 2 && !model.sizes;
}

export function open({ api, model, map, root, snippet, fail, signal }) {
  const frames = Math.min(FRAMES, Number(model.maxRows));
  const canDraw = model.prior !== "none";
  const classes = labelsOf(model);
  const fields = {
    seed: h("input", { type: "number", min: 0, step: 1, value: link.getNumber("seed", 0, 0) }),
    truncation: h("input", { type: "number", min: 0.1, step: 0.1, placeholder: "none", value: link.get("truncation") }),
  };
  const warmth = slider("Temperature", { min: 0, max: 1.5, step: 0.05, value: link.getNumber("temperature", TEMPERATURE, 0, 1.5), oninput: () => draw() });
  let label = link.getNumber("label", model.conditional ? 0 : -1, -1, classes.length - 1);
  let z = fromAddress(model) ?? priorMean(model);
  let shownImage = null;
  let sliderSet = null;
  let axes = [];
  let count = link.getNumber("sliders", SHOWN, SHOWN);
  let moves = 0; // of sliders

  const now = picture("The image of these latents");
  const change = h("canvas", { class: "picture over", "aria-hidden": "true" });
  const highlight = toggle("Show what changed", true, (on) => (change.hidden = !on));
  const place = h("div", {});
  const more = button("More dimensions", () => { count += SHOWN; link.set({ sliders: count }); showSliders(); });
  const other = h("input", { type: "number", min: 0, step: 1, value: link.getNumber("to", 1, 0) });
  const movie = film("From one sample to another", signal);

  const labels = () => (model.conditional ? [label] : []);
  const options = (seed) => ({
    seed, temperature: warmth.input.value,
    truncation: fields.truncation.value, label: label < 0 ? "" : label,
  });

  for (const input of Object.values(fields)) input.addEventListener("change", () => draw());
  root.append(
    h("div", { class: "columns" },
      h("div", {},
        h("div", { class: "stack" }, now, change),
        h("div", { class: "row" }, highlight, h("span", { class: "quiet" }, "orange: lighter, blue: darker")),
        canDraw
          ? panel("A draw from the prior",
            h("div", { class: "row" }, labelled("Seed", fields.seed),
              button("Another", () => { fields.seed.value = Math.floor(Math.random() * 2 ** 31); draw(); })),
            h("div", { class: "row" }, warmth.element, labelled("Truncation", fields.truncation)),
            classes.length ? classPicker(classes, label, chooseClass, model.conditional ? "" : "any") : null)
          : classes.length ? panel("Class", classPicker(classes, label, chooseClass)) : null,
        canDraw
          ? panel("A film between two samples",
            h("div", { class: "row" }, labelled("From this seed to", other), button("Make it", makeFilm)), movie.element)
          : null,
      ),
      h("div", {},
        panel("Latent dimensions", model.hasLatentMap ? h("p", { class: "quiet" }, "The ones that test images use most come first.") : null, place,
          h("div", { class: "row" }, more, button("Back to the middle", () => { z = priorMean(model); moved(); sliderSet.show(z); }))),
      ),
    ),
  );

  // A latent, or a draw: of both the newest is shown.
  const latest = new Latest(
    async ({ latent, drawn }, aborted) => (drawn
      ? sample(api, model, drawn, aborted)
      : { images: await decode(api, model, latentsOf(latent), labels(), aborted) }),
    ({ images, latents }, { drawn, moves: before }) => {
      // The sliders have been moved since this was drawn: they, and the address, tell of another latent.
      if (drawn && before !== moves) return;
      show(images);
      if (!drawn) return;
      z = Float32Array.from(latents.data);
      sliderSet?.show(z);
    },
    fail("image"),
  );
  const films = new Latest(
    async ({ draws, labels: mine }, aborted) => {
      const [from, to] = await Promise.all(draws.map((one) => sample(api, model, one, aborted)));
      const ends = latentsOf(from.latents.data, to.latents.data);
      return { ends, images: await interpolate(api, model, ends, frames, "spherical", mine, aborted) };
    },
    ({ ends, images }, { labels: mine }) => {
      movie.show(images);
      snippet.show(interpolateCall(model, ends, frames, "spherical", mine));
    },
    fail("film"),
  );
  signal.addEventListener("abort", () => [latest, films].forEach((one) => one.close()));

  function show(images) {
    if (shownImage && shownImage.data.length === images.data.length) paintDifference(change, shownImage, images, true);
    shownImage = images;
    paint(now, images);
  }

  function moved() {
    moves++;
    link.set({ z: z.length <= MOST_LINKED ? toLink(new Uint8Array(z.buffer)) : "" });
    latest.ask({ latent: z.slice() });
    snippet.show(decodeCall(model, latentsOf(z), labels()));
  }

  function chooseClass(chosen) {
    label = chosen;
    link.set({ label });
    if (!canDraw || (model.conditional && link.get("z"))) moved();
    else draw();
  }

  function draw() {
    const given = { count: 1, ...options(fields.seed.value) };
    link.set({ seed: given.seed, temperature: given.temperature, truncation: given.truncation, z: "" });
    latest.ask({ drawn: given, moves });
    snippet.show(sampleCall(model, given));
  }

  function makeFilm() {
    link.set({ to: other.value });
    films.drop();
    films.ask({
      draws: [fields.seed.value, other.value].map((seed) => ({ count: 1, ...options(seed) })), labels: labels(),
    });
  }

  function showSliders() {
    sliderSet = sliders(axes.slice(0, count), priorRange(model), (axis, value) => { z[axis] = value; moved(); });
    place.replaceChildren(sliderSet.element);
    sliderSet.show(z);
    more.hidden = count >= axes.length;
  }

  map().then((found) => {
    if (signal.aborted) return;
    axes = byActivity(model, found);
    showSliders();
    if (link.get("z") || !canDraw) moved();
    else draw();
    if (link.get("to") && canDraw) makeFilm();
  });
}

function fromAddress(model) {
  const bytes = fromLink(link.get("z"));
  return bytes && bytes.length === 4 * Number(model.latentDim) ? new Float32Array(bytes.buffer) : null;
}
