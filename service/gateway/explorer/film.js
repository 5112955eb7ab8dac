// Pictures one after another, as a film and as a strip.

import { button, h, labelled } from "./dom.js";
import { paint, paintSheet, picture } from "./pictures.js";

const FRAME_MS = 80;

/**
 * A film of pictures, which goes to and fro.
 *
 * @param {string} label - What it shows.
 * @param {AbortSignal} signal - Ends it.
 */
export function film(label, signal) {
  const screen = picture(label);
  const strip = picture(`${label}: all frames, from left to right`, { class: "strip" });
  const position = h("input", { type: "range", min: 0, max: 1, value: 0, oninput: () => (stop(), draw()) });
  const play = button("Play", () => (timer ? stop() : start()));
  const element = h(
    "div", { class: "film", hidden: true }, screen,
    h("div", { class: "row" }, play, labelled("Frame", position)), strip,
  );
  let images = null;
  let timer = 0;
  let step = 1;
  const draw = () => paint(screen, images, Number(position.value));
  const stop = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  };
  const start = () => {
    play.textContent = "Pause";
    timer = setInterval(() => {
      const last = images.shape[0] - 1;
      if (Number(position.value) === last) step = -1;
      if (Number(position.value) === 0) step = 1;
      position.value = Number(position.value) + step;
      draw();
    }, FRAME_MS);
  };
  signal.addEventListener("abort", stop);
  return {
    element,
    /** Shows the frames of an array uint8 [N, C, H, W]; none hides the film. */
    show(frames) {
      stop();
      images = frames;
      element.hidden = frames === null;
      if (frames === null) return;
      position.max = frames.shape[0] - 1;
      position.value = 0;
      draw();
      paintSheet(strip, frames, frames.shape[0]);
      if (!matchMedia("(prefers-reduced-motion: reduce)").matches) start();
    },
  };
}
