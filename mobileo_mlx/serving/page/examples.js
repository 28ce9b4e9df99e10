// What to try first: on an empty stage, until there is something on it.

import { make } from "./dom.js";
import { modelName } from "./info.js";

// The bundled model knows coloured shapes alone; its card says which.
const SHAPES = {
  draw: ["a red circle above a blue square", "three yellow stars on a cyan background", "a black star and a pink cross"],
  ask: ["what color is the star?", "how many objects are there?", "describe the image."],
  edit: ["make the star blue", "change the background to gray", "add a blue square"],
};
const ANYTHING = {
  draw: ["a lighthouse on a cliff in morning fog", "a still life with oranges, oil painting", "a red fox asleep in the snow"],
  ask: ["What is in this picture?", "Describe the light and the colours.", "How many people are there?"],
  edit: ["make it winter", "turn it into a watercolour", "add a small boat"],
};

/** Fills an empty stage; `use(text)` takes an example. */
export function offerExamples(tab, stage, use) {
  const texts = (modelName().split("/").at(-1) === "tiny" ? SHAPES : ANYTHING)[tab];
  stage.replaceChildren(make("div", { class: "empty" },
    make("img", { src: "/page/icon.svg", alt: "", width: 44, height: 44 }),
    make("p", {}, stage.dataset.empty),
    make("div", { class: "chips" }, texts.map((text) => make("button", { type: "button", class: "chip", testid: "example", onclick: () => use(text) }, text)))));
}
