declare module "virtual:formulas" {
  /** Each mechanism's formula as MathML, by name. */
  const formulas: Record<string, string>;
  export default formulas;
}
