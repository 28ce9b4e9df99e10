"""`mobileo-mlx serve` as a process: the line when it is ready, requests, signals, and what it refuses to start with."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("python_multipart")

from mobileo_cli import serve as serving
from mobileo_cli import signals
from mobileo_cli.main import main

from mobileo_mlx.errors import OptionError
from mobileo_mlx.serving import server
from mobileo_mlx.serving.security import Guard
from mobileo_mlx.serving.settings import ServerSettings

KEY = "a-key-that-nobody-else-has"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MOBILEO_API"))}
    return {**kept, "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": "http://127.0.0.1:9"}


class Process:
    """A running server.

    Attributes:
        process: of it.
        line: what it said when it was ready.
        url: in that line.
    """

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mobileo_mlx", "serve", "--model", "tiny", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        found = re.search(r"http://\S+", self.line)
        assert found is not None, self.process.communicate()
        self.url = found[0]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        with closing(http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)) as connection:
            content = None if body is None else json.dumps(body)
            kind = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, content, {**kind, **headers})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def serve(environment: dict[str, str]) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*arguments: str, **variables: str) -> Process:
        started.append(Process(arguments, {**environment, **variables}))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


ENDS = {
    signal.SIGINT: (130, "mobileo-mlx: interrupted"),
    signal.SIGTERM: (143, "mobileo-mlx: ended by SIGTERM"),
    signal.SIGHUP: (129, "mobileo-mlx: ended by SIGHUP"),
}


@pytest.mark.parametrize("number", ENDS)
def test_a_server_answers_and_ends_while_it_draws(
    serve: Callable[..., Process], number: signal.Signals, tmp_path: Path
):
    one = serve("--max-steps", "10000")
    assert one.line == f"Ready: {one.url} (tiny; Ctrl-C ends)\n"
    assert one.ask("GET", "/v1/models")[0] == 200
    with closing(socket.create_connection(("127.0.0.1", int(one.url.rpartition(":")[2])))) as idle:
        finished = one.ask("POST", "/v1/jobs", {"task": "generate", "prompt": "a star", "steps": 2})[1]
        follow(one, finished["id"], "completed")
        drawing = one.ask("POST", "/v1/jobs", {"task": "generate", "prompt": "a star", "steps": 1000})[1]
        with stream(one, drawing["id"]) as lines:
            while "event: progress" not in next(lines):
                pass
            status, out, err = one.end(number)
            last = "".join(lines)
        assert "event: cancelled" in last
        assert idle.recv(1) == b""
    assert (status, out, err.splitlines()) == (ENDS[number][0], "", [ENDS[number][1]])
    (picture,) = (tmp_path / "Pictures" / "mobileo-mlx").glob("*.png")  # what was finished is kept
    assert picture.stat().st_size


@contextmanager
def stream(one: Process, job: str) -> Iterator[Iterator[str]]:
    """The lines of a job's events."""
    with closing(http.client.HTTPConnection(one.url.removeprefix("http://"), timeout=60)) as connection:
        connection.request("GET", f"/v1/jobs/{job}/events")
        answer = connection.getresponse()
        assert answer.status == 200
        yield (line.decode() for line in answer)


def follow(one: Process, job: str, event: str) -> None:
    with stream(one, job) as lines:
        assert any(line.startswith(f"event: {event}") for line in lines)


def test_a_second_interruption_ends_at_once(serve: Callable[..., Process]):
    one = serve("--no-pictures")
    one.process.send_signal(signal.SIGINT)
    status, _, err = one.end(signal.SIGINT)
    assert (status, err) == (130, "mobileo-mlx: interrupted\n")


def test_progress_is_json_where_that_was_asked_for(serve: Callable[..., Process]):
    one = serve("--no-pictures", "--progress", "json")
    status, _, err = one.end(signal.SIGTERM)
    events = [json.loads(line) for line in err.splitlines()]
    assert status == 143
    assert events == [
        {"event": "ready", "url": one.url, "model": "tiny"},
        {"event": "interrupted", "message": "ended by SIGTERM"},
    ]


def test_requests_are_logged_with_what_controls_a_terminal_made_visible(serve: Callable[..., Process]):
    one = serve("--no-pictures", "--log-requests")
    assert one.ask("GET", "/%1b[31m?key=secret")[0] == 404
    _, _, err = one.end(signal.SIGTERM)
    assert re.fullmatch(r"127\.0\.0\.1 GET /\\x1b\[31m 404 \d+ ms", err.splitlines()[0])


def test_the_key_is_asked_for_and_told_to_nobody(serve: Callable[..., Process]):
    one = serve("--no-pictures", "--log-requests", MOBILEO_API_KEY=KEY)
    assert one.ask("GET", "/health")[0] == 200
    status, body = one.ask("GET", "/v1/info")
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    status, info = one.ask("GET", "/v1/info", Authorization=f"Bearer {KEY}")
    assert (status, KEY in json.dumps(info)) == (200, False)
    assert one.ask("GET", "/v1/models", Authorization=f"Bearer {KEY}x")[0] == 401
    _, out, err = one.end(signal.SIGTERM)
    assert KEY not in one.line + out + err


def test_other_machines_are_told_where_to_look(serve: Callable[..., Process]):
    one = serve("--no-pictures", "--host", "0.0.0.0", MOBILEO_API_KEY=KEY)
    port = one.url.rpartition(":")[2]
    name = f"{socket.gethostname()}:{port}"
    assert one.url == f"http://127.0.0.1:{port}"
    assert one.ask("GET", "/v1/models", Host=name)[0] == 401
    assert one.ask("GET", "/v1/models", Host=name, Authorization=f"Bearer {KEY}")[0] == 200
    assert one.ask("GET", "/v1/models", Host="evil.example", Authorization=f"Bearer {KEY}")[0] == 421
    _, _, err = one.end(signal.SIGTERM)
    assert err.splitlines()[0] == f"Other machines find it at http://{name}, with the API key."


