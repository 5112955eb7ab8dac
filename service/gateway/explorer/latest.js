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
  #dropped = new AbortController();

  /**
   * @param {(value, signal: AbortSignal) => Promise} run - Starts the task for a value.
   * @param {(answer, value) => void} done - Called with answers, each newer than the one before.
   * @param {(error) => void} failed - Called with the failure of the newest; with null once that is past.
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

  /** Drops what has been asked for and not shown yet, and what has failed. */
  drop() {
    this.close();
    this.#dropped = new AbortController();
    this.#failed(null);
  }

  /** Ends everything. */
  close() {
    this.#waiting = null;
    this.#dropped.abort();
  }

  async #start() {
    const { signal } = this.#dropped;
    if (this.#running >= MOST || this.#waiting === null || signal.aborted) return;
    const { value, number } = this.#waiting;
    this.#waiting = null;
    this.#running++;
    try {
      const answer = await this.#run(value, signal);
      if (number > this.#shown && !signal.aborted) {
        this.#shown = number;
        this.#done(answer, value);
        if (number === this.#asked) this.#failed(null);
      }
    } catch (error) {
      if (!signal.aborted && number === this.#asked) this.#failed(error);
    } finally {
      this.#running--;
      this.#start();
    }
  }
}
