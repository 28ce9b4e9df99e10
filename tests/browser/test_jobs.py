"""Jobs outlive the page: it may be stopped, reloaded, closed, and the server may go."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.serving.process import Server
from tests.browser import steps
from tests.browser.conftest import Open
from tests.browser.steps import FOREVER, PROMPT, begin, draw, expect, results
from tests.browser.watch import Watch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page


LONG = ["--max-steps", str(FOREVER)]


def status_of(page: Page, index: int = 0) -> str:
    return str(steps.jobs(page)[index]["status"])


def test_stop_stops(page: Page) -> None:
    id = begin(page, "draw", PROMPT, steps=FOREVER)
    steps.drawing(page)
    page.locator("#draw-stop").click()
    job = steps.ended(page, "draw", id)
    assert job["status"] == "cancelled"
    assert job["progress"]["step"] < FOREVER
    expect(page.locator("#draw-status")).to_contain_text("Stopped")
    assert steps.pictures(page) == []
    # The model is free at once: the next drawing is not the stopped one's successor in a queue.
    draw(page, steps=4)


def test_escape_stops(page: Page) -> None:
    job = begin(page, "draw", PROMPT, steps=FOREVER)
    steps.drawing(page)
    page.keyboard.press("Escape")
    assert steps.ended(page, "draw", job)["status"] == "cancelled"


def test_an_answer_is_stopped(page: Page, open_page: Open) -> None:
    """While the model draws for somebody else, a question waits; stopped, it is cancelled, and the drawing goes on."""
    begin(page, "draw", PROMPT, steps=FOREVER)
    steps.drawing(page)
    other = open_page()
    job = begin(other, "chat", "how many objects are there?")
    other.locator("#chat-stop").wait_for()
    other.locator("#chat-stop").click()
    steps.ended(other, "chat", job)
    assert [job["status"] for job in steps.jobs(page)] == ["cancelled", "generating"]


def test_a_reload_in_the_middle_goes_on(page: Page) -> None:
    begin(page, "draw", PROMPT, steps=200)
    steps.drawing(page)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(results(page, "draw")).to_have_count(1)
    (job,) = steps.jobs(page)
    assert job["status"] == "completed"


def test_a_closed_browser_loses_nothing(open_page: Open, new_context: Callable[..., BrowserContext]) -> None:
    page = open_page()
    begin(page, "draw", PROMPT, steps=60)
    steps.drawing(page)
    page.context.close()
    page = open_page()
    expect(page.locator("#shelf").get_by_test_id("shelf-picture")).to_have_count(1)
    assert status_of(page) == "completed"


def test_who_waits_is_told_so_and_can_leave_the_queue(page: Page, open_page: Open) -> None:
    running = begin(page, "draw", PROMPT, steps=FOREVER)
    steps.drawing(page)
    other = open_page()
    waiting = begin(other, "draw", "a green triangle", steps=2, seed=1)
    expect(other.locator("#draw-status")).to_contain_text(re.compile("wait|queue|next|before", re.IGNORECASE))
    other.locator("#queue-button").click()
    rows = other.locator("#queue").get_by_test_id("queue-job")
    expect(rows).to_have_count(2)
    other.locator(f'[data-testid="queue-job"][data-id="{waiting}"]').get_by_test_id("queue-cancel").click()
    expect(rows).to_have_count(1)
    steps.ended(other, "draw", waiting)
    assert [job["status"] for job in steps.jobs(other)] == ["cancelled", "generating"]
    # The one that runs is cancelled from the other window, and the first says so.
    other.locator(f'[data-testid="queue-job"][data-id="{running}"]').get_by_test_id("queue-cancel").click()
    steps.ended(page, "draw", running)
    assert [job["status"] for job in steps.jobs(page)] == ["cancelled", "cancelled"]


def test_the_server_is_restarted_under_the_page(
    browser: Browser, watch: Watch, new_context: Callable[..., BrowserContext], tmp_path: Path
) -> None:
    """The page says that the server is away, finds it again by itself, and what was kept is there."""
    watch.expect("ERR_CONNECTION|ERR_INCOMPLETE|ERR_EMPTY|404")
    with Server(tmp_path / "pictures", options=LONG) as server:
        context = new_context(base_url=server.url)
        page = opened(context)
        draw(page)
        begin(page, "draw", PROMPT, steps=FOREVER)
        steps.drawing(page)
        server.kill()
        expect(page.locator("#banner")).to_be_visible()
    with Server(tmp_path / "pictures", port=server.port, options=LONG):
        expect(page.locator("#banner")).to_be_hidden()
        expect(page.locator("#shelf").get_by_test_id("shelf-picture")).to_have_count(1)
        page.locator("#draw-stop").wait_for(state="hidden")
        draw(page, seed=2, steps=4)
        assert len(steps.pictures(page)) == 2


def test_a_key_is_asked_for_once(watch: Watch, new_context: Callable[..., BrowserContext], tmp_path: Path) -> None:
    watch.expect("401")
    with Server(tmp_path / "pictures", options=["--api-key", "a-secret-of-ours"]) as server:
        page = new_context(base_url=server.url).new_page()
        page.goto("/")
        dialog = page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        page.locator("#key-input").fill("a wrong one")
        page.locator("#key-save").click()
        expect(page.locator("#key-wrong")).to_be_visible()
        page.locator("#key-input").fill("a-secret-of-ours")
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        page.wait_for_selector("html[data-ready]")
        begin(page, "draw", PROMPT)
        shown = page.locator("#shelf").get_by_test_id("shelf-picture").locator("img").first
        page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=shown.element_handle())
        page.reload()
        page.wait_for_selector("html[data-ready]")
        expect(dialog).to_be_hidden()


def opened(context: BrowserContext, **options: Any) -> Page:
    page = context.new_page()
    page.goto("/")
    page.wait_for_selector("html[data-ready]")
    return page
