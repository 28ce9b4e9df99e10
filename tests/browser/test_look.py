"""What everybody has to be able to use: with the keyboard, on a phone, in dark and light, with a screen reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.shapes.world import Object, Scene, render
from tests.browser import steps
from tests.browser.conftest import Open
from tests.browser.steps import FOREVER, PROMPT, TABS, begin, choose, choose_picture, draw, expect

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page


PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
SCENE = render(Scene((Object("star", "yellow", 4, 4),), "white"))
FIRST_PAINT = 200_000  # bytes


def test_first_paint_is_light(new_context: Callable[..., BrowserContext]) -> None:
    """All that comes over the wire until the page is ready, in a browser that has nothing of it."""
    context = new_context()
    page = context.new_page()
    wire = context.new_cdp_session(page)
    wire.send("Network.enable")
    sizes: list[float] = []
    wire.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.goto("/")
    page.wait_for_selector("html[data-ready]")
    page.wait_for_load_state("networkidle")
    assert len(sizes) > 3
    assert sum(sizes) < FIRST_PAINT


@pytest.mark.parametrize("tab", TABS)
def test_nothing_is_wider_than_a_phone(open_page: Open, tab: str, png: Callable[..., Path]) -> None:
    page = open_page(**PHONE)
    if tab == "draw":
        draw(page)
    else:
        choose_picture(page, tab, png(SCENE))
        job = begin(page, tab, "a very-long-word-" + "x" * 200 if tab == "chat" else "make the star green")
        steps.ended(page, tab, job)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for name in (f"{tab}-prompt", f"{tab}-run", *(f"tab-{other}" for other in TABS), "queue-button", "theme-button"):
        control = page.locator(f"#{name}")
        control.scroll_into_view_if_needed()
        box = control.bounding_box()
        assert box is not None, name
        assert 0 <= box["x"] <= 360 - box["width"], name
        control.click(trial=True)  # nothing lies over it


def test_nothing_is_wider_than_320_pixels(open_page: Open) -> None:
    """As WCAG 2.2 asks (1.4.10): a desktop at 400 % has no more."""
    page = open_page(viewport={"width": 320, "height": 640})
    for tab in TABS:
        choose(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth") == 320, tab
    draw(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_fingers_meet_the_controls_of_a_phone(open_page: Open) -> None:
    """Buttons are 24 pixels high and wide at least, as WCAG 2.2 asks (2.5.8)."""
    page = open_page(**PHONE)
    for tab in TABS:
        choose(page, tab)
        small = page.evaluate(
            """() => [...document.querySelectorAll("button, summary, input, select, textarea")]
                .filter((element) => element.checkVisibility({visibilityProperty: true, opacityProperty: true}))
                .map((element) => [element.id || element.outerHTML, element.getBoundingClientRect()])
                .filter(([, box]) => box.width > 1 && (box.width < 24 || box.height < 24)).map(([name]) => name)"""
        )
        assert small == [], tab


def brightness(page: Page) -> float:
    """Of the page's ground, 0 to 255."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = page.evaluate(
        """(colour) => {
            const canvas = document.createElement("canvas").getContext("2d");
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }""",
        colour,
    )
    return float(red + green + blue) / 3


def test_dark_and_light_as_the_system_says(open_page: Open) -> None:
    assert brightness(open_page(color_scheme="light")) > 200
    assert brightness(open_page(color_scheme="dark")) < 60


def test_the_other_theme_is_chosen_and_kept(open_page: Open) -> None:
    page = open_page(color_scheme="light")
    for _ in range(3):  # light, dark, as the system
        page.locator("#theme-button").click()
        if brightness(page) < 60:
            break
    assert brightness(page) < 60
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert brightness(page) < 60


def moving(page: Page) -> list[str]:
    """What moves for longer than a moment, or for ever."""
    found: list[str] = page.evaluate(
        """() => document.getAnimations().filter((one) => {
            const timing = one.effect.getComputedTiming();
            return one.playState === "running" && (timing.iterations === Infinity || timing.activeDuration > 50);
        }).map((one) => one.animationName ?? one.transitionProperty)"""
    )
    return found


