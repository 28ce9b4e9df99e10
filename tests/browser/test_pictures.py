"""Pictures that come from outside, that are thrown away, and that try to run something."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.shapes.world import Object, Scene, render
from tests.browser import steps
from tests.browser.conftest import Open
from tests.browser.steps import PROMPT, begin, choose, choose_picture, draw, drop, expect, paste
from tests.browser.watch import Watch

if TYPE_CHECKING:
    from playwright.sync_api import Page


SCENE = render(Scene((Object("star", "yellow", 4, 4),), "white"))
# Each would set window.ran, if anything of it ran.
ATTACKS = (
    "<img src=x onerror=window.ran=1>",
    "<script>window.ran=1</script>",
    '"><svg onload=window.ran=1>',
    "'onmouseover='window.ran=1",
    "javascript:window.ran=1",
    "</textarea><script>window.ran=1</script>",
    "{{constructor.constructor('window.ran=1')()}}",
)
ATTACK = " ".join(ATTACKS)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def nothing_ran(page: Page) -> bool:
    return bool(page.evaluate("window.ran === undefined"))


def test_a_picture_of_ours_brings_its_settings(page: Page, open_page: Open) -> None:
    draw(page, seed=11, steps=9, negative_prompt="a star")
    (picture,) = steps.pictures(page)
    data = page.request.get(picture["url"]).body()
    other = open_page()
    drop(other, "body", data, "from-a-friend.png", "image/png")
    expect(other.locator("#draw-prompt")).to_have_value(PROMPT)
    expect(other.locator("#draw-seed")).to_have_value("11")
    expect(other.locator("#draw-steps")).to_have_value("9")
    expect(other.locator("#draw-negative_prompt")).to_have_value("a star")
    steps.ended(other, "draw", steps.sent(other, other.locator("#draw-run").click))
    expect(steps.results(other, "draw")).to_have_count(1)
    again = steps.pictures(other)[0]
    assert other.request.get(again["url"]).body() == data


def test_a_picture_of_another_program_is_a_picture(page: Page) -> None:
    """Its text chunks say something in another form: it can be asked about, and nothing of it is taken for settings."""
    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 30, Sampler: Euler a, Seed: 1")
    info.add_text("mobileo-mlx", "[1, 2")
    info.add_text("workflow", '{"nodes": []}')
    choose(page, "ask")
    drop(page, "#ask-picture", encoded(SCENE, pnginfo=info), "foreign.png", "image/png")
    expect(page.locator("#ask-picture").get_by_test_id("picture-chosen")).to_have_count(1)
    begin(page, "ask", "what color is the star?")
    expect(page.locator("#ask-result")).to_contain_text("yellow")
    expect(page.locator("#draw-prompt")).to_have_value("")


@pytest.mark.parametrize(
    ("name", "kind", "data"),
    [
        ("broken.png", "image/png", encoded(SCENE)[:200]),
        ("notes.txt", "text/plain", b"what I wanted to say"),
        ("lies.png", "image/png", b"<svg xmlns='http://www.w3.org/2000/svg' onload='window.ran=1'/>"),
        ("empty.png", "image/png", b""),
    ],
)
def test_what_is_no_picture_is_refused_in_words(page: Page, watch: Watch, name: str, kind: str, data: bytes) -> None:
    watch.expect("status 4|status of 4")  # the server may be who refuses it
    choose(page, "ask")
    drop(page, "#ask-picture", data, name, kind)
    said = page.locator('[data-testid="notice"], #ask-error:visible')
    expect(said.first).to_be_visible()
    assert len(said.first.inner_text()) > 10
    expect(page.locator("#ask-picture").get_by_test_id("picture-chosen")).to_have_count(0)
    assert steps.pictures(page) == []
    assert nothing_ran(page)
    # The page still works.
    choose_picture(page, "ask", {"name": "good.png", "mimeType": "image/png", "buffer": encoded(SCENE)})


@pytest.mark.parametrize("tab", ["ask", "edit", "chat"])
def test_a_pasted_picture_goes_to_the_open_tab(page: Page, tab: str) -> None:
    choose(page, tab)
    page.locator(f"#{tab}-prompt").focus()
    paste(page, encoded(SCENE))
    expect(page.locator(f"#{tab}-picture").get_by_test_id("picture-chosen")).to_have_count(1)
    page.locator(f"#{tab}-picture").get_by_test_id("picture-remove").first.click()
    expect(page.locator(f"#{tab}-picture").get_by_test_id("picture-chosen")).to_have_count(0)


def test_pasted_text_stays_text(page: Page) -> None:
    choose(page, "chat")
    page.locator("#chat-prompt").focus()
    paste(page, b"a word", "a.txt", "text/plain")
    expect(page.locator("#chat-picture").get_by_test_id("picture-chosen")).to_have_count(0)


def test_a_photo_is_shown_as_it_was_held(page: Page) -> None:
    """A camera writes the orientation beside the pixels; wide is high then."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    wide = np.zeros((40, 80, 3), np.uint8) + 200
    photo = encoded(wide, "JPEG", exif=exif)
    choose_picture(page, "ask", {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": photo})
    image = page.locator("#ask-picture").get_by_test_id("picture-chosen").locator("img").first
    page.wait_for_function(
        "image => image.complete && image.naturalHeight > image.naturalWidth", arg=image.element_handle()
    )
    job = begin(page, "ask", "how many objects are there?")
    steps.ended(page, "ask", job)
    (uploaded,) = steps.pictures(page)
    assert (uploaded["width"], uploaded["height"]) == (40, 80)


def test_a_deleted_picture_comes_back(page: Page) -> None:
    draw(page)
    shelf = page.locator("#shelf").get_by_test_id("shelf-picture")
    (kept,) = steps.pictures(page)
    shelf.first.click()
    page.locator("#viewer-delete").click()
    expect(shelf).to_have_count(0)
    assert steps.pictures(page) == []
    page.get_by_test_id("notice-action").click()
    expect(shelf).to_have_count(1)
    assert [picture["id"] for picture in steps.pictures(page)] == [kept["id"]]
    page.reload()
    expect(shelf).to_have_count(1)


def test_a_deleted_picture_stays_deleted(page: Page) -> None:
    draw(page)
    shelf = page.locator("#shelf").get_by_test_id("shelf-picture")
    shelf.first.click()
    page.locator("#viewer-delete").click()
    expect(shelf).to_have_count(0)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.locator("#shelf-empty")).to_be_visible()
    expect(shelf).to_have_count(0)


def test_who_looks_at_a_picture_is_not_taken_to_another(page: Page) -> None:
    """A new one appears on the shelf while an older one is open."""
    draw(page)
    (older,) = steps.pictures(page)
    begin(page, "draw", "a green triangle", seed=1, steps=60)
    shelf = page.locator("#shelf").get_by_test_id("shelf-picture")
    shelf.first.click()
    shown = page.locator("#viewer-image")
    before = shown.get_attribute("src")
    assert older["id"] in str(before)
    expect(shelf).to_have_count(2)
    expect(page.locator("#viewer")).to_be_visible()
    expect(shown).to_have_attribute("src", str(before))
    page.locator("#viewer-previous").or_(page.locator("#viewer-next")).locator("visible=true").first.wait_for()


def test_a_picture_is_saved_under_a_name_of_its_own(page: Page) -> None:
    draw(page)
    (picture,) = steps.pictures(page)
    page.locator("#shelf").get_by_test_id("shelf-picture").first.click()
    with page.expect_download() as saving:
        page.locator("#viewer-download").click()
    assert saving.value.suggested_filename.endswith(".png")
    assert Path(saving.value.path()).read_bytes() == page.request.get(picture["url"]).body()


def test_nothing_in_a_prompt_runs(page: Page) -> None:
    job = begin(page, "draw", ATTACK, steps=2, seed=1)
    expect(steps.results(page, "draw")).to_have_count(1)
    steps.ended(page, "draw", job)
    page.locator("#queue-button").click()
    page.keyboard.press("Escape")
    page.locator("#shelf").get_by_test_id("shelf-picture").first.click()
    expect(page.locator("#viewer")).to_contain_text("<script>window.ran=1</script>")
    page.locator("#viewer-again").click()
    expect(page.locator("#draw-prompt")).to_have_value(ATTACK)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert nothing_ran(page)


def test_nothing_in_a_conversation_runs(page: Page) -> None:
    job = begin(page, "chat", ATTACK)
    steps.ended(page, "chat", job)
    expect(page.get_by_test_id("message").first).to_contain_text("<script>window.ran=1</script>")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert nothing_ran(page)


def test_nothing_in_a_files_name_or_settings_runs(page: Page, png: Callable[..., Path]) -> None:
    settings = {"software": ATTACK, "model": ATTACK, "task": "generate", "prompt": ATTACK, "negative_prompt": ATTACK}
    data = png(
        SCENE, metadata={**settings, "seed": 3, "steps": 5, "scheduler": ATTACK, ATTACKS[0]: ATTACK}
    ).read_bytes()
    drop(page, "body", data, f"{ATTACKS[0]}.png", "image/png")
    expect(page.locator("#draw-prompt")).to_have_value(ATTACK)
    choose(page, "ask")
    drop(page, "#ask-picture", data, f"{ATTACKS[2]}.png", "image/png")
    expect(page.locator("#ask-picture").get_by_test_id("picture-chosen")).to_have_count(1)
    begin(page, "ask", "what color is the star?")
    expect(page.locator("#ask-result")).to_contain_text("yellow")
    page.locator("#shelf").get_by_test_id("shelf-picture").first.click()
    page.locator("#viewer-settings").wait_for()
    assert nothing_ran(page)


def test_the_policy_forbids_what_the_page_does_not_do(page: Page, watch: Watch) -> None:
    """So that an error in the console is really what an injected script would cause."""
    watch.expect("Content Security Policy")
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = 1";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='window.ran=1'>");
        }"""
    )
    assert nothing_ran(page)
    assert any("Content Security Policy" in line for line in watch.wrong)
