// Making elements, and the few small things that every module needs.

export const byId = (id) => document.getElementById(id);

/** An element. `on...` are listeners, `class`, `data` and properties as they are named, all else attributes. */
export function make(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "testid") element.dataset.testid = value;
    else if (name in element && !name.includes("-") && name !== "list") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** A drawing of icons.svg; it says nothing to a screen reader, the button that holds it does. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `/page/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows an icon, and its words where there is room for them. */
export function iconButton(name, label, props = {}, words = true) {
  const shown = words ? [icon(name), make("span", {}, label)] : [icon(name)];
  return make("button", { type: "button", "aria-label": words ? undefined : label, title: words ? undefined : label,
    ...props, class: `quiet ${words ? "" : "square "}${props.class ?? ""}` }, shown);
}

export function show(element, visible) {
  element.hidden = !visible;
}

/** What the browser keeps; a private window may refuse. */
export const kept = {
  get(name, fallback = null, storage = localStorage) {
    try {
      return JSON.parse(storage.getItem(`mobileo.${name}`)) ?? fallback;
    } catch {
      return fallback;
    }
  },
  set(name, value, storage = localStorage) {
    try {
      if (value === null) storage.removeItem(`mobileo.${name}`);
      else storage.setItem(`mobileo.${name}`, JSON.stringify(value));
    } catch { /* full or forbidden: it is only not kept */ }
  },
};

/** Says something to screen readers alone. */
export function announce(words) {
  byId("live").textContent = words;
}

/** A short message at the edge; with an action it waits longer. */
export function notice(words, { action, run, error = false } = {}) {
  const close = () => box.remove();
  const button = action && make("button", { type: "button", class: "link", testid: "notice-action", onclick: () => { close(); run(); } }, action);
  const box = make("div", { class: error ? "notice bad" : "notice", testid: "notice", role: error ? "alert" : "status" },
    make("span", {}, words), button,
    make("button", { type: "button", class: "quiet square", "aria-label": "Close", onclick: close }, icon("close")));
  byId("notices").append(box);
  while (byId("notices").children.length > 3) byId("notices").firstChild.remove();
  const wait = setTimeout(close, action || error ? 12_000 : 5_000);
  box.addEventListener("pointerenter", () => clearTimeout(wait));
  box.addEventListener("focusin", () => clearTimeout(wait));
  return box;
}

/** Grows a text area with what is written. */
export function growing(area) {
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + 2}px`;
  };
  area.addEventListener("input", fit);
  return fit;
}

/** Gives the frame of a picture its shape, and a limit to how large a small one becomes. */
export function fitFrame(frame, width, height) {
  frame.style.setProperty("--ratio", `${width} / ${height}`);
  frame.style.setProperty("--ratio-number", width / height);
  frame.style.setProperty("--most", `${width * 8}px`);
}
