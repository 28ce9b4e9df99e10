// One picture, large, with everything that is known of it and can be done with it.

import { actionBar } from "./actions.js";
import { compare } from "./compare.js";
import { byId, fitFrame, iconButton, make } from "./dom.js";
import { scores } from "./scores.js";
import { describe, findPicture, pictures, shelf } from "./shelf.js";
import { bytes, label, when } from "./words.js";

let shown = null;

function rows(picture) {
  const { settings } = picture;
  const size = `${picture.width} × ${picture.height}, ${bytes(picture.bytes)}`;
  const known = settings ? Object.entries(settings).filter(([name, value]) => value !== null && !["width", "height", "task", "source", "image_sha256", "best_of"].includes(name)) : [];
  const seed = settings && "seed" in settings ? [] : picture.seed === null || picture.seed === undefined ? [] : [["Seed", picture.seed]];
  return [["Size", size], ["Made", when(picture.created_at)], ...seed, ...known.map(([name, value]) => [label(name), Array.isArray(value) ? value.join(", ") : String(typeof value === "object" ? JSON.stringify(value) : value)])];
}

function step(by) {
  const at = pictures.findIndex((one) => one.id === shown.id);
  const next = pictures[at + by];
  if (at >= 0 && next) openViewer(next);
}

function render() {
  const picture = shown;
  const at = pictures.findIndex((one) => one.id === picture.id);
  const dialog = byId("viewer");
  const image = picture.source
    ? compare(`/v1/pictures/${picture.source}/content`, picture.url, { id: "viewer-compare", alt: describe(picture) })
    : make("img", { id: "viewer-image", src: picture.url, alt: describe(picture) });
  if (picture.source) image.querySelector("img").id = "viewer-image";
  const move = (name, words, by) => iconButton(name === "previous" ? "left" : "right", words,
    { id: `viewer-${name}`, class: `turn ${name}`, disabled: at < 0 || !pictures[at + by], onclick: () => { step(by); byId(`viewer-${name}`).focus(); } }, false);
  const frame = make("div", { class: "frame" }, image);
  fitFrame(frame, picture.width, picture.height);
  dialog.replaceChildren(
    make("div", { class: "viewer-picture" }, move("previous", "Newer picture", -1), frame, move("next", "Older picture", 1)),
    make("div", { class: "viewer-side" },
      iconButton("close", "Close", { id: "viewer-close", class: "close", onclick: () => dialog.close() }, false),
      make("h2", {}, describe(picture)),
      actionBar(picture, { prefix: "viewer", done: () => dialog.close() }),
      make("dl", { id: "viewer-settings" }, rows(picture).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))), scores(picture)));
}

/** Opens a picture; it stays until the user chooses another, whatever is drawn meanwhile. */
export function openViewer(picture) {
  const dialog = byId("viewer");
  shown = picture;
  render();
  if (!dialog.open) {
    dialog.showModal();
    byId("viewer-close").focus();
  }
}

export function startViewer() {
  const dialog = byId("viewer");
  dialog.addEventListener("keydown", (event) => {
    if (event.target.type === "range") return; // arrows move its edge
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      step(event.key === "ArrowLeft" ? -1 : 1);
      byId("viewer-close").focus();
    }
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  shelf.addEventListener("change", () => {
    if (!dialog.open) return;
    const at = pictures.findIndex((one) => one.id === shown.id);
    if (findPicture(shown.id)) for (const [name, by] of [["previous", -1], ["next", 1]]) byId(`viewer-${name}`).disabled = !pictures[at + by];
  });
}
