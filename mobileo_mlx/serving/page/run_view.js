// A job of drawing or editing on its stage: its pictures appear one by one, with what is going on in words.

import { actionBar } from "./actions.js";
import { compare } from "./compare.js";
import { announce, fitFrame, make, show } from "./dom.js";
import { defaultSize } from "./info.js";
import { secondsPerStep } from "./jobs.js";
import { scores } from "./scores.js";
import { describe, dragged, isDeleted, shelf } from "./shelf.js";
import { count, left, seconds } from "./words.js";

/** What a job is doing, in one line. */
export function statusWords(task) {
  const { job } = task;
  if (task.lost) return task.lost;
  if (task.stopping) return "Stopping…";
  if (job.status === "queued") return job.queue_position > 0 ? `Waiting: ${count(job.queue_position, "task")} before this one` : "Waiting: it is next";
  if (job.status === "failed") return job.error?.message ?? "It failed.";
  const n = job.request?.n ?? 1, done = job.pictures.length;
  if (job.status === "cancelled") return n > 1 ? `Stopped: ${done} of ${n} finished` : "Stopped";
  if (job.status === "completed") {
    const took = job.finished_at - job.started_at;
    const each = secondsPerStep(job);
    return [`Done in ${seconds(took)}`, each && `${seconds(each)} per step`].filter(Boolean).join(" · ");
  }
  const { progress } = job;
  if (!progress) return "Reading the text…";
  const parts = n > 1 ? [`Picture ${progress.index + 1} of ${n}`] : [];
  const { candidate, candidates } = progress;
  if (candidates) parts.push(candidate === undefined ? `${candidates} candidates` : `Candidate ${candidate + 1} of up to ${candidates}`);
  parts.push(progress.step >= progress.steps ? (candidates ? "Choosing" : "Finishing") : `Step ${progress.step} of ${progress.steps}`);
  if (progress.seconds_left !== null && progress.seconds_left !== undefined) parts.push(left(progress.seconds_left));
  return parts.join(" · ");
}

/** The part of a job that is done, from 0 to 1. */
export function doneShare({ job }) {
  const n = job.request?.n ?? 1, { progress } = job;
  if (job.status === "completed") return 1;
  return progress ? Math.min(1, (progress.index + progress.step / progress.steps) / n) : 0;
}

/** Makes the stage of a tab; `show(task)` puts a job there, in the place of what was there. */
export function runView(tab, stage) {
  let current = null;
  let draw = () => {};
  const onChange = () => draw();

  function put(task) {
    current?.removeEventListener("change", onChange);
    current = task;
    if (!task) {
      stage.replaceChildren();
      return;
    }
    draw = build(tab, stage, task);
    task.addEventListener("change", onChange);
    draw();
  }

  return { show: put, get task() { return current; } };
}

function build(tab, stage, task) {
  const n = task.job.request?.n ?? 1;
  const status = make("p", { id: `${tab}-status`, class: "status" });
  const progress = make("progress", { id: `${tab}-progress`, max: 1, value: 0, "aria-label": "Progress" });
  const tiles = Array.from({ length: n }, (_, i) => tile(tab, task, i, n));
  const grid = make("div", { class: "tiles" }, tiles.map((one) => one.element));
  grid.dataset.n = Math.min(n, 5);
  const text = make("p", { class: "caption" }, task.job.request?.prompt ?? "");
  stage.replaceChildren(grid, make("div", { class: "run-foot" }, make("div", { class: "run-line" }, status, progress), text));
  const tell = narrator();
  return () => {
    status.textContent = statusWords(task);
    status.classList.toggle("bad", task.job.status === "failed" || Boolean(task.lost));
    progress.value = doneShare(task);
    show(progress, task.active);
    stage.classList.toggle("busy", task.active);
    tiles.forEach((one) => one.update());
    tell(task);
  };
}

function tile(tab, task, index, n) {
  const { width, height } = task.job.request ?? {};
  const frame = make("div", { class: "frame", data: { state: "waiting" } });
  fitFrame(frame, width ?? defaultSize()[0], height ?? defaultSize()[1]);
  const foot = make("figcaption", {});
  const element = make("figure", { class: "tile" }, frame, foot);
  let preview = null, finished = false;

  function finish(picture) {
    finished = true;
    frame.dataset.state = "done";
    fitFrame(frame, picture.width, picture.height);
    const alt = describe(picture);
    if (picture.source) {
      frame.replaceChildren(compare(`/v1/pictures/${picture.source}/content`, picture.url, { id: index ? null : `${tab}-compare`, alt }));
      frame.querySelector("img").dataset.testid = "result-picture";
    } else {
      frame.replaceChildren(make("button", { type: "button", class: "open", "aria-label": `Open: ${alt}`, ...dragged(picture),
        onclick: () => frame.dispatchEvent(new CustomEvent("open-picture", { bubbles: true, detail: picture })) },
      make("img", { src: picture.url, alt, testid: "result-picture", data: { id: picture.id }, draggable: false })));
    }
    const mark = (gone) => { element.classList.toggle("gone", gone); };
    shelf.addEventListener("change", () => mark(isDeleted(picture)));
    frame.querySelector("img").addEventListener("error", () => mark(true));
    foot.replaceChildren(actionBar(picture, { words: n === 1, rest: false }), ...[scores(picture)].filter(Boolean));
  }

  return {
    element,
    update() {
      const picture = task.job.pictures[index];
      if (finished) return;
      if (picture) return finish(picture);
      const src = task.previews.get(index);
      if (src && !preview) {
        preview = make("img", { alt: "Preview of the picture that is being drawn", testid: "result-preview", class: "preview" });
        frame.replaceChildren(preview);
      }
      if (src && preview.src !== src) preview.src = src;
      const drawing = task.job.progress?.index === index;
      frame.dataset.state = !task.active ? "stopped" : preview ? "preview" : drawing ? "drawing" : "waiting";
    },
  };
}

// Screen readers hear the beginning, each quarter, each picture and the end; not each step.
function narrator() {
  let said = "";
  return (task) => {
    const quarter = Math.floor(doneShare(task) * 4) * 25;
    const { status, pictures } = task.job;
    const words = !task.active ? statusWords(task)
      : status === "queued" ? "Waiting for other tasks."
      : `${pictures.length ? `${count(pictures.length, "picture")} finished. ` : ""}${quarter ? `${quarter} percent done.` : "Drawing has begun."}`;
    if (words !== said) announce(words);
    said = words;
  };
}
