// Calls of the gateway that this page came from.

import { fromNpy } from "./arrays.js";

const AGAIN_MS = 1000; // between two looks whether the server is back
const MOST_AGAIN = 30; // how often a call that a busy server refuses is repeated

/** A call that the server has answered with an error. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? `HTTP ${status}`);
    this.status = status;
    this.code = body.code ?? "";
  }
}

/**
 * Calls the gateway. A call waits while the server cannot be reached, is busy or wants a token, and is
 * repeated then; `onstate(kind, text)` tells what is the matter: "well", "gone", "busy" or "locked".
 */
export class Api {
  #token = "";
  #asking = null;
  #back = null;

  /**
   * @param {(kind: string, text: string) => void} onstate - Told what is the matter.
   * @param {(wrong: boolean) => Promise<string>} askToken - Asks the visitor for the token.
   */
  constructor(onstate, askToken) {
    this.onstate = onstate;
    this.askToken = askToken;
  }

  /**
   * Makes a call.
   *
   * @param {string} path - Path of the operation.
   * @param {object} options - `query` values by name; `body`, an object (sent as JSON), or bytes of
   *   `type`; `accept`; `signal`.
   * @returns {Promise<Response>} A reply that is no error.
   * @throws {Problem} The server refuses the call.
   */
  async call(path, { query = {}, body = null, type = "", accept = "application/json", signal } = {}) {
    const given = Object.entries(query).filter(([, value]) => value !== "" && value != null);
    const address = given.length ? `${path}?${new URLSearchParams(given)}` : path;
    const json = body !== null && !type;
    for (let attempt = 0; ; attempt++) {
      const token = this.#token;
      const headers = { accept };
      if (token) headers.authorization = `Bearer ${token}`;
      if (body !== null) headers["content-type"] = json ? "application/json" : type;
      let reply;
      try {
        const method = body === null ? "GET" : "POST";
        reply = await fetch(address, {
          method, headers, signal, body: json ? JSON.stringify(body) : body, credentials: "omit",
        });
      } catch (error) {
        if (signal?.aborted) throw error;
        await this.#untilBack();
        continue;
      }
      if (reply.ok) {
        this.onstate("well", "");
        return reply;
      }
      const problem = new Problem(reply.status, await reply.json().catch(() => ({})));
      if (reply.status === 401) {
        await this.#unlock(token);
      } else if ([429, 503].includes(reply.status) && attempt < MOST_AGAIN) {
        this.onstate("busy", `The server is busy, and this page tries again: ${problem.message}`);
        await pause(1000 * Number(reply.headers.get("retry-after") ?? 1) * (0.75 + Math.random() / 2), signal);
      } else {
        throw problem;
      }
    }
  }

  /** Makes a call; returns its reply as JSON, arrays in base64. */
  async json(path, options = {}) {
    const query = { ...options.query, tensors: "base64" };
    return (await this.call(path, { ...options, query })).json();
  }

  /** Makes a call; returns the first array of its reply. */
  async array(path, options = {}) {
    const reply = await this.call(path, { ...options, accept: "application/x-npy" });
    return fromNpy(await reply.arrayBuffer());
  }

  #untilBack() {
    this.onstate("gone", "The server does not answer. This page goes on as soon as it does.");
    this.#back ??= (async () => {
      for (;;) {
        await pause(AGAIN_MS);
        try {
          await fetch("/openapi.json", { method: "HEAD", cache: "no-store", credentials: "omit" });
          break;
        } catch {
          // still gone
        }
      }
      this.#back = null;
      this.onstate("back", "");
    })();
    return this.#back;
  }

  #unlock(refused) {
    if (refused !== this.#token) return Promise.resolve(); // another call has asked in the meantime
    this.onstate("locked", "The server wants a token.");
    this.#asking ??= this.askToken(Boolean(refused)).then((token) => {
      this.#token = token;
      this.#asking = null;
    });
    return this.#asking;
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

/** The path of an operation of a model's version. */
export function operation({ name, version }, what) {
  return `/v1/models/${encodeURIComponent(name)}/versions/${version}:${what}`;
}
