// Encodes a photograph to its latent, and decodes the latent to a picture again.
//
//   node photo.mjs photo.jpg --model taef2 --out back.webp
//
// Exit status: 0, 1 if a call or a file failed, 2 for a wrong command line.

import { readFileSync, writeFileSync } from "node:fs";
import { extname } from "node:path";
import { parseArgs } from "node:util";

import { Connection } from "./latentserve.mjs";
import { runProgram, UsageError } from "./program.mjs";

const USAGE = "usage: node photo.mjs PHOTO [--server HOST:PORT] [--model NAME] [--out FILE]";
const FORMATS = {
  ".jpg": "IMAGE_FORMAT_JPEG",
  ".png": "IMAGE_FORMAT_PNG",
  ".webp": "IMAGE_FORMAT_WEBP",
};

function options() {
  const text = (value) => ({ type: "string", default: value });
  let parsed;
  try {
    parsed = parseArgs({
      allowPositionals: true,
      options: { server: text("localhost:50051"), model: text(""), out: text("back.png") },
    });
  } catch (error) {
    throw new UsageError(error.message);
  }
  const { values, positionals } = parsed;
  if (positionals.length !== 1) throw new UsageError("wanted one photograph");
  const format = FORMATS[extname(values.out)];
  if (!format) throw new UsageError(`--out: got ${values.out}, wanted .jpg, .png or .webp`);
  return { ...values, photo: positionals[0], format };
}

async function run({ photo, server, model: name, out, format }) {
  const connection = new Connection(server, 60);
  try {
    const model = { name };
    // Resized to the nearest size that the model takes; the file itself travels, not its pixels.
    const images = { encoded: { files: [readFileSync(photo)], resize: true } };
    const latent_dtype = "DATA_TYPE_FLOAT16"; // half the bytes of FLOAT32
    const { mean } = await connection.call("Encode", { model, images, latent_dtype });
    const bytes = mean.data.length;
    console.log(`${photo}: latent ${mean.shape.slice(1).join(" x ")}, ${bytes} bytes`);
    const decoded = await connection.call("Decode", { model, latents: mean, format });
    writeFileSync(out, decoded.images.encoded.files[0]);
    console.log(`${out}: decoded`);
  } finally {
    connection.close();
  }
}

await runProgram(() => run(options()), USAGE);
