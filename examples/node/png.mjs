// Arranges images in a grid and encodes it as a PNG file.

import { crc32, deflateSync } from "node:zlib";

const GAP = 2;
const BACKGROUND = 48;

/**
 * Arranges images in rows, left to right and top to bottom.
 *
 * @param {Uint8Array[]} images Images [C, H, W], 0 to 255.
 * @param {{channels: number, height: number, width: number}} shape C is 1 (grey) or 3 (RGB).
 * @param {number} columns Images per row.
 * @returns Pixels [H, W, C] of the grid and its shape.
 */
export function grid(images, { channels, height, width }, columns) {
  const rows = Math.ceil(images.length / columns);
  const whole = {
    channels,
    height: rows * (height + GAP) + GAP,
    width: columns * (width + GAP) + GAP,
  };
  const pixels = new Uint8Array(whole.height * whole.width * channels).fill(BACKGROUND);
  images.forEach((image, index) => {
    const top = GAP + Math.floor(index / columns) * (height + GAP);
    const left = GAP + (index % columns) * (width + GAP);
    for (let channel = 0; channel < channels; channel++) {
      for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
          const to = ((top + y) * whole.width + left + x) * channels + channel;
          pixels[to] = image[(channel * height + y) * width + x];
        }
      }
    }
  });
  return { pixels, ...whole };
}

/** Encodes pixels [H, W, C] as a PNG file (ISO/IEC 15948). */
export function encodePng({ pixels, channels, height, width }) {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header[8] = 8; // bits per sample
  header[9] = channels === 1 ? 0 : 2; // grey or RGB
  // Each line begins with its filter type; 0 means no filter.
  const length = width * channels;
  const lines = Buffer.alloc(height * (1 + length));
  for (let y = 0; y < height; y++) {
    lines.set(pixels.subarray(y * length, (y + 1) * length), y * (1 + length) + 1);
  }
  return Buffer.concat([
    Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
    chunk("IHDR", header),
    chunk("IDAT", deflateSync(lines)),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

function chunk(kind, content) {
  const body = Buffer.concat([Buffer.from(kind, "latin1"), content]);
  const ends = Buffer.alloc(8);
  ends.writeUInt32BE(content.length, 0);
  ends.writeUInt32BE(crc32(body), 4);
  return Buffer.concat([ends.subarray(0, 4), body, ends.subarray(4)]);
}
