// A control for an option, made of what `capabilities` says of it: a new option of the library appears by itself.

import { Problem } from "./api.js";
import { byId, make } from "./dom.js";
import { label } from "./words.js";

const shownDefault = (option, value = option.default_help ?? option.default) =>
  value === undefined || value === null ? "" : Array.isArray(value) ? value.join(", ") : String(value);

/** {element, value(), set(value), assume(value)}: value() is undefined where the default is meant. */
export function optionField(tab, option) {
  const plain = `${tab}-${option.name}`;
  const id = byId(plain) ? `${tab}-option-${option.name}` : plain; // `stop` is also a button
  const text = option.type === "string" && !option.choices; // its help stands in the box
  const help = make("small", { id: `${id}-help`, class: text && "hidden" }, option.help);
  const control = option.type === "boolean" ? make("input", { id, type: "checkbox" }) : option.choices ? choice(option, id) : box(option, id);
  control.setAttribute("aria-describedby", help.id);
  const element = make("div", { class: "field option" }, make("label", { class: "label", htmlFor: id }, label(option.name)), control, help);
  if (option.type === "boolean") return flag(option, element, control);
  const field = {
    name: option.name,
    element,
    control,
    value: () => (control.value.trim() === "" ? undefined : read(option, control.value.trim())),
    set: (value) => { control.value = value === null || value === undefined ? "" : Array.isArray(value) ? value.join(", ") : String(value); },
    /** Shows what holds where nothing is chosen, a speed's value for example. */
    assume: (value) => {
      const words = shownDefault(option, value ?? undefined) || (text ? option.help : "");
      if (option.choices) control.options[0].textContent = words ? `${words} (default)` : "Default";
      else control.placeholder = words;
    },
  };
  field.assume(null);
  return field;
}

function flag(option, element, control) {
  const usual = Boolean(option.default);
  const set = (value) => { control.checked = value ?? usual; };
  set(null);
  return { name: option.name, element, control, value: () => (control.checked === usual ? undefined : control.checked), set, assume: () => {} };
}

function choice(option, id) {
  return make("select", { id }, make("option", { value: "" }, ""), option.choices.map((one) => make("option", { value: one }, one)));
}

function box(option, id) {
  const numeric = option.type === "integer" || option.type === "number";
  return make("input", {
    id, type: numeric ? "number" : "text", step: option.type === "integer" ? 1 : "any",
    min: option.minimum ?? option.exclusive_minimum, max: option.maximum,
    inputmode: option.type === "integer" ? "numeric" : numeric ? "decimal" : null, autocomplete: "off",
  });
}

function read(option, text) {
  const wrong = (words) => { throw new Problem(`${label(option.name)}: ${words}.`, 400, option.name); };
  if (option.type === "string") return text;
  if (option.type === "array") {
    const numbers = text.split(/[,:;\s]+/).map(Number);
    if (numbers.some(Number.isNaN)) wrong(`write ${option.metavar ?? "numbers with commas between them"}`);
    return numbers;
  }
  const number = Number(text);
  if (Number.isNaN(number) || (option.type === "integer" && !Number.isInteger(number))) wrong(`write a ${option.type === "integer" ? "whole " : ""}number`);
  if (number < option.minimum || number > option.maximum || number <= option.exclusive_minimum) {
    const low = option.minimum ?? option.exclusive_minimum, above = option.minimum === undefined ? "more than " : "";
    wrong(option.maximum === undefined ? `${above}${low}${above ? "" : " or more"}` : `${above}${low} to ${option.maximum}`);
  }
  return number;
}
