// Width and height: a few shapes of the model's own number of pixels, or any numbers.

import { Problem } from "./api.js";
import { make } from "./dom.js";
import { defaultSize, limit, sizeMultiple } from "./info.js";

const SHAPES = [["Square", 1, 1], ["Landscape", 4, 3], ["Portrait", 3, 4], ["Wide", 16, 9], ["Tall", 9, 16]];

/** Sizes by name, with about as many pixels as the default; equal ones once. */
export function presets([width, height], multiple, maximum) {
  const found = new Map([[`${width}x${height}`, { name: width === height ? "Square" : "Default", width, height }]]);
  for (const [name, across, down] of SHAPES) {
    const unit = Math.sqrt((width * height) / (across * down));
    const side = (part) => Math.min(maximum, Math.max(multiple, Math.round((unit * part) / multiple) * multiple));
    const size = { name, width: side(across), height: side(down) };
    const key = `${size.width}x${size.height}`;
    if (!found.has(key)) found.set(key, size);
  }
  return [...found.values()];
}

export function sizeField(tab) {
  const multiple = sizeMultiple();
  const side = (name, value) => make("input", { id: `${tab}-${name}`, type: "number", min: multiple, step: multiple, value, "aria-label": `${name} in pixels` });
  const width = side("width", defaultSize()[0]), height = side("height", defaultSize()[1]);
  const maximum = Math.floor(Math.min(limit("max_size"), 4096) / multiple) * multiple;
  const buttons = presets(defaultSize(), multiple, maximum).map((size) => {
    const scale = 18 / Math.max(size.width, size.height);
    const shape = make("span", { class: "shape", "aria-hidden": "true" });
    shape.style.width = `${Math.round(size.width * scale)}px`;
    shape.style.height = `${Math.round(size.height * scale)}px`;
    return make("button", { type: "button", class: "chip", testid: "size-preset", data: { size: `${size.width}x${size.height}` },
      title: `${size.width} × ${size.height}`, onclick: () => set(size.width, size.height) }, shape, size.name);
  });
  const mark = () => buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.size === `${width.value}x${height.value}`)));
  function set(across, down) {
    width.value = across ?? defaultSize()[0];
    height.value = down ?? defaultSize()[1];
    mark();
  }
  width.addEventListener("input", mark);
  height.addEventListener("input", mark);
  mark();
  const read = (control, name) => {
    const value = Number(control.value);
    if (!Number.isInteger(value) || value < multiple || value > maximum || value % multiple) {
      throw new Problem(`${name}: a multiple of ${multiple} from ${multiple} to ${maximum}.`, 400, name.toLowerCase());
    }
    return value;
  };
  const element = make("fieldset", { class: "field" }, make("legend", { class: "label" }, "Size"),
    make("div", { class: "chips" }, buttons),
    make("div", { class: "sides" }, width, make("span", { "aria-hidden": "true" }, "×"), height, make("small", {}, "pixels")));
  return { element, set, value: () => ({ width: read(width, "Width"), height: read(height, "Height") }) };
}
