// The server's jobs: started here, or found there. They go on without the page; the page reads their events again.

import { Problem, connection, events, get, request, serverIsUp } from "./api.js";
import { kept } from "./dom.js";

const ACTIVE = new Set(["queued", "generating"]);
// A browser opens six connections to a server over HTTP/1.1, in all of its windows together.
const MAX_STREAMS = 2;

/** All known jobs by id, oldest first. "change" tells that the list or one of its jobs has changed. */
export const jobs = new Map();
export const queue = new EventTarget();

const changed = () => queue.dispatchEvent(new Event("change"));
const mine = kept.get("jobs", {});
let streams = 0;
let listed = new Set(); // ids of the jobs that the server has told last

/** Seconds that a denoising step of the newest finished drawing took. */
export const speed = { step: null };

export function secondsPerStep({ timings, progress }) {
  // Candidates are drawn together, or not all of them.
  return timings?.denoise && progress && !progress.candidates ? timings.denoise / (progress.steps * progress.n) : null;
}

/** A job as the page sees it. "change" follows each event; `job` is the server's object. */
export class Task extends EventTarget {
  previews = new Map(); // src by index of the picture
  previewSteps = new Map();
  text = "";
  firstText = null; // performance.now() of the first piece of an answer
  began = null;
  lastEvent = null;
  streaming = false; // or waiting for its stream
  connected = false; // its events tell everything
  lost = null; // why nothing more will be heard of it

  constructor(job) {
    super();
    this.job = job;
    this.text = job.text ?? "";
  }

  get id() { return this.job.id; }
  get tab() { return mine[this.id] ?? null; }
  get active() { return !this.lost && ACTIVE.has(this.job.status); }

  async cancel() {
    this.stopping = true;
    this.tell();
    try {
      this.update(await request("DELETE", `/v1/jobs/${this.id}`) ?? this.job);
    } catch (problem) {
      if (problem.status === 404) this.lose("The server no longer knows this task.");
      else throw problem;
    } finally {
      this.stopping = false;
      this.tell();
    }
  }

  update(job) {
    if (!job?.id || (!this.active && !this.lost)) return;
    // An older answer may arrive late; a list has no pictures that an event has not told, and the other way round.
    const pictures = new Map([...(this.job.pictures ?? []), ...(job.pictures ?? [])].map((one) => [one.id, one]));
    this.job = { ...job, pictures: [...pictures.values()] };
    // While it is streamed, the pieces make the text; at its end the whole is told.
    if (!this.streaming || !ACTIVE.has(job.status)) this.text = job.text ?? this.text;
    this.began ??= job.status === "generating" ? performance.now() : null;
    this.tell();
  }

  lose(why) {
    this.lost = why;
    this.tell();
  }

  take({ id, event, data }) {
    this.lastEvent = id ?? this.lastEvent;
    if (event === "progress") this.job = { ...this.job, progress: data };
    else if (event === "preview") {
      this.previews.set(data.index, `data:image/${data.output_format};base64,${data.b64_json}`);
      this.previewSteps.set(data.index, data);
    } else if (event === "picture") {
      if (!this.job.pictures.some((one) => one.id === data.id)) this.job = { ...this.job, pictures: [...this.job.pictures, data] };
      this.dispatchEvent(new CustomEvent("picture", { detail: data }));
    } else if (event === "text") {
      this.firstText ??= performance.now();
      this.text += data.delta;
    } else return this.update(data); // status, completed, failed, cancelled
    this.tell();
  }

  tell() {
    this.dispatchEvent(new Event("change"));
    changed();
  }

  /** Reads the job's events to its end, however often the connection breaks. */
  async follow() {
    if (this.streaming || !this.active) return;
    this.streaming = true;
    while (streams >= MAX_STREAMS && this.active) await once(queue, "free", 1000);
    streams++;
    this.connected = true;
    // What is told again from the beginning is not added twice.
    if (this.lastEvent === null) this.text = "";
    try {
      for (let pause = 500; this.active; pause = Math.min(pause * 2, 5000)) {
        try {
          for await (const event of events(`/v1/jobs/${this.id}/events`, { after: this.lastEvent })) {
            this.take(event);
            pause = 500;
          }
          if (this.active) this.update(await get(`/v1/jobs/${this.id}`));
        } catch (problem) {
          if (problem.status === 404) this.lose("The server was restarted and has lost this task. What was finished is on the shelf.");
          else if (problem.status >= 400) this.lose(problem.message);
        }
        if (this.active) await (serverIsUp() ? wait(pause) : once(connection, "up", pause));
      }
    } finally {
      streams--;
      this.streaming = this.connected = false;
      queue.dispatchEvent(new Event("free"));
      this.tell();
    }
  }
}

const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
/** Resolves at an event, or after a time. */
export const once = (target, name, milliseconds) =>
  Promise.race([wait(milliseconds), new Promise((done) => target.addEventListener(name, done, { once: true }))]);

function know(job) {
  const known = jobs.get(job.id);
  if (!known) jobs.set(job.id, new Task(job));
  else if (!known.connected) known.update(job);
  return jobs.get(job.id);
}

/** Starts a job for a tab and follows it. */
export async function start(tab, body) {
  const job = await request("POST", "/v1/jobs", { json: body });
  mine[job.id] = tab;
  const ids = Object.keys(mine);
  for (const id of ids.slice(0, Math.max(0, ids.length - 50))) delete mine[id];
  kept.set("jobs", mine);
  const task = know(job);
  task.follow();
  changed();
  return task;
}

/** A job by id, followed where it still runs; null where the server does not know it. */
export async function find(id) {
  try {
    const task = know(await get(`/v1/jobs/${id}`));
    if (task.active) task.follow();
    return task;
  } catch (problem) {
    if (problem instanceof Problem && problem.status === 404) return null;
    throw problem;
  }
}

/** The job that was last started in a tab of this browser, if the server still lists it; else null. */
export async function newest(tab) {
  const id = Object.keys(mine).filter((one) => mine[one] === tab).at(-1);
  return listed.has(id) ? find(id) : null;
}

/** Those that wait or run, the first to be done first. */
export const activeTasks = () =>
  [...jobs.values()].filter((task) => task.active).sort((a, b) => (a.job.queue_position ?? -1) - (b.job.queue_position ?? -1));

/** Asks the server for its jobs. Returns whether one has ended since the last time. */
export async function refresh() {
  const before = new Set(activeTasks().map((task) => task.id));
  const found = (await get("/v1/jobs?limit=100")).data;
  for (const job of found.reverse()) {
    if (job.timings?.denoise && job.progress) speed.step = secondsPerStep(job);
    if (ACTIVE.has(job.status) || jobs.has(job.id)) know(job);
  }
  listed = new Set(found.map((job) => job.id));
  for (const task of activeTasks()) if (!listed.has(task.id) && !task.connected) task.lose("The server no longer knows this task.");
  changed();
  return [...before].some((id) => !jobs.get(id).active);
}
