// The options of drawing or editing as controls: seed, size and speed in forms of their own, all others as they come.

import { bestOfField } from "./best_of_field.js";
import { byId, make } from "./dom.js";
import { info, limit, taskOptions } from "./info.js";
import { optionField } from "./option_field.js";
import { seedField } from "./seed_field.js";
import { sizeField } from "./size_field.js";
import { speedField } from "./speed_field.js";

const OWN_FORM = new Set(["seed", "width", "height", "speed", "best_of", "until_pass"]);
const OPEN = { draw: ["negative_prompt"], edit: ["strength"] }; // not behind the fold
const MOST = 8; // pictures of one run

export function makeFields(tab, task, host) {
  const known = taskOptions(task).filter((option) => !OWN_FORM.has(option.name));
  const fields = known.map((option) => optionField(tab, option));
  const of = (name) => fields.find((field) => field.name === name);
  const seed = seedField(tab), size = sizeField(tab), bestOf = bestOfField(tab, task);
  const speed = speedField(tab, task, () => fields.forEach((field) => field.assume(speed.options()[field.name] ?? null)));
  const n = make("select", { id: `${tab}-n` }, Array.from({ length: Math.min(MOST, limit("max_n")) }, (_, i) => make("option", { value: i + 1 }, i + 1)));
  const open = OPEN[tab].map(of).filter(Boolean);
  const strength = of("strength");
  if (strength) slide(strength);
  const fold = make("details", { class: "fold", id: `${tab}-options` }, make("summary", {}, "All options"),
    make("div", { class: "grid" }, tab === "edit" && size.element, fields.filter((field) => !open.includes(field)).map((field) => field.element)));
  host.append(...open.map((field) => field.element), ...(tab === "draw" ? [size.element] : []),
    make("div", { class: "pair" }, make("label", { class: "field", htmlFor: n.id }, make("span", { class: "label" }, "Pictures"), n), seed.element),
    speed.element, ...(bestOf ? [bestOf.element] : []), fold);

  return {
    seed,
    n: () => Number(n.value),
    /** What goes into the request; what was left alone is left out. */
    values() {
      const found = { seed: seed.value(), n: Number(n.value), ...bestOf?.values() };
      const sides = size.value();
      // An edit has the size of the model unless another is asked for, as the library decides.
      if (tab === "draw" || sides.width !== info.default_size[0] || sides.height !== info.default_size[1]) Object.assign(found, sides);
      if (speed.value()) found.speed = speed.value();
      for (const field of fields) {
        const value = field.value();
        if (value !== undefined) found[field.name] = value;
      }
      return found;
    },
    /** Sets everything as a picture was made. */
    restore(settings) {
      // A speed that is more than its options is recorded by name; the others are known by their options.
      const matching = Object.entries(info.capabilities.speeds).find(([name, options]) =>
        settings.speed || name === "turbo" ? name === settings.speed
          : Object.entries(options).every(([option, value]) => JSON.stringify(settings[option]) === JSON.stringify(value)));
      speed.set(matching?.[0]);
      for (const option of known) {
        const value = settings[option.name] ?? null;
        const implied = (matching?.[1] ?? {})[option.name] ?? option.default;
        of(option.name).set(JSON.stringify(value) === JSON.stringify(implied) ? null : value);
      }
      size.set(settings.width, settings.height);
      if (settings.seed !== null && settings.seed !== undefined) seed.set(settings.seed);
      n.value = "1";
      bestOf?.reset();
    },
    /** Leads to the control of a parameter that was refused. */
    point(param) {
      const control = param && (of(param)?.control ?? byId(`${tab}-${param}`));
      if (!control) return;
      if (control.closest("details")) control.closest("details").open = true;
      control.focus();
    },
  };
}

// A slider beside the number: how far an edit may go is a matter of feeling.
function slide(field) {
  const slider = make("input", { type: "range", min: 0.05, max: 1, step: 0.05, value: 1, "aria-label": "Strength" });
  const set = field.set;
  slider.addEventListener("input", () => { field.control.value = Number(slider.value) === 1 ? "" : slider.value; });
  field.control.addEventListener("input", () => { slider.value = field.control.value || 1; });
  field.set = (value) => { set(value); slider.value = value ?? 1; };
  field.assume = () => { field.control.placeholder = "1"; };
  field.assume();
  field.control.before(slider);
  field.element.classList.add("slide");
}
