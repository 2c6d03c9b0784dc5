// Colours and numbers, the same in every chart.
import { theme } from "../data/theme.svelte";

/** A number with so many digits after the point, a minus that is one, and no zero below zero. */
export const fixed = (value: number, places: number) => value.toFixed(places).replace(/^-(?=[0.]+$)/, "").replace("-", "−");
export const four = (value: number) => fixed(value, 4);
export const three = (value: number) => fixed(value, 3);

/** A weight as it stands on a bar: without the zero that all of them share. */
export const short = (value: number) => three(value).replace(/^(−?)0\./, "$1.");

// Cividis (Nuñez, Anderton and Renslow 2018), which colour-blind eyes read alike.
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const [BLUE, ORANGE] = ["#2f6db3", "#d9772b"];

/** The colour at a share of the way along some colours. */
function between(stops: string[], share: number): string {
  const at = Math.min(1, Math.max(0, share || 0)) * (stops.length - 1);
  const first = Math.min(Math.floor(at), stops.length - 2);
  const [one, other] = stops.slice(first, first + 2).map((stop) => [1, 3, 5].map((start) => parseInt(stop.slice(start, start + 2), 16)));
  return `rgb(${one.map((part, index) => Math.round(part + (other[index] - part) * (at - first)))})`;
}

/** Weights: by their square root, so that small ones can be told apart. */
export function weightColour(weight: number, largest: number): string {
  return between(CIVIDIS, Math.sqrt(Math.max(0, weight) / Math.max(largest, 1e-12)));
}

/** Signed numbers: blue below zero, orange above, the page's own neutral between. */
export function signedColour(value: number, bound: number): string {
  return between([BLUE, theme.neutral, ORANGE], bound > 0 ? (value / bound + 1) / 2 : 0.5);
}

/** The ink that can be read on a colour. */
export function inkOn(colour: string): string {
  const linear = colour.match(/\d+/g)!.map((part) => {
    const share = Number(part) / 255;
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
export function hatch(context: CanvasRenderingContext2D, faint: string, width: number, height: number, step: number): void {
  context.strokeStyle = faint;
  context.lineWidth = step / 6;
  context.beginPath();
  for (let at = -height; at < width; at += step) {
    context.moveTo(at, height);
    context.lineTo(at + height, 0);
  }
  context.stroke();
}
