"""Images by URL: only from public addresses, of which the one that was looked at is connected to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("h11")
pytest.importorskip("starlette")

from mobileo_mlx.serving import image_urls
from mobileo_mlx.serving.errors import ApiError
from mobileo_mlx.serving.image_urls import Fetcher, fetch_image, is_near, is_public
from mobileo_mlx.serving.settings import ServerSettings

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\npng"


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_public_addresses(address: str):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "168.63.129.16",
        "172.16.0.1",
        "192.0.0.8",
        "192.0.2.1",
        "192.168.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::8.8.8.8",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:168.63.129.16",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::8.8.8.8",
        "100::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "3fff::1",
        "4000::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_addresses_that_are_not_public(address: str):
    assert not is_public(address)


def test_near_addresses():
    assert is_near("2a01:4f8:1:2::9", "2a01:4f8:1:2:aaaa:bbbb:cccc:dddd")
    assert not is_near("2a01:4f8:1:3::9", "2a01:4f8:1:2:aaaa:bbbb:cccc:dddd")
    assert is_near("5.6.7.8", "5.6.7.8")
    assert not is_near("5.6.7.9", "5.6.7.8")
    assert not is_near("8.8.8.8", "::1")


def test_off_by_default():
    with pytest.raises(ApiError, match="--allow-image-urls") as raised:
        asyncio.run(fetch_image("http://example.org/a.png", ServerSettings(), param="image"))
    assert (raised.value.status, raised.value.param) == (400, "image")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "127.1", "[::ffff:7f00:1]"]
)
def test_this_machine_is_not_asked(host: str, monkeypatch: pytest.MonkeyPatch):
    async def never(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("connected")

    monkeypatch.setattr(image_urls.asyncio, "open_connection", never)
    settings = ServerSettings(allow_image_urls=True)
    for scheme in ("http", "https"):
        with pytest.raises(ApiError, match="can't be fetched"):
            asyncio.run(fetch_image(f"{scheme}://{host}/a.png", settings, param="image"))


def refusal(url: str, **more: Any) -> str:
    """Why nothing is fetched; no address would be connected to."""

    async def resolve(name: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    with pytest.raises(image_urls._Unfetchable) as raised:
        asyncio.run(Fetcher(limit=10, **{"resolve": resolve, **more}).fetch(url))
    return str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.png",
        "/etc/passwd",
        "//example.org/a.png",
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "gopher://example.org/",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "http:",
        "http://",
        "http:///a.png",
        "https:example.org",
        "http://:80/",
        "http://exa mple.org/",
        "http://example.org\\@127.0.0.1/",
        "http://example.org/\r\nX: y",
        "http://example.org/\x00",
        "http://[::1",
        "http://[v1.x]/",
        "http://example.org:99999/",
        "http://example.org:-1/",
        "http://example.org:x/",
        "http://" + "a" * 5000,
        "http://\ud800/",
        "http://" + "ä" * 100 + ".example/",
    ],
)
def test_malformed_addresses(url: str):
    assert refusal(url)


def test_users_and_odd_ports():
    assert "user" in refusal("http://user:password@example.org/")
    assert "user" in refusal("http://@example.org/")
    for port in (0, 22, 6379, 8642, 11211):
        assert "port" in refusal(f"http://example.org:{port}/")


@pytest.mark.parametrize("found", [[], ["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::ffff:10.0.0.1"]])
def test_all_addresses_of_a_name_have_to_be_public(found: list[str]):
    """And whoever asks is not told whether there is such a name in this network."""

    async def resolve(name: str, port: int) -> list[str]:
        return found

    assert refusal("http://printer/", resolve=resolve) == "its name has no address, or one that is not public"


def test_a_name_that_can_not_be_found():
    async def resolve(name: str, port: int) -> list[str]:
        raise OSError("no such name")

    assert refusal("http://printer/", resolve=resolve) == "its name has no address, or one that is not public"


def fetch(
    answer: bytes | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
    path: str = "/a.png",
    *,
    limit: int = 100,
    addresses: tuple[str, ...] = ("127.0.0.1",),
    seconds: float = 60,
) -> tuple[bytes | str, bytes, list[str]]:
    """Asks a server of this machine, which the test allows; what comes of it, what it was sent, what was resolved."""
    sent = b""
    resolved: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        sent = await reader.readuntil(b"\r\n\r\n")
        if callable(answer):
            await answer(reader, writer)
        else:
            writer.write(answer)
        writer.close()

    async def resolve(name: str, port: int) -> list[str]:
        resolved.append(name)
        return list(addresses)

    async def run() -> bytes | str:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        fetcher = Fetcher(limit=limit, ports=(port,), resolve=resolve, is_allowed=lambda address: True, seconds=seconds)
        try:
            return await fetcher.fetch(f"http://pictures.example:{port}{path}")
        except image_urls._Unfetchable as error:
            return str(error)
        finally:
            server.close()

    return asyncio.run(run()), sent, resolved


def test_the_address_that_was_looked_at_is_connected_to():
    """The name is resolved once, by us: nobody else could find it."""
    data, sent, resolved = fetch(OK, "/a%20b/ü.png?x=1&y=%20#part")
    assert data == b"png"
    assert resolved == ["pictures.example"]
    first, *headers = sent.decode().split("\r\n")
    assert first == "GET /a%20b/%C3%BC.png?x=1&y=%20 HTTP/1.1"
    assert any(line.lower().startswith("host: pictures.example:") for line in headers)
    assert not any(line.lower().startswith(("authorization", "cookie", "referer")) for line in headers)


def test_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(OK)[0] == b"png"


def test_the_next_address_where_one_does_not_answer():
    assert fetch(OK, addresses=("127.0.0.2", "127.0.0.1"))[0] == b"png"
    assert fetch(OK, addresses=("127.0.0.2",))[0] == "nobody answers there"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
def test_redirects_are_not_followed(status: int):
    answer = f"HTTP/1.1 {status} Moved\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n".encode()
    assert "not followed" in str(fetch(answer)[0])


@pytest.mark.parametrize("status", [201, 204, 206, 400, 401, 404, 500])
def test_other_answers(status: int):
    answer = f"HTTP/1.1 {status} Odd\r\nContent-Length: 0\r\n\r\n".encode()
    assert fetch(answer)[0] == f"it answers with status {status}"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n" + b"x" * 101 + b"\r\n0\r\n\r\n",
    ],
)
def test_too_much(answer: bytes):
    assert fetch(answer)[0] == "it has more than 100 bytes"


def test_as_much_as_is_allowed():
    assert fetch(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 100)[0] == b"x" * 100
    assert fetch(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100)[0] == b"x" * 100
    assert fetch(b"HTTP/1.1 100 Continue\r\n\r\n" + OK)[0] == b"png"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\npng",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\npng",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,
        b"\x00" * 100,
    ],
)
def test_what_is_no_answer(answer: bytes):
    assert fetch(answer)[0] == "the connection failed"


def test_compressed_answers():
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08"
    assert "compressed" in str(fetch(answer)[0])


def test_an_answer_that_takes_for_ever():
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\np")
        await reader.read()  # until the other side goes

    assert fetch(silent, seconds=0.2)[0] == "it takes longer than 0.2 seconds"


def test_a_name_that_takes_for_ever():
    async def resolve(name: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    assert refusal("http://example.org/", resolve=resolve, seconds=0.01) == "it takes longer than 0.01 seconds"


def test_certificates_are_checked():
    context = image_urls.certificates()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_https_to_who_speaks_no_tls():
    async def resolve(name: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    async def run() -> str:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(OK)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        fetcher = Fetcher(limit=10, ports=(port,), resolve=resolve, is_allowed=lambda address: True)
        try:
            await fetcher.fetch(f"https://pictures.example:{port}/")
        except image_urls._Unfetchable as error:
            return str(error)
        finally:
            server.close()
        return ""

    assert asyncio.run(run()) == "its certificate is not valid"


def test_a_resolver_that_hangs_takes_no_more_than_its_threads(monkeypatch: pytest.MonkeyPatch):
    import threading

    hanging = threading.Event()

    def getaddrinfo(*arguments: Any, **more: Any) -> list[Any]:
        assert hanging.wait(60)
        return [(2, 1, 6, "", ("8.8.8.8", 80))]

    monkeypatch.setattr(image_urls.socket, "getaddrinfo", getaddrinfo)

    async def run() -> list[Any]:
        waiting = [asyncio.ensure_future(image_urls.resolve("a.example", 80)) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(OSError, match="too many"):
            await image_urls.resolve("a.example", 80)
        waiting[0].cancel()  # as after the time limit
        hanging.set()
        return await asyncio.gather(*waiting[1:])

    assert asyncio.run(run()) == [["8.8.8.8"]] * 3
