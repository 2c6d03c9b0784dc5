// What the page knows without asking: the encyclopaedia, baked in when the page is built.
import baked from "../catalogue.json";
import type { Changes, Mechanism } from "./types";

export const version: string = baked.version;
export const mechanisms = baked.mechanisms as unknown as Mechanism[];
export const catalogue = baked;

export function mechanismOf(name: string): Mechanism | undefined {
  return mechanisms.find((entry) => entry.name === name);
}

/** The four places, in the order of the flow, and what each asks. */
export const choices: { name: Changes; question: string }[] = [
  { name: "storage", question: "what is stored, and shared by heads?" },
  { name: "position", question: "what tells positions apart?" },
  { name: "pattern", question: "which pairs may meet?" },
  { name: "weighting", question: "how do scores become weights?" },
];

/** The class that gives a chart the hue of what its mechanism changes; the rest stays grey. */
export function hueOf(changes: Changes): string {
  return choices.some(({ name }) => name === changes) ? `hue-${changes}` : "hue-none";
}
