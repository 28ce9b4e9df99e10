// What can be done with each picture, wherever it is shown.

import { announce, icon, iconButton, make, notice } from "./dom.js";
import { describe, remove } from "./shelf.js";

/** Set by the tabs: what takes a picture, by "edit", "ask", "chat", and "again", "seed" for its settings. */
export const takers = {};

const slug = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60) || "picture";

// The server knows the format of what was uploaded.
export const fileName = (picture) =>
  picture.kind === "uploaded" ? "" : `${slug(describe(picture))}${picture.seed === null || picture.seed === undefined ? "" : `-${picture.seed}`}.png`;

async function copy(picture) {
  if (!navigator.clipboard?.write || !window.ClipboardItem) {
    notice("This browser copies pictures only over https or on localhost; download it instead.", { error: true });
    return;
  }
  // The promise is given to the clipboard: Safari forbids to wait before.
  const png = fetch(picture.url).then((answer) => answer.blob()).then(asPng);
  try {
    await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
    notice("Copied.");
  } catch {
    notice("The browser did not allow to copy; download it instead.", { error: true });
  }
}

async function asPng(blob) {
  if (blob.type === "image/png") return blob;
  const bitmap = await createImageBitmap(blob);
  const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

async function discard(picture, done) {
  try {
    await remove(picture);
    done?.();
  } catch (problem) {
    notice(problem.message, { error: true });
  }
}

/** The buttons of a picture, with `words` for what leads to another tab, and for the `rest`. `prefix` gives them ids; `done` is called after one has led elsewhere. */
export function actionBar(picture, { words = true, rest = words, prefix = null, done = () => {} } = {}) {
  const id = (name) => (prefix ? `${prefix}-${name}` : undefined);
  const lead = (name) => () => { done(); takers[name](picture); };
  const made = picture.settings?.prompt;
  return make("div", { class: words ? "actions" : "actions small", role: "group", "aria-label": "With this picture" },
    iconButton("edit", "Edit this", { id: id("edit"), testid: "picture-edit", onclick: lead("edit") }, words),
    iconButton("ask", "Ask about this", { id: id("ask"), testid: "picture-ask", onclick: lead("ask") }, words),
    iconButton("chat", "Use in chat", { id: id("chat"), testid: "picture-chat", onclick: lead("chat") }, words),
    made && iconButton("again", picture.kind === "edited" ? "Edit again" : "Draw again",
      { id: id("again"), testid: "picture-again", onclick: lead("again"), title: "Restore all of its settings" }, words),
    made && iconButton("seed", "Reuse seed", { id: id("seed"), testid: "picture-seed", onclick: () => { takers.seed(picture); announce("Seed set."); } }, rest),
    iconButton("copy", "Copy", { id: id("copy"), testid: "picture-copy", onclick: () => copy(picture) }, rest),
    make("a", { class: rest ? "quiet button" : "quiet button square", id: id("download"), testid: "picture-download", href: picture.url, download: fileName(picture),
      "aria-label": rest ? null : "Download", title: rest ? null : "Download" }, icon("download"), rest && "Download"),
    iconButton("bin", "Delete", { id: id("delete"), testid: "picture-delete", onclick: () => discard(picture, done) }, rest));
}

