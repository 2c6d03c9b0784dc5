// What the server answers, as far as the page reads it.

export type Changes =
  | "nothing"
  | "storage"
  | "source"
  | "position"
  | "pattern"
  | "weighting"
  | "computation"
  | "combination";

export interface Mechanism {
  number: number;
  name: string;
  title: string;
  year: number;
  paper: string;
  formula: string;
  changes: Changes;
  time: string;
  cache: string;
  what: string;
  gains: string;
  loses: string;
  when: string;
  forces: Record<"quality" | "speed" | "memory" | "position", number>;
  spec: unknown;
}

export type Source =
  | { kind: "example" }
  | { kind: "text"; text: string; second_text: string | null; layer: number; head: number; bare: boolean }
  | { kind: "arrays"; id: string; head: number }
  | { kind: "given" };

export type Value = number | string;
export type Settings = Record<string, Value>;

export interface Control {
  name: string;
  label: string;
  value: Value;
  kind: "int" | "float" | "choice";
  min: number | null;
  max: number | null;
  step: number | null;
  choices: Value[] | null;
  help: string;
}

/** One mechanism's whole result for the shown head: every query token's weights and output. */
export interface Row {
  number: number | null;
  name: string;
  title: string;
  changes: Changes;
  spec: unknown;
  spec_repr: string;
  is_own: boolean;
  note: string;
  key_tokens: string[];
  kind: "softmax" | "effective" | "equivalent";
  equal_reason: string;
  controls: Control[];
  /** [queries · keys] */
  weights: Float64Array;
  /** [queries · width] */
  output: Float64Array;
  /** [queries], from the baseline's output */
  distance: Float64Array;
  /** [queries], 1 where the output is the baseline's */
  equal: Uint8Array;
  keys: number;
  width: number;
}

export interface Matrix {
  title: string;
  tokens: string[];
  token: number;
  head: number;
  num_heads: number;
  layer: number | null;
  num_layers: number | null;
  is_model: boolean;
  base_repr: string;
  flash_error: number | null;
  rows: Row[];
  absent: Record<string, string>;
}

export interface ModelStatus {
  name: string | null;
  state: "none" | "loading" | "ready" | "failed";
  message: string;
  seconds: number;
  num_layers: number | null;
  num_heads: number | null;
  max_tokens: number | null;
}
