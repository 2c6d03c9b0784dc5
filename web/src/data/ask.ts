// The one way to an answer: from the server that served the page, or from what a saved page holds.

interface Answer {
  path: string;
  body?: unknown;
  json?: unknown;
  base64?: string;
}

interface Recorded {
  version: string;
  state: Record<string, unknown>;
  answers: Answer[];
}

/** An answer that is an error; `status` 0 says that nothing was reached. */
export class Refusal extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly type = "",
  ) {
    super(message);
  }
}

/** What the page was given: a state to begin with and, if it is a saved one, answers. */
const given = JSON.parse(document.getElementById("polyhead-recorded")?.textContent ?? "null") as
  | (Omit<Recorded, "answers"> & { answers: Answer[] | null })
  | null;
const held = given?.answers ? (given as Recorded) : null;

/** What a page that was served or saved begins with. */
export const begun = given?.state;

/** What a saved page holds; null where a server answers. */
export const recorded: Recorded | null = held;

const byKey = new Map(held?.answers.map((answer) => [keyOf(answer.path, answer.body), answer]));

/** Spells a value with its keys sorted and empty members left out, so that equal questions read the same. */
export function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value ?? null);
  const members = Object.entries(value).filter(([, member]) => member !== null && member !== undefined);
  members.sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${canonical(member)}`).join(",")}}`;
}

function keyOf(path: string, body: unknown): string {
  return `${path} ${body == null ? "" : canonical(body)}`;
}

/** Whether a saved page has the answer; a server is asked for any. */
export function isRecorded(path: string, body?: unknown): boolean {
  return held === null || byKey.has(keyOf(path, body));
}

export async function ask<T>(path: string, body?: unknown): Promise<T> {
  if (held !== null) return found(path, body).json as T;
  return (await fetched(path, body)).json() as Promise<T>;
}

export async function askBytes(path: string, body?: unknown): Promise<ArrayBuffer> {
  if (held === null) return (await fetched(path, body)).arrayBuffer();
  const text = atob(found(path, body).base64 ?? "");
  return Uint8Array.from(text, (character) => character.charCodeAt(0)).buffer;
}

export async function askText(path: string, body?: unknown): Promise<string> {
  return (await fetched(path, body)).text();
}

/** Sends a file as it is. */
export async function send<T>(path: string, file: Blob): Promise<T> {
  return (await fetched(path, file)).json() as Promise<T>;
}

function found(path: string, body: unknown): Answer {
  const answer = byKey.get(keyOf(path, body));
  if (answer !== undefined) return answer;
  throw new Refusal("This saved page does not hold that; “polyhead serve” computes it.", 0, "NotRecorded");
}

async function fetched(path: string, body: unknown): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(`api/v1/${path}`, requestOf(body));
  } catch {
    throw new Refusal("The server does not answer. Start “polyhead serve” again, then reload this page.", 0, "Unreachable");
  }
  if (response.ok) return response;
  const error = (await response.json().catch(() => null))?.error;
  throw new Refusal(error?.message ?? `The server answered ${response.status}.`, response.status, error?.type);
}

function requestOf(body: unknown): RequestInit {
  if (body === undefined) return {};
  if (body instanceof Blob) {
    return { method: "POST", body, headers: { "content-type": "application/octet-stream" } };
  }
  return { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } };
}
