// The answers `plan` and `fits`, and what of them the screen shows.
import type { Piece } from "../charts/axis";
import type { Changes } from "./types";
import { choices, hueOf } from "./catalogue";

export interface Evidence {
  what: string;
  reference: number | null;
  found: number | null;
  source: string;
  loss: number | null;
}

/** What stands in the four places, to read, and which of them the model has otherwise. */
export interface Named {
  name: string;
  names: Partial<Record<Changes, string>>;
  changed: Changes[];
}

export interface Stack extends Named {
  batch: number;
  memory_bytes: {
    weights: number;
    cache: { ideal: number; reserved: number; allocated: number };
    temporary: number;
    total: number;
  };
  over_bytes: number;
  prompt_seconds: { total: number; bound: string } | null;
  token_seconds: { total: number; bound: string } | null;
  written: number;
  request_seconds: number | null;
  needs: string;
  how: string[];
  quality: Record<string, Evidence | null>;
  objective: number;
  score: number;
}

export interface Plan {
  model: string;
  trained_on: number | null;
  device: { name: string; title: string; memory: number };
  devices: number;
  task: string;
  context: number;
  batch: number;
  precision: Record<string, string>;
  optimise: string;
  is_trained: boolean;
  fits: boolean;
  own: Stack | null;
  stacks: Stack[];
  dropped: Stack[];
  refused: Record<string, string>;
  sentences: string[];
  changes: string[];
  /** The stacks that charts show, and those that fit, best first, one of those that differ in position alone. */
  drawn: string[];
  ranked: string[];
  curves: { name: string; lengths: number[]; bytes: number[] }[];
  /** Bytes that each device has, and what of that the model's own weights leave. */
  capacity: number;
  room: number | null;
}

export interface Fits {
  what_fits: "context" | "batch";
  stacks: (Named & {
    largest: number;
    is_bounded: boolean;
    total_bytes: number | null;
    cache_bytes: number | null;
    refused: string | null;
    trained_on: number | null;
  })[];
}

/** A plan's stacks by their names. */
export const stacksOf = (plan: Plan) =>
  new Map([...plan.stacks, ...plan.dropped, ...(plan.own ? [plan.own] : [])].map((stack) => [stack.name, stack]));

/** Own is ink; one changed choice has its hue; more than one is grey. */
export function hueOfStack(changed: Changes[]): string {
  if (!changed.length) return "hue-own";
  return changed.length === 1 ? hueOf(changed[0]) : "hue-none";
}

/** A stack's name, each part that is not the model's own in the hue of the choice that changed. */
export function named(stack: Named, own: Named | null, { short = false } = {}): Piece[] {
  const isOwn = !stack.changed.length;
  const isSame = (choice: Changes, part?: string) => !isOwn && (own ? own.names[choice] === part : !stack.changed.includes(choice));
  const parts = choices.map(({ name }) => ({ choice: name, part: stack.names[name], soft: isSame(name, stack.names[name]) }));
  return parts
    .filter(({ soft }) => !short || !soft)
    .map(({ choice, part, soft }, index) => ({
      text: `${index ? " + " : ""}${part}`,
      ...(soft
        ? { hue: "soft" }
        : { hue: stack.changed.includes(choice) ? hueOf(choice) : hueOfStack(stack.changed.slice(0, 1)), strong: isOwn || !short }),
    }));
}

/** What was measured of each choice's quality, as its source printed it. */
export function quality(stack: Stack): string {
  const told = Object.entries(stack.quality).map(([option, found]) => {
    if (found === null) return `${option.replace(/^.*=/, "")}: nobody measured it`;
    const figures = [found.reference, found.found].filter((one) => one !== null).map((one) => one.toLocaleString("en"));
    return `${found.what}${figures.length ? (figures.length > 1 ? ", " : ": ") + figures.join(" to ") : ""} (${found.source})`;
  });
  return told.join("; ");
}

/** What one change buys, costs and takes, under the choice that it is of. */
export function changesOf(plan: Plan, choice: Changes): { title: string; text: string }[] {
  const mark = ` (${choice}): `;
  return [...new Set(plan.changes)]
    .filter((line) => line.includes(mark))
    .map((line) => ({ title: line.slice(0, line.indexOf(mark)), text: line.slice(line.indexOf(mark) + mark.length) }));
}

/** Reasons, and whom each keeps from the task. */
export function refusals(plan: Plan): [string, string[]][] {
  const found = new Map<string, string[]>();
  for (const [name, reason] of Object.entries(plan.refused)) found.set(reason, [...(found.get(reason) ?? []), name]);
  return [...found];
}
