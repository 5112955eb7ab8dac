// A model for pictures of any size: a picture and its reconstruction.

import { operation } from "../api.js";
import { fromTensor } from "../arrays.js";
import { reconstructCall } from "../calls.js";
import { h, labelled, panel, shown } from "../dom.js";
import * as link from "../link.js";
import { fromFile, paint, picture, pixelsOf, psnr, receiveFiles, toPng } from "../pictures.js";

const MOST_SIDE = 1024;

export const title = "Picture";

export function suits(model) {
  return Boolean(model.sizes) && model.posterior !== "none";
}

export function open({ api, model, root, snippet, fail, signal }) {
  const channels = Number(model.imageShape.channels);
  const input = h("input", { type: "file", accept: "image/*" });
  const target = labelled("Choose, drop, paste or photograph a picture", input, { class: "field drop" });
  const before = picture("The picture");
  const after = picture("Its reconstruction", { class: "picture after" });
  const position = h("input", { type: "range", min: 0, max: 100, value: link.getNumber("position", 50, 0, 100), oninput: () => part() });
  const compared = h("div", { class: "compared", hidden: true }, h("div", { class: "stack" }, before, after),
    labelled("Picture to the left, reconstruction to the right", position));
  const told = h("p", { class: "quiet", role: "status" }, "The test card is shown until you choose a picture.");
  const failed = fail("picture");
  let newest = 0;

  root.append(
    h("div", { class: "columns" },
      h("div", { class: "wide" }, compared),
      h("div", {}, panel("A picture, and what is left of it", target, told, h("p", { class: "quiet" }, sizesText(model))))),
  );
  receiveFiles(target, input, async ([file]) => {
    examine(await fromFile(file, (width, height) => allowed(model, width, height))).catch(failed);
  }, fail("file"), signal);

  function part() {
    link.set({ position: position.value });
    after.style.clipPath = `inset(0 0 0 ${position.value}%)`;
  }

  async function examine(canvas) {
    const mine = ++newest;
    const file = await toPng(canvas);
    told.textContent = `Reconstructing ${canvas.width} x ${canvas.height} pixels …`;
    let reply;
    try {
      reply = await api.json(operation(model, "reconstruct"), {
        query: { format: "uint8", resize: true, labels: model.conditional ? "0" : "" }, type: file.type, body: file, signal,
      });
    } catch (error) {
      if (mine !== newest) return;
      told.textContent = "The server could not reconstruct this picture.";
      throw error;
    }
    if (mine !== newest) return;
    const pixels = pixelsOf(canvas, channels);
    const images = fromTensor(reply.images.tensor);
    paint(before, pixels);
    paint(after, images);
    compared.hidden = false;
    part();
    const factor = Number(model.sizes.factor);
    const latent = [model.latentShape[0], canvas.height / factor, canvas.width / factor];
    const ratio = pixels.data.length / (latent[0] * latent[1] * latent[2]);
    told.textContent = `${shown(psnr(pixels.data, images.data), 1)} dB. Latents ${latent.join(" x ")}: ${shown(ratio, 1)} times `
      + `fewer values than the picture's ${channels} x ${canvas.height} x ${canvas.width}. `
      + `Computed in ${shown(reply.timing?.computeSeconds ?? 0, 2)} s.`;
    snippet.show(reconstructCall(model, file, []));
    failed(null);
  }

  examine(testCard(...allowed(model, 256, 256))).catch(failed);
}

/** The largest size that a model takes and that a picture of this one can be shown in. */
function allowed({ sizes }, width, height) {
  const [multiple, least, most] = [sizes.multiple ?? 1, sizes.least ?? 1, sizes.mostPixels].map(Number);
  const scale = Math.min(1, MOST_SIDE / Math.max(width, height), Math.sqrt(most / (width * height)));
  const up = Math.max(1, least / (scale * Math.min(width, height)));
  return [width, height].map((side) => {
    const fitted = Math.floor((scale * up * side) / multiple) * multiple;
    return Math.max(fitted, Math.ceil(least / multiple) * multiple);
  });
}

function sizesText({ sizes }) {
  const { multiple, least, mostPixels } = sizes;
  return `The model takes heights and widths that are multiples of ${multiple ?? 1}, from ${least ?? 1} pixels, `
    + `up to ${mostPixels} pixels together. Larger pictures are made smaller, to ${MOST_SIDE} pixels at most.`;
}

/** Colours, lines and letters: what such models find easy, and what they do not. */
function testCard(width, height) {
  const canvas = h("canvas", { width, height });
  const context = canvas.getContext("2d");
  const sky = context.createLinearGradient(0, 0, width, height);
  [["#14213d", 0], ["#2a5fc4", 0.45], ["#fca311", 0.8], ["#ffe8c2", 1]].forEach(([colour, at]) => sky.addColorStop(at, colour));
  context.fillStyle = sky;
  context.fillRect(0, 0, width, height);
  ["#e4566f", "#45cf93", "#b4a7f2", "#e6a30c"].forEach((colour, index) => {
    context.fillStyle = colour;
    context.beginPath();
    context.arc(width * (0.2 + 0.2 * index), height * 0.3, height * 0.09, 0, 7);
    context.fill();
  });
  context.strokeStyle = context.fillStyle = "white";
  for (let index = 1; index < 9; index++) {
    context.lineWidth = index / 2;
    context.strokeRect(width * 0.06 * index, height * 0.5, width * 0.03, height * 0.16);
  }
  context.font = `${Math.round(height / 7)}px serif`;
  context.fillText("latent", width * 0.08, height * 0.86);
  context.font = `${Math.round(height / 18)}px sans-serif`;
  context.fillText("The quick brown fox", width * 0.4, height * 0.95);
  return canvas;
}
