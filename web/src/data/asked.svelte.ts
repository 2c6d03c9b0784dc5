// A question that controls ask as they move: at most one at a time counts, the last.
import { ask, canonical, type Refusal } from "./ask";

const PAUSE = 120;

export class Asked<T> {
  answer: T | null = $state.raw(null);
  problem = $state("");
  busy = $state(false);
  #asked = "";
  #timer = 0;

  constructor(readonly path: string) {}

  /** Asks once the controls rest, unless it is what was asked last; an answer to an earlier question is dropped. */
  put(body?: unknown): void {
    const key = canonical(body ?? null);
    if (key === this.#asked) return;
    clearTimeout(this.#timer);
    this.busy = true;
    this.#timer = window.setTimeout(() => void this.#ask(body, key), this.#asked ? PAUSE : 0);
    this.#asked = key;
  }

  async #ask(body: unknown, key: string): Promise<void> {
    let problem = "";
    try {
      const answer = await ask<T>(this.path, body);
      if (key !== this.#asked) return;
      this.answer = answer;
    } catch (error) {
      if (key !== this.#asked) return;
      problem = (error as Refusal).message;
      if ([0, 503].includes((error as Refusal).status)) this.#asked = ""; // may be asked again as it is
    }
    this.problem = problem;
    this.busy = false;
  }
}
