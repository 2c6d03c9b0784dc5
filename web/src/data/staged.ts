// What the answer to `stages` says: how one token's weights come about.

export interface StageRow {
  label: string;
  values: (number | null)[];
  along: "keys" | "width" | "number";
}

export interface Stage {
  id: string;
  name: string;
  what: string;
  rows: StageRow[];
  /** Which keys are hidden, once they are. */
  masked: boolean[] | null;
}

export interface Staged {
  mechanism: string;
  token: string;
  position: number;
  key_tokens: string[];
  spec_repr: string;
  note: string;
  stages: Stage[];
}

export interface Group {
  label: string;
  /** One row for each key token. */
  rows: StageRow[];
}

/** The vectors of a stage that has one for each key, by head and map; empty for any other stage. */
export function vectorsOf(stage: Stage, keys: string[]): Group[] {
  const { rows } = stage;
  const isOfKeys =
    rows.length >= keys.length &&
    rows.length % keys.length === 0 &&
    rows.every(({ label, along }, index) => along === "width" && label.endsWith(keys[index % keys.length]));
  if (!isOfKeys || (keys.length === 1 && rows[0].label === "")) return [];
  return Array.from({ length: rows.length / keys.length }, (_, group) => {
    const part = rows.slice(group * keys.length, (group + 1) * keys.length);
    return { label: part[0].label.slice(0, -keys[0].length).replace(/: $/, ""), rows: part };
  });
}
