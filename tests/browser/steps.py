"""What people do on the page, by the names of its controls (docs/page.md), and what they then see."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.shapes.scorer import read_picture, satisfies
from benchmarks.shapes.text import Spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Locator, LocatorAssertions, Page

PROMPT = "a red circle to the left of a blue square"
SPEC = Spec((("circle", "red"), ("square", "blue")), "white", "to the left of")
SEED = 1
TABS = ("draw", "ask", "edit", "chat")
FOREVER = 1000  # steps of a drawing that nobody waits for


def expect(locator: Locator) -> LocatorAssertions:
    """Playwright's assertions, which wait; it is imported where it is used, as it may be missing."""
    from playwright.sync_api import expect

    return expect(locator)


def choose(page: Page, tab: str) -> None:
    """Opens a tab."""
    page.locator(f"#tab-{tab}").click()
    page.locator(f"#panel-{tab}").wait_for()


def set_option(page: Page, tab: str, name: str, value: Any) -> None:
    """Fills in an option; opens the fold where it is inside."""
    field = page.locator(f"#{tab}-{name}")
    field.wait_for(state="attached")
    if not field.is_visible():
        page.locator(f"#{tab}-options > summary").click()
    if field.evaluate("element => element.tagName") == "SELECT":
        field.select_option(str(value))
    else:
        field.fill(str(value))


def begin(page: Page, tab: str, text: str, **options: Any) -> str:
    """Writes a prompt, question, instruction or message, and sends it; returns the job's id."""
    choose(page, tab)
    for name, value in options.items():
        set_option(page, tab, name, value)
    page.locator(f"#{tab}-prompt").fill(text)
    return sent(page, page.locator(f"#{tab}-run").click)


def sent(page: Page, send: Callable[[], object]) -> str:
    """Does what makes a job, and gives the job's id once the server has it."""
    with page.expect_request(lambda asked: asked.method == "POST" and asked.url.endswith("/v1/jobs")) as making:
        send()
    answer = making.value.response()
    assert answer is not None
    id: str = answer.json()["id"]
    return id


def results(page: Page, tab: str) -> Locator:
    """The finished pictures of a tab."""
    return page.locator(f"#{tab}-result").get_by_test_id("result-picture")


def draw(page: Page, text: str = PROMPT, *, count: int = 1, **options: Any) -> None:
    """Draws, and waits for all pictures and the end of the job."""
    job = begin(page, "draw", text, **({"n": count} if count > 1 else {}), **{"seed": SEED, **options})
    assert ended(page, "draw", job)["status"] == "completed"
    expect(results(page, "draw")).to_have_count(count)


def ended(page: Page, tab: str, id: str) -> dict[str, Any]:
    """Waits until a job has ended and its tab has nothing to stop; gives the job."""
    page.request.get(f"/v1/jobs/{id}/events", timeout=0)  # the answer ends with the job
    page.locator(f"#{tab}-stop").wait_for(state="hidden")
    return job_of(page, id)


def job_of(page: Page, id: str) -> dict[str, Any]:
    """A job as the server has it."""
    found: dict[str, Any] = page.request.get(f"/v1/jobs/{id}").json()
    return found


def drawing(page: Page, tab: str = "draw") -> None:
    """Waits until a picture can be seen coming."""
    page.locator(f"#{tab}-result").get_by_test_id("result-preview").first.wait_for()


def choose_picture(page: Page, tab: str, file: Path | dict[str, Any]) -> None:
    """Gives a tab a picture by its file chooser."""
    choose(page, tab)
    page.locator(f"#{tab}-picture-file").set_input_files(file)  # type: ignore[arg-type]
    page.locator(f"#{tab}-picture").get_by_test_id("picture-chosen").first.wait_for()


def drop(page: Page, selector: str, data: bytes, name: str, kind: str) -> None:
    """Drops a file onto an element, as from the desktop."""
    _transfer(page, selector, data, name, kind, "drop")


def paste(page: Page, data: bytes, name: str = "image.png", kind: str = "image/png") -> None:
    """Pastes a picture as from a program that copied it."""
    _transfer(page, "body", data, name, kind, "paste")


def _transfer(page: Page, selector: str, data: bytes, name: str, kind: str, how: str) -> None:
    # A script can't fill the system's clipboard with a file, so the event is made with what it would hold.
    page.locator(selector).first.evaluate(
        """(element, [bytes, name, kind, how]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], name, {type: kind}));
            if (how === "paste") {
                const event = new ClipboardEvent("paste", {bubbles: true, cancelable: true, clipboardData: transfer});
                (document.activeElement ?? element).dispatchEvent(event);
                return;
            }
            for (const type of ["dragenter", "dragover", "drop"]) {
                element.dispatchEvent(new DragEvent(type, {bubbles: true, cancelable: true, dataTransfer: transfer}));
            }
        }""",
        [list(data), name, kind, how],
    )


def pictures(page: Page) -> list[dict[str, Any]]:
    """The server's pictures, newest first."""
    found: list[dict[str, Any]] = page.request.get("/v1/pictures?limit=100").json()["data"]
    return found


def jobs(page: Page) -> list[dict[str, Any]]:
    """The server's jobs, newest first."""
    found: list[dict[str, Any]] = page.request.get("/v1/jobs?limit=100").json()["data"]
    return found


def pixels(page: Page, url: str) -> np.ndarray:
    """(H, W, 3) uint8 of a picture of the server's."""
    with Image.open(io.BytesIO(page.request.get(url).body())) as image:
        return np.asarray(image.convert("RGB"))


def is_drawn(page: Page, url: str, spec: Spec = SPEC) -> bool:
    """Whether a picture of the server's shows what was asked for."""
    return satisfies(read_picture(pixels(page, url)), spec)
