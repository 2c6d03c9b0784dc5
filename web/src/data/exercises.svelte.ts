// The five exercises: which mechanisms each is about, and the library's numbers that answers are checked against.
import { catalogue } from "./catalogue";
import type { Parts } from "./spec";

export interface Numbers {
  weights: number[];
  output: number[];
}

/** What a model takes with a stack. */
export interface Fitting {
  weights: number;
  cache: number;
  total: number;
  seconds: number;
}

export interface Exercises {
  mat: { token: number; rows: Record<"scaled-dot-product" | "causal", Numbers>; hidden: number[] };
  cache: {
    shape: { embed_dim: number; num_heads: number; num_groups: number; num_layers: number; context: number; precision: string };
    rows: { name: string; token_bytes: number | null; gib: number; book_layers_gib: number; book_gib: number | null }[];
  };
  stack: {
    model: string;
    trained_on: number;
    weights: number;
    device: string;
    memory: number;
    context: number;
    precision: string;
    options: Record<string, string[]>;
    problems: string[];
    /** In the order of the options, the last place's first: weights, cache, all, seconds; or which of the problems. */
    stacks: ([number, number, number, number] | number)[];
  };
  sharpest: { token: number; lambda: number; rows: Record<"scaled-dot-product" | "differential" | "difference", Numbers> };
  combination: {
    token: number;
    spec: Parts;
    row: Numbers;
    alone: Record<string, Numbers>;
    distances: Record<string, number>;
    without: Record<string, Numbers>;
  };
}

export const numbers = catalogue.exercises as unknown as Exercises;

export const tokens: string[] = catalogue.example.tokens;

export interface Verdict {
  right: boolean;
  text: string;
}

export const exercises = [
  { number: 1, title: "The last token under a causal mask", about: ["causal", "scaled-dot-product"] },
  { number: 2, title: "The size of a cache", about: ["mha", "gqa", "mqa", "mla"] },
  { number: 3, title: "A stack for one GPU", about: ["gqa", "flash", "rope", "sliding-window", "mla"] },
  { number: 4, title: "The sharpest look", about: ["differential", "scaled-dot-product"] },
  { number: 5, title: "Three in one", about: ["differential", "rope", "causal"] },
];

/** Which exercises have been answered rightly, as long as the page is open. */
export const done: Record<number, boolean> = $state({});

export const topOf = (weights: number[]) => weights.indexOf(Math.max(...weights));

/** Whether an answer is a number that is within a tolerance of the right one. */
export const isNear = (answer: number | null | undefined, right: number, tolerance: number) =>
  typeof answer === "number" && Math.abs(answer - right) <= tolerance;
