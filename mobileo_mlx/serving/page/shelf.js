// The shelf: the server's pictures, newest first, shared by all tabs.

import { get, request } from "./api.js";
import { announce, byId, make, notice, show } from "./dom.js";

const PAGE = 40;
export const TYPE = "application/x-mobileo-picture"; // of a picture that is dragged

/** What is on the shelf, newest first. */
export const pictures = [];
/** "change" after something was added or removed. */
export const shelf = new EventTarget();

let more = true;
let loading = null;
let open = () => {};
const deleted = new Set(); // here, so that an answer on its way does not bring one back
const byIdOf = new Map(); // element by picture's id

export const describe = (picture) => picture.settings?.prompt || (picture.kind === "uploaded" ? "Uploaded picture" : "Picture");

export function findPicture(id) {
  return pictures.find((one) => one.id === id) ?? null;
}

/** A picture by id, from the shelf or the server; null where it is gone. */
export async function loadPicture(id) {
  return findPicture(id) ?? await get(`/v1/pictures/${id}`).catch(() => null);
}

/** The properties of an element by which its picture is dragged to where one is wanted. */
export const dragged = (picture) => ({ draggable: true, ondragstart: (event) => {
  event.dataTransfer.setData(TYPE, picture.id);
  event.dataTransfer.effectAllowed = "copy";
} });

/** Whether it was deleted here. */
export const isDeleted = (picture) => deleted.has(picture.id);

function thumbnail(picture) {
  const button = make("button", { type: "button", class: "thumb", testid: "shelf-picture", tabIndex: -1, data: { id: picture.id },
    title: describe(picture), onclick: () => open(picture), ...dragged(picture) },
  make("img", { src: picture.thumbnail_url, alt: describe(picture), loading: "lazy", decoding: "async", draggable: false }));
  const element = make("li", {}, button);
  byIdOf.set(picture.id, element);
  return element;
}

function changed() {
  const list = byId("shelf");
  const buttons = [...list.querySelectorAll("button.thumb")];
  if (buttons.length && !buttons.some((button) => button.tabIndex === 0)) buttons[0].tabIndex = 0;
  show(byId("shelf-empty"), !pictures.length && !more);
  shelf.dispatchEvent(new Event("change"));
}

// Ids begin with the time, more exactly than `created_at`.
const isNewer = (one, other) => one.created_at > other.created_at || (one.created_at === other.created_at && one.id > other.id);

/** Puts a picture in its place by age; nothing else moves and nothing is selected. */
export function add(picture) {
  if (findPicture(picture.id)) return;
  const at = pictures.findIndex((one) => isNewer(picture, one));
  const place = at < 0 ? pictures.length : at;
  byId("shelf").insertBefore(thumbnail(picture), byIdOf.get(pictures[place]?.id) ?? null);
  pictures.splice(place, 0, picture);
  changed();
}

/** Reads the newest again, for pictures that were made elsewhere. */
export async function refreshShelf() {
  const known = [...pictures]; // what comes meanwhile is not in the answer
  const found = await get(`/v1/pictures?limit=${PAGE}`);
  if (!pictures.length) more = found.has_more ?? found.data.length === PAGE;
  const there = new Set(found.data.map((one) => one.id)), oldest = found.data.at(-1);
  known.filter((one) => !there.has(one.id) && (!oldest || isNewer(one, oldest))).forEach(forget); // deleted elsewhere
  found.data.reverse().filter((one) => !deleted.has(one.id)).forEach(add);
  changed();
}

async function loadMore() {
  if (loading || !more || !pictures.length) return;
  loading = get(`/v1/pictures?limit=${PAGE}&before=${pictures.at(-1).id}`);
  try {
    const found = await loading;
    more = found.has_more ?? found.data.length === PAGE;
    for (const picture of found.data) {
      if (findPicture(picture.id)) continue;
      pictures.push(picture);
      byId("shelf").append(thumbnail(picture));
    }
    changed();
  } catch { /* tried again at the next scroll */ } finally {
    loading = null;
  }
}

/** Uploads a file; resolves to its picture, which is on the shelf then. */
export async function upload(file) {
  const picture = await request("POST", "/v1/pictures", { body: file, headers: { "Content-Type": file.type || "application/octet-stream" } });
  add(picture);
  return picture;
}

function forget(picture) {
  byIdOf.get(picture.id)?.remove();
  byIdOf.delete(picture.id);
  const at = pictures.findIndex((one) => one.id === picture.id);
  if (at >= 0) pictures.splice(at, 1);
}

/** Deletes a picture, with a notice that brings it back. */
export async function remove(picture) {
  await request("DELETE", `/v1/pictures/${picture.id}`);
  const element = byIdOf.get(picture.id);
  const hadFocus = element?.contains(document.activeElement);
  const next = element?.nextElementSibling ?? element?.previousElementSibling;
  deleted.add(picture.id);
  forget(picture);
  changed();
  if (hadFocus) focus(next?.querySelector("button"));
  notice("Picture deleted.", { action: "Undo", run: async () => {
    try {
      await request("POST", `/v1/pictures/${picture.id}/restore`);
      deleted.delete(picture.id);
      add(picture);
      announce("The picture is back.");
    } catch (problem) {
      notice(problem.message, { error: true });
    }
  } });
}

function focus(button) {
  if (!button) return;
  byId("shelf").querySelectorAll("[tabindex='0']").forEach((one) => { one.tabIndex = -1; });
  button.tabIndex = 0;
  button.focus();
  button.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function onKey(event) {
  const buttons = [...byId("shelf").querySelectorAll("button.thumb")];
  const at = buttons.indexOf(event.target);
  if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
  const top = buttons[0].offsetTop;
  const columns = Math.max(1, buttons.findIndex((button) => button.offsetTop > top));
  const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns, Home: 0, End: buttons.length - 1 };
  if (event.key in moves) {
    event.preventDefault();
    focus(buttons[Math.min(buttons.length - 1, Math.max(0, moves[event.key]))]);
    if (moves[event.key] >= buttons.length - columns) loadMore();
  } else if (event.key === "Delete" || event.key === "Backspace") {
    event.preventDefault();
    remove(findPicture(event.target.dataset.id)).catch((problem) => notice(problem.message, { error: true }));
  }
}

/** Sets what opens a picture, and loads more when the end of the shelf comes into view. */
export function startShelf(openPicture) {
  open = openPicture;
  const list = byId("shelf");
  list.addEventListener("keydown", onKey);
  const end = make("div", { class: "shelf-end", "aria-hidden": "true" });
  new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && loadMore(), { root: null, rootMargin: "300px" }).observe(end);
  list.after(end);
}
