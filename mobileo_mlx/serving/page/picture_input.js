// A place for a picture: dropped, pasted, chosen as a file, taken by the camera, or from the shelf.

import { byId, icon, iconButton, make, notice } from "./dom.js";
import { TYPE, describe, loadPicture, upload } from "./shelf.js";

/** Fills the place of a tab; at most `most` pictures. `pictures` of what is returned are those chosen; "change" follows each change. */
export function pictureInput(tab, { most = 1, small = false } = {}) {
  const input = Object.assign(new EventTarget(), { pictures: [] });
  const host = byId(`${tab}-picture`);

  const picker = (id, extra) => make("input", { id, type: "file", accept: "image/*", class: "hidden", tabIndex: -1, multiple: most > 1, ...extra,
    onchange: (event) => { take([...event.target.files]); event.target.value = ""; } });
  const file = picker(`${tab}-picture-file`, { "aria-label": "Picture file" });
  const camera = picker(`${tab}-picture-camera`, { "aria-label": "Picture from the camera", capture: "environment", multiple: false });
  const buttons = make("div", { class: "input-buttons" },
    iconButton("file", small ? "Add a picture" : "Choose a file", { onclick: () => file.click() }, !small),
    iconButton("camera", "Camera", { class: "camera", onclick: () => camera.click() }, !small));
  const list = make("div", { class: "chosen" });
  const hint = make("p", { class: "hint" }, "Drop or paste a picture, or drag one from the shelf");
  const body = small ? [list, buttons] : [list, hint, buttons];
  host.append(file, camera, make("div", { class: "input-body" }, body));

  function render() {
    list.replaceChildren(...input.pictures.map((picture) => make("figure", { class: "pick", testid: "picture-chosen", data: { id: picture.id } },
      make("img", { src: small ? picture.thumbnail_url : picture.url, alt: describe(picture), draggable: false }),
      make("button", { type: "button", class: "quiet square", testid: "picture-remove", "aria-label": "Remove the picture", onclick: () => drop(picture) }, icon("close")))));
    host.classList.toggle("filled", input.pictures.length > 0);
    input.dispatchEvent(new Event("change"));
  }
  function drop(picture) {
    input.pictures = input.pictures.filter((one) => one !== picture);
    render();
  }
  function put(picture) {
    input.pictures = [...input.pictures.filter((one) => one.id !== picture.id), picture].slice(-most);
    render();
  }
  async function take(files) {
    for (const one of files.slice(0, most)) {
      host.classList.add("loading");
      try {
        put(await upload(one));
      } catch (problem) {
        notice(`${one.name || "The picture"}: ${problem.message}`, { error: true });
      } finally {
        host.classList.remove("loading");
      }
    }
  }

  host.addEventListener("dragover", (event) => { event.preventDefault(); host.classList.add("over"); });
  host.addEventListener("dragleave", () => host.classList.remove("over"));
  host.addEventListener("drop", async (event) => {
    event.preventDefault();
    event.stopPropagation();
    host.classList.remove("over");
    document.dispatchEvent(new Event("drop-handled"));
    const id = event.dataTransfer.getData(TYPE);
    const picture = id ? await loadPicture(id) : null;
    if (picture) put(picture);
    else take([...event.dataTransfer.files]);
  });

  return Object.assign(input, {
    put, take,
    clear: () => { input.pictures = []; render(); },
    focus: () => buttons.firstChild.focus(),
  });
}

/** How a request refers to a picture of the shelf. */
export const reference = (picture) => `picture:${picture.id}`;
