// Comma-separated values, as RFC 4180 has them.

type Cell = number | string | null;

function quoted(cell: Cell): string {
  const text = cell === null ? "" : String(cell);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export const csvFormatRows = (rows: Cell[][]): string => rows.map((row) => `${row.map(quoted).join(",")}\n`).join("");
