// The calls that views make.

import { fromTensor, row, toNpy } from "./arrays.js";
import { operation } from "./api.js";

const labelField = (labels) => (labels.length ? { labels } : {});
const labelOption = (labels) => (labels.length ? `labels=[${labels.join(", ")}], ` : "");

/** Latents float32 [N, D] of one row or several. */
export function latentsOf(...rows) {
  const data = new Float32Array(rows.length * rows[0].length);
  rows.forEach((z, index) => data.set(z, index * z.length));
  return { shape: [rows.length, rows[0].length], data };
}

/**
 * Decodes latents.
 *
 * @param {{shape: number[], data: Float32Array}} latents - float32 [N, D].
 * @param {number[]} labels - Their classes, for a conditional model; else empty.
 * @returns {Promise<{shape: number[], data: Uint8Array}>} The images.
 */
export function decode(api, model, latents, labels, signal) {
  return api.array(operation(model, "decode"), {
    query: { format: "uint8", labels: labels.join(",") }, type: "application/x-npy", body: toNpy(latents), signal,
  });
}

/** That call, for the panel. */
export function decodeCall(model, latents, labels) {
  return {
    operation: "decode", model, latents, fields: { format: "uint8", ...labelField(labels) },
    python: `decode(ARRAY, dtype="uint8", ${labelOption(labels)}WHERE)`,
  };
}

/** Draws from the prior: images and latents. */
export async function sample(api, model, options, signal) {
  const query = { ...options, return_latents: true, format: "uint8" };
  const reply = await api.json(operation(model, "sample"), { query, signal });
  return { images: fromTensor(reply.images.tensor), latents: fromTensor(reply.latents) };
}

/** That call, for the panel. */
export function sampleCall(model, { count, ...rest }) {
  const fields = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== "" && value != null));
  const options = Object.entries(fields).map(([name, value]) => `${name}=${value}, `);
  return {
    operation: "sample", model, fields: { count, ...fields, format: "uint8" },
    python: `sample(${count}, dtype="uint8", ${options.join("")}WHERE)`,
  };
}

/** Decodes a path between two latents. */
export function interpolate(api, model, ends, steps, method, labels, signal) {
  const latents = [0, 1].map((end) => [...row(ends, end)]);
  return api.array(operation(model, "interpolate"), {
    body: { latents, steps, method, format: "uint8", ...labelField(labels) }, signal,
  });
}

/** That call, for the panel. */
export function interpolateCall(model, ends, steps, method, labels) {
  return {
    operation: "interpolate", model, latents: ends,
    fields: { steps, method, format: "uint8", ...labelField(labels) },
    python: `interpolate(*ARRAY, ${steps}, method="${method}", dtype="uint8", ${labelOption(labels)}WHERE)`,
  };
}

/** The reconstruction of a picture file, for the panel. */
export function reconstructCall(model, file, labels) {
  return {
    operation: "reconstruct", model, fields: { format: "uint8", ...labelField(labels) }, file: "picture.png", content: file,
    python: `reconstruct([Path("picture.png").read_bytes()], dtype="uint8", resize=True, ${labelOption(labels)}WHERE)`,
  };
}

/** Encodes a picture file: mean and, unless the model is a plain autoencoder, log-variance. */
export async function encode(api, model, file, labels, signal) {
  const reply = await api.json(operation(model, "encode"), {
    query: { resize: true, labels: labels.join(",") }, type: file.type, body: file, signal,
  });
  return { mean: fromTensor(reply.mean), logVar: reply.logVar ? fromTensor(reply.logVar) : null };
}

/**
 * The product of posteriors, with the prior N(0, I), which is in each of them, only once; as
 * `latentserve._client.posteriors.joined` does it.
 *
 * @param {{mean: Float32Array, logVar: Float32Array}[]} posteriors - Those of several images of one thing.
 * @returns {Float32Array} Its mean.
 */
export function joined(posteriors) {
  if (posteriors.length === 1) return posteriors[0].mean;
  return posteriors[0].mean.map((_, axis) => {
    const all = posteriors.map(({ logVar }) => logVar[axis]);
    const least = Math.min(...all);
    const widest = Math.max(0, ...all);
    let total = -(posteriors.length - 1) * Math.exp(least - widest);
    let middle = 0;
    for (const { mean, logVar } of posteriors) {
      const precision = Math.exp(least - logVar[axis]);
      total += precision;
      middle += precision * mean[axis];
    }
    return middle / total;
  });
}
