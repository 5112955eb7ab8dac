// Pictures: arrays uint8 [N, C, H, W] on canvases, and files as arrays.

import { h } from "./dom.js";
import { row } from "./arrays.js";

/** A canvas that shows one picture, with what it shows for those who cannot see it. */
export function picture(label, attributes = {}) {
  return h("canvas", { class: "picture", role: "img", "aria-label": label, width: 1, height: 1, ...attributes });
}

/** The pixels of a picture, as a canvas takes them. */
function rgba(data, channels, height, width) {
  const pixels = new ImageData(width, height);
  const size = height * width;
  const [red, green, blue] = channels === 1 ? [0, 0, 0] : [0, size, 2 * size];
  for (let index = 0; index < size; index++) {
    pixels.data[4 * index] = data[red + index];
    pixels.data[4 * index + 1] = data[green + index];
    pixels.data[4 * index + 2] = data[blue + index];
    pixels.data[4 * index + 3] = 255;
  }
  return pixels;
}

/** Draws picture `index` of an array. */
export function paint(canvas, images, index = 0) {
  const [, channels, height, width] = images.shape;
  resize(canvas, width, height);
  canvas.getContext("2d").putImageData(rgba(row(images, index), channels, height, width), 0, 0);
}

/** Draws all pictures of an array, in rows of `columns`, without a gap. */
export function paintSheet(canvas, images, columns) {
  const [count, channels, height, width] = images.shape;
  resize(canvas, columns * width, Math.ceil(count / columns) * height);
  const context = canvas.getContext("2d");
  for (let index = 0; index < count; index++) {
    const pixels = rgba(row(images, index), channels, height, width);
    context.putImageData(pixels, (index % columns) * width, Math.floor(index / columns) * height);
  }
}

/**
 * Draws where two pictures differ: orange where the second is lighter, blue where it is darker, by
 * the mean over the channels.
 *
 * @param {boolean} over - Whether what is the same is left transparent, to lie over a picture.
 */
export function paintDifference(canvas, first, second, over = false) {
  const [, channels, height, width] = second.shape;
  resize(canvas, width, height);
  const pixels = new ImageData(width, height);
  const size = height * width;
  for (let index = 0; index < size; index++) {
    let change = 0;
    for (let channel = 0; channel < channels; channel++) {
      change += second.data[channel * size + index] - first.data[channel * size + index];
    }
    change /= channels;
    const strength = Math.min(255, 2 * Math.abs(change));
    const colour = change > 0 ? [240, 140, 30] : [60, 130, 255];
    for (let part = 0; part < 3; part++) {
      pixels.data[4 * index + part] = over ? colour[part] : (colour[part] * strength) / 255;
    }
    pixels.data[4 * index + 3] = over ? strength : 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function resize(canvas, width, height) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
}

/** Mean squared difference of two arrays of values from 0 to 255. */
export function squaredError(first, second) {
  let sum = 0;
  for (let index = 0; index < first.length; index++) sum += (first[index] - second[index]) ** 2;
  return sum / first.length;
}

/** Peak signal-to-noise ratio of two pictures, in dB. */
export function psnr(first, second) {
  return 10 * Math.log10(255 ** 2 / squaredError(first, second));
}

/** What a canvas shows, as an array uint8 [1, C, H, W]; of one channel, by luma (ITU-R BT.601). */
export function pixelsOf(canvas, channels) {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const size = width * height;
  const array = new Uint8Array(channels * size);
  for (let index = 0; index < size; index++) {
    const [red, green, blue] = data.subarray(4 * index, 4 * index + 3);
    if (channels === 1) {
      array[index] = Math.round(0.299 * red + 0.587 * green + 0.114 * blue);
    } else {
      array[index] = red;
      array[size + index] = green;
      array[2 * size + index] = blue;
    }
  }
  return { shape: [1, channels, height, width], data: array };
}

/** The PNG file of a canvas. */
export function toPng(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/**
 * Draws a picture file into a canvas of the size wanted: on white, the middle of it.
 *
 * @param {Blob} file - Any format that the browser reads.
 * @param {(width, height) => [number, number]} sized - The size wanted, given that of the file.
 * @throws {Error} It is no picture.
 */
export async function fromFile(file, sized) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name || "the file"}: not a picture that this browser can read`);
  });
  const [width, height] = sized(bitmap.width, bitmap.height);
  const canvas = h("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [wide, high] = [scale * bitmap.width, scale * bitmap.height];
  context.drawImage(bitmap, (width - wide) / 2, (height - high) / 2, wide, high);
  bitmap.close();
  return canvas;
}

/**
 * Files that are dropped on the page, pasted into it or chosen in a field, in `signal`'s time; `target` shows
 * that they may be dropped.
 *
 * @param {(files: File[]) => Promise} received - Takes the files.
 * @param {(error) => void} unreadable - Called with the failure of `received`, or with null.
 */
export function receiveFiles(target, input, received, unreadable, signal) {
  const take = (files) => {
    if (files.length) received([...files]).then(() => unreadable(null), unreadable);
  };
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
  const dropping = (on) => target.classList.toggle("dropping", on);
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    dropping(true);
  }, { signal });
  document.addEventListener("dragleave", (event) => dropping(event.relatedTarget !== null), { signal });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    dropping(false);
    take(event.dataTransfer.files);
  }, { signal });
  document.addEventListener("paste", (event) => take(event.clipboardData.files), { signal });
}
