// Before and after: two pictures over each other, with an edge that pointer and keyboard move.

import { make } from "./dom.js";

/** The element. A range control lies over it: browsers give that to pointers, keys and screen readers alike. */
export function compare(before, after, { id, alt = "" } = {}) {
  const edge = make("input", { type: "range", min: 0, max: 100, value: 50, step: 1, id, testid: "compare", "aria-label": "Before and after" });
  const box = make("div", { class: "compare" },
    make("img", { src: after, alt, draggable: false }),
    make("img", { src: before, alt: "Before the edit", class: "before", draggable: false }),
    make("span", { class: "edge", "aria-hidden": "true" }, make("span", {})),
    make("span", { class: "tag left", "aria-hidden": "true" }, "Before"),
    make("span", { class: "tag right", "aria-hidden": "true" }, "After"),
    edge);
  const move = () => {
    box.style.setProperty("--edge-x", `${edge.value}%`);
    box.classList.toggle("all-after", edge.value < 14);
    box.classList.toggle("all-before", edge.value > 86);
    edge.setAttribute("aria-valuetext", `${edge.value} % before, ${100 - edge.value} % after`);
  };
  edge.addEventListener("input", move);
  move();
  return box;
}
