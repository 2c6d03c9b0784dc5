// Large numbers for reading.
import { format } from "d3-format";
import { digits } from "../charts/axis";

export const gib = (value: number) => `${digits(value / 1024 ** 3)} GiB`;

/** Counts, with the letters of decimal prefixes. */
export const count = (value: number) => format(".3~s")(value).replace(/(?<=\d)(?=[kMGTPE])/, " ");

/** A number against another: how many times, or what part of it. */
export function against(value: number, other: number): string {
  if (value === other) return "the same as";
  if (value === 0) return "none, unlike";
  if (other === 0) return "more than";
  return value < other ? `1/${digits(other / value)} of` : `${digits(value / other)} times`;
}
