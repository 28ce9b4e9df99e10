// Pictures that are dropped or pasted anywhere: settings of ours are restored, others go to the tab that takes them.

import { byId, notice, show } from "./dom.js";
import { settingsOf } from "./settings_file.js";
import { TYPE, loadPicture, upload } from "./shelf.js";
import { openViewer } from "./viewer.js";

const images = (data) => [...(data?.files ?? [])].filter((file) => file.type.startsWith("image/") || /\.(heic|heif|png|jpe?g|webp)$/i.test(file.name));

export function startDropping({ tabs, restore, shownTab }) {
  const veil = byId("dropping");
  let depth = 0;
  const leave = () => { depth = 0; show(veil, false); };
  const carries = (event) => [...event.dataTransfer.types].some((type) => type === "Files" || type === TYPE);

  async function take(files) {
    const [file] = files;
    const settings = await settingsOf(file);
    if (settings) return restore(settings);
    const { input } = tabs[shownTab()];
    if (input) return input.take(files);
    try {
      openViewer(await upload(file));
    } catch (problem) {
      notice(`${file.name}: ${problem.message}`, { error: true });
    }
  }

  document.addEventListener("dragenter", (event) => {
    if (!carries(event)) return;
    depth++;
    show(veil, ![...event.dataTransfer.types].includes(TYPE));
  });
  document.addEventListener("dragleave", () => { if (--depth <= 0) leave(); });
  document.addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
  document.addEventListener("drop-handled", leave);
  document.addEventListener("dragend", leave);
  document.addEventListener("drop", async (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    leave();
    const id = event.dataTransfer.getData(TYPE);
    const picture = id && await loadPicture(id);
    const files = images(event.dataTransfer);
    if (picture) tabs[shownTab()].input?.put(picture);
    else if (files.length) take(files);
    else notice("That is no picture.", { error: true });
  });
  document.addEventListener("paste", (event) => {
    const files = images(event.clipboardData);
    if (!files.length) return;
    event.preventDefault();
    // A picture from the clipboard is meant as one; only in Draw, which takes none, are its settings wanted.
    const { input } = tabs[shownTab()];
    if (input) input.take(files);
    else take(files);
  });
}
