"""Each task from its prompt to its result, as a user does it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.shapes.edits import Edit
from benchmarks.shapes.scorer import edit_succeeded, read_picture
from benchmarks.shapes.world import Object, Scene, render
from tests.browser import steps
from tests.browser.conftest import Open
from tests.browser.steps import (
    FOREVER,
    PROMPT,
    SEED,
    begin,
    choose,
    choose_picture,
    draw,
    ended,
    expect,
    results,
    set_option,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page


BEFORE = Scene((Object("circle", "red", 2, 4), Object("square", "blue", 6, 4)), "white")
AFTER = Scene((Object("circle", "green", 2, 4), Object("square", "blue", 6, 4)), "white")
EDIT = Edit("make the circle green", "colour", BEFORE, AFTER)


def test_draw(page: Page) -> None:
    draw(page)
    (picture,) = steps.pictures(page)
    assert steps.is_drawn(page, picture["url"])
    assert picture["settings"]["prompt"] == PROMPT
    assert picture["seed"] == SEED
    expect(page.locator("#shelf").get_by_test_id("shelf-picture")).to_have_count(1)
    expect(results(page, "draw")).to_have_count(1)


def test_the_same_seed_draws_the_same_again(page: Page) -> None:
    draw(page)
    draw(page)
    first, second = (page.request.get(picture["url"]).body() for picture in steps.pictures(page))
    assert first == second


def test_edit(page: Page, png: Callable[..., Path]) -> None:
    choose_picture(page, "edit", png(render(BEFORE)))
    job = begin(page, "edit", EDIT.text, seed=SEED)
    expect(results(page, "edit")).to_have_count(1)
    steps.ended(page, "edit", job)
    (edited,) = (picture for picture in steps.pictures(page) if picture["kind"] == "edited")
    assert edit_succeeded(read_picture(steps.pixels(page, edited["url"])), EDIT)
    (uploaded,) = (picture for picture in steps.pictures(page) if picture["kind"] == "uploaded")
    assert edited["source"] == uploaded["id"]


def test_before_and_after_are_compared_with_the_keyboard(page: Page, png: Callable[..., Path]) -> None:
    choose_picture(page, "edit", png(render(BEFORE)))
    begin(page, "edit", EDIT.text, seed=SEED)
    slider = page.locator("#edit-compare")
    slider.wait_for()
    before = int(slider.input_value())
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert int(slider.input_value()) > before
    page.keyboard.press("Home")
    expect(slider).to_have_value("0")
    page.keyboard.press("End")
    expect(slider).to_have_value("100")
    expect(slider).to_have_accessible_name("Before and after")


def test_ask(page: Page, png: Callable[..., Path]) -> None:
    choose_picture(page, "ask", png(render(BEFORE)))
    job = begin(page, "ask", "how many objects are there?")
    steps.ended(page, "ask", job)
    expect(page.locator("#ask-result")).to_contain_text("two")
    figures = page.locator("#ask-figures")
    expect(figures).to_contain_text(re.compile(r"\d.*s\b.*\d.*token", re.DOTALL))


def test_chat(page: Page, png: Callable[..., Path]) -> None:
    choose_picture(page, "chat", png(render(BEFORE)))
    job = begin(page, "chat", "what color is the square?")
    answers = page.locator('[data-testid="message"][data-role="assistant"]')
    expect(answers).to_have_count(1)
    expect(answers.last).to_contain_text("blue")
    steps.ended(page, "chat", job)
    job = begin(page, "chat", "what color is the circle?")
    expect(answers).to_have_count(2)
    expect(answers.last).to_contain_text("red")
    steps.ended(page, "chat", job)
    page.locator("#chat-clear").click()
    expect(page.get_by_test_id("message")).to_have_count(0)


def test_chat_that_is_asked_for_a_picture(page: Page) -> None:
    job = begin(page, "chat", f"please draw {PROMPT}")
    steps.ended(page, "chat", job)
    expect(page.get_by_test_id("message-picture")).to_have_count(1)
    job = begin(page, "chat", "make the square green")
    steps.ended(page, "chat", job)
    expect(page.get_by_test_id("message-picture")).to_have_count(2)
    assert [picture["kind"] for picture in steps.pictures(page)] == ["edited", "generated"]
    begin(page, "chat", "what color is the square?")
    answers = page.locator('[data-testid="message"][data-role="assistant"]')
    expect(answers.last).to_contain_text("green")


def test_a_drawing_is_asked_about_and_edited_by_its_buttons(page: Page) -> None:
    draw(page)
    page.locator("#shelf").get_by_test_id("shelf-picture").first.click()
    page.locator("#viewer-ask").click()
    begin(page, "ask", "what color is the square?")
    expect(page.locator("#ask-result")).to_contain_text("blue")
    page.locator("#shelf").get_by_test_id("shelf-picture").first.click()
    page.locator("#viewer-edit").click()
    job = begin(page, "edit", "remove the circle", seed=SEED)
    expect(results(page, "edit")).to_have_count(1)
    steps.ended(page, "edit", job)
    (edited,) = (picture for picture in steps.pictures(page) if picture["kind"] == "edited")
    found = read_picture(steps.pixels(page, edited["url"]))
    assert [(thing.shape, thing.colour) for thing in found.objects] == [("square", "blue")]


def test_several_pictures_appear_one_by_one(page: Page) -> None:
    """The first is seen and kept while the others are still to come; each has a seed of its own."""
    begin(page, "draw", PROMPT, seed=SEED, n=3, steps=60)
    expect(results(page, "draw")).to_have_count(1)
    (job,) = steps.jobs(page)
    assert job["status"] == "generating"
    assert len(job["pictures"]) < 3
    expect(results(page, "draw")).to_have_count(3)
    assert sorted(picture["seed"] for picture in steps.pictures(page)) == [SEED, SEED + 1, SEED + 2]


def test_previews_come_before_the_picture(page: Page) -> None:
    job = begin(page, "draw", PROMPT, steps=FOREVER)
    steps.drawing(page)
    preview = page.locator("#draw-result").get_by_test_id("result-preview").first
    # An image is seen, not only its frame.
    page.wait_for_function(
        "element => { const image = element.matches('img') ? element : element.querySelector('img');"
        " return image && image.complete && image.naturalWidth > 0; }",
        arg=preview.element_handle(),
    )
    expect(page.locator("#draw-status")).to_contain_text(re.compile(r"\d+ (of|/) ?1000|\d+.*left"))
    page.locator("#draw-stop").click()
    steps.ended(page, "draw", job)


def test_options_reach_the_server(page: Page) -> None:
    choose(page, "draw")
    page.locator("label[for=draw-speed-fast]").click()
    steps.set_option(page, "draw", "negative_prompt", "a star")
    draw(page, seed=7)
    (picture,) = steps.pictures(page)
    assert picture["settings"]["steps"] == 10
    assert picture["settings"]["negative_prompt"] == "a star"
    assert picture["seed"] == 7


def test_a_picture_is_drawn_again_from_its_settings(page: Page) -> None:
    draw(page, seed=5, steps=9)
    page.locator("#draw-prompt").fill("something else")
    page.locator("#shelf").get_by_test_id("shelf-picture").first.click()
    page.locator("#viewer-again").click()
    expect(page.locator("#draw-prompt")).to_have_value(PROMPT)
    expect(page.locator("#draw-seed")).to_have_value("5")
    expect(page.locator("#draw-steps")).to_have_value("9")


def test_a_speed_that_the_model_brings_weights_for_comes_back_from_a_picture(page: Page) -> None:
    if "turbo" not in page.request.get("/v1/info").json()["capabilities"]["speeds"]:
        pytest.skip("this model has no few-step adapter")
    choose(page, "draw")
    page.locator("label[for=draw-speed-turbo]").click()
    draw(page, seed=5)
    (picture,) = steps.pictures(page)
    assert (picture["settings"]["speed"], picture["settings"]["guidance_scale"]) == ("turbo", 1)
    page.locator("label[for=draw-speed-default]").click()
    page.locator("#shelf").get_by_test_id("shelf-picture").first.click()
    page.locator("#viewer-again").click()
    expect(page.locator("#draw-speed-turbo")).to_be_checked()
    expect(page.locator("#draw-steps")).to_have_value("")


def test_an_unseeded_drawing_says_which_seed_it_had(page: Page) -> None:
    job = begin(page, "draw", PROMPT, steps=2)
    expect(results(page, "draw")).to_have_count(1)
    steps.ended(page, "draw", job)
    (picture,) = steps.pictures(page)
    assert isinstance(picture["seed"], int)
    page.locator("#shelf").get_by_test_id("shelf-picture").first.click()
    expect(page.locator("#viewer-settings")).to_contain_text(str(picture["seed"]))


def test_what_is_wrong_is_said_beside_the_field(page: Page) -> None:
    """An empty prompt and an impossible number are refused in words, and nothing is started."""
    choose(page, "draw")
    page.locator("#draw-run").click()
    expect(page.locator("#draw-error")).to_be_visible()
    assert steps.jobs(page) == []
    choose(page, "ask")
    page.locator("#ask-prompt").fill("what is this?")
    page.locator("#ask-run").click()
    expect(page.locator("#ask-error")).to_be_visible()
    assert steps.jobs(page) == []


def test_a_refusal_is_seen_where_the_options_are_long(open_page: Open) -> None:
    """The error stands by the button, and the field that it is about is not behind either of them."""
    page = open_page(viewport={"width": 1280, "height": 700})
    page.locator("#draw-prompt").fill(PROMPT)
    set_option(page, "draw", "steps", FOREVER + 1)
    page.locator("#draw-steps").evaluate("field => field.closest('form').scrollTop = 0")
    page.locator("#draw-run").click()
    error, field = page.locator("#draw-error"), page.locator("#draw-steps")
    expect(error).to_have_text(f"Steps: 1 to {FOREVER}.")  # as many as the server allows
    expect(error).to_be_in_viewport(ratio=1)
    expect(field).to_be_focused()
    of_the_error, of_the_field = error.bounding_box(), field.bounding_box()
    assert of_the_error is not None
    assert of_the_field is not None
    assert 0 < of_the_field["y"] < of_the_error["y"] - of_the_field["height"]


def test_the_chat_stays_at_its_end(page: Page) -> None:
    """Pictures take their space only when they have come; who looks at what was before stays there."""
    choose(page, "chat")
    at_end = "log => log.scrollHeight - log.scrollTop - log.clientHeight < 2"
    log = page.locator("#chat-result")
    for count in (1, 2, 3):
        ended(page, "chat", begin(page, "chat", "/draw a red star"))
        last = page.get_by_test_id("message-picture").nth(count - 1).locator("img")
        last.wait_for()
        page.wait_for_function("image => image.complete", arg=last.element_handle())
        page.wait_for_function(at_end, arg=log.element_handle())
    assert log.evaluate("log => log.scrollHeight > log.clientHeight")
    job = begin(page, "chat", "/draw a red star")
    expect(page.get_by_test_id("message")).to_have_count(8)
    log.evaluate("log => new Promise(done => { log.onscroll = () => done(); log.scrollTop = 0; })")
    ended(page, "chat", job)
    page.get_by_test_id("message-picture").nth(3).locator("img").wait_for()
    assert log.evaluate("log => new Promise(done => requestAnimationFrame(() => done(log.scrollTop)))") == 0
