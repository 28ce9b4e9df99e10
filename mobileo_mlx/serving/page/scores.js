// What the model said of a picture's candidates, and of the one that was kept.

import { make } from "./dom.js";
import { count } from "./words.js";

/** A line that opens to all answers and scores; null for a picture that had no rivals. */
export function scores(picture) {
  const said = picture.settings?.best_of;
  const kept = said?.candidates.find((one) => one.seed === picture.settings.seed);
  if (!kept) return null;
  const failed = said.checks.filter((check) => check.answer !== check.expected).length;
  const verdict = failed ? `${count(failed, "answer")} not as expected` : "all answers as expected";
  const heads = ["Question", "Expected", "Answer", "Sure"].map((words) => make("th", { scope: "col" }, words));
  return make("details", { class: "scores", testid: "scores" },
    make("summary", {}, `Score ${kept.score.toFixed(2)}, best of ${said.candidates.length}: ${verdict}`),
    make("table", {}, make("caption", { class: "hidden" }, "What the model answered about this picture"),
      make("thead", {}, make("tr", {}, heads)),
      make("tbody", {}, said.checks.map((check) => make("tr", { class: check.answer === check.expected ? "" : "bad" },
        make("th", { scope: "row" }, check.question), make("td", {}, check.expected), make("td", {}, check.answer),
        make("td", {}, `${Math.round(100 * check.probability)} %`))))),
    make("ol", {}, said.candidates.map((one) => make("li", {},
      `Seed ${one.seed}: score ${one.score.toFixed(2)}, ${one.passes ? "passes" : "does not pass"}${one === kept ? " (kept)" : ""}`))));
}
