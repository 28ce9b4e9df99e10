// The one place that talks to the server: requests, its events, its API key, and whether it is there.

import { kept } from "./dom.js";

/** What the server, or the network, said against a request. `status` is 0 where there was no answer. */
export class Problem extends Error {
  constructor(message, status = 0, param = null, code = null) {
    super(message);
    Object.assign(this, { status, param, code });
  }
}

/** "up" and "down", as the server comes and goes. */
export const connection = new EventTarget();
let isUp = true;

function reached(up) {
  if (up === isUp) return;
  isUp = up;
  connection.dispatchEvent(new Event(up ? "up" : "down"));
}

export const serverIsUp = () => isUp;

let askForKey = async () => null;
let asking = null;

/** Sets what asks the user for the key; it is called with whether one was wrong, and resolves when there is one. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

async function newKey(wrong) {
  asking ??= askForKey(wrong).finally(() => { asking = null; });
  kept.set("key", await asking, sessionStorage);
}

async function send(path, options) {
  for (;;) {
    const key = kept.get("key", null, sessionStorage);
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      reached(false);
      throw new Problem("The server does not answer.");
    }
    reached(true);
    if (response.status !== 401) return response;
    await newKey(Boolean(key));
  }
}

async function checked(response) {
  if (response.ok) return response;
  let found = null;
  try {
    found = (await response.json()).error;
  } catch { /* no JSON: a proxy's page, perhaps */ }
  const wait = response.headers.get("retry-after");
  const words = found?.message ?? `The server answers with an error (${response.status}).`;
  throw new Problem(response.status === 429 && wait ? `${words} Try again in ${wait} s.` : words, response.status, found?.param, found?.code);
}

/** A request; `json` or `body` is sent. Resolves to the JSON of the answer, null for none. */
export async function request(method, path, { json, body, headers = {}, signal } = {}) {
  const sent = json === undefined ? { body, headers } : { body: JSON.stringify(json), headers: { "Content-Type": "application/json" } };
  const response = await checked(await send(path, { method, signal, ...sent }));
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

export const get = (path, options) => request("GET", path, options);

/** Server-sent events of a path, as {id, event, data}; ends where the stream ends. EventSource could send no key. */
export async function* events(path, { after = null, signal } = {}) {
  const headers = { Accept: "text/event-stream", ...(after === null ? {} : { "Last-Event-ID": after }) };
  const response = await checked(await send(path, { headers, signal }));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", found = { data: [] };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (!line) {
          if (found.data.length) yield { id: found.id ?? null, event: found.event ?? "message", data: JSON.parse(found.data.join("\n")) };
          found = { data: [] };
        } else if (!line.startsWith(":")) {
          const [, name, text] = /^([^:]*):? ?(.*)$/.exec(line);
          if (name === "data") found.data.push(text);
          else if (name === "id" || name === "event") found[name] = text;
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
