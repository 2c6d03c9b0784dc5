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

/** One table as it is; of several each under its caption. */
export function toCsv(tables: Table[]): string {
  const parts = tables.map(({ caption, columns, rows }) => {
    const body = [columns, ...rows.map(({ head, cells }) => [head, ...cells])];
    return csvFormatRows(tables.length > 1 ? [[caption], ...body] : body);
  });
  return parts.join("\n");
}
