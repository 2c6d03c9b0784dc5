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

export interface Stack {
  name: string;
  kinds: Record<string, string>;
  changed: Changes[];
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
  curves: { name: string; lengths: number[]; bytes: number[] }[];
  /** Bytes that each device has, and what of that the model's own weights leave. */
  capacity: number;
  room: number | null;
}

export interface Fits {
  what_fits: "context" | "batch";
  stacks: {
    name: string;
    changed: Changes[];
    largest: number;
    is_bounded: boolean;
    total_bytes: number | null;
    cache_bytes: number | null;
    refused: string | null;
    trained_on: number | null;
  }[];
}

export type Named = Pick<Stack, "name" | "changed">;

const MOST = 12;
const PLUS = " + ";

/** The best that fit, of those that differ in position alone the first: position moves few bytes. */
export function ranked(plan: Plan, count: number): Stack[] {
  const seen = new Map<string, Stack>();
  for (const stack of plan.stacks) {
    const { position: _, ...kinds } = stack.kinds;
    const key = Object.values(kinds).join();
    if (!seen.has(key)) seen.set(key, stack);
  }
  return [...seen.values()].slice(0, count);
}

/** The stacks that charts show: the model's own, those ranked first, and those with one choice changed but for position. */
export function drawn(plan: Plan): Stack[] {
  const single = [...plan.stacks, ...plan.dropped].filter(({ changed }) => changed.length === 1 && changed[0] !== "position");
  const every = [...(plan.own ? [plan.own] : []), ...ranked(plan, 4), ...single, ...plan.dropped];
  return [...new Map(every.map((stack) => [stack.name, stack])).values()].slice(0, MOST);
}

/** Own is ink; one changed choice has its hue; more than one is grey. */
export function hueOfStack(changed: Changes[]): string {
  if (!changed.length) return "hue-own";
  return changed.length === 1 ? hueOf(changed[0]) : "hue-none";
}

/** A name's four parts by the choice that each is; of a latent the first has a plus in it. */
function partsOf(name: string): Map<Changes, string> {
  const parts = name.split(PLUS);
  return new Map(choices.map(({ name: choice }, index) => [choice, index ? parts[parts.length - 4 + index] : parts.slice(0, -3).join(PLUS)]));
}

/** A stack's name, each part that is not the model's own in the hue of the choice that changed. */
export function named(stack: Named, own: Named | null, { short = false } = {}): Piece[] {
  const before = own ? partsOf(own.name) : null;
  const isOwn = !stack.changed.length;
  const isSame = (choice: Changes, part: string) => !isOwn && (before ? before.get(choice) === part : !stack.changed.includes(choice));
  const parts = [...partsOf(stack.name)].filter(([choice, part]) => !short || !isSame(choice, part));
  return parts.map(([choice, part], index) => ({
    text: `${index ? PLUS : ""}${part}`,
    ...(isSame(choice, part)
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
