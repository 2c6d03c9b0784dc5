// Pictures, tables and the page itself as files. Each carries the version and the link that shows it again.
import { askText, recorded } from "./ask";
import { version } from "./catalogue";
import { snapshot } from "./state.svelte";
import { shown, toCsv } from "./tables";

const SVG = "http://www.w3.org/2000/svg";
const COPIED = [
  "fill",
  "fill-opacity",
  "stroke",
  "stroke-width",
  "stroke-dasharray",
  "stroke-linejoin",
  "paint-order",
  "opacity",
  "font-family",
  "font-size",
  "font-weight",
  "font-style",
  "text-anchor",
  "dominant-baseline",
];
const LEFT_OUT =
  "input, select, button, summary, details:not(.moves details[open]), label:not(.move > label), math, [hidden], .live";
const MARGIN = 24;

export type Kind = "png" | "svg" | "csv" | "json" | "html";

export async function save(kind: Kind): Promise<void> {
  const name = `polyhead-${snapshot().screen}.${kind}`;
  if (kind === "svg") return download(name, "image/svg+xml", picture().text);
  if (kind === "png") return download(name, "image/png", await rastered());
  if (kind === "csv") return download(name, "text/csv", toCsv(shown.tables()));
  if (kind === "json") return download(name, "application/json", asJson());
  return download(name, "text/html", await wholePage());
}

