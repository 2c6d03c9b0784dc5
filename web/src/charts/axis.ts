// Ticks, units and labels that the larger charts share.

/** Part of a label, with the class that gives it a hue. */
export interface Piece {
  text: string;
  hue?: string;
  strong?: boolean;
}

const UNITS = ["B", "KiB", "MiB", "GiB"];
/** Pixels that a letter of a chart's text takes, about. */
export const LETTER = 7.3;

const NEAREST = [1, 2, 3, 5, 10, 20];

export const whole = (value: number) => value.toLocaleString("en", { maximumFractionDigits: 0 });

/** Three digits or more of a number. */
export function digits(value: number): string {
  if (Number.isInteger(value)) return whole(value);
  return Math.abs(value) >= 100 ? whole(value) : String(Number(value.toPrecision(3)));
}

/** Bytes as polyhead's sentences write them. */
export function bytes(count: number): string {
  const unit = unitOf(count);
  const places = UNITS[unit] === "MiB" || UNITS[unit] === "B" ? 0 : 1;
  const value = (count / 2 ** (10 * unit)).toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places });
  return `${value} ${UNITS[unit]}`;
}

/** The power of 1,024 that a number of bytes is told in. */
export const unitOf = (count: number) => Math.min(UNITS.length - 1, Math.max(0, Math.floor(Math.log2(Math.max(1, count)) / 10)));

/** A tick's bytes, which are round. */
export const roundBytes = (count: number) => bytes(count).replace(/\.0 /, " ");

export function seconds(value: number): string {
  if (value >= 100) return `${whole(value)} s`;
  if (value >= 1) return `${digits(value)} s`;
  return value >= 1e-3 || value === 0 ? `${digits(1e3 * value)} ms` : `${digits(1e6 * value)} µs`;
}

/** Powers of two from low to high, evenly spaced, at most so many. */
export function powersOfTwo(low: number, high: number, most: number): number[] {
  const [first, last] = [Math.ceil(Math.log2(low) - 1e-9), Math.floor(Math.log2(high) + 1e-9)];
  const step = NEAREST.find((one) => (last - first) / one < most) ?? last - first;
  const found: number[] = [];
  for (let exponent = last; exponent >= first; exponent -= Math.max(1, step)) found.push(2 ** exponent);
  return found.reverse();
}

/** 1, 10, 100 from low to high; more between where that gives few. */
export function decades(low: number, high: number): number[] {
  const found: number[] = [];
  const within = high / low < 8 ? [1, 1.5, 2, 3, 4, 5, 7] : high / low < 300 ? [1, 2, 5] : [1];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
    found.push(...within.map((part) => part * 10 ** power).filter((one) => one >= low && one <= high));
  }
  return found;
}

/** A label's pieces on lines of so many characters. */
export function wrapped(pieces: Piece[], most: number): Piece[][] {
  const lines: Piece[][] = [[]];
  let room = most;
  for (const piece of pieces) {
    for (const word of piece.text.split(/(?<= )/)) {
      const length = word.trimEnd().length;
      if (length > room && lines[lines.length - 1].length) {
        lines.push([]);
        room = most;
      }
      lines[lines.length - 1].push({ ...piece, text: word });
      room -= word.length;
    }
  }
  return lines;
}

export const plain = (pieces: Piece[]) => pieces.map(({ text }) => text).join("");

/** Moves boxes of given heights apart, so that none overlaps and all stay above the bottom; sorted by where they want to be. */
export function apart(wanted: number[], heights: number[], top: number, bottom: number): number[] {
  const found: number[] = [];
  let free = top;
  wanted.forEach((at, index) => {
    found.push(Math.max(at, free));
    free = found[index] + heights[index];
  });
  let end = bottom;
  for (let index = found.length - 1; index >= 0; index--) {
    found[index] = Math.min(found[index], end - heights[index]);
    end = found[index];
  }
  return found;
}

type Pair = [number, number];

/** A scale on which equal differences are equal distances. */
export function linearScale(domain: Pair, [from, to]: Pair) {
  const [low, high] = domain;
  return Object.assign((value: number) => from + ((value - low) / (high - low)) * (to - from), { domain });
}

/** A scale on which equal ratios are equal distances. */
export function logScale(domain: Pair, range: Pair) {
  const linear = linearScale([Math.log(domain[0]), Math.log(domain[1])], range);
  return Object.assign((value: number) => linear(Math.log(value)), { domain });
}
