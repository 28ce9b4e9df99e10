// The speeds, with what they cost in words: the figures are those that the library declares beside its speeds.

import { make } from "./dom.js";
import { info, taskOptions } from "./info.js";
import { label } from "./words.js";

function words(name, task) {
  const cost = info.capabilities.speed_costs?.[name]?.[task];
  const steps = info.capabilities.speeds[name].steps;
  return cost ? [`${cost.speed.toFixed(1)}× as fast`, `${cost.right} % right`] : [`${steps} steps`];
}

export function speedField(tab, task, onChange) {
  const costs = Object.values(info.capabilities.speed_costs ?? {})[0]?.[task];
  const steps = taskOptions(task).find((option) => option.name === "steps")?.default;
  const all = [["default", "Standard", [`${steps} steps`, costs && `${costs.default_right} % right`]],
    ...Object.keys(info.capabilities.speeds).map((name) => [name, label(name), words(name, task)])];
  const inputs = all.map(([name]) => make("input", { type: "radio", name: `${tab}-speed`, id: `${tab}-speed-${name}`, value: name, checked: name === "default", onchange: () => onChange() }));
  const value = () => inputs.find((input) => input.checked).value;
  const element = make("fieldset", { class: "field" }, make("legend", { class: "label" }, "Speed"),
    make("div", { class: "cards" }, all.map(([name, title, cost], i) =>
      make("label", { class: "card", htmlFor: `${tab}-speed-${name}` }, inputs[i], make("strong", {}, title), cost.filter(Boolean).map((line) => make("small", {}, line))))),
    costs && make("small", { class: "hint" }, `Measured with the small model: of ${costs.n.toLocaleString("en")} ${task === "edit" ? "edits" : "pictures"}, so many did what the text says.`));
  return {
    element,
    value: () => (value() === "default" ? undefined : value()),
    /** The options that the chosen speed stands for. */
    options: () => info.capabilities.speeds[value()] ?? {},
    set: (name) => { inputs.find((input) => input.value === (name ?? "default")).checked = true; onChange(); },
  };
}
