// The tab Chat: a conversation with pictures. It is kept in this browser; its jobs and pictures are the server's.

import { answerFields, figures, trouble, userMessage, waitingWords } from "./answering.js";
import { Problem } from "./api.js";
import { announce, byId, growing, kept, make, notice } from "./dom.js";
import { find, start } from "./jobs.js";
import { messageView } from "./message.js";
import { pictureInput, reference } from "./picture_input.js";
import { statusWords } from "./run_view.js";
import { loadPicture } from "./shelf.js";
import { makeTab } from "./tab.js";

const MOST = 4; // pictures of a message

// An entry: {role, text, pictures, job, kind}; `pictures` are ids, `kind` is the job's task, `job` is gone when it has ended.
export function makeChat() {
  const log = byId("chat-result");
  const input = pictureInput("chat", { most: MOST, small: true });
  const values = answerFields("chat", make("div"));
  const tab = makeTab("chat", { run, stop, enterRuns: true });
  const fit = growing(tab.prompt);
  let entries = kept.get("chat", []);
  let current = null;

  const keep = () => kept.set("chat", entries.map(({ role, text, pictures, job, kind, note }) => ({ role, text, pictures, job, kind, note })));
  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  const toEnd = () => { log.scrollTop = log.scrollHeight; };
  // Pictures come after their messages, and take room: who was at the end stays there.
  let following = true;
  log.addEventListener("scroll", () => { following = atEnd(); });
  const growth = new ResizeObserver(() => { if (following) toEnd(); });

  async function run() {
    const text = tab.prompt.value.trim();
    if (!text) {
      tab.prompt.focus();
      throw new Problem("Write a message.");
    }
    if (current?.active) throw new Problem("Wait for the answer, or stop it.");
    const pictures = input.pictures;
    const { kind: wish, rest } = wanted(text);
    const task = await start("chat", await bodyOf(wish, rest, text, pictures));
    const kind = task.job.task; // the server knows by a rule which messages ask for a picture
    add({ role: "user", text, pictures: pictures.map((one) => one.id), kind });
    const answer = { role: "assistant", text: "", pictures: [], job: task.id, kind };
    add(answer);
    tab.setPrompt("");
    input.clear();
    fit();
    watch(answer, task);
    toEnd();
  }

  async function bodyOf(kind, rest, text, pictures) {
    if (kind !== "answer" && !rest) throw new Problem(kind === "edit" ? "Say what should change: /edit ..." : "Say what the picture should show: /draw ...");
    const seed = crypto.getRandomValues(new Uint32Array(1))[0];
    if (kind === "generate") return { task: kind, prompt: rest, seed, previews: 4 };
    if (kind === "edit") {
      const last = pictures.at(-1) ?? await newestPicture();
      if (!last) throw new Problem("There is no picture yet to edit; add one, or /draw one.");
      return { task: kind, prompt: rest, image: reference(last), seed, previews: 4 };
    }
    return { task: kind, messages: await context(text, pictures), draw: true, previews: 4, ...values() };
  }

  const ids = () => entries.flatMap((entry) => entry.pictures);
  const newestPicture = async () => (ids().length ? loadPicture(ids().at(-1)) : null);

  // The model looks at one picture best (docs/page.md): a new one begins anew. What was drawn is no message of the model's;
  // it is shown with the next question.
  async function context(text, given) {
    const from = given.length ? entries.length : Math.max(0, entries.findLastIndex((entry) => entry.pictures.length));
    const messages = [];
    let shown = [], asked = [];
    for (const entry of [...entries.slice(from), { role: "user", text, pictures: given.map((one) => one.id), kind: "answer" }]) {
      const pictures = (await Promise.all(entry.pictures.map(loadPicture))).filter(Boolean);
      if (entry.kind !== "answer") shown = pictures.length ? pictures : shown;
      else if (entry.role === "user") {
        asked = [...shown, ...pictures];
        messages.push(userMessage(entry.text, asked));
        shown = [];
      } else if (entry.text) messages.push({ role: "assistant", content: entry.text });
      else {
        messages.pop(); // a question without an answer
        shown = asked;
      }
    }
    return messages;
  }

  function stop() {
    return current?.active ? current.cancel() : null;
  }

  function add(entry) {
    entries.push(entry);
    entry.view = messageView(entry);
    log.append(entry.view.element);
    growth.observe(entry.view.element);
    keep();
  }

  function watch(entry, task) {
    current = task;
    const draw = () => {
      entry.text = task.text;
      entry.pictures = task.job.pictures.map((one) => one.id);
      const waiting = task.active && !task.text;
      const words = waiting ? (entry.kind === "answer" ? waitingWords(task) : statusWords(task)) : "";
      if (!task.active) {
        entry.note = trouble(task) || (entry.kind === "answer" ? figures(task) : "");
        entry.job = null;
        announce(task.text || entry.note || "The picture is finished.");
      }
      entry.view.update({ preview: task.active ? [...task.previews.values()].at(-1) : null, status: words, waiting });
      tab.busy(task);
      if (!task.active || task.job.pictures.length) keep();
    };
    task.addEventListener("change", draw);
    draw();
  }

  async function resume() {
    entries.forEach((entry) => { entry.view = messageView(entry); });
    log.replaceChildren(...entries.map((entry) => entry.view.element));
    entries.forEach((entry) => growth.observe(entry.view.element));
    for (const entry of entries.filter((one) => one.job)) {
      const task = await find(entry.job);
      if (task) watch(entry, task);
      else {
        Object.assign(entry, { job: null, note: "Interrupted: the server no longer knows this task." });
        entry.view.update({});
      }
    }
    keep();
    toEnd();
  }

  byId("chat-clear").addEventListener("click", () => {
    const before = entries;
    if (!before.length) return;
    stop();
    current = null;
    entries = [];
    log.replaceChildren();
    keep();
    notice("Conversation cleared.", { action: "Undo", run: () => { entries = before; resume(); } });
    tab.prompt.focus();
  });

  return Object.assign(tab, {
    input, resume, toEnd, fit,
    use(picture) {
      input.put(picture);
      tab.prompt.focus();
    },
    /** Goes on with a question that was asked elsewhere. */
    talk(picture, question, answer) {
      add({ role: "user", text: question, pictures: [picture.id], kind: "answer" });
      add({ role: "assistant", text: answer, pictures: [], kind: "answer" });
      toEnd();
      tab.prompt.focus();
    },
  });
}

/** What a message asks for: "/draw ..." a picture, "/edit ..." a change of the last one, all else an answer. */
export function wanted(text) {
  const [, command, rest] = /^\/(draw|edit)\b\s*([\s\S]*)$/i.exec(text) ?? [];
  if (!command) return { kind: "answer", rest: text };
  return { kind: command.toLowerCase() === "draw" ? "generate" : "edit", rest: rest.trim() };
}
