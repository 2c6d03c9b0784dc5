declare module "virtual:formulas" {
  /** Each mechanism's formula as MathML, by name. */
  const formulas: Record<string, string>;
  export default formulas;
}

declare module "d3-array" {
  /** Round numbers from one to another, about so many. */
  export function ticks(start: number, stop: number, count: number): number[];
}
