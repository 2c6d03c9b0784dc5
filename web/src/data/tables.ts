// The table twin of a chart: what is shown as a table, written as CSV and as JSON is this one thing.
import { csvFormatRows } from "./csv";

export interface Table {
  caption: string;
  columns: string[];
  rows: {
    /** What the row is of; its first cell. */
    head: string;
    cells: (number | string | null)[];
    /** The class that gives it a hue. */
    hue?: string;
    own?: boolean;
    mechanism?: string;
  }[];
  /** Writes a number for reading; files hold all its digits. */
  format?: (value: number) => string;
  /** Whether it is shown beside the charts, and not in their place. */
  always?: boolean;
}

/** The tables of the screen that is shown. */
export const shown: { tables: () => Table[] } = { tables: () => [] };

export function toCsv(tables: Table[]): string {
  const parts = tables.map(({ columns, rows }) => csvFormatRows([columns, ...rows.map(({ head, cells }) => [head, ...cells])]));
  return parts.join("\n");
}
