// The server: versions, limits, models, and live rates of calls.

import { h, panel, shown, svg } from "../dom.js";

const EVERY_MS = 2000;
const KEPT = 60; // points of a curve

export const title = "Server";

export function suits() {
  return true;
}

export function open({ api, root, fail, signal }) {
  const about = h("dl", { class: "facts" });
  const models = h("tbody", {});
  const rates = h("tbody", {});
  const curve = svg("polyline", { points: "" });
  const graph = svg("svg", { class: "curve", viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": "Calls a second during the last two minutes" }, curve);
  const told = h("p", {}, "Waiting for the first two looks at the metrics …");

  root.append(
    h("div", { class: "columns" },
      panel("Server", about),
      panel("Calls", told, graph,
        h("div", { class: "scrolled", tabindex: 0, role: "region", "aria-label": "Calls by method" },
          table(["method", "by", "calls", "a second"], rates)))),
    panel("Models",
      h("div", { class: "scrolled", tabindex: 0, role: "region", "aria-label": "Models that are served" },
        table(["model", "version", "images", "latents", "posterior", "prior", "likelihood", "ELBO", "trained on"], models))),
  );
  describe().catch(fail("facts"));
  watch().catch(fail("calls"));

  async function describe() {
    const info = await (await api.call("/v1/server", { signal })).json();
    const facts = {
      latentserve: info.version, onnxruntime: info.onnxruntimeVersion, device: info.device,
      "default model": info.defaultModel || "none",
      "rows in a request": info.limits.maxRows, "bytes in a message": info.limits.maxMessageBytes,
      "rows in flight": info.limits.maxQueueRows,
    };
    about.replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
    models.replaceChildren(...(info.models ?? []).map((model) => {
      const { channels, height, width } = model.imageShape;
      const elbo = model.metrics?.elbo;
      return h("tr", {},
        h("th", { scope: "row" }, model.name), h("td", {}, String(model.version)),
        h("td", {}, `${channels} x ${height} x ${width}${model.sizes ? ", any size" : ""}`),
        h("td", {}, model.latentShape.join(" x ")), h("td", {}, model.posterior), h("td", {}, model.prior),
        h("td", {}, model.likelihood), h("td", {}, elbo == null ? "" : shown(elbo, 1)), h("td", {}, model.dataset ?? ""));
    }));
  }

  async function watch() {
    let before = null;
    const totals = [];
    while (!signal.aborted) {
      const text = await (await api.call("/v1/metrics", { accept: "text/plain", signal })).text();
      const now = { at: performance.now(), calls: countsOf(text) };
      if (before) {
        const seconds = (now.at - before.at) / 1000;
        const rows = [...now.calls].map(([key, calls]) => ({ key, calls, rate: (calls - (before.calls.get(key) ?? 0)) / seconds }));
        const total = rows.reduce((sum, { rate }) => sum + Math.max(0, rate), 0);
        totals.push(total);
        if (totals.length > KEPT) totals.shift();
        show(rows, totals);
      }
      before = now;
      await new Promise((resolve) => setTimeout(resolve, totals.length ? EVERY_MS : EVERY_MS / 4));
    }
  }

  function show(rows, totals) {
    told.textContent = `${shown(totals.at(-1), 1)} calls a second.`;
    rates.replaceChildren(...rows.sort((a, b) => b.calls - a.calls).map(({ key, calls, rate }) => {
      const [rpc, by] = key.split(" ");
      return h("tr", {}, h("th", { scope: "row" }, rpc), h("td", {}, by), h("td", {}, String(calls)), h("td", {}, shown(Math.max(0, rate), 1)));
    }));
    const highest = Math.max(1, ...totals);
    curve.setAttribute("points", totals.map((value, index) => `${(100 * index) / (KEPT - 1)},${29 - (28 * value) / highest}`).join(" "));
  }
}

function table(heads, body) {
  return h("table", {}, h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))), body);
}

/** Calls by method and transport, over all statuses and models, of a page of metrics. */
function countsOf(text) {
  const counts = new Map();
  for (const line of text.split("\n")) {
    const found = /^latentserve_requests_total\{(.*)\} (\S+)$/.exec(line);
    if (!found) continue;
    const of = (name) => new RegExp(`${name}="([^"]*)"`).exec(found[1])?.[1] ?? "";
    const key = `${of("rpc")} ${of("transport")}`;
    counts.set(key, (counts.get(key) ?? 0) + Number(found[2]));
  }
  return counts;
}
