"""Best of several candidates on the page: the choice, what is said meanwhile, the scores, and drawing again."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

import pytest

from tests.browser.steps import PROMPT, SEED, begin, draw, expect, job_of, pictures, set_option
from tests.browser.test_axe import violations
from tests.browser.watch import Watch

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_scores_are_shown_with_the_picture_and_in_the_viewer(page: Page) -> None:
    draw(page, best_of=2, steps=4)
    kept = pictures(page)[0]["settings"]
    assert [one["seed"] for one in kept["best_of"]["candidates"]] == [SEED, SEED + 2**32]
    best = next(one for one in kept["best_of"]["candidates"] if one["seed"] == kept["seed"])
    shown = page.locator("#draw-result").get_by_test_id("scores")
    expect(shown).to_contain_text(f"Score {best['score']:.2f}, best of 2:")
    shown.locator("summary").click()
    rows = shown.locator("tbody tr")
    expect(rows).to_have_count(len(kept["best_of"]["checks"]))
    for check in kept["best_of"]["checks"]:
        expect(shown.get_by_role("rowheader", name=check["question"], exact=True)).to_be_visible()
    expect(shown.locator("li")).to_have_count(2)
    expect(shown.locator("li", has_text="(kept)")).to_have_count(1)

    pytest.importorskip("axe_playwright_python")
    axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    assert violations(page, axe) == []

    page.get_by_test_id("result-picture").click()
    expect(page.locator("#viewer").get_by_test_id("scores")).to_contain_text("best of 2")
    expect(page.locator("#viewer-settings")).not_to_contain_text("candidates")
    page.locator("#viewer-again").click()  # the one that was kept, by its own seed alone
    expect(page.locator("#draw-best_of")).to_have_value("1")
    expect(page.locator("#draw-seed")).to_have_value(str(kept["seed"]))


def test_until_pass_is_there_where_there_are_candidates(page: Page) -> None:
    stop = page.locator("#draw-until_pass")
    expect(stop).to_be_hidden()
    set_option(page, "draw", "best_of", 4)
    expect(stop).to_be_visible()
    stop.check()
    job = begin(page, "draw", PROMPT, steps=400, seed=SEED)
    expect(page.locator("#draw-status")).to_have_text(re.compile(r"Candidate 1 of up to 4 · Step \d+ of 1600"))
    request = job_of(page, job)["request"]
    assert (request["best_of"], request["until_pass"]) == (4, True)
    page.locator("#draw-stop").click()


def test_more_than_the_server_allows_leads_to_the_control(page: Page, watch: Watch) -> None:
    watch.expect("status 400|status of 400")
    for name, value in (("n", 3), ("best_of", 4)):
        set_option(page, "draw", name, value)
    page.locator("#draw-prompt").fill(PROMPT)
    page.locator("#draw-run").click()
    expect(page.locator("#draw-error")).to_contain_text("makes 12 drawings")
    expect(page.locator("#draw-best_of")).to_be_focused()
