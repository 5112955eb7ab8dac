// Samples a grid of images, encodes them, and decodes the posterior means.
//
//   node client.mjs --server localhost:50051 --out grid.png
//
// Exit status: 0, 1 if a call or a file failed, 2 for a wrong command line.

import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";

import { Connection } from "./latentserve.mjs";
import { encodePng, grid } from "./png.mjs";
import { runProgram, UsageError } from "./program.mjs";

const USAGE = `usage: node client.mjs [--server HOST:PORT] [--out FILE] [--model NAME] [--seed N]
                       [--temperature T] [--timeout SECONDS]`;
const MAX_ROWS = 10;
const MAX_COLUMNS = 10;

function options() {
  const text = (value) => ({ type: "string", default: value });
  let values;
  try {
    ({ values } = parseArgs({
      options: {
        server: text("localhost:50051"),
        out: text("grid.png"),
        model: text(""),
        seed: text("7"),
        temperature: text("1"),
        timeout: text("60"),
      },
    }));
  } catch (error) {
    throw new UsageError(error.message);
  }
  const seed = values.seed;
  if (!/^\d+$/.test(seed) || BigInt(seed) >= 2n ** 64n) {
    throw new UsageError(`--seed: got ${seed}, wanted a whole number from 0 to 2^64 - 1`);
  }
  for (const name of ["temperature", "timeout"]) {
    values[name] = Number(values[name] || NaN);
    if (!Number.isFinite(values[name])) throw new UsageError(`--${name}: wanted a number`);
  }
  return values;
}

async function run({ server, out, model: name, seed, temperature, timeout }) {
  const connection = new Connection(server, timeout);
  try {
    const info = await connection.call("GetServerInfo", {});
    console.log(`latentserve ${info.version} with onnxruntime ${info.onnxruntime_version}`);
    const { model } = await connection.call("GetModel", { model: { name } });
    console.log(describe(model));

    const columns = Math.min(MAX_COLUMNS, Number(model.max_rows));
    // One row for each label, or ten rows of a model without labels.
    const rows = model.labels.length || MAX_ROWS;
    const images = [];
    let total = 0;
    for (let row = 0; row < rows; row++) {
      const request = { count: columns, seed, offset: row * columns, temperature };
      if (model.labels.length) request.label = row;
      const { sampled, decoded } = await roundTrip(connection, model, request);
      images.push(...sampled);
      total += sampled.reduce((sum, image, index) => sum + difference(image, decoded[index]), 0);
    }

    const { channels, height, width } = model.image_shape;
    const shape = { channels: Number(channels), height: Number(height), width: Number(width) };
    writeFileSync(out, encodePng(grid(images, shape, columns)));
    console.log(`${out}: ${images.length} images, ${rows} rows of ${columns}, seed ${seed}`);
    const mean = (total / images.length).toFixed(2);
    console.log(`mean absolute difference after encoding and decoding: ${mean} of 255`);
  } finally {
    connection.close();
  }
}

/** Samples images, encodes them and decodes their posterior means. */
async function roundTrip(connection, { name, version }, request) {
  const model = { name, version };
  const format = "IMAGE_FORMAT_UINT8";
  // A conditional model says which class each image was decoded with; of others there are none.
  const { images, labels } = await connection.call("Sample", { model, format, ...request });
  const { mean } = await connection.call("Encode", { model, images, labels });
  const decoded = await connection.call("Decode", { model, format, latents: mean, labels });
  return { sampled: split(images.tensor), decoded: split(decoded.images.tensor) };
}

function describe(model) {
  const { channels, height, width } = model.image_shape;
  const given = model.conditional ? "conditional on " : "";
  const labels = model.labels.length ? `${given}labels ${model.labels.join(" ")}` : "no labels";
  const devices = [...new Set(model.graphs.map(({ device }) => device))].join(", ");
  const free = model.sizes ? " and other sizes" : "";
  return (
    `${model.name} version ${model.version}: ${width}x${height}${free} ` +
    `${channels === "1" ? "grey" : "RGB"}, ${model.latent_shape.join("x")} latents, ` +
    `prior ${model.prior}, ${labels}, on ${devices}`
  );
}

/** Splits a uint8 tensor [N, C, H, W] into N images. */
function split({ shape, data }) {
  const length = data.length / Number(shape[0]);
  return Array.from({ length: Number(shape[0]) }, (_, index) =>
    data.subarray(index * length, (index + 1) * length),
  );
}

/** Mean absolute difference of two images, 0 to 255. */
function difference(one, other) {
  return one.reduce((sum, value, index) => sum + Math.abs(value - other[index]), 0) / one.length;
}

await runProgram(() => run(options()), USAGE);
