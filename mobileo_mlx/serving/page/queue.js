// The queue: what waits and runs on the server, each with a button that cancels it.

import { byId, icon, iconButton, make, notice, show } from "./dom.js";
import { activeTasks, queue } from "./jobs.js";
import { doneShare, statusWords } from "./run_view.js";

const NAMES = { generate: "Draw", edit: "Edit", answer: "Answer" };
const rows = new Map();

function row(task, showTask) {
  const status = make("small", {});
  const bar = make("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const words = task.job.request?.prompt ?? "A question";
  const cancel = iconButton("close", `Cancel: ${words}`, { testid: "queue-cancel",
    onclick: () => task.cancel().catch((problem) => notice(problem.message, { error: true })) }, false);
  const lead = task.job.task !== "answer" || task.tab
    ? make("button", { type: "button", class: "link", testid: "queue-show", onclick: () => { byId("queue").hidePopover(); showTask(task); } }, words)
    : make("span", {}, words);
  const element = make("li", { testid: "queue-job", data: { id: task.id } },
    make("div", {}, make("b", {}, NAMES[task.job.task] ?? task.job.task), " ", lead, status, bar), cancel);
  return { element, update() {
    status.textContent = statusWords(task);
    bar.value = doneShare(task);
    show(bar, task.job.status === "generating" && task.job.task !== "answer");
    cancel.disabled = Boolean(task.stopping);
  } };
}

export function startQueue(showTask) {
  const list = make("ul", {}), none = make("p", { class: "hint" }, "Nothing waits.");
  byId("queue").append(make("h2", {}, "Queue"), list, none);
  const number = make("span", { class: "badge" });
  byId("queue-button").append(icon("queue"), make("span", { class: "words" }, "Queue"), number);
  const draw = () => {
    const tasks = activeTasks();
    for (const [id, one] of rows) {
      if (!tasks.some((task) => task.id === id)) {
        one.element.remove();
        rows.delete(id);
      }
    }
    tasks.forEach((task, i) => {
      if (!rows.has(task.id)) rows.set(task.id, row(task, showTask));
      const { element, update } = rows.get(task.id);
      if (list.children[i] !== element) list.insertBefore(element, list.children[i] ?? null);
      update();
    });
    show(none, !tasks.length);
    number.textContent = tasks.length || "";
    byId("queue-button").setAttribute("aria-label", tasks.length ? `Queue: ${tasks.length}` : "Queue: empty");
    const first = tasks[0];
    document.title = first && first.job.status === "generating" && first.job.task !== "answer" ? `${Math.round(doneShare(first) * 100)} % · Mobile-O` : "Mobile-O";
  };
  queue.addEventListener("change", draw);
  draw();
}