def test_nothing_moves_for_who_does_not_want_it(open_page: Open) -> None:
    page = open_page(reduced_motion="reduce")
    begin(page, "draw", PROMPT, steps=FOREVER)
    steps.drawing(page)
    assert moving(page) == []
    choose(page, "chat")
    begin(page, "chat", "how many objects are there?")
    page.locator("#chat-stop").wait_for()
    assert moving(page) == []


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def focus_by_tab(page: Page, name: str) -> None:
    """Presses Tab until a control has the focus."""
    for _ in range(80):
        if page.evaluate("document.activeElement.id") == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach #{name}")


def test_all_four_tabs_with_the_keyboard_alone(page: Page) -> None:
    focus_by_tab(page, "tab-draw")
    focus_by_tab(page, "draw-prompt")
    page.keyboard.type(PROMPT)
    job = steps.sent(page, lambda: press(page, "Control+Enter"))
    expect(steps.results(page, "draw")).to_have_count(1)
    steps.ended(page, "draw", job)

    # The picture goes to the next tab from its viewer, which gives the focus to where the text is written.
    open_first_picture(page)
    focus_by_tab(page, "viewer-ask")
    press(page, "Enter")
    expect(page.locator("#panel-ask")).to_be_visible()
    focus_by_tab(page, "ask-prompt")
    page.keyboard.type("what color is the square?")
    job = steps.sent(page, lambda: press(page, "Control+Enter"))
    expect(page.locator("#ask-result")).to_contain_text("blue")
    steps.ended(page, "ask", job)

    open_first_picture(page)
    focus_by_tab(page, "viewer-edit")
    press(page, "Enter")
    expect(page.locator("#panel-edit")).to_be_visible()
    focus_by_tab(page, "edit-prompt")
    page.keyboard.type("make the square green")
    job = steps.sent(page, lambda: press(page, "Control+Enter"))
    expect(steps.results(page, "edit")).to_have_count(1)
    steps.ended(page, "edit", job)

    for _ in range(80):
        if page.evaluate("document.activeElement.getAttribute('role')") == "tab":
            break
        press(page, "Shift+Tab")
    press(page, "End")
    expect(page.locator("#panel-chat")).to_be_visible()
    focus_by_tab(page, "chat-prompt")
    page.keyboard.type("how are you?")
    job = steps.sent(page, lambda: press(page, "Control+Enter"))
    expect(page.locator('[data-testid="message"][data-role="assistant"]')).to_have_count(1)
    steps.ended(page, "chat", job)


def open_first_picture(page: Page) -> None:
    for _ in range(80):
        if page.evaluate("document.activeElement.closest('#shelf') !== null"):
            break
        press(page, "Tab")
    press(page, "Enter")
    expect(page.locator("#viewer")).to_be_visible()


def test_the_tabs_are_walked_with_arrows(page: Page) -> None:
    page.locator("#tab-draw").focus()
    for tab in (*TABS[1:], "draw"):
        press(page, "ArrowRight")
        expect(page.locator(f"#panel-{tab}")).to_be_visible()
        expect(page.locator(f"#tab-{tab}")).to_have_attribute("aria-selected", "true")
        expect(page.locator(f"#tab-{tab}")).to_be_focused()


def test_keys_are_explained_and_found(page: Page) -> None:
    press(page, "?")
    expect(page.locator("#keys")).to_be_visible()
    press(page, "Escape")
    expect(page.locator("#keys")).to_be_hidden()
    press(page, "/")
    expect(page.locator("#draw-prompt")).to_be_focused()
    press(page, "?")  # where text is written it is text
    expect(page.locator("#draw-prompt")).to_have_value("?")


def test_a_closed_dialog_gives_the_focus_back(page: Page) -> None:
    draw(page)
    picture = page.locator("#shelf").get_by_test_id("shelf-picture").first
    picture.click()
    expect(page.locator("#viewer")).to_be_visible()
    press(page, "Escape")
    expect(page.locator("#viewer")).to_be_hidden()
    assert page.evaluate("document.activeElement.closest('#shelf') !== null")


def test_progress_is_told_to_a_screen_reader(page: Page) -> None:
    draw(page)
    expect(page.locator("#live")).not_to_be_empty()
    bar: Any = page.locator("#draw-progress")
    if bar.count():
        assert bar.evaluate("element => element.getAttribute('aria-label') ?? element.labels?.length")
