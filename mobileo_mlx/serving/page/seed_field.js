// The seed: what is shown is what the next picture is drawn with. It is rolled anew after each run unless it is locked.

import { Problem } from "./api.js";
import { icon, iconButton, make } from "./dom.js";

const roll = () => crypto.getRandomValues(new Uint32Array(1))[0];

export function seedField(tab) {
  const id = `${tab}-seed`;
  const control = make("input", { id, type: "text", inputmode: "numeric", pattern: "[0-9]*", autocomplete: "off", value: roll() });
  const lock = iconButton("unlock", "Keep this seed", { id: `${id}-lock`, "aria-pressed": "false", title: "Keep this seed for the next pictures" }, false);
  const dice = iconButton("dice", "Roll a new seed", { id: `${id}-dice`, title: "Roll a new seed" }, false);
  let locked = false;
  const setLocked = (value) => {
    locked = value;
    lock.setAttribute("aria-pressed", String(value));
    lock.replaceChildren(icon(value ? "lock" : "unlock"));
  };
  lock.addEventListener("click", () => setLocked(!locked));
  dice.addEventListener("click", () => { control.value = roll(); });
  control.addEventListener("input", () => setLocked(control.value.trim() !== ""));
  const element = make("div", { class: "field" },
    make("label", { class: "label", htmlFor: id }, "Seed"), make("div", { class: "joined" }, control, dice, lock));
  return {
    element,
    control,
    value() {
      const text = control.value.trim();
      if (text === "") control.value = roll();
      const seed = Number(control.value);
      if (!/^\d+$/.test(control.value.trim()) || !Number.isSafeInteger(seed)) throw new Problem(`Seed: write a whole number up to ${Number.MAX_SAFE_INTEGER}.`, 400, "seed");
      return seed;
    },
    set(seed) {
      control.value = seed;
      setLocked(true);
    },
    /** After a run: the next one differs, unless the seed is kept. */
    next() {
      if (!locked) control.value = roll();
    },
  };
}
