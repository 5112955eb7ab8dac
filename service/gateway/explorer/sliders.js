// Sliders of latent dimensions.

import { h, shown } from "./dom.js";

/**
 * A slider for each of some latent dimensions.
 *
 * @param {number[]} axes - The dimensions.
 * @param {(axis: number) => {low: number, high: number}} range - Range of a dimension.
 * @param {(axis: number, value: number) => void} moved - Called when one has been moved.
 * @returns {{element: HTMLElement, show: (z: Float32Array) => void}} The sliders, and what sets them.
 */
export function sliders(axes, range, moved) {
  const rows = axes.map((axis) => {
    const { low, high } = range(axis);
    const output = h("output", {}, "");
    const input = h("input", {
      type: "range", min: low, max: high, step: (high - low) / 200, name: `z${axis}`,
      oninput: () => {
        output.value = shown(input.value);
        moved(axis, Number(input.value));
      },
    });
    return { axis, input, output, element: h("label", { class: "slider" }, h("span", {}, `z${axis}`), input, output) };
  });
  return {
    element: h("div", { class: "sliders" }, ...rows.map((one) => one.element)),
    show(z) {
      for (const { axis, input, output } of rows) {
        input.value = z[axis];
        output.value = shown(z[axis]);
      }
    },
  };
}

/** Temperature of draws at first: more typical than those of the prior, less varied. */
export const TEMPERATURE = 0.7;

/** Range of a dimension: three standard deviations of the prior to either side of its mean. */
export function priorRange(model) {
  return (axis) => {
    const middle = model.priorMean?.[axis] ?? 0;
    const spread = 3 * (model.priorStd?.[axis] ?? 1);
    return { low: middle - spread, high: middle + spread };
  };
}

/** The mean of the prior. */
export function priorMean(model) {
  return Float32Array.from({ length: Number(model.latentDim) }, (_, axis) => model.priorMean?.[axis] ?? 0);
}

/** Dimensions by how much the posteriors of test images use them; by index without a map. */
export function byActivity(model, map) {
  const axes = [...Array(Number(model.latentDim)).keys()];
  const kl = map?.kl;
  return kl?.length ? axes.sort((a, b) => kl[b] - kl[a]) : axes;
}
