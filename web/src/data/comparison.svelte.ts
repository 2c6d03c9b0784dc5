// The fifteen on the chosen input: one answer for the input, and one for each mechanism whose controls were moved.
import { askBytes, isRecorded, recorded, ask, canonical, Refusal } from "./ask";
import { readMatrix, readRow } from "./matrix";
import { page } from "./state.svelte";
import type { Matrix, ModelStatus, Row, Settings } from "./types";

interface Body {
  source: unknown;
  settings: Settings;
  specs: unknown;
  mechanisms?: string[];
}

/** A mechanism with settings of its own: what was asked last, and the row of it once that is there. */
interface Moved {
  body: Body;
  row: Row | null;
  problem: string;
}

class Comparison {
  matrix: Matrix | null = $state.raw(null);
  moved: Record<string, Moved> = $state.raw({});
  problem = $state("");
  busy = $state(false);
  /** The key token that is pointed at, in whichever chart; -1: none. */
  pointed = $state(-1);
  model: ModelStatus | null = $state.raw(null);
  #asked = "";
  /** Where the matrix is of; while another is asked for, rows are still of this one. */
  #source: unknown;
  #following = new Set<string>();
  #watching = false;

  /** Every row, the moved ones in place of those that the input came with. */
  rows = $derived(this.matrix?.rows.map((row) => this.moved[row.name]?.row ?? row) ?? []);
  byName = $derived(new Map(this.rows.map((row) => [row.name, row])));
  baseline = $derived(this.byName.get("scaled-dot-product"));
  token = $derived(Math.min(page.token ?? this.matrix?.token ?? 0, (this.matrix?.tokens.length ?? 1) - 1));
  /** Whether tokens are bytes that are written as letters: then one that begins a word begins with Ġ. */
  isOfBytes = $derived(this.matrix?.tokens.some((token) => token.startsWith("Ġ")));
  /** What the input is, with the head that is shown of it. */
  title = $derived((this.matrix?.title ?? "") + (this.matrix && this.matrix.num_heads > 1 ? `, head ${this.matrix.head}` : ""));
  is_saved = recorded !== null;

  /** Whether what is shown is of a source, and not of the one before while it is asked for. */
  isOf(source: unknown): boolean {
    return this.matrix !== null && canonical(this.#source) === canonical(source);
  }

  /** Asks for the input, unless it is what was asked for last. */
  async load(body: Body): Promise<void> {
    const key = canonical(body);
    if (key === this.#asked) return;
    this.#asked = key;
    this.busy = true;
    try {
      const matrix = readMatrix(await askBytes("matrix", body));
      if (key !== this.#asked) return;
      [this.matrix, this.moved, this.#source] = [matrix, {}, body.source];
      this.problem = "";
    } catch (error) {
      if (key !== this.#asked) return;
      this.problem = (error as Error).message;
      if ((error as Refusal).status === 503) {
        this.#asked = ""; // asked again when the model has loaded
        void this.watchModel();
      }
    }
    this.busy = false;
  }

  /** Asks for each mechanism whose own settings are not those that its row was computed with. */
  move(settings: Settings): void {
    for (const row of this.matrix?.rows ?? []) {
      const own = ownSettings(row, settings);
      if (canonical(own) === canonical(this.moved[row.name]?.body.settings ?? {})) continue;
      const body = { source: this.#source, settings: own, mechanisms: [row.name], specs: {} };
      const isMoved = Object.keys(own).length > 0;
      this.#keep(row.name, isMoved ? { body, row: this.moved[row.name]?.row ?? null, problem: "" } : null);
      void this.#follow(row.name);
    }
  }

  /** Asks for a mechanism's row until it is of what was wanted last: one at a time, however fast a control moves. */
  async #follow(name: string): Promise<void> {
    if (this.#following.has(name)) return;
    this.#following.add(name);
    const wanted = () => this.moved[name]?.body;
    for (let body = wanted(); body; body = wanted()) {
      let [row, problem]: [Row | null, string] = [null, ""];
      try {
        row = readRow(await askBytes("matrix", body));
      } catch (error) {
        problem = (error as Error).message;
      }
      if (wanted() !== body) continue;
      this.#keep(name, { body, row, problem });
      break;
    }
    this.#following.delete(name);
  }

  #keep(name: string, moved: Moved | null): void {
    const { [name]: _, ...rest } = this.moved;
    this.moved = moved === null ? rest : { ...rest, [name]: moved };
  }

  /** Whether a value of a control can be shown here: of a saved page, whether it was computed. */
  canMove(row: Row, name: string, value: unknown): boolean {
    if (!this.is_saved) return true;
    const settings = { ...this.moved[row.name]?.body.settings, [name]: value };
    return isRecorded("matrix", { source: page.matrix.source, settings, mechanisms: [row.name], specs: {} });
  }

  /** Looks whether the model has loaded, until it has. */
  async watchModel(): Promise<void> {
    if (this.is_saved || this.#watching) return;
    this.#watching = true;
    for (;;) {
      try {
        const status = await ask<ModelStatus>("model");
        const wasLoading = this.model?.state === "loading";
        this.model = status;
        if (wasLoading && status.state === "ready") void this.load($state.snapshot(bodyOf()) as Body);
        if (status.state !== "loading") break;
      } catch (error) {
        this.problem = (error as Error).message;
        break;
      }
      await new Promise((wake) => setTimeout(wake, 400));
    }
    this.#watching = false;
  }
}

/** What is asked for the input itself, with every mechanism as it begins. */
export function bodyOf(): Body {
  return { source: page.matrix.source, settings: {}, specs: page.matrix.specs };
}

/** Those of the settings that are a mechanism's own. */
export const ownSettings = ({ controls }: Row, settings: Settings): Settings =>
  Object.fromEntries(controls.filter(({ name }) => name in settings).map(({ name }) => [name, settings[name]]));

export const comparison = new Comparison();

/** A model's token as text, where its tokenizer writes bytes as letters; what is no whole letter is �. */
function decoded(token: string): string {
  const bytes = [...token].map((letter) => {
    const code = letter.codePointAt(0)!;
    return code < 256 ? code : code < 289 ? code - 256 : code < 323 ? code - 162 : code === 323 ? 173 : -1;
  });
  if (!comparison.matrix?.is_model || bytes.includes(-1) || bytes.every((byte) => byte < 128)) return token;
  const text = new TextDecoder().decode(Uint8Array.from(bytes));
  return text.includes("�") && !comparison.isOfBytes ? token : text.replace(/^ /, "Ġ");
}

/** A token as one reads it: without a tokenizer's mark of a leading space, which byte-level ones write Ġ. */
export function readable(token: string): string {
  const text = decoded(token).replace(/^[Ġ▁ ]/, "").replaceAll("Ċ", "⏎").replaceAll("\n", "⏎").replaceAll("Ġ", "␣");
  return text || "␣";
}
