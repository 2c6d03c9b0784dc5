// A spec as data: the form that it is filled in, and patterns made of parts.
import { catalogue } from "./catalogue";
import { canonical } from "./ask";

export type Place = "storage" | "position" | "pattern" | "weighting";
export type Part = { type: string; parts?: Part[]; [field: string]: unknown };
export type Parts = Record<Place, Part>;

export interface Field {
  name: string;
  kind: "int" | "float" | "choice" | "bool" | "part";
  default: unknown;
  optional: boolean;
  min: number | null;
  choices: string[] | Kind[] | null;
  help: string;
  at: (string | number)[];
}

/** What can stand in one of the four places. */
export interface Kind {
  type: string;
  label: string;
  data: Part;
  fields: Field[];
}

export const kinds = catalogue.choices as unknown as Record<Place, Kind[]>;

/** A model of the catalogue, with the attention of its first layer where the catalogue tells it. */
export interface Published {
  name: string;
  title: string;
  spec?: Parts;
}

export const published = (catalogue.models as unknown as Published[]).filter(({ spec }) => spec !== undefined);

export const isCombined = (part: Part) => part.type === "AllOf" || part.type === "AnyOf";

/** The four choices of a spec's data, without what is not one of them. */
export function partsOf(spec: unknown): Parts {
  const { storage, position, pattern, weighting } = structuredClone(spec) as Parts;
  return { storage, position, pattern, weighting };
}

export const jsonOf = (spec: Parts) => JSON.stringify({ schema: 1, type: "AttentionSpec", ...spec }, null, 2);

/** The form of a part: of a pattern that of its own skeleton, or none. */
export function kindOf(place: Place, part: Part): Kind | undefined {
  if (place === "pattern") return kinds.pattern.find(({ data }) => skeleton(data) === skeleton(part));
  return kinds[place].find(({ type }) => type === part.type);
}

/** What a pattern is without its numbers: a window that is causal is another than one on either side. */
function skeleton(part: Part): string {
  if (part.parts) return `${part.type}(${part.parts.map(skeleton).sort().join()})`;
  if (part.type !== "Band") return part.type;
  const side = (value: unknown) => (value === null || value === undefined ? "all" : value === 0 ? "none" : "some");
  return `Band(${side(part.left)},${side(part.right)})`;
}

const leaves: { part: Part; fields: Field[] }[] = kinds.pattern.flatMap((kind) =>
  leavesOf(kind.data, []).map(({ part, at }) => ({
    part,
    fields: kind.fields
      .filter((field) => canonical(field.at.slice(0, -1)) === canonical(at))
      .map((field) => ({ ...field, at: field.at.slice(-1) })),
  })),
);

function leavesOf(part: Part, at: (string | number)[]): { part: Part; at: (string | number)[] }[] {
  if (!part.parts) return [{ part, at }];
  return part.parts.flatMap((one, index) => leavesOf(one, [...at, "parts", index]));
}

/** The single patterns that others are made of, each as it begins. */
export const primitives: Kind[] = [
  ...kinds.pattern.filter(({ data }) => !isCombined(data)),
  ...leaves
    .filter(({ part }, index) => {
      const isKnown = kinds.pattern.some(({ data }) => data.type === part.type);
      return !isKnown && leaves.findIndex((leaf) => leaf.part.type === part.type) === index;
    })
    .map(({ part, fields }) => ({ type: part.type, label: spaced(part.type), data: part, fields })),
];

/** Which of the single patterns this one is. */
export function primitiveOf(part: Part): Kind | undefined {
  return primitives.find(({ data }) => skeleton(data) === skeleton(part)) ?? primitives.find(({ type }) => type === part.type);
}

/** The fields of a single pattern that it has a number in, and those that its form shows. */
export function fieldsOf(part: Part): Field[] {
  const found = leaves.filter((leaf) => leaf.part.type === part.type).flatMap(({ fields }) => fields);
  const isShown = (name: string) => part[name] !== null && part[name] !== undefined && skeleton(part) !== "Band(all,none)";
  const names = new Set<string>();
  return found.filter(({ name }) => {
    const isFirst = !names.has(name);
    names.add(name);
    return isFirst && (part.type !== "Band" || isShown(name));
  });
}

