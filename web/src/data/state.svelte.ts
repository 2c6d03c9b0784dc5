// All that a link can carry, and how a link spells it: what differs from the page's beginning.
import { catalogue, choices, mechanismOf } from "./catalogue";
import { begun, recorded } from "./ask";
import type { Settings, Source } from "./types";

export const screens = ["compare", "matrix", "compose", "plan", "measure", "learn"] as const;
export type Screen = (typeof screens)[number];

export interface PlanBody {
  model: string;
  context: number;
  batch: number;
  device: string;
  devices: number;
  task: string | null;
  precision: string;
  [more: string]: unknown;
}

export interface ComposeBody {
  spec: Record<string, Record<string, unknown>>;
  q_len: number;
  kv_len: number;
  dtype: string;
  device: string;
  needs_grad: boolean;
}

export interface State {
  screen: Screen;
  /** The query token's position; null: the one that the input begins with. */
  token: number | null;
  matrix: { source: Source; settings: Settings; specs: Record<string, unknown> };
  /** Mechanisms on the screen Matrix, and whether the first two are subtracted. */
  heat: { names: string[]; difference: boolean };
  compose: ComposeBody;
  plan: PlanBody;
  /** What is asked of `fits`: how long a context, or how large a batch. */
  asked: "context" | "batch";
  /** The record on the screen Measure, and the case in it. */
  measure: { record: string; case: string };
  /** The mechanism on the screen Learn. */
  mechanism: string;
  /** Whether tables stand in place of charts. */
  tables: boolean;
}

const VERSION = "1";
/** What is spelled as a whole, since its members are not those of the beginning. */
const LEAVES = new Set(["matrix.specs", "compose.spec"]);

const beginning: State = {
  screen: "compare",
  token: null,
  heat: { names: ["scaled-dot-product", "causal", "rope", "differential"], difference: false },
  asked: "context",
  measure: { record: "", case: "" },
  mechanism: "scaled-dot-product",
  tables: false,
  ...(structuredClone(catalogue.state) as unknown as Pick<State, "matrix" | "compose" | "plan">),
};

function beginningWith(given: Record<string, unknown> | undefined): State {
  return Object.assign(structuredClone(beginning), structuredClone(given));
}

/** What links tell the difference from: the page's own beginning, or that of whoever saved it. */
const defaults = beginningWith(recorded?.state);

export const page: State = $state(fromFragment(location.hash));

function isPlain(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function flat(value: unknown, path = "", into: Map<string, string> = new Map()): Map<string, string> {
  if (isPlain(value) && !LEAVES.has(path)) {
    for (const [name, member] of Object.entries(value)) flat(member, path ? `${path}.${name}` : name, into);
  } else {
    into.set(path, spelled(value));
  }
  return into;
}

/** A text as it is where it cannot be taken for anything else. */
function spelled(value: unknown): string {
  return typeof value === "string" && parsed(value) === value ? value : JSON.stringify(value);
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** The fragment of a link to a state. */
export function fragmentOf(of: State): string {
  const before = flat(defaults);
  const changed = [...flat(of)].filter(([path, text]) => before.get(path) !== text);
  const query = new URLSearchParams(changed).toString();
  return `#${VERSION}${query && `?${query}`}`;
}

/** The state of an address; without a fragment what the page, or its server, was started with. */
function fromFragment(fragment: string): State {
  if (fragment.length < 2) return beginningWith(begun);
  const fresh = structuredClone(defaults);
  const [written, query = ""] = fragment.replace(/^#/, "").split(/\?(.*)/s);
  if (written !== VERSION) return fresh;
  for (const [path, text] of new URLSearchParams(query)) put(fresh, path.split("."), parsed(text));
  return mended(fresh);
}

function put(into: unknown, path: string[], value: unknown): void {
  const [name, ...rest] = path;
  if (!isPlain(into) || name === "__proto__" || name === "constructor") return;
  if (!rest.length) into[name] = value;
  else put((into[name] ??= {}), rest, value);
}

/** What a link cannot mean is as at the beginning. */
function mended(of: State): State {
  mend(of as unknown as Record<string, unknown>, defaults as unknown as Record<string, unknown>);
  if (!choices.every(({ name }) => isPart(of.compose.spec[name]))) of.compose.spec = structuredClone(defaults.compose.spec);
  if (!screens.includes(of.screen)) of.screen = defaults.screen;
  if (!Number.isInteger(of.token)) of.token = defaults.token;
  if (!mechanismOf(of.mechanism)) of.mechanism = defaults.mechanism;
  return of;
}

/** Puts back whatever is of another kind than at the beginning; what is nothing there may be anything. */
function mend(of: Record<string, unknown>, like: Record<string, unknown>, above = ""): void {
  for (const [name, value] of Object.entries(like)) {
    if (value === null) continue;
    if (kindOf(of[name]) !== kindOf(value)) of[name] = structuredClone(value);
    else if (isPlain(value) && !LEAVES.has(above + name)) mend(of[name] as Record<string, unknown>, value, `${above}${name}.`);
  }
}

/** Whether something has the form of a spec's part; what it says is the library's to judge. */
function isPart(value: unknown): boolean {
  if (!isPlain(value) || typeof value.type !== "string") return false;
  return value.parts === undefined || (Array.isArray(value.parts) && value.parts.every(isPart));
}

function kindOf(value: unknown): string {
  return Array.isArray(value) ? "array" : value === null ? "null" : typeof value;
}

/** The link of a newer page, which this one cannot read; empty where there is none. */
export function unreadable(): string {
  const written = location.hash.replace(/^#/, "").split("?")[0];
  return /^\d+$/.test(written) && written !== VERSION ? written : "";
}

/** Writes the state into the address; a new screen is a new entry of the history. */
export function writeAddress(fragment: string, isNew: boolean): void {
  if (fragment === location.hash || (fragment === `#${VERSION}` && !location.hash)) return;
  try {
    if (isNew) history.pushState(null, "", fragment);
    else history.replaceState(null, "", fragment);
  } catch {
    // a page inside a notebook's frame has no address of its own
  }
}

export function readAddress(): void {
  Object.assign(page, fromFragment(location.hash));
}

export const snapshot = (): State => $state.snapshot(page) as State;