function download(name: string, type: string, content: string | Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function asJson(): string {
  const tables = shown.tables().map(({ caption, columns, rows }) => ({
    caption,
    columns,
    rows: rows.map(({ head, cells }) => [head, ...cells]),
  }));
  return JSON.stringify({ schema: 1, polyhead: version, link: location.href, state: snapshot(), tables }, null, 2);
}

async function wholePage(): Promise<string> {
  if (recorded === null) return askText("export", { state: snapshot() });
  const copy = document.documentElement.cloneNode(true) as HTMLElement;
  copy.querySelector("#page")!.replaceChildren();
  return `<!doctype html>\n${copy.outerHTML}`;
}

// --- a picture of what is on the screen --------------------------------------------------------

interface Picture {
  text: string;
  width: number;
  height: number;
}

function picture(): Picture {
  const figure = document.querySelector<HTMLElement>("[data-figure]");
  if (figure === null) throw new Error("there is no chart on this screen; turn tables off, or save CSV");
  const box = figure.getBoundingClientRect();
  const root = document.createElementNS(SVG, "svg");
  const [width, height] = [box.width + 2 * MARGIN, box.height + 4 * MARGIN];
  for (const [name, value] of Object.entries({ xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}` })) {
    root.setAttribute(name, String(value));
  }
  const page = getComputedStyle(document.body);
  const hatch = document.querySelector<SVGElement>("svg:has(#hatch)");
  if (hatch) root.append(styled(hatch));
  root.append(rectangle(0, 0, width, height, { fill: page.backgroundColor }));
  const shift = { x: MARGIN - box.left, y: MARGIN * 2 - box.top };
  root.append(line(figure.dataset.figure!, MARGIN, MARGIN * 1.4, page, "16px"));
  for (const part of drawn(figure, shift)) root.append(part);
  root.append(line(`polyhead ${version}   ${location.href}`, MARGIN, height - MARGIN / 2, page, "10px"));
  return { text: new XMLSerializer().serializeToString(root), width, height };
}

/** Everything that is seen of a figure: boxes, then words, then charts. */
function* drawn(figure: HTMLElement, shift: { x: number; y: number }): Generator<Element> {
  for (const element of figure.querySelectorAll<HTMLElement>("*")) {
    if (element.closest(`svg, ${LEFT_OUT}`)) continue;
    yield* boxOf(element, shift);
  }
  const texts = document.createTreeWalker(figure, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const parent = texts.currentNode.parentElement!;
    if (!parent.closest(`svg, ${LEFT_OUT}`)) yield* wordsOf(texts.currentNode as Text, shift);
  }
  for (const select of figure.querySelectorAll<HTMLSelectElement>(".move select")) {
    const box = select.getBoundingClientRect();
    if (select.parentElement!.closest(LEFT_OUT)) continue;
    const style = getComputedStyle(select);
    yield line(select.selectedOptions[0].text, box.left + shift.x, box.bottom + shift.y - 8, style, style.fontSize);
  }
  for (const chart of figure.querySelectorAll<SVGElement | HTMLCanvasElement>("[data-chart]")) yield placed(chart, shift);
}

function* boxOf(element: HTMLElement, shift: { x: number; y: number }): Generator<Element> {
  const style = getComputedStyle(element);
  const isFilled = !/rgba\(.*, 0\)|transparent/.test(style.backgroundColor);
  const hasEdge = parseFloat(style.borderLeftWidth) > 0 && style.borderLeftStyle !== "none";
  if (!isFilled && !hasEdge) return;
  const box = element.getBoundingClientRect();
  yield rectangle(box.left + shift.x, box.top + shift.y, box.width, box.height, {
    fill: isFilled ? style.backgroundColor : "none",
    stroke: hasEdge ? style.borderLeftColor : "none",
    rx: String(parseFloat(style.borderRadius) || 0),
  });
}

function* wordsOf(node: Text, shift: { x: number; y: number }): Generator<Element> {
  const style = getComputedStyle(node.parentElement!);
  for (const found of node.data.matchAll(/\S+/g)) {
    const range = document.createRange();
    range.setStart(node, found.index);
    range.setEnd(node, found.index + found[0].length);
    const box = range.getBoundingClientRect();
    if (!box.width) continue;
    const isFirst = !found.index && style.textTransform === "capitalize";
    yield line(isFirst ? found[0][0].toUpperCase() + found[0].slice(1) : found[0], box.left + shift.x, box.bottom + shift.y - 0.23 * box.height, style, style.fontSize);
  }
}

function placed(chart: SVGElement | HTMLCanvasElement, shift: { x: number; y: number }): Element {
  const box = chart.getBoundingClientRect();
  const place = { x: box.left + shift.x, y: box.top + shift.y, width: box.width, height: box.height };
  const copy = chart instanceof HTMLCanvasElement ? document.createElementNS(SVG, "image") : styled(chart);
  if (chart instanceof HTMLCanvasElement) copy.setAttribute("href", chart.toDataURL());
  copy.setAttribute("overflow", "visible");
  for (const [name, value] of Object.entries(place)) copy.setAttribute(name, String(value));
  return copy;
}

/** A copy of a chart that needs no style sheet. */
function styled(chart: SVGElement): Element {
  const copy = chart.cloneNode(true) as SVGElement;
  const copies = copy.querySelectorAll<SVGElement>("*");
  chart.querySelectorAll<SVGElement>("*").forEach((element, index) => {
    const style = getComputedStyle(element);
    const target = copies[index];
    for (const name of COPIED) target.style.setProperty(name, style.getPropertyValue(name));
    target.removeAttribute("class");
  });
  return copy;
}

function rectangle(x: number, y: number, width: number, height: number, more: Record<string, string>): Element {
  const element = document.createElementNS(SVG, "rect");
  for (const [name, value] of Object.entries({ x, y, width, height, ...more })) element.setAttribute(name, String(value));
  return element;
}

function line(text: string, x: number, y: number, style: CSSStyleDeclaration, size: string): Element {
  const element = document.createElementNS(SVG, "text");
  element.textContent = text;
  const look = { x, y, fill: style.color, "font-family": style.fontFamily, "font-weight": style.fontWeight, "font-size": size };
  for (const [name, value] of Object.entries(look)) element.setAttribute(name, String(value));
  return element;
}

async function rastered(): Promise<Blob> {
  const { text, width, height } = picture();
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * width, 2 * height];
  const context = canvas.getContext("2d")!;
  context.scale(2, 2);
  context.drawImage(image, 0, 0);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture is too large for a PNG; save SVG"))));
  });
}
