// The beginning: asks the server what it is, makes the four tabs, and looks for jobs that still run.

import { takers } from "./actions.js";
import { get, serverIsUp } from "./api.js";
import { makeAsk } from "./ask.js";
import { makeChat } from "./chat.js";
import { byId, notice } from "./dom.js";
import { makeDrawing } from "./drawing.js";
import { startDropping } from "./dropping.js";
import { openTab, shownTab, startConnection, startKeys, startTabs, startTheme } from "./frame.js";
import { info, loadInfo } from "./info.js";
import { activeTasks, jobs, newest, once, queue, refresh } from "./jobs.js";
import { startQueue } from "./queue.js";
import { showServer } from "./server.js";
import { add, refreshShelf, startShelf } from "./shelf.js";
import { openViewer, startViewer } from "./viewer.js";

const tabs = {};

function lead(name, act) {
  return (...given) => {
    openTab(name);
    act(tabs[name], ...given);
  };
}

function restore(settings, source = null) {
  const name = settings.task === "edit" ? "edit" : "draw";
  openTab(name);
  tabs[name].restore(settings, source);
}

Object.assign(takers, {
  edit: lead("edit", (tab, picture) => tab.use(picture)),
  ask: lead("ask", (tab, picture) => tab.use(picture)),
  chat: lead("chat", (tab, picture) => tab.use(picture)),
  talk: lead("chat", (tab, ...given) => tab.talk(...given)),
  again: (picture) => restore({ seed: picture.seed, ...picture.settings }, picture.source),
  seed: (picture) => {
    const name = shownTab() === "edit" ? "edit" : "draw";
    tabs[name].fields.seed.set(picture.settings?.seed ?? picture.seed);
    notice(`The next picture is drawn with seed ${picture.settings?.seed ?? picture.seed}.`);
  },
});

/** Puts a job of the queue on the stage of its tab. */
function showTask(task) {
  const name = task.tab ?? (task.job.task === "edit" ? "edit" : "draw");
  if (name === "chat") return openTab("chat");
  openTab(name);
  task.follow();
  tabs[name].show(task);
}

// What is known is asked again while something runs, and now and then for what others do.
async function keepUp() {
  for (;;) {
    const busy = activeTasks().length > 0;
    await once(queue, "free", document.hidden ? 15_000 : busy ? 1_500 : serverIsUp() ? 6_000 : 2_000);
    try {
      if (await refresh() || !busy) await refreshShelf();
      showServer(await get("/v1/info"));
    } catch { /* the banner says it */ }
  }
}

async function resume() {
  await refresh();
  for (const name of ["draw", "edit", "ask"]) {
    const task = activeTasks().find((one) => one.tab === name) ?? await newest(name);
    if (!task) continue;
    task.follow();
    await tabs[name].show(task);
  }
  await tabs.chat.resume();
}

async function begin() {
  startTabs();
  startTheme();
  startConnection({ back: () => { refresh().catch(() => {}); refreshShelf().catch(() => {}); } });
  startKeys({ run: () => tabs[shownTab()]?.run(), stop: () => tabs[shownTab()]?.stop(), prompt: () => byId(`${shownTab()}-prompt`).focus() });
  for (;;) {
    try {
      await loadInfo();
      break;
    } catch {
      await new Promise((done) => setTimeout(done, 2_000));
    }
  }
  Object.assign(tabs, { draw: makeDrawing("draw", "generate"), ask: makeAsk(), edit: makeDrawing("edit", "edit"), chat: makeChat() });
  showServer(info);
  startShelf(openViewer);
  startViewer();
  startQueue(showTask);
  document.addEventListener("open-picture", (event) => openViewer(event.detail));
  document.addEventListener("tab", () => { if (shownTab() === "chat") { tabs.chat.fit(); tabs.chat.toEnd(); } });
  startDropping({ tabs, restore, shownTab });
  const followed = new WeakSet();
  queue.addEventListener("change", () => {
    for (const task of jobs.values()) {
      if (followed.has(task)) continue;
      followed.add(task);
      task.addEventListener("picture", ({ detail }) => {
        add(detail);
        if (detail.warning) notice(detail.warning, { error: true });
      });
    }
  });
  await Promise.all([refreshShelf(), resume()]);
  showServer(info);
  document.documentElement.dataset.ready = "";
  keepUp();
}

begin();
