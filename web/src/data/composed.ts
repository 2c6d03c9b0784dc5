// What the answer to `compose` says, as far as the page reads it.
import type { Parts } from "./spec";
import { bytes } from "../charts/axis";
import { against, count } from "./units";

export interface Cost {
  /** What a further token adds to a layer's cache; null where there is no cache. */
  token_bytes: number | null;
  /** A layer's cache at the length. */
  bytes: number | null;
  no_cache: string | null;
  /** Operations of a layer's attention: all tokens at once, and one more. */
  prompt: number | null;
  step: number | null;
  /** Why pairs are not counted. */
  uncounted?: string | null;
}

export interface Composed {
  legal: boolean;
  reason: string | null;
  nearest: Parts | null;
  nearest_repr: string | null;
  spec: Parts | null;
  spec_repr: string | null;
  code: string | null;
  /** Which keys each query sees: positions that are `step` apart, one where it is missing. */
  picture: { size: number; heads: number; step?: number; allowed: string[] } | null;
  kernel: { name: string; summary: string; others: Record<string, string>; missing?: undefined } | { missing: string } | null;
  cost: { own: Cost; mha: Cost } | null;
  learns: Record<string, number[]> | null;
}

export interface CostRow {
  label: string;
  own: number | null;
  other: number | null;
  text: string;
}

/** What is counted, each with multi-head attention's number. */
export function costRows(cost: { own: Cost; mha: Cost }, length: number): CostRow[] {
  const tokens = length.toLocaleString("en");
  const counted = [
    ["a layer's cache: each further token", "token_bytes", bytes],
    [`a layer's cache at ${tokens} tokens`, "bytes", bytes],
    [`operations for ${tokens} tokens at once`, "prompt", count],
    [`operations for one token after ${tokens}`, "step", count],
  ] as const;
  return counted.map(([label, name, written]) => {
    const [own, other] = [cost.own[name], cost.mha[name]];
    const ratio = own !== null && other !== null ? `, ${against(own, other)} MHA's` : "";
    const missing = cost.own.uncounted && (name === "prompt" || name === "step") ? "not counted" : "no cache";
    return { label, own, other, text: own === null ? missing : `${written(own)}${ratio}` };
  });
}
