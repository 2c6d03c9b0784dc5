// Reads the answer `matrix`: a safetensors file whose metadata say what the tensors are.
import type { Matrix, Row } from "./types";

interface Tensor {
  dtype: "F64" | "U8";
  shape: number[];
  data_offsets: [number, number];
}

type Header = Record<string, Tensor> & { __metadata__?: { polyhead: string } };

export function readMatrix(buffer: ArrayBuffer): Matrix {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length))) as Header;
  const { rows, ...rest } = JSON.parse(header.__metadata__!.polyhead) as Matrix;

  function bytes(name: string): ArrayBuffer {
    const [start, end] = header[name].data_offsets;
    return buffer.slice(8 + length + start, 8 + length + end);
  }

  return {
    ...rest,
    rows: rows.map((row) => ({
      ...row,
      weights: new Float64Array(bytes(`${row.name}/weights`)),
      output: new Float64Array(bytes(`${row.name}/output`)),
      distance: new Float64Array(bytes(`${row.name}/distance`)),
      equal: new Uint8Array(bytes(`${row.name}/equal`)),
      keys: header[`${row.name}/weights`].shape[1],
      width: header[`${row.name}/output`].shape[1],
    })),
  };
}

/** The one row that was asked for; raises where the input cannot take it. */
export function readRow(buffer: ArrayBuffer): Row {
  const { rows, absent } = readMatrix(buffer);
  if (!rows.length) throw new Error(Object.values(absent)[0]);
  return rows[0];
}

/** Which pairs never meet. A softmax gives no weight of zero to what it sees; other weightings see what the baseline sees. */
export function hiddenIn(row: Row, baseline: Row | undefined): (at: number) => boolean {
  const seen = row.kind === "softmax" ? row : row.changes === "weighting" ? baseline : undefined;
  return (at) => seen?.weights[at] === 0;
}

export const weightsOf = (row: Row, token: number) => row.weights.subarray(token * row.keys, (token + 1) * row.keys);

export const outputOf = (row: Row, token: number) => row.output.subarray(token * row.width, (token + 1) * row.width);
