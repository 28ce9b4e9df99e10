// One message of the conversation.

import { make, show } from "./dom.js";
import { describe, dragged, loadPicture } from "./shelf.js";

/** {element, update({preview, status, waiting})} of an entry of the chat. */
export function messageView(entry) {
  const pictures = make("div", { class: "message-pictures" });
  const text = make("p", { class: "message-text", testid: "message-text" });
  const note = make("p", { class: "hint" });
  const status = make("p", { class: "status" });
  const element = make("article", { class: `message ${entry.role}`, testid: "message", data: { role: entry.role }, "aria-label": entry.role === "user" ? "You" : "Mobile-O" },
    make("div", { class: "bubble" }, pictures, text, status, note));
  let shown = "";

  async function showPictures(preview) {
    const key = entry.pictures.join() || preview || "";
    if (key === shown) return;
    shown = key;
    if (!entry.pictures.length) {
      pictures.replaceChildren(...(preview ? [make("img", { src: preview, alt: "Preview of the picture that is being drawn", class: "preview" })] : []));
      return;
    }
    const found = await Promise.all(entry.pictures.map(loadPicture));
    pictures.replaceChildren(...found.map((picture) => (picture
      ? make("button", { type: "button", class: "open", testid: "message-picture", data: { id: picture.id }, "aria-label": `Open: ${describe(picture)}`, ...dragged(picture),
        onclick: (event) => event.target.dispatchEvent(new CustomEvent("open-picture", { bubbles: true, detail: picture })) },
      make("img", { src: entry.role === "user" ? picture.thumbnail_url : picture.url, alt: describe(picture), draggable: false }))
      : make("p", { class: "hint" }, "A picture that was deleted"))));
  }

  function update({ preview = null, status: words = "", waiting = false }) {
    if (text.textContent !== entry.text) text.textContent = entry.text;
    show(text, Boolean(entry.text));
    status.textContent = words;
    show(status, Boolean(words));
    note.textContent = entry.note ?? "";
    show(note, Boolean(entry.note));
    element.classList.toggle("waiting", waiting);
    showPictures(preview);
  }
  update({});
  return { element, update };
}
