// The tab Ask: one picture, one question, the answer as it comes.

import { takers } from "./actions.js";
import { answerFields, figures, trouble, userMessage, waitingWords } from "./answering.js";
import { Problem } from "./api.js";
import { announce, byId, iconButton, make, notice, show } from "./dom.js";
import { offerExamples } from "./examples.js";
import { start } from "./jobs.js";
import { pictureInput } from "./picture_input.js";
import { describe, loadPicture } from "./shelf.js";
import { makeTab } from "./tab.js";

export function makeAsk() {
  const input = pictureInput("ask");
  const values = answerFields("ask", byId("ask-fields"));
  const stage = byId("ask-result");
  const tab = makeTab("ask", { run, stop, enterRuns: true });
  let current = null;
  offerExamples("ask", stage, (text) => { tab.setPrompt(text); tab.prompt.focus(); });

  async function run() {
    const question = tab.prompt.value.trim();
    if (!input.pictures.length) {
      input.focus();
      throw new Problem("Choose the picture that the question is about.");
    }
    if (!question) {
      tab.prompt.focus();
      throw new Problem("Write a question.");
    }
    const [picture] = input.pictures;
    put(await start("ask", { task: "answer", messages: [userMessage(question, [picture])], ...values() }), question, picture);
  }

  function stop() {
    return current?.active ? current.cancel() : null;
  }

  function put(task, question, picture) {
    current = task;
    // Only the newest has the names that tests and readers look for.
    for (const id of ["ask-status", "ask-figures"]) byId(id)?.removeAttribute("id");
    const status = make("p", { id: "ask-status", class: "status" });
    const text = make("p", { class: "answer", testid: "answer" });
    const facts = make("p", { id: "ask-figures", class: "hint" });
    const copy = iconButton("copy", "Copy", { onclick: () => copyText(task.text) });
    const inChat = picture && iconButton("chat", "Go on in chat", { onclick: () => takers.talk(picture, question, task.text) });
    const actions = make("div", { class: "actions" }, copy, inChat);
    stage.querySelector(".empty")?.remove();
    stage.prepend(make("article", { class: "exchange" },
      picture && make("img", { src: picture.thumbnail_url, alt: describe(picture) }),
      make("div", {}, make("h2", {}, question), text, status, facts, actions)));
    const draw = () => {
      if (text.textContent !== task.text) text.textContent = task.text;
      const words = task.active ? (task.text ? "" : waitingWords(task)) : trouble(task);
      status.textContent = words;
      show(status, Boolean(words));
      status.classList.toggle("bad", !task.active && task.job.status !== "cancelled" && Boolean(words));
      facts.textContent = task.active ? "" : figures(task);
      show(actions, !task.active && Boolean(task.text));
      if (task === current) tab.busy(task);
      if (!task.active) announce(words || task.text);
    };
    task.addEventListener("change", draw);
    draw();
  }

  return Object.assign(tab, {
    input,
    use(picture) {
      input.put(picture);
      tab.prompt.focus();
    },
    /** Goes on showing a job that was found on the server. */
    async show(task) {
      const { question, id } = questionOf(task.job);
      put(task, question, id ? await loadPicture(id) : null);
    },
  });
}

function questionOf(job) {
  const content = job.request?.messages?.at(-1)?.content ?? "";
  const parts = Array.isArray(content) ? content : [{ type: "text", text: content }];
  const url = parts.find((part) => part.type === "image_url")?.image_url;
  const reference = typeof url === "string" ? url : url?.url ?? "";
  return { question: parts.find((part) => part.type === "text")?.text ?? "", id: reference.startsWith("picture:") ? reference.slice(8) : null };
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    notice("Copied.");
  } catch {
    notice("The browser did not allow to copy; select the text instead.", { error: true });
  }
}
