// The call that made a view, as Python, curl and grpcurl.

import { digits, row, toBase64, toNpy } from "./arrays.js";
import { button, h, save } from "./dom.js";

const MOST_NUMBERS = 128; // of latents that stand in a snippet; more are a file beside it

const word = (text) => (/^[\w./:@=-]+$/.test(text) ? text : `'${String(text).replaceAll("'", "'\\''")}'`);
const rowsOf = ({ shape, data }) =>
  Array.from({ length: shape[0] }, (_, index) => [...row({ shape, data }, index)].map(digits));
const lists = (rows) => `[${rows.map((one) => `[${one.join(", ")}]`).join(", ")}]`;

/**
 * A call, as a view shows it.
 *
 * @typedef {object} Call
 * @property {string} operation - As in the address: "decode".
 * @property {{name: string, version: number}} model - The model.
 * @property {object} fields - Fields of the request by their names in the protos.
 * @property {{shape: number[], data: Float32Array}} [latents] - The latents, float32 [N, D].
 * @property {string} [file] - Name of the picture that the request has.
 * @property {Blob} [content] - That picture.
 * @property {string} python - The Python call; `ARRAY` stands for the latents, `WHERE` for the model.
 */

const hasLatentsBeside = ({ latents }) => Boolean(latents) && latents.data.length > MOST_NUMBERS;

/** The three ways to make a call; each a text. */
export function snippets(call, { host, grpcPort, secure, token }) {
  const { name, version } = call.model;
  const beside = hasLatentsBeside(call);
  const origin = `${secure ? "https" : "http"}://${host}`;
  const grpc = `${host.replace(/:\d+$/, "")}:${grpcPort}`;
  return { Python: asPython(), curl: asCurl(), grpcurl: asGrpcurl() };

  function asPython() {
    const options = [JSON.stringify(grpc)];
    if (secure) options.push("tls=Tls()");
    if (token) options.push('token="TOKEN"');
    const array = beside ? 'np.load("latents.npy")' : call.latents && lists(rowsOf(call.latents));
    const where = `model=${JSON.stringify(name)}, version=${version}`;
    const lines = [`from latentserve.client import Client${secure ? ", Tls" : ""}`, ""];
    if (beside) lines.unshift("import numpy as np", "");
    if (call.file) lines.unshift("from pathlib import Path", "");
    lines.push(`with Client(${options.join(", ")}) as client:`);
    lines.push(`    reply = client.${call.python.replace("ARRAY", () => array).replace("WHERE", () => where)}`);
    return lines.join("\n");
  }

  function asCurl() {
    const path = `/v1/models/${encodeURIComponent(name)}/versions/${version}:${call.operation}`;
    // A picture's format is that of the accept header.
    const { format: _, ...fields } = call.fields;
    const query = new URLSearchParams(
      Object.entries(fields).map(([field, value]) => [field, Array.isArray(value) ? value.join(",") : value]),
    );
    const words = ["curl", "-o", "reply.png"];
    if (token) words.push("-H", '"authorization: Bearer $TOKEN"');
    words.push("-H", "'accept: image/png'");
    if (call.latents && !beside) {
      const body = { ...fields, latents: "@" };
      const text = JSON.stringify(body).replace('"@"', lists(rowsOf(call.latents)));
      words.push("-H", "'content-type: application/json'", "-d", word(text), word(origin + path));
      return words.join(" ");
    }
    if (beside) words.push("-H", "'content-type: application/x-npy'", "--data-binary", "@latents.npy");
    if (call.file) words.push("-H", "'content-type: image/png'", "--data-binary", `@${call.file}`);
    if (call.file) query.set("resize", "true");
    words.push(word(`${origin}${path}${query.size ? `?${query}` : ""}`));
    return words.join(" ");
  }

  function asGrpcurl() {
    const fields = Object.fromEntries(
      Object.entries(call.fields).map(([field, value]) => [
        field,
        field === "format" ? `IMAGE_FORMAT_${value.toUpperCase()}` : field === "method" ? `INTERPOLATION_METHOD_${value.toUpperCase()}` : value,
      ]),
    );
    const request = { model: { name, version: String(version) }, ...fields };
    if (call.latents) {
      const { shape, data } = call.latents;
      const bytes = new Uint8Array(Float32Array.from(data).buffer);
      request.latents = {
        dtype: "DATA_TYPE_FLOAT32", shape: shape.map(String), data: toBase64(bytes),
      };
    }
    if (call.file) request.images = { encoded: { files: ["@"], resize: true } };
    // The file is read by the shell, between two quoted parts.
    const text = word(JSON.stringify(request)).replace("@", `'"$(base64 -w0 ${call.file})"'`);
    const rpc = call.operation.replace(/^./, (letter) => letter.toUpperCase());
    const words = ["grpcurl", ...(secure ? [] : ["-plaintext"])];
    if (token) words.push("-H", '"authorization: Bearer $TOKEN"');
    return [...words, "-d", text, grpc, `latentserve.v1.LatentService/${rpc}`].join(" ");
  }
}

/** The file that the texts of a call read; null if there is none. */
function fileOf(call) {
  if (hasLatentsBeside(call)) return { name: "latents.npy", content: new Blob([toNpy(call.latents)]) };
  return call.content ? { name: call.file, content: call.content } : null;
}

/** A panel with the call of a view; `show` changes it. */
export function snippetPanel(where) {
  const text = h("code", {});
  const copied = h("span", { role: "status" });
  const tabs = h("div", { class: "row", role: "group", "aria-label": "Language" });
  const file = button("", () => save(beside.content, beside.name));
  let beside = null;
  let texts = {};
  let chosen = "Python";
  const show = () => {
    text.textContent = texts[chosen] ?? "";
    for (const tab of tabs.children) tab.setAttribute("aria-pressed", tab.textContent === chosen);
  };
  for (const name of ["Python", "curl", "grpcurl"]) {
    tabs.append(button(name, () => { chosen = name; show(); }, { "aria-pressed": "false" }));
  }
  const copy = button("Copy", async () => {
    try {
      await navigator.clipboard.writeText(texts[chosen]);
      copied.textContent = "Copied";
    } catch {
      // Browsers may refuse it, and have no clipboard at all for pages by plain HTTP of other hosts.
      getSelection().selectAllChildren(text);
      copied.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => (copied.textContent = ""), 2000);
  });
  const element = h(
    "details", { class: "panel snippet" }, h("summary", {}, "The call that made this"),
    h("div", { class: "row" }, tabs, copy, file, copied), h("pre", { tabindex: 0 }, text),
  );
  return {
    element,
    show(call) {
      element.hidden = call === null;
      texts = call === null ? {} : snippets(call, where());
      beside = call && fileOf(call);
      file.hidden = !beside;
      file.textContent = beside ? `Save ${beside.name}` : "";
      show();
    },
  };
}
