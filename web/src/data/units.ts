// Large numbers for reading.
import { format } from "d3-format";

const BINARY = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** Three digits, without zeros at the end. */
export function digits(value: number): string {
  return value >= 1000 ? format(",.0f")(value) : format(".3~g")(value).replace("−", "-");
}

export function bytes(value: number): string {
  const step = value < 1 ? 0 : Math.min(BINARY.length - 1, Math.floor(Math.log2(value) / 10));
  return `${digits(value / 1024 ** step)} ${BINARY[step]}`;
}

export const gib = (value: number) => `${digits(value / 1024 ** 3)} GiB`;

/** Counts, with the letters of decimal prefixes. */
export const count = (value: number) => format(".3~s")(value).replace("G", " G").replace(/(?<=\d)([kMTPE])/, " $1");

/** A number against another: how many times, or what part of it. */
export function against(value: number, other: number): string {
  if (value === other) return "the same as";
  if (value === 0) return "none, unlike";
  if (other === 0) return "more than";
  return value < other ? `1/${digits(other / value)} of` : `${digits(value / other)} times`;
}
