// What Ask and Chat share: the request of an answer, and how fast it came.

import { make } from "./dom.js";
import { taskOptions } from "./info.js";
import { optionField } from "./option_field.js";
import { reference } from "./picture_input.js";
import { seconds } from "./words.js";

/** A user's message as OpenAI writes it, pictures first. */
export const userMessage = (text, pictures) => ({
  role: "user",
  content: [...pictures.map((one) => ({ type: "image_url", image_url: { url: reference(one) } })), { type: "text", text }],
});

/** The options of an answer behind a fold; `values()` are those that were set. */
export function answerFields(tab, host) {
  const fields = taskOptions("answer").map((option) => optionField(tab, option));
  host.append(make("details", { class: "fold", id: `${tab}-options` }, make("summary", {}, "All options"),
    make("div", { class: "grid" }, fields.map((field) => field.element))));
  return () => Object.fromEntries(fields.map((field) => [field.name, field.value()]).filter(([, value]) => value !== undefined));
}

/** Seconds to the first token and tokens per second, as far as they are known. */
export function figures(task) {
  const { timings, usage } = task.job;
  const measured = timings?.prefill === undefined ? null : (timings.vision ?? 0) + timings.prefill;
  const first = measured ?? (task.firstText && task.began ? (task.firstText - task.began) / 1000 : null);
  const rate = timings?.decode && usage?.completion_tokens > 1 ? (usage.completion_tokens - 1) / timings.decode : null;
  const found = [];
  if (first !== null && first !== undefined) found.push(`First token after ${seconds(first)}`);
  if (rate) found.push(`${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`);
  if (usage?.completion_tokens) found.push(`${usage.completion_tokens} tokens`);
  return found.join(" · ");
}

/** What is wrong or unusual with an answer, in a line; "" where nothing is. */
export function trouble(task) {
  if (task.lost) return task.lost;
  if (task.job.status === "failed") return task.job.error?.message ?? "It failed.";
  return task.job.status === "cancelled" ? "Stopped." : "";
}

export function waitingWords(task) {
  if (task.job.status !== "queued") return "Looking…";
  return task.job.queue_position > 0 ? `Waiting: ${task.job.queue_position} before this one` : "Waiting: it is next";
}
