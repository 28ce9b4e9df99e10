"use strict";
(() => {
  const FORMAT = "mobileo-mlx kept 1";
  const PAGE = 60; // samples that are in the document at once, however many there are
  const data = JSON.parse(document.getElementById("samples").textContent);
  const $ = (id) => document.getElementById(id);
  for (const one of data) {
    one.keep = true;
    one.text = one.prompt;
    one.found = [one.path, one.origin, ...one.qa.flat()].join("\n").toLowerCase();
  }
  let shown = data;
  let page = 0;
  let unsaved = false;

  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text; // never as HTML: texts are whatever somebody wrote
    return element;
  };

  const is = {
    all: () => true, kept: (one) => one.keep, out: (one) => !one.keep, edits: (one) => one.thumbnails.length > 1,
    changed: (one) => one.text !== one.prompt, held: (one) => one.held_out,
  };

  function filter() {
    const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const which = is[$("which").value];
    shown = data.filter((one) => which(one) && words.every((word) => one.found.includes(word) || one.text.toLowerCase().includes(word)));
    page = 0;
    draw();
  }

  function count() {
    const kept = data.filter((one) => one.keep).length;
    const changed = data.filter(is.changed).length;
    $("counts").textContent = `${kept} of ${data.length} samples are kept` + (changed ? `, ${changed} texts are changed` : "") + (unsaved ? "; not downloaded yet" : "");
  }

  function card(one) {
    const article = make("article", one.keep ? "" : "out");
    article.tabIndex = 0;
    article.setAttribute("aria-label", one.path);
    const pictures = make("div", "pictures");
    one.thumbnails.forEach((thumbnail, i) => {
      const image = make("img");
      image.src = "data:image/jpeg;base64," + thumbnail;
      image.alt = one.thumbnails.length > 1 ? ["before", "after"][i] : one.prompt;
      pictures.append(...(i ? ["→"] : []), image);
    });
    const tick = make("input");
    tick.type = "checkbox";
    tick.checked = one.keep;
    tick.addEventListener("change", () => set(one, article, tick.checked));
    const label = make("label");
    label.append(tick, " keep");
    const text = make("textarea");
    text.value = one.text;
    text.dir = "auto";
    text.setAttribute("aria-label", one.thumbnails.length > 1 ? "instruction" : "caption");
    text.addEventListener("input", () => { one.text = text.value; unsaved = true; count(); });
    const questions = make("dl");
    for (const [question, answer] of one.qa) {
      // What follows from the caption follows from the edited one.
      questions.append(make("dt", "", question), make("dd", "", answer));
    }
    const path = make("p", "path");
    path.append(make("bdi", "", one.path), ` · ${one.width}×${one.height} · ${one.origin}${one.held_out ? " · held out" : ""}`);
    article.append(pictures, label, text, questions, path);
    article.toggle = () => { tick.checked = !tick.checked; set(one, article, tick.checked); };
    article.edit = () => text.focus();
    return article;
  }

  function set(one, article, keep) {
    one.keep = keep;
    article.classList.toggle("out", !keep);
    unsaved = true;
    count();
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    $("list").replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(card));
    $("where").textContent = `page ${page + 1} of ${pages}, ${shown.length} found`;
    $("back").disabled = page === 0;
    $("next").disabled = page === pages - 1;
    count();
  }

  function turn(by) {
    page += by;
    draw();
    scrollTo(0, 0);
    $("list").firstElementChild?.focus({ preventScroll: true });
  }

  function save() {
    const samples = Object.fromEntries(data.map((one) => {
      const entry = { keep: one.keep };
      if (one.keep && one.text.trim() && one.text !== one.prompt) entry.prompt = one.text;
      return [one.id, entry];
    }));
    const blob = new Blob([JSON.stringify({ format: FORMAT, samples }, null, 1)], { type: "application/json" });
    const link = make("a");
    link.href = URL.createObjectURL(blob);
    link.download = "kept.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    unsaved = false;
    count();
  }

  async function open() {
    const [file] = $("open").files;
    if (!file) return;
    try {
      const { format, samples } = JSON.parse(await file.text());
      if (format !== FORMAT) throw new Error();
      for (const one of data) {
        const entry = Object.hasOwn(samples, one.id) ? samples[one.id] : null;
        if (entry) { one.keep = entry.keep === true; one.text = typeof entry.prompt === "string" ? entry.prompt : one.prompt; }
      }
      unsaved = false;
      filter();
    } catch {
      $("counts").textContent = "that file is not a list of this page";
    }
    $("open").value = "";
  }

  function setShown(keep) {
    for (const one of shown) one.keep = keep;
    unsaved = true;
    draw();
  }

  const move = (article, step) => {
    const all = [...$("list").children];
    all[Math.min(Math.max(all.indexOf(article) + step, 0), all.length - 1)]?.focus();
  };
  const columns = () => getComputedStyle($("list")).gridTemplateColumns.split(" ").length;

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const writing = event.target.closest("textarea, input:not([type=checkbox]), select");
    if (writing) {
      if (event.key === "Escape") (writing.closest("article") ?? $("list").firstElementChild)?.focus();
      return;
    }
    const article = event.target.closest("article");
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() };
    if (event.key in steps) move(article, steps[event.key]);
    else if (event.key === "x" && article) article.toggle();
    else if (event.key === "e" && article) article.edit();
    else if (event.key === "n") turn(1);
    else if (event.key === "p") turn(-1);
    else if (event.key === "/") $("find").focus();
    else if (event.key === "s") save();
    else return;
    event.preventDefault();
  });
  $("find").addEventListener("input", filter);
  $("which").addEventListener("change", filter);
  $("keep-shown").addEventListener("click", () => setShown(true));
  $("drop-shown").addEventListener("click", () => setShown(false));
  $("back").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  $("open").addEventListener("change", open);
  $("save").addEventListener("click", save);
  addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
  draw();
})();
