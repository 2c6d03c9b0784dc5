// The answer `records`: what was measured, with the figures that the library derived from it.
import type { Changes } from "./types";

/** Lower quartile, median, upper quartile. */
export type Quartiles = [number, number, number];

export interface Target {
  against: string;
  title: string;
  limit: number;
  reached: number | null;
  met: boolean | null;
  text: string;
  /** How long ours may take to meet it; null where a time is not what it bounds. */
  seconds: number | null;
}

export interface Growth {
  exponent: number;
  points: { length: number; seconds: Quartiles }[];
  fitted: [number, number][];
  is_quiet: boolean;
}

export interface Row {
  case: string;
  title: string;
  direction: string;
  q_len: number;
  kv_len: number;
  kernel: string;
  command: string;
  titles: Record<string, string>;
  left_out: Record<string, string>;
  share: number | null;
  bytes_read: number;
  memory: Record<string, number>;
  memory_keys: number;
  notes: string[];
  derived: {
    /** Which choice it is about. */
    changes: Changes;
    contenders: Record<string, { seconds: Quartiles; ratio: Quartiles | null; turns: number }>;
    is_quiet: boolean | null;
    growth: Growth | null;
    missed: { length: number; why: string }[];
    targets: Target[];
  };
}

export interface BenchRecord {
  machine: string;
  dtype: string;
  command: string;
  ceilings_text: string;
  rows: Row[];
  failures: Record<string, string>;
  notes: string[];
}

export interface Records {
  records: { name: string; record: BenchRecord }[];
}

export const OURS = "ours";

/** Whether a row's targets were met: null where it has none, or none was measured. */
export function met(row: Row): boolean | null {
  const known = row.derived.targets.map((target) => target.met).filter((one) => one !== null);
  return known.length ? known.every(Boolean) : null;
}