def test_a_page_in_disguise_is_refused(serve: Callable[..., Process]):
    one = serve("--no-pictures")
    assert one.ask("GET", "/v1/models", Host="evil.example")[0] == 421
    assert one.ask("POST", "/v1/jobs", {}, Origin="http://evil.example")[0] == 403


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What is said by a server that does not start."""

    def refusal(*arguments: str, key: str | None = None) -> str:
        monkeypatch.delenv("MOBILEO_API_KEY", raising=False)
        if key is not None:
            monkeypatch.setenv("MOBILEO_API_KEY", key)
        assert main(["serve", "--model", "tiny", *arguments]) == 2
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert out == ""
        return line

    return refusal


def test_a_port_that_is_taken(refusal: Callable[..., str]):
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert refusal("--port", port) == (
            f"mobileo-mlx: error: port {port} is taken, by another program or another server; choose one with --port."
        )


def test_what_can_not_be_started(refusal: Callable[..., str], tmp_path: Path):
    assert "set an API key" in refusal("--host", "0.0.0.0")
    assert "set an API key" in refusal("--host", "", key="")
    assert "there is no such machine" in refusal("--host", "no.such.machine.invalid", "--api-key", "k")
    assert "not an address of this machine" in refusal("--host", "192.0.2.1", "--api-key", "k")
    assert "--cors-origin" in refusal("--cors-origin", "*")
    assert "--trusted-host" in refusal("--trusted-host", "*")
    assert "less than the model's own size, 64x64" in refusal("--max-size", "32", "--port", "0")
    assert "exclude each other" in refusal("--pictures", str(tmp_path), "--no-pictures")
    assert "can't be a name on the hub" in refusal("--model", "nope", "--port", "0")
    assert "--port" in refusal("--port", "65536")


def test_a_key_that_can_not_be_one_is_not_repeated(refusal: Callable[..., str]):
    for name, said in {
        "--api-key": refusal("--api-key", f"{KEY} ü", key="another"),
        "MOBILEO_API_KEY": refusal(key=f"{KEY} ü"),
    }.items():
        assert said.startswith(f"mobileo-mlx: error: {name}: ")
        assert KEY not in said


def test_a_model_that_does_not_stop_ends_with_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class Stuck:
        def stop(self, seconds: float) -> bool:
            return False

    ended: list[int] = []

    def leave(status: int) -> None:
        ended.append(status)
        raise SystemExit

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        serving._leave(Stuck(), signals.Ended(signal.SIGTERM))  # type: ignore[arg-type]
    assert ended == [143]
    assert capsys.readouterr().err == "mobileo-mlx: ended by SIGTERM\n"


def test_the_extra_is_named_where_it_is_missing(environment: dict[str, str], tmp_path: Path):
    hidden = "import sys; sys.modules['uvicorn'] = None; from mobileo_cli.main import main; sys.exit(main(['serve']))"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        'mobileo-mlx: error: serve needs packages that are not installed: run `pip install "mobileo-mlx[serve]"`.\n'
    )


# What needs no process


def test_a_privileged_port_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    """Whoever runs this test may be allowed to take it."""

    def refused(self: Any, address: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(server.socket, "socket", type("Socket", (socket.socket,), {"bind": refused}))
    with pytest.raises(OptionError, match="port 80 is kept for the system"):
        server.listen(ServerSettings(port=80))


def test_a_name_with_two_addresses_listens_at_both_on_one_port(monkeypatch: pytest.MonkeyPatch):
    stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    answers = [(*stream, ("127.0.0.1", 0)), (*stream, ("127.0.0.2", 0)), (*stream, ("192.0.2.1", 0))]
    monkeypatch.setattr(server.socket, "getaddrinfo", lambda *arguments, **more: answers)
    sockets = server.listen(ServerSettings(host="localhost", port=0))
    try:
        first, second = (each.getsockname() for each in sockets)  # what this machine does not have is left out
        assert (first[0], second[0], second[1]) == ("127.0.0.1", "127.0.0.2", first[1])
    finally:
        for each in sockets:
            each.close()


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("::1", "[::1]"),
        ("localhost", "localhost"),
    ],
)
def test_the_address_that_is_shown_can_be_opened_and_passes_the_guard(host: str, shown: str):
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        url = server.url_of(ServerSettings(host=host), listener)
        assert url == f"http://{shown}:{listener.getsockname()[1]}"
    Guard(None, ServerSettings(host=host))._check_host(_request(url.removeprefix("http://")))  # type: ignore[arg-type]


def _request(host: str) -> Any:
    from mobileo_mlx.serving.security import _Request

    return _Request({"method": "GET", "path": "/", "headers": [(b"host", host.encode())]})


def test_the_limit_of_open_files_is_raised_no_further_than_allowed(monkeypatch: pytest.MonkeyPatch):
    resource = pytest.importorskip("resource")
    limits = [256, 600]

    def setrlimit(what: int, new: tuple[int, int]) -> None:
        limits[:] = new

    monkeypatch.setattr(resource, "getrlimit", lambda what: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    assert server.most_connections() == 300
    assert limits == [600, 600]
    limits[:] = [256, resource.RLIM_INFINITY]
    assert server.most_connections() == 1000
