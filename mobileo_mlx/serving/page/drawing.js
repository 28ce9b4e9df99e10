// The tabs Draw and Edit: a form, and the stage on which its jobs are shown.

import { Problem } from "./api.js";
import { byId, notice } from "./dom.js";
import { offerExamples } from "./examples.js";
import { makeFields } from "./fields.js";
import { modelName } from "./info.js";
import { activeTasks, queue, start } from "./jobs.js";
import { pictureInput, reference } from "./picture_input.js";
import { runView } from "./run_view.js";
import { findPicture, loadPicture } from "./shelf.js";
import { NARROW, makeTab } from "./tab.js";

/** Makes Draw ("draw", "generate") or Edit ("edit", "edit"). */
export function makeDrawing(name, task) {
  const input = name === "edit" ? pictureInput(name) : null;
  const fields = makeFields(name, task, byId(`${name}-fields`));
  const stage = byId(`${name}-result`);
  const view = runView(name, stage);
  const tab = makeTab(name, { run, stop });
  offerExamples(name, stage, (text) => { tab.setPrompt(text); tab.prompt.focus(); });
  tab.onRefused = (problem) => fields.point(problem.param);

  async function run() {
    const prompt = tab.prompt.value.trim();
    if (input && !input.pictures.length) {
      input.focus();
      throw new Problem("Choose the picture to edit first.");
    }
    if (!prompt) {
      tab.prompt.focus();
      throw new Problem(input ? "Say what should change." : "Say what the picture should show.");
    }
    const body = { task, prompt, previews: 4, ...fields.values(), ...(input ? { image: reference(input.pictures[0]) } : {}) };
    const started = await start(name, body);
    fields.seed.next();
    if (view.task?.active) notice("Added to the queue.");
    else put(started);
  }

  function stop() {
    return view.task?.active ? view.task.cancel() : null;
  }

  function put(started) {
    view.show(started);
    tab.busy(started);
    if (!started.active) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (NARROW.matches) stage.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  }

  // The next of one's own jobs comes to the stage when the one that is there has ended; nothing else moves what is shown.
  queue.addEventListener("change", () => {
    tab.busy(view.task);
    if (view.task?.active) return;
    const next = activeTasks().find((one) => one.tab === name && one.job.status === "generating" && one !== view.task);
    if (next) {
      next.follow();
      put(next);
    }
  });

  return Object.assign(tab, {
    show: put,
    input,
    fields,
    /** Takes a picture as input of an edit. */
    use(picture) {
      input.put(picture);
      tab.prompt.focus();
    },
    /** Sets everything as a picture was made, and says what differs. */
    async restore(settings, source = null) {
      tab.setPrompt(settings.prompt);
      fields.restore(settings);
      if (input && source) {
        const picture = findPicture(source) ?? await loadPicture(source);
        if (picture) input.put(picture);
        else notice("The picture that was edited is no longer there; choose it again.", { error: true });
      } else if (input && !input.pictures.length) notice("Choose the picture that was edited; its file is not part of the settings.");
      const made = settings.model, here = modelName();
      const other = made && here && shortName(made) !== shortName(here) ? ` It was made with the model ${made}; this server runs ${here}, so it will look different.` : "";
      const reduced = settings.quantize ? " Its model was quantized." : "";
      notice(`Settings restored.${other || reduced}`);
      byId(`${name}-run`).focus();
    },
  });
}

const shortName = (model) => String(model).split("/").at(-1);
