// Best of several candidates: how many are drawn of each picture, and whether drawing stops at the first that passes.

import { make, show } from "./dom.js";
import { limit, taskOptions } from "./info.js";
import { optionField } from "./option_field.js";

const NUMBERS = [1, 2, 4, 8];

/** Null where the server knows no such options. */
export function bestOfField(tab, task) {
  const [bestOf, untilPass] = ["best_of", "until_pass"].map((name) => taskOptions(task).find((option) => option.name === name));
  if (!bestOf || !untilPass) return null;
  const id = `${tab}-best_of`;
  const numbers = NUMBERS.filter((n) => n <= Math.min(limit("max_n"), bestOf.maximum));
  const control = make("select", { id, "aria-describedby": `${id}-help`, onchange: () => show(stop.element, control.value !== "1") },
    numbers.map((n) => make("option", { value: n }, n === 1 ? "1 (no choice)" : n)));
  const stop = optionField(tab, { ...untilPass, help: "Draws one candidate after the other, and stops at the first that passes." });
  show(stop.element, false);
  const element = make("div", { class: "field" }, make("label", { class: "label", htmlFor: id }, "Best of"), control,
    make("small", { id: `${id}-help`, class: "hint" }, "Draws so many candidates of each picture, asks the model about each, and keeps the best; it takes as many times as long."),
    stop.element);
  return {
    element,
    /** What goes into the request. */
    values: () => (control.value === "1" ? {} : { best_of: Number(control.value), ...(stop.value() ? { until_pass: true } : {}) }),
    /** A picture that was kept is drawn again by its own seed. */
    reset() {
      control.value = "1";
      stop.set(null);
      show(stop.element, false);
    },
  };
}
