// What the four tabs share: running by button and by keys, stopping, and saying what was refused.

import { byId, kept, notice, show } from "./dom.js";

/** One column, as the stylesheet has it. */
export const NARROW = matchMedia("(max-width: 859px)");

/** Wires a tab's form: `run()` is called for its button and Ctrl-Enter, `stop()` for its stop button and Esc. */
export function makeTab(name, { run, stop, enterRuns = false }) {
  const form = byId(`${name}-form`), prompt = byId(`${name}-prompt`), error = byId(`${name}-error`);
  let starting = false;

  function refuse(problem) {
    error.textContent = problem?.message ?? "";
    show(error, Boolean(problem));
  }
  async function go() {
    if (starting) return;
    starting = true;
    refuse(null);
    try {
      await run();
    } catch (problem) {
      refuse(problem);
      if (problem.name === "TypeError") throw problem; // a mistake of the page, for its console
      tab.onRefused?.(problem);
    } finally {
      starting = false;
    }
  }
  form.noValidate = true;
  // On a phone the button and the result come before the options.
  const fields = byId(`${name}-fields`);
  const place = () => (NARROW.matches ? form.parentElement.append(fields) : form.insertBefore(fields, form.querySelector(".go")));
  if (fields) {
    place();
    NARROW.addEventListener("change", place);
  }
  form.addEventListener("submit", (event) => { event.preventDefault(); go(); });
  prompt.addEventListener("keydown", (event) => {
    const plain = event.key === "Enter" && !event.shiftKey && !event.isComposing;
    if (plain && enterRuns) { event.preventDefault(); go(); }
  });
  prompt.value = kept.get(`${name}-prompt`, "");
  prompt.addEventListener("input", () => { kept.set(`${name}-prompt`, prompt.value); refuse(null); });
  const halt = () => stop()?.catch?.((problem) => notice(problem.message, { error: true }));
  byId(`${name}-stop`).addEventListener("click", halt);

  const tab = {
    name, form, prompt, run: go, stop: halt, refuse,
    setPrompt(text) {
      prompt.value = text;
      prompt.dispatchEvent(new Event("input"));
    },
    /** Shows the stop button while a task runs. */
    busy(task) {
      const button = byId(`${name}-stop`);
      show(button, Boolean(task?.active));
      button.disabled = Boolean(task?.stopping);
    },
  };
  return tab;
}