function spaced(name: string): string {
  return name.replace(/(?<=[a-z])(?=[A-Z])/g, " ").toLowerCase();
}

const labels: Record<string, string> = {
  num_heads: "heads",
  num_kv_heads: "key/value heads",
  head_dim: "width of a head",
  v_head_dim: "width of a value",
  kv_lora_rank: "latent's width",
  q_lora_rank: "query's latent",
  qk_nope_head_dim: "width without RoPE",
  qk_rope_head_dim: "RoPE key's width",
  theta: "θ",
  rotary_dim: "widths that turn",
  max_distance: "farthest distance",
  num_buckets: "buckets",
  "Band.left": "earlier keys seen",
  "Band.right": "later keys seen",
  "Chunked.size": "tokens in a chunk",
  "Chunked.left": "earlier chunks seen",
  "Chunked.right": "later chunks seen",
  "Global.first": "global at the start",
  "Global.last": "global at the end",
  per_query: "links of a query",
  block: "tokens in a block",
  span: "drawn from",
  softcap: "bound on scores",
  sink: "a learned sink",
  feature_map: "φ",
  lambda_init: "λ at the start",
  norm_eps: "ε of the norm",
};

/** A field as one reads it; its name in code stands in its help. */
export const labelOf = (part: Part, name: string) => labels[`${part.type}.${name}`] ?? labels[name] ?? name.replaceAll("_", " ");

const words: Record<string, string> = { AllOf: "and", AnyOf: "or" };

/** What stands in a place, in a few words. */
export function wordsOf(place: Place, part: Part): string {
  const kind = kindOf(place, part);
  if (part.type === "Grouped") return sharing(Number(part.num_heads), Number(part.num_kv_heads ?? part.num_heads));
  if (part.type === "NoPosition") return "no position";
  if (part.type === "Latent") return `MLA ${part.kv_lora_rank}${part.qk_rope_head_dim ? ` + ${part.qk_rope_head_dim}` : ""}`;
  if (place !== "pattern") return kind?.label ?? spaced(part.type);
  if (kind) return kind.label;
  if (part.parts) return part.parts.map((one) => wordsOf(place, one)).join(` ${words[part.type]} `);
  return primitiveOf(part)?.label ?? spaced(part.type);
}

function sharing(heads: number, kept: number): string {
  if (heads === 1) return "one head";
  return kept === heads ? "MHA" : kept === 1 ? "MQA" : `GQA-${kept}`;
}

/** As far as is worth trying: a link, or a slip, may ask for a billion heads. */
const MOST_TRIED = 4096;

export const divisorsOf = (count: number) =>
  Array.from({ length: Math.max(1, Math.min(count, MOST_TRIED)) }, (_, index) => index + 1).filter((one) => count % one === 0);

/** The spec with heads whose width together is that of an input with one head. */
export function sizedTo(spec: Parts, width: number, latent: Part | undefined): Parts {
  const sized = structuredClone(spec);
  if (sized.weighting.type === "Softmax") sized.weighting.scale = null;
  const maps = spec.weighting.type === "Differential" ? 2 : 1;
  if (sized.storage.type === "Latent") {
    sized.storage = structuredClone(latent ?? sized.storage);
    if (sized.position.type === "Rotary") sized.position = structuredClone(kinds.position[0].data);
    return sized;
  }
  const asked = Number(spec.storage.num_heads);
  const most = divisorsOf(width / maps).filter((one) => one <= asked && (width / maps / one) % 2 === 0);
  const heads = maps === 2 ? 1 : (most.at(-1) ?? 1);
  const isShared = Number(spec.storage.num_kv_heads ?? asked) < asked;
  const groups = divisorsOf(heads).filter((one) => !isShared || one < heads);
  sized.storage = { ...sized.storage, num_heads: heads, num_kv_heads: groups.at(-1) ?? 1, head_dim: width / heads / maps };
  sized.storage.v_head_dim = null;
  if (sized.position.type === "Rotary") sized.position.rotary_dim = null;
  if (sized.position.type === "Alibi") sized.position.slopes = null;
  return sized;
}
