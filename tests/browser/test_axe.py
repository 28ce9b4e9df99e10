"""WCAG 2.2 AA on every tab, empty and full, in both themes, on a desktop and a phone, by axe-core."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.shapes.world import Object, Scene, render
from tests.browser import steps
from tests.browser.conftest import Open
from tests.browser.steps import FOREVER, PROMPT, TABS, begin, choose, choose_picture, draw, expect
from tests.browser.test_look import PHONE

if TYPE_CHECKING:
    from playwright.sync_api import Page


RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
PLACES = {
    f"{device} {theme}": {**options, "color_scheme": theme, "reduced_motion": "reduce"}
    for device, options in {"desktop": {}, "phone": PHONE}.items()
    for theme in ("light", "dark")
}
SCENE = render(Scene((Object("circle", "red", 2, 4), Object("square", "blue", 6, 4)), "white"))


@pytest.fixture(scope="module")
def axe() -> str:
    pytest.importorskip("axe_playwright_python")
    return (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> dict[str, Any]:
    return PLACES[request.param]


def violations(page: Page, axe: str) -> list[str]:
    """What axe-core finds; a line for each element."""
    # Evaluated in the page by the debugger, which the content-security policy does not concern.
    page.evaluate(f"if (!window.axe) {{ {axe} }}")
    found = page.evaluate("async (tags) => await axe.run(document, {runOnly: tags})", RULES)
    assert len(found["passes"]) > 10
    return [
        f"{one['id']}: {one['help']}: {node['html'][:200]}: {json.dumps(node['failureSummary'])}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def test_axe_sees_what_is_wrong(page: Page, axe: str) -> None:
    page.evaluate("document.querySelector('#draw-form').append(document.createElement('input'))")
    assert any("label" in line for line in violations(page, axe))


def test_every_tab(open_page: Open, place: dict[str, Any], axe: str) -> None:
    page = open_page(**place)
    for tab in TABS:
        choose(page, tab)
        for fold in page.locator(f"#panel-{tab} details").all():
            fold.evaluate("element => { element.open = true; }")
        assert violations(page, axe) == [], tab


def test_with_results(open_page: Open, place: dict[str, Any], axe: str, png: Callable[..., Path]) -> None:
    page = open_page(**place)
    draw(page)
    assert violations(page, axe) == []
    for tab, text in (("ask", "what color is the square?"), ("edit", "make the circle green"), ("chat", "what is it?")):
        choose_picture(page, tab, png(SCENE))
        job = begin(page, tab, text)
        steps.ended(page, tab, job)
        page.locator(f"#{tab}-result").locator("img, p, [data-testid]").first.wait_for()
        assert violations(page, axe) == [], tab


def test_while_it_draws_and_others_wait(open_page: Open, place: dict[str, Any], axe: str) -> None:
    page = open_page(**place)
    begin(page, "draw", PROMPT, steps=FOREVER)
    steps.drawing(page)
    begin(page, "chat", "how many objects are there?")
    choose(page, "draw")
    assert violations(page, axe) == []
    page.locator("#queue-button").click()
    expect(page.get_by_test_id("queue-job")).to_have_count(2)
    assert violations(page, axe) == []


def test_dialogs_and_notices(open_page: Open, place: dict[str, Any], axe: str) -> None:
    page = open_page(**place)
    page.locator("#keys-button").click()
    assert violations(page, axe) == []
    page.keyboard.press("Escape")
    draw(page)
    page.locator("#shelf").get_by_test_id("shelf-picture").first.click()
    page.locator("#viewer-image").wait_for()
    assert violations(page, axe) == []
    page.locator("#viewer-delete").click()
    page.get_by_test_id("notice-action").wait_for()
    assert violations(page, axe) == []
    choose(page, "draw")
    page.locator("#draw-prompt").fill("")
    page.locator("#draw-run").click()
    page.locator("#draw-error").wait_for()
    assert violations(page, axe) == []
