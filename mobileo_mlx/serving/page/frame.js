// Around the tabs: switching them, the theme, the keys, the API key, and whether the server is there.

import { connection, onKeyNeeded } from "./api.js";
import { byId, icon, kept, make, show } from "./dom.js";

export const TABS = ["draw", "ask", "edit", "chat"];
const THEMES = ["system", "light", "dark"];
const APPLE = /Mac|iPhone|iPad/.test(navigator.platform);
export const RUN_KEYS = APPLE ? "⌘ ↵" : "Ctrl ↵";

export const shownTab = () => TABS.find((name) => byId(`tab-${name}`).getAttribute("aria-selected") === "true");

/** Shows a tab; "tab" is dispatched on the document. */
export function openTab(name) {
  for (const one of TABS) {
    const selected = one === name, button = byId(`tab-${one}`);
    button.setAttribute("aria-selected", String(selected));
    button.tabIndex = selected ? 0 : -1;
    show(byId(`panel-${one}`), selected);
  }
  document.body.dataset.tab = name;
  kept.set("tab", name);
  document.dispatchEvent(new Event("tab"));
}

export function startTabs() {
  for (const [i, name] of TABS.entries()) {
    const button = byId(`tab-${name}`);
    button.addEventListener("click", () => openTab(name));
    button.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: TABS.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = TABS[(to + TABS.length) % TABS.length];
      openTab(next);
      byId(`tab-${next}`).focus();
    });
  }
  const wished = location.hash.slice(1);
  openTab(TABS.includes(wished) ? wished : kept.get("tab", "draw"));
}

export function startTheme() {
  const button = byId("theme-button");
  const root = document.documentElement;
  const draw = () => {
    const theme = root.dataset.theme ?? "system";
    const words = `Theme: ${theme === "system" ? "as the system" : theme}`;
    button.replaceChildren(icon({ system: "system", light: "sun", dark: "moon" }[theme]));
    button.setAttribute("aria-label", words);
    button.title = words;
  };
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "system") + 1) % THEMES.length];
    if (next === "system") delete root.dataset.theme;
    else root.dataset.theme = next;
    kept.set("theme", next === "system" ? null : next);
    draw();
  });
  draw();
}

/** `run` and `stop` are those of the tab that is shown. */
export function startKeys({ run, stop, prompt }) {
  const dialog = byId("keys"), button = byId("keys-button");
  button.append(icon("keys"));
  const list = [[RUN_KEYS, "Draw, ask, edit or send"], ["Esc", "Stop the task; close what is open"], ["/", "Write the prompt"],
    ["Alt 1 … Alt 4", "Draw, Ask, Edit, Chat"], ["← → ↑ ↓", "Move on the shelf, and between pictures"], ["Enter", "Open a picture of the shelf"],
    ["Del", "Delete a picture of the shelf"], ["?", "This list"]];
  dialog.append(make("h2", { id: "keys-title" }, "Keys"),
    make("dl", { class: "keys" }, list.map(([key, words]) => make("div", {}, make("dt", {}, make("kbd", {}, key)), make("dd", {}, words)))),
    make("p", { class: "hint" }, "Drop a picture of ours anywhere: the settings it was made with are restored."),
    make("form", { method: "dialog", class: "go" }, make("button", { class: "primary" }, "Close")));
  button.addEventListener("click", () => dialog.showModal());
  document.querySelectorAll(".go .primary kbd").forEach((element) => { element.textContent = RUN_KEYS; });

  document.addEventListener("keydown", (event) => {
    const open = document.querySelector("dialog[open]");
    const writing = event.target.matches("textarea, select, input:not([type=range], [type=radio])");
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !open) {
      event.preventDefault();
      run();
    } else if (event.key === "Escape" && !open && !byId("queue").matches(":popover-open")) stop();
    else if (event.altKey && /^Digit[1-4]$/.test(event.code) && !open) {
      event.preventDefault();
      openTab(TABS[Number(event.code.at(-1)) - 1]);
    } else if (!writing && !open && !event.ctrlKey && !event.metaKey && !event.altKey) {
      if (event.key === "/") {
        event.preventDefault();
        prompt();
      } else if (event.key === "?") dialog.showModal();
    }
  });
}

export function startConnection({ back }) {
  const banner = byId("banner");
  const say = (words) => { banner.textContent = words; show(banner, Boolean(words)); };
  connection.addEventListener("down", () => say("The server does not answer. What you wrote is kept; trying again…"));
  connection.addEventListener("up", () => { say(""); back(); });

  onKeyNeeded((wrong) => new Promise((done) => {
    const dialog = byId("key-dialog"), input = byId("key-input");
    show(byId("key-wrong"), wrong);
    input.value = "";
    if (!dialog.open) dialog.showModal();
    input.focus();
    const form = byId("key-form");
    const stay = (event) => event.preventDefault(); // without a key nothing works
    dialog.addEventListener("cancel", stay);
    form.addEventListener("submit", () => {
      dialog.removeEventListener("cancel", stay);
      done(input.value.trim());
    }, { once: true });
  }));
}
