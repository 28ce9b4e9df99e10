"""Who gets through to the server, and with which headers answers leave it."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.routing import Route

from mobileo_mlx.errors import OptionError
from mobileo_mlx.serving import origins
from mobileo_mlx.serving.errors import ApiError
from mobileo_mlx.serving.security import Guard, check_key
from mobileo_mlx.serving.settings import ServerSettings

from .asgi import Answer, call

LOCAL = ("Host", "localhost:8642")
CONTENT = "/v1/pictures/20261126-114500-000001-0123456789abcdef0123456789abcdef/content"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers everything with 200."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"through"})


def ask(
    method: str, path: str, *headers: tuple[str, str], inner: Any = app, scope: Any = (), **settings: Any
) -> Answer:
    guard = Guard(inner, dataclasses.replace(ServerSettings(), **settings))
    return call(guard, method, path, headers, **dict(scope))


# Host


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:1",
        "localhost.",
        "127.0.0.1:8642",
        "127.9.8.7",
        "[::1]:8642",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]:80",
    ],
)
def test_loopback_hosts_pass(host: str):
    assert ask("GET", "/v1/models", ("Host", host)).body == b"through"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.localhost",
        "127.0.0.1.evil.example:8642",
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0.0.0.0:8642",
        "192.168.1.20:8642",
        "[fe80::1]:8642",
        "[::ffff:192.168.1.1]",
    ],
)
def test_hosts_of_others_are_refused(host: str):
    answer = ask("GET", "/health", ("Host", host))
    assert (answer.status, answer.error["code"]) == (421, "unknown_host")


@pytest.mark.parametrize(
    "host",
    [
        "",
        " ",
        "localhost:",
        "localhost:0",
        "localhost:65536",
        "localhost:80:80",
        "localhost:\xb3",
        "local host",
        "localhost/evil",
        "localhost@evil.example",
        "evil.example@localhost",
        "[::1",
        "::1",
        "[::1]x",
        "[evil]",
        "[::1%25lo]",
        "localhost\x00",
        "localhost\n",
        "localhost#",
        "localhost, evil.example",
        ".localhost",
        "*",
    ],
)
def test_malformed_hosts_are_refused(host: str):
    assert ask("GET", "/health", ("Host", host)).status == 400


def test_one_host_is_wanted():
    assert ask("GET", "/health").status == 400
    assert ask("GET", "/health", LOCAL, LOCAL).status == 400


def test_trusted_host():
    asked = ("Host", "pics.example.org:443")
    assert ask("GET", "/health", asked).status == 421
    assert ask("GET", "/health", asked, trusted_hosts=("Pics.Example.ORG.",)).status == 200
    assert ask("GET", "/health", ("Host", "x.pics.example.org"), trusted_hosts=("pics.example.org",)).status == 421


def test_another_machine_may_use_addresses_and_own_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(origins.socket, "gethostname", lambda: "Annas-Mac.fritz.box")
    passing = ["192.168.1.20:8642", "[2001:db8::1]:8642", "annas-mac", "annas-mac.local:8642", "annas-mac.fritz.box"]
    for host in passing:
        assert ask("GET", "/health", ("Host", host), host="0.0.0.0").status == 200
        if host != passing[0]:
            assert ask("GET", "/health", ("Host", host), host="127.0.0.1").status == 421
    assert ask("GET", "/health", ("Host", "evil.example"), host="0.0.0.0").status == 421
    assert ask("GET", "/health", ("Host", "mac.example.org"), host="mac.example.org").status == 200


@pytest.mark.parametrize(("host", "inside"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("::", False)])
def test_is_loopback(host: str, inside: bool):
    assert origins.is_loopback(host) is inside


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "mac.local", "localhost.evil", "", "::ffff:1.2.3.4"])
def test_is_not_loopback(host: str):
    assert not origins.is_loopback(host)


# Origin


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8642", "http://localhost:8642"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("127.0.0.1:8642", "http://127.0.0.1:8642"),
        ("[::1]:8642", "http://[::1]:8642"),
    ],
)
def test_own_page_passes(host: str, origin: str):
    assert ask("POST", "/v1/jobs", ("Host", host), ("Origin", origin)).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "http://localhost",
        "http://localhost:3000",
        "https://localhost:8642",
        "http://127.0.0.1:8642",
        "http://localhost:8642.evil.example",
        "http://localhost:8642@evil.example",
        "http://evil.example#http://localhost:8642",
        "localhost:8642",
        "file://",
        "chrome-extension://abcdef",
        "http://localhost:8642 http://evil.example",
        "http://\xe9vil",
    ],
)
def test_other_pages_are_refused(origin: str):
    for method in ("GET", "POST", "DELETE", "OPTIONS", "HEAD"):
        answer = ask(method, "/v1/jobs", LOCAL, ("Origin", origin), ("Access-Control-Request-Method", "POST"))
        assert answer.status == 403
        assert answer.values("access-control-allow-origin") == []


def test_two_origins_are_refused():
    own = ("Origin", "http://localhost:8642")
    assert ask("POST", "/v1/jobs", LOCAL, own, own).status == 403
    assert ask("POST", "/v1/jobs", LOCAL, own, ("Origin", "http://a"), cors_origins=("http://a",)).status == 403


def test_what_a_browser_says_of_requests_without_an_origin():
    for site in ("cross-site", "same-site"):
        seen = ("Sec-Fetch-Site", site)
        assert ask("GET", "/v1/jobs", LOCAL, seen).status == 403
        frame = (("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe"))
        assert ask("GET", "/", LOCAL, seen, *frame).status == 403
        window = (("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document"))
        assert ask("GET", "/", LOCAL, seen, *window).status == 200
        assert ask("POST", "/", LOCAL, seen, *window).status == 403
        assert ask("GET", CONTENT, LOCAL, seen, ("Sec-Fetch-Dest", "image")).status == 200
        assert ask("DELETE", CONTENT, LOCAL, seen).status == 403
    for site in ("same-origin", "none"):
        assert ask("GET", "/v1/jobs", LOCAL, ("Sec-Fetch-Site", site)).status == 200


def test_sec_fetch_can_not_be_said_twice():
    both = (("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site"))
    assert ask("GET", "/v1/jobs", LOCAL, *both).status == 403


# CORS


def test_preflight_of_an_allowed_page():
    asked = (
        ("Origin", "http://localhost:3000"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization,x-stainless-os"),
        ("Access-Control-Request-Private-Network", "true"),
        ("Sec-Fetch-Site", "cross-site"),
    )
    answer = ask("OPTIONS", "/v1/jobs", LOCAL, *asked, cors_origins=("http://LocalHost:3000/",), api_key="k")
    assert answer.status == 204
    assert answer.body == b""
    assert answer.value("access-control-allow-origin") == "http://localhost:3000"
    assert "POST" in (answer.value("access-control-allow-methods") or "")
    assert answer.value("access-control-allow-headers") == "authorization,x-stainless-os"
    assert answer.value("access-control-allow-private-network") == "true"
    assert answer.value("access-control-allow-credentials") is None
    assert "Origin" in answer.values("vary")


def test_answers_to_an_allowed_page():
    page = ("Origin", "app://obsidian.md")
    allowed = {"cors_origins": ("app://obsidian.md", "http://a.example:80")}
    answer = ask("POST", "/v1/jobs", LOCAL, page, **allowed)
    assert (answer.status, answer.value("access-control-allow-origin")) == (200, "app://obsidian.md")
    refused = ask("POST", "/v1/jobs", LOCAL, page, api_key="k", **allowed)  # its script can read why
    assert (refused.status, refused.value("access-control-allow-origin")) == (401, "app://obsidian.md")
    assert ask("POST", "/v1/jobs", LOCAL, ("Origin", "http://a.example"), **allowed).status == 200
    assert ask("POST", "/v1/jobs", LOCAL, ("Origin", "http://b.example"), **allowed).status == 403
    assert ask("POST", "/v1/jobs", LOCAL, ("Origin", "null"), **allowed).status == 403
    assert ask("POST", "/v1/jobs", LOCAL, **allowed).values("vary") == ["Origin"]


@pytest.mark.parametrize(
    "origin", ["*", "null", "", "localhost:3000", "http://", "http://a/b", "http://u@a", "a b://c"]
)
def test_origins_that_can_not_be_allowed(origin: str):
    with pytest.raises(OptionError, match="--cors-origin"):
        Guard(app, ServerSettings(cors_origins=(origin,)))


@pytest.mark.parametrize("name", ["*", "", "http://a", "a:80", "a b", "*.example.org", "a/b"])
def test_hosts_that_can_not_be_trusted(name: str):
    with pytest.raises(OptionError, match="--trusted-host"):
        Guard(app, ServerSettings(trusted_hosts=(name,)))


# OPTIONS


def test_bare_options_is_answered_with_the_methods_of_a_route():
    async def never(request: Any) -> None:
        raise AssertionError

    routes = [
        Route("/v1/jobs", never, methods=["GET"]),
        Route("/v1/jobs", never, methods=["POST"]),
    ]
    inner = Starlette(routes=routes)

    def options(path: str) -> Answer:
        return ask("OPTIONS", path, LOCAL, inner=inner, scope={"app": inner, "query_string": b""}, api_key="k")

    answer = options("/v1/jobs")
    assert (answer.status, answer.body, answer.value("allow")) == (204, b"", "GET, HEAD, OPTIONS, POST")
    assert options("/v1/nothing").status == 401


def test_bare_options_without_routes():
    assert ask("OPTIONS", "/v1/images/generations", LOCAL).status == 204


# The API key


@pytest.mark.parametrize(
    "path", ["/", "/health", "/page/main.js", CONTENT, CONTENT.replace("/content", "/thumbnail"), "/docs"]
)
def test_what_needs_no_key(path: str):
    assert ask("GET", path, LOCAL, api_key="secret").status == 200
    assert ask("HEAD", path, LOCAL, api_key="secret").status == 200
    assert ask("POST", path, LOCAL, api_key="secret").status == 401
    assert ask("DELETE", path, LOCAL, api_key="secret").status == 401


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/v1/info",
        "/metrics",
        "/v1/pictures",
        "/v1/pictures/x",
        CONTENT + "/",
        CONTENT + "/x",
        CONTENT + "\n",
        "/v1/pictures//content",
        "/v1/pictures/a/b/content",
        "/x/v1/pictures/a/content",
        "/health/",
        "/health\n",
        "//health",
        "/page/",
        "/page/../v1/jobs",
        "/page/a/b",
        "",
        "*",
        "http://localhost/health",
    ],
)
def test_what_needs_the_key(path: str):
    assert ask("GET", path, LOCAL, api_key="secret").status == 401
    assert ask("GET", path, LOCAL, ("Authorization", "Bearer secret"), api_key="secret").status == 200


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer secre",
        "Bearer secretx",
        "Bearer Secret",
        "secret",
        "Basic secret",
        "Bearersecret",
        "Bearer secret secret",
        "Bearer s\xe9cret",
        "Bearer \xff" * 100,
        "Bearer, secret",
        "Bearer " + "x" * 10000,
    ],
)
def test_wrong_keys(value: str):
    answer = ask("GET", "/v1/models", LOCAL, ("Authorization", value), api_key="secret")
    assert answer.status == 401
    assert answer.value("www-authenticate") == 'Bearer realm="mobileo-mlx"'
    assert answer.error["type"] == "authentication_error"
    assert "secret" not in answer.body.decode()


def test_right_keys():
    for value in ("Bearer secret", "bearer secret", "BEARER  secret "):
        assert ask("GET", "/v1/models", LOCAL, ("Authorization", value), api_key="secret").status == 200
    twice = ("Authorization", "Bearer secret")
    assert ask("GET", "/v1/models", LOCAL, twice, twice, api_key="secret").status == 401


@pytest.mark.parametrize("key", ["", " ", "a b", "käse", "a\n", "a\x00", "\ud800"])
def test_keys_that_no_header_can_carry(key: str):
    with pytest.raises(OptionError, match="--api-key") as raised:
        check_key(key, "--api-key")
    assert not key.strip() or key not in str(raised.value)


# Headers


def test_every_answer_has_the_headers():
    for answer in (
        ask("GET", "/v1/models", LOCAL),
        ask("GET", "/", ("Host", "evil.example")),
        ask("OPTIONS", "/", LOCAL),
    ):
        assert answer.value("x-content-type-options") == "nosniff"
        assert answer.value("x-frame-options") == "DENY"
        assert answer.value("referrer-policy") == "no-referrer"
        assert answer.value("cross-origin-resource-policy") == "same-origin"
        assert "default-src 'none'" in (answer.value("content-security-policy") or "")
        assert answer.value("cache-control") == "no-store"


def test_an_answer_keeps_its_own_headers_but_a_picture_is_never_a_page():
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        own = [(b"Content-Security-Policy", b"default-src 'self'"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": own})
        await send({"type": "http.response.body", "body": b""})

    page = ask("GET", "/", LOCAL, inner=inner)
    assert [value for name, value in page.headers if name.lower() == "content-security-policy"] == [
        "default-src 'self'"
    ]
    assert page.value("cache-control") == "no-cache"
    picture = ask("GET", CONTENT, LOCAL, inner=inner)
    (policy,) = [value for name, value in picture.headers if name.lower() == "content-security-policy"]
    assert "sandbox" in policy
    assert picture.value("cross-origin-resource-policy") == "cross-origin"


def test_errors_of_the_application_are_answered():
    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        raise ApiError(429, "Full.", headers={"Retry-After": "3"})

    answer = ask("GET", "/v1/models", LOCAL, inner=refusing)
    assert (answer.status, answer.value("retry-after"), answer.error["message"]) == (429, "3", "Full.")


def test_what_a_bug_says_is_logged_and_not_answered(caplog: pytest.LogCaptureFixture):
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("a secret")

    answer = ask("GET", "/", LOCAL, inner=broken)
    assert (answer.status, answer.error["type"]) == (500, "server_error")
    assert answer.value("x-content-type-options") == "nosniff"
    assert b"a secret" not in answer.body
    assert "a secret" in caplog.text


def test_websockets_are_closed_and_the_lifespan_passes():
    sent: list[Any] = []
    seen: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def send(message: Any) -> None:
        sent.append(message["type"])

    for kind in ("websocket", "lifespan"):
        asyncio.run(Guard(inner, ServerSettings())({"type": kind, "headers": []}, None, send))  # type: ignore[arg-type]
    assert (sent, seen) == (["websocket.close"], ["lifespan"])
