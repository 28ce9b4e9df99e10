"""What a page must not do: write errors, throw, lose a request, or ask another host."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, Response

# A page that is left, or a stream that is not read on, ends its requests so: nobody has lost them.
ENDED_BY_THE_PAGE = "net::ERR_ABORTED"


class Watch:
    """Follows contexts, and collects what went wrong in their pages.

    A violation of the content-security policy is an error in the console; so is an answer of 400 or more.
    """

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self._expected: list[re.Pattern[str]] = []

    def follow(self, context: BrowserContext, origin: str) -> None:
        """Follows all pages that a context will open; they may ask `origin` alone."""
        context.on("page", lambda page: self._follow_page(page, origin))

    def expect(self, pattern: str) -> None:
        """A test that causes an error says which; what it is found in does not fail it."""
        self._expected.append(re.compile(pattern))

    def assert_quiet(self) -> None:
        wrong = [line for line in self.wrong if not any(pattern.search(line) for pattern in self._expected)]
        assert not wrong, "\n".join(["", *wrong])

    def _follow_page(self, page: Page, origin: str) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.wrong.append(f"thrown: {error}"))
        page.on("requestfailed", self._failed)
        page.on("request", lambda request: self._asked(request, origin))
        page.on("response", self._answered)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"console {message.type}: {message.text} ({message.location.get('url', '')})")

    def _failed(self, request: Request) -> None:
        if request.failure != ENDED_BY_THE_PAGE:
            self.wrong.append(f"failed: {request.method} {request.url} ({request.failure})")

    def _asked(self, request: Request, origin: str) -> None:
        if not request.url.startswith((f"{origin}/", "data:", "blob:")):
            self.wrong.append(f"another host: {request.method} {request.url}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.wrong.append(f"status {response.status}: {response.request.method} {response.url}")
