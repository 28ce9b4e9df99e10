"""The review page of `dataset build` in a real browser: hostile texts, keys, and the list that it downloads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.shapes.data import write_pictures
from mobileo_mlx.datasets.build import Build, Options
from mobileo_mlx.datasets.kept import Kept
from mobileo_mlx.datasets.review import write_review
from mobileo_mlx.datasets.samples import Sample
from tests.browser.steps import expect
from tests.browser.test_axe import RULES, axe  # noqa: F401 - a fixture
from tests.browser.test_screenshots import save

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = (
    "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"> {samples} &lt;"
)
COUNT = 70  # more than a page shows at once


def build(folder: Path, out: Path) -> list[Sample]:
    work = Build(folder, out, Options(questions="describe", split=0.1), overwrite=True)
    try:
        for _ in work.look():
            pass
        return work.samples()
    finally:
        work.close()


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(COUNT):
        image = Image.fromarray(np.full((20, 30, 3), i, np.uint8))
        image.save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(HOSTILE if i == 0 else f"shade {i} of grey")
    return build(folder, tmp_path / "data.jsonl")


@pytest.fixture
def open_review(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens the page of samples from its file; whatever it would load or complain about fails the test."""
    trouble: list[str] = []
    contexts = []

    def open(samples: list[Sample], **options: Any) -> Page:
        path = tmp_path / "review.html"
        write_review(samples, path, title=f"data {HOSTILE}", overwrite=True)
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: trouble.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        return page

    yield open
    for context in contexts:
        context.close()
    assert trouble == []


def test_hostile_texts_are_shown_as_texts(open_review, samples):
    page = open_review(samples)
    assert page.title() == f"data {HOSTILE}"
    expect(page.locator("article")).to_have_count(60)
    expect(page.locator("textarea").first).to_have_value(HOSTILE)
    expect(page.locator("dd").first).to_have_text(HOSTILE)
    assert page.locator("main script, main img[src='x']").count() == 0
    page.wait_for_function("document.querySelector('article img').naturalWidth === 30")


def test_choices_by_keyboard_come_back_as_a_list(open_review, samples, tmp_path):
    page = open_review(samples)
    page.keyboard.press("n")
    expect(page.locator("article")).to_have_count(COUNT - 60)
    page.keyboard.press("x")  # the first of the second page
    page.keyboard.press("ArrowRight")
    page.keyboard.press("e")
    page.keyboard.press("End")
    page.keyboard.type(", and x more")
    page.keyboard.press("Escape")
    expect(page.locator("#counts")).to_have_text(
        f"{COUNT - 1} of {COUNT} samples are kept, 1 texts are changed; not downloaded yet"
    )
    with page.expect_download() as download:
        page.keyboard.press("s")
    path = tmp_path / "kept.json"
    download.value.save_as(path)
    kept = Kept.read(path)
    assert kept.left_out == {samples[60].id}
    assert {id: text for id, text in kept.prompts.items() if text} == {samples[61].id: "shade 61 of grey, and x more"}
    assert len(kept.prompts) == COUNT - 1

    again = open_review(samples)
    again.set_input_files("#open", path)
    expect(again.locator("#counts")).to_have_text(f"{COUNT - 1} of {COUNT} samples are kept, 1 texts are changed")
    again.locator("#which").select_option("out")
    expect(again.locator("article")).to_have_count(1)
    again.locator("#which").select_option("all")
    again.locator("#find").fill("grey 7")
    expect(again.locator("#where")).to_contain_text("7 found")
    again.locator("#drop-shown").click()
    expect(again.locator("#counts")).to_contain_text(f"{COUNT - 8} of {COUNT}")


def test_a_list_of_something_else_is_refused(open_review, samples, tmp_path):
    page = open_review(samples)
    (tmp_path / "other.json").write_text(json.dumps({"format": "other"}))
    page.set_input_files("#open", tmp_path / "other.json")
    expect(page.locator("#counts")).to_have_text("that file is not a list of this page")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(open_review, samples, axe, scheme):  # noqa: F811
    page = open_review(samples[:8], color_scheme=scheme)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    page.evaluate(axe)
    found = page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)
    assert [(one["id"], [node["target"] for node in one["nodes"]]) for one in found["violations"]] == []


def test_picture_for_the_docs(open_review, browser, tmp_path, screenshots):
    folder = write_pictures(tmp_path / "brown", 60, new="brown", edits=0.25, size=128)
    page = open_review(
        build(folder, tmp_path / "brown.jsonl"), viewport={"width": 1120, "height": 720}, device_scale_factor=2
    )
    page.evaluate("document.querySelector('h1').textContent = document.title = 'brown.jsonl'")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("x")
    save(page, screenshots, "review")
