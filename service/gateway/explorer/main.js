// The page: which model, which view, and what is the matter with the server.

import { Api, operation, Problem } from "./api.js";
import { button, h } from "./dom.js";
import * as link from "./link.js";
import { snippetPanel } from "./snippets.js";
import * as dimensions from "./views/dimensions.js";
import * as image from "./views/image.js";
import * as picture from "./views/picture.js";
import * as plane from "./views/plane.js";
import * as server from "./views/server.js";
import * as styles from "./views/styles.js";

// In the order of the tabs; the first that suits a model is shown at first.
const VIEWS = Object.entries({ image, plane, styles, dimensions, picture, server });
const AGAIN_MS = 3000; // between two looks at what is served

const main = document.querySelector("main");
const state = document.querySelector("#state");
const picker = document.querySelector("#model");
const nav = document.querySelector("#views");
const grpcPort = document.querySelector("meta[name=grpc-port]").content;
const maps = new Map();
let models = [];
let usual = ""; // name of the server's default model
let closing = new AbortController();
let locked = false;
let starting = null;
let later = 0; // the timer of the next look
let restarted = -Infinity; // when a model was last found to be gone

const api = new Api(
  (kind, text) => {
    if (kind === "locked") locked = true;
    if (kind === "back") start();
    else say(kind === "well" ? "" : kind, text);
  },
  askToken,
);

function say(kind, text) {
  if (state.textContent === text && state.dataset.kind === kind) return;
  state.dataset.kind = kind;
  state.hidden = !text;
  state.textContent = text;
}

function askToken(wrong) {
  const dialog = document.querySelector("#token");
  const input = dialog.querySelector("input");
  dialog.querySelector(".wrong").hidden = !wrong;
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const token = input.value;
      input.value = "";
      // Closed by Escape: without a token nothing can be shown.
      resolve(token || askToken(wrong));
    }, { once: true });
  });
}

/** Reads what the server serves, and shows it; once, whoever asks for it in the meantime. */
function start() {
  starting ??= read().finally(() => (starting = null));
  return starting;
}

async function read() {
  try {
    const [list, info] = await Promise.all(["/v1/models", "/v1/server"].map(async (path) => (await api.call(path)).json()));
    models = list.models ?? [];
    maps.clear();
    picker.replaceChildren(...models.map((model) => h("option", { value: `${model.name}/${model.version}` }, labelOf(model))));
    usual = info.defaultModel;
    follow();
  } catch (error) {
    note(error.message);
  }
}

/** Reads it again in a while, unless something is shown before that. */
function startLater() {
  later ||= setTimeout(() => {
    later = 0;
    start();
  }, AGAIN_MS);
}

/** Shows what the address says. */
function follow() {
  const linked = link.get("model");
  const named = (name) => models.find((model) => model.name === name);
  const wanted = models.find(isLinked) ?? named(linked) ?? named(usual) ?? models[0];
  const version = link.get("version");
  const missing = linked && wanted && (wanted.name !== linked || (version && !isLinked(wanted)));
  // What the address says is of another model, or of another version, whose latents mean something else.
  if (missing) link.keep("view");
  show(wanted);
  if (missing) note(`This server does not serve ${wanted.name === linked ? `version ${version} of ` : ""}“${linked}” now.`);
}

const isLinked = (model) => model.name === link.get("model") && String(model.version) === link.get("version");
const labelOf = ({ name, version }) => (models.filter((other) => other.name === name).length > 1 ? `${name}, version ${version}` : name);

/** Shows a model in the view that the address names, or the first that suits it. */
function show(model) {
  closing.abort();
  closing = new AbortController();
  clearTimeout(later);
  later = 0;
  const focused = nav.contains(document.activeElement);
  main.replaceChildren();
  nav.replaceChildren();
  if (!model) {
    document.title = "latentserve";
    note("This server serves no model now. The page looks again every few seconds.");
    startLater();
    return;
  }
  picker.value = `${model.name}/${model.version}`;
  const suitable = VIEWS.filter(([, view]) => view.suits(model));
  const [name, view] = suitable.find(([one]) => one === link.get("view")) ?? suitable[0];
  nav.append(...suitable.map(([one, { title }]) =>
    button(title, () => go(model, one), one === name ? { "aria-current": "page" } : {})));
  if (focused) nav.querySelector("[aria-current]").focus();
  link.set({ model: model.name, version: model.version, view: name });
  document.title = `${name === "server" ? view.title : `${view.title} of ${model.name}`} · latentserve`;
  const snippet = snippetPanel(() => ({ host: location.host, grpcPort, secure: location.protocol === "https:", token: locked }));
  snippet.show(null);
  const root = h("div", { class: "view" });
  main.append(h("h1", {}, name === "server" ? view.title : `${model.name}: ${view.title.toLowerCase()}`), root, name === "server" ? "" : snippet.element);
  view.open({
    api, model, root, snippet, signal: closing.signal, map: () => mapOf(model),
    fail: failing(closing.signal),
  });
}

/** Goes to a view of a model, which begins afresh. */
function go(model, name) {
  link.keep("view");
  link.set({ model: model.name, version: model.version, view: name });
  link.flush();
  show(model);
}

/** The latent map of a model; null if it has none. */
function mapOf(model) {
  const key = `${model.name}/${model.version}`;
  if (!maps.has(key)) {
    maps.set(key, model.hasLatentMap ? api.json(operation(model, "latent_map")).catch(() => null) : Promise.resolve(null));
  }
  return maps.get(key);
}

/** What a view calls with the failure of a task, and with null once the task works again. */
const failing = (signal) => (task) => (error) => {
  if (signal.aborted) return;
  if (error) fail(error, task);
  else main.querySelector(`.note[data-task="${task}"]`)?.remove();
};

function fail(error, task) {
  if (error.name === "AbortError") return;
  if (error instanceof Problem && error.status === 404) {
    // Another set of models is served now.
    restart(error);
    return;
  }
  note(error.message, task);
}

/** Reads again what is served; at once only the first time, since replicas may differ for as long as a rollout takes. */
function restart(error) {
  if (starting || later) return;
  const now = performance.now();
  if (now - restarted > AGAIN_MS) {
    restarted = now;
    start();
    return;
  }
  note(`The server may be changing its models, and this page looks again in a few seconds: ${error.message}`);
  restarted = now + AGAIN_MS;
  startLater();
}

/** Says what went wrong, above the view; with which of its tasks, if that may yet work. */
function note(text, task = null) {
  main.querySelector(".note")?.remove();
  main.prepend(h("p", { class: "note", role: "alert", "data-task": task }, text));
}

picker.addEventListener("change", () => {
  const model = models.find(({ name, version }) => `${name}/${version}` === picker.value);
  go(model, VIEWS.find(([name, view]) => name === link.get("view") && view.suits(model))?.[0] ?? "");
});
document.querySelector(".skip").addEventListener("click", (event) => {
  // Followed, its "#main" would replace the state that the address holds.
  event.preventDefault();
  main.focus();
});
link.onfollow(follow);
start();
