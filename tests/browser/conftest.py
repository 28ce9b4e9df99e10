"""The page in a real browser: Debian's or anyone's chromium with playwright, and a server of its own with `tiny`.

Without playwright or without a browser all of it is skipped. Nothing here waits for a time: it waits until the page
says something, and gives up after `PATIENCE`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.serving.process import Server

from .steps import FOREVER
from .watch import Watch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 90_000  # milliseconds for which a state is waited for; a busy machine takes its time

Open = Callable[..., "Page"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", type=Path, help="write the pictures of the docs into a folder")


# Playwright's loop runs in this thread for as long as it is started: no longer than these tests, or others that make
# a loop would fail.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A browser without windows, as nobody but a test starts it."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"there is none of {', '.join(BROWSERS)}")
    playwright.expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for name in ("starlette", "uvicorn", "python_multipart"):
        pytest.importorskip(name)
    with Server(tmp_path_factory.mktemp("served") / "pictures", options=["--max-steps", str(FOREVER)]) as server:
        yield server


@pytest.fixture
def server(shared_server: Server, browser: Browser) -> Iterator[Server]:
    """A running server without pictures and jobs."""
    yield shared_server
    context = browser.new_context(base_url=shared_server.url)
    for job in context.request.get("/v1/jobs?limit=100").json()["data"]:
        context.request.delete(f"/v1/jobs/{job['id']}")  # cancelled if it runs
    for job in context.request.get("/v1/jobs?limit=100").json()["data"]:
        context.request.delete(f"/v1/jobs/{job['id']}")  # and forgotten
    for picture in context.request.get("/v1/pictures?limit=100").json()["data"]:
        context.request.delete(f"/v1/pictures/{picture['id']}")
    context.close()


@pytest.fixture
def watch() -> Iterator[Watch]:
    """What goes wrong in the pages of a test, and in the end fails it."""
    watch = Watch()
    yield watch
    watch.assert_quiet()


@pytest.fixture
def new_context(browser: Browser, server: Server, watch: Watch) -> Iterator[Callable[..., BrowserContext]]:
    """Makes a context, which is a browser that nobody has used; its options are those of `Browser.new_context`."""
    made: list[BrowserContext] = []

    def make(**options: Any) -> BrowserContext:
        origin = options.setdefault("base_url", server.url)
        options.setdefault("viewport", {"width": 1280, "height": 900})
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE)
        context.set_default_navigation_timeout(PATIENCE)
        watch.follow(context, origin)
        made.append(context)
        return context

    yield make
    for context in made:
        context.close()


@pytest.fixture
def open_page(new_context: Callable[..., BrowserContext]) -> Open:
    """Opens the page in a browser that nobody has used, with options of `Browser.new_context`."""

    def open(path: str = "/", **options: Any) -> Page:
        page = new_context(**options).new_page()
        page.goto(path)
        page.wait_for_selector("html[data-ready]")
        return page

    return open


@pytest.fixture
def page(open_page: Open) -> Page:
    """The page, ready, on a desktop."""
    return open_page()


@pytest.fixture
def png(tmp_path: Path) -> Callable[..., Path]:
    """Writes pixels of the shapes world as a PNG file, with the metadata that are given."""

    def write(pixels: np.ndarray, name: str = "scene.png", metadata: dict[str, Any] | None = None) -> Path:
        from mobileo_mlx.image_settings import save_png

        save_png(Image.fromarray(pixels), tmp_path / name, metadata, overwrite=True)
        return tmp_path / name

    return write


@pytest.fixture
def screenshots(request: pytest.FixtureRequest) -> Path:
    """The folder that pictures for the docs are written into; skips where none was given."""
    folder = request.config.getoption("--screenshots", None) or os.environ.get("MOBILEO_SCREENSHOTS")
    if not folder:
        pytest.skip("needs --screenshots DIR, or MOBILEO_SCREENSHOTS")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)
