// The newest of requests that come faster than they are answered.

/** How many requests may be in flight for one picture. */
export const MOST = 2;

/**
 * Runs a task for the newest value alone: while as many run as may, the values between are dropped.
 * An answer that comes after a newer one is dropped as well.
 */
export class Latest {
  #run;
  #done;
  #failed;
  #waiting = null;
  #running = 0;
  #asked = 0;
  #shown = 0;
  #closed = new AbortController();

  /**
   * @param {(value, signal: AbortSignal) => Promise} run - Starts the task for a value.
   * @param {(answer, value) => void} done - Called with answers, each newer than the one before.
   * @param {(error) => void} failed - Called with the failure of the newest.
   */
  constructor(run, done, failed) {
    this.#run = run;
    this.#done = done;
    this.#failed = failed;
  }

  /** Asks for a value. */
  ask(value) {
    this.#waiting = { value, number: ++this.#asked };
    this.#start();
  }

  /** Drops what has been asked for and not shown yet. */
  drop() {
    this.#waiting = null;
    this.#shown = ++this.#asked;
  }

  /** Ends everything. */
  close() {
    this.#waiting = null;
    this.#closed.abort();
  }

  async #start() {
    if (this.#running >= MOST || this.#waiting === null || this.#closed.signal.aborted) return;
    const { value, number } = this.#waiting;
    this.#waiting = null;
    this.#running++;
    try {
      const answer = await this.#run(value, this.#closed.signal);
      if (number > this.#shown && !this.#closed.signal.aborted) {
        this.#shown = number;
        this.#done(answer, value);
      }
    } catch (error) {
      if (error.name !== "AbortError" && number === this.#asked) this.#failed(error);
    } finally {
      this.#running--;
      this.#start();
    }
  }
}
