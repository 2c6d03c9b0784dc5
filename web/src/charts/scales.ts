// Colours and numbers, the same in every chart.
import { format } from "d3-format";
import { scaleLinear } from "d3-scale";

export const four = (value: number) => format(".4f")(value).replace("−0.0000", "0.0000").replace("−", "-");
export const three = (value: number) => format(".3f")(value).replace("−0.000", "0.000").replace("−", "-");

/** A weight as it stands on a bar: without the zero that all of them share. */
export const short = (value: number) => three(value).replace(/^(-?)0\./, "$1.");

// Cividis (Nuñez, Anderton and Renslow 2018), which colour-blind eyes read alike; d3's own module brings all scales.
const steps = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const cividis = scaleLinear<string>()
  .domain(steps.map((_, index) => index / (steps.length - 1)))
  .range(steps)
  .clamp(true);

/** Weights: by their square root, so that small ones can be told apart. */
export function weightColour(weight: number, largest: number): string {
  return cividis(Math.sqrt(Math.max(0, weight) / Math.max(largest, 1e-12)));
}

const blue = "#2f6db3";
const orange = "#d9772b";

/** Signed numbers: blue below zero, orange above, the page's own neutral between. */
export function signedColour(value: number, bound: number, neutral: string): string {
  if (!(bound > 0)) return neutral;
  return scaleLinear<string>().domain([-bound, 0, bound]).range([blue, neutral, orange]).clamp(true)(value);
}

/** The ink that can be read on a colour. */
export function inkOn(colour: string): string {
  const [red, green, blue] = colour.startsWith("#")
    ? [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16))
    : colour.match(/[\d.]+/g)!.map(Number);
  const linear = [red, green, blue].map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#14171c" : "#ffffff";
}

export function largestOf(values: Iterable<number>): number {
  let largest = 0;
  for (const value of values) largest = Math.max(largest, Math.abs(value));
  return largest;
}

/** Draws what stands for nothing over a whole canvas. */
export function hatch(context: CanvasRenderingContext2D, canvas: HTMLCanvasElement, width: number, height: number, step: number): void {
  context.strokeStyle = getComputedStyle(canvas).getPropertyValue("--faint");
  context.lineWidth = step / 6;
  context.beginPath();
  for (let at = -height; at < width; at += step) {
    context.moveTo(at, height);
    context.lineTo(at + height, 0);
  }
  context.stroke();
}
