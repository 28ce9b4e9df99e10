"""The pictures of the docs: `pytest tests/browser/test_screenshots.py --screenshots docs/images`."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from benchmarks.shapes.world import Object, Scene, render
from tests.browser import steps
from tests.browser.conftest import Open
from tests.browser.steps import PROMPT, SEED, begin, choose_picture, draw, expect, results

if TYPE_CHECKING:
    from playwright.sync_api import Page

MOST = 150_000  # bytes of a file
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}, "device_scale_factor": 2}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True}
SCENE = Scene((Object("circle", "red", 2, 4), Object("square", "blue", 6, 4)), "white")
SHELF = (
    ("a yellow star above a purple circle", 0),
    ("three green triangles", 4),
    ("an orange diamond on a cyan background", 1),
    ("a pink cross to the right of a black circle", 2),
    ("two blue circles on a beige background", 3),
)


def save(page: Page, folder: Path, name: str) -> None:
    """Writes what is seen as a WebP file, small enough for a page of the docs."""
    page.mouse.move(0, 0)
    shown = page.screenshot(animations="disabled", caret="hide")
    stream = io.BytesIO()
    with Image.open(io.BytesIO(shown)) as image:
        image.convert("RGB").save(stream, "WEBP", quality=88, method=6)
    assert len(stream.getvalue()) < MOST
    (folder / f"{name}.webp").write_bytes(stream.getvalue())


def fill_shelf(page: Page) -> None:
    """Draws a few pictures, as if the page had been used, and waits until they are seen."""
    for prompt, seed in SHELF:
        job = page.request.post("/v1/jobs", data={"task": "generate", "prompt": prompt, "seed": seed}).json()
        assert "event: completed" in page.request.get(f"/v1/jobs/{job['id']}/events", timeout=0).text()
    shelf = page.locator("#shelf").get_by_test_id("shelf-picture")
    expect(shelf).to_have_count(len(SHELF))
    for image in shelf.locator("img").all():
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=image.element_handle())


def from_the_top(page: Page, tab: str) -> None:
    """Closes the fold that was opened for an option, and scrolls the controls back."""
    page.locator(f"#{tab}-options").evaluate("fold => { fold.open = false; }")
    page.locator(f"#{tab}-prompt").evaluate(
        "element => { for (let at = element; at; at = at.parentElement) at.scrollTop = 0; element.blur(); }"
    )


def test_draw(open_page: Open, screenshots: Path) -> None:
    page = open_page(**DESKTOP)
    fill_shelf(page)
    begin(page, "draw", PROMPT, seed=SEED, n=4, steps=200)
    from_the_top(page, "draw")
    expect(results(page, "draw")).to_have_count(2)
    expect(page.locator("#draw-progress")).not_to_have_attribute("value", "0")
    page.locator("#draw-result").get_by_test_id("result-preview").first.wait_for()
    # Late enough that the preview is no longer noise.
    expect(page.locator("#draw-status")).to_contain_text(re.compile(r"Picture 3 .* Step ([6-9]\d|1\d\d) of"))
    save(page, screenshots, "draw")


def test_edit(open_page: Open, screenshots: Path, png: Callable[..., Path]) -> None:
    page = open_page(**DESKTOP)
    fill_shelf(page)
    choose_picture(page, "edit", png(render(SCENE)))
    job = begin(page, "edit", "change the background to cyan", seed=SEED)
    page.locator("#edit-compare").wait_for()
    steps.ended(page, "edit", job)
    save(page, screenshots, "edit")


def test_ask(open_page: Open, screenshots: Path, png: Callable[..., Path]) -> None:
    page = open_page(**DESKTOP)
    fill_shelf(page)
    choose_picture(page, "ask", png(render(SCENE)))
    for question in ("describe the image.", "where is the circle relative to the square?"):
        job = begin(page, "ask", question)
        steps.ended(page, "ask", job)
    save(page, screenshots, "ask")


def test_chat(open_page: Open, screenshots: Path) -> None:
    page = open_page(**DESKTOP, color_scheme="dark")
    fill_shelf(page)
    answers = page.locator('[data-testid="message"][data-role="assistant"]')
    said = (f"/draw {PROMPT}", "what color is the square?", "/edit make the square green", "what color is the square?")
    for count, text in enumerate(said, 1):
        job = begin(page, "chat", text)
        expect(answers).to_have_count(count)
        steps.ended(page, "chat", job)
    save(page, screenshots, "chat")


def test_phone(open_page: Open, screenshots: Path) -> None:
    page = open_page(**PHONE)
    fill_shelf(page)
    draw(page)
    page.locator("#shelf").evaluate("shelf => { shelf.scrollLeft = 0; }")
    save(page, screenshots, "phone")
