"""Running servers as an engine: what they refuse, how they fail, and that nothing is lost."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mobileo_cli.main import main
from PIL import Image

from mobileo_mlx.batch import servers as module
from mobileo_mlx.batch.engine import Setup
from mobileo_mlx.batch.http import Busy, Server, read_servers
from mobileo_mlx.batch.servers import Servers
from mobileo_mlx.errors import MobileOError, OptionError
from mobileo_mlx.image_settings import read_metadata

from .conftest import Place, prompts
from .faking import FakeModel
from .serving import INFO, FakeServer

Start = Callable[..., FakeServer]
Command = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    servers: list[FakeServer] = []

    def begin(*arguments: Any, **options: Any) -> FakeServer:
        servers.append(FakeServer(*arguments, **options))
        return servers[-1]

    yield begin
    for server in servers:
        server.stop()


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.delenv("MOBILEO_API_KEY", raising=False)


@pytest.fixture
def command(place: Place, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*servers: object, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
        urls = ",".join(server.url if isinstance(server, FakeServer) else str(server) for server in servers)
        status = main(["batch", str(place.jobs), "--out", str(place.out), "--servers", urls, *options])
        return status, *capsys.readouterr()

    return run


def drawn(server: FakeServer) -> list[str]:
    return [body["prompt"] for path, body in server.requests if path == "/v1/images/generations"]


def test_results_are_those_of_a_model_in_this_process(
    place: Place, command: Command, start: Start, fake: FakeModel, photo: Path
) -> None:
    place.write(
        [
            *prompts(30),
            {"task": "edit", "id": "e", "image": str(photo), "instruction": "redder", "strength": 0.5, "seed": 3},
            {"task": "ask", "id": "a", "image": [str(photo), str(photo)], "question": "what?", "max_tokens": 4},
        ]
    )
    first, second = start(), start()
    assert command(first, second)[0] == 0
    other = place.folder / "local"
    assert main(["batch", str(place.jobs), "--out", str(other)]) == 0
    assert (place.out / "results.jsonl").read_bytes() == (other / "results.jsonl").read_bytes()
    for path in other.rglob("*.png"):
        here = place.out / path.relative_to(other)
        assert Image.open(path).tobytes() == Image.open(here).tobytes()
        settings = read_metadata(path)
        apart = {"batch", "image_sha256", "software"}  # the model's digest, for one, holds the server's version
        found = read_metadata(here)
        assert {name: found[name] for name in settings if name not in apart} == {
            name: value for name, value in settings.items() if name not in apart
        }
    assert len(drawn(first)) + len(drawn(second)) == 30
    assert drawn(first)
    assert drawn(second)
    (edit,) = [body for server in (first, second) for path, body in server.requests if path == "/v1/images/edits"]
    assert (edit["strength"], edit["seed"], edit["output_format"], edit["n"]) == (0.5, 3, "png", 1)


def test_a_size_is_sent_as_openai_does(place: Place, command: Command, start: Start) -> None:
    place.write([{"prompt": "x", "size": "96x64", "guidance_interval": [0.1, 0.9]}])
    server = start()
    assert command(server)[0] == 0
    (body,) = [body for path, body in server.requests if path == "/v1/images/generations"]
    assert (body["size"], body["guidance_interval"], "width" in body) == ("96x64", [0.1, 0.9], False)


def test_a_server_that_dies_leaves_its_tasks_to_the_other(place: Place, command: Command, start: Start) -> None:
    place.write(prompts(60))
    left = threading.Semaphore(5)

    def dies(path: str, body: Mapping[str, Any]) -> str | None:
        return None if path == "/v1/info" or left.acquire(blocking=False) else "die"

    dying, other = start(dies), start()
    assert command(dying, other)[0] == 0
    assert [record["id"] for record in place.results()] == [f"p{i}" for i in range(1, 61)]
    assert set(drawn(dying)) | set(drawn(other)) == {f"prompt {i}" for i in range(1, 61)}


def test_an_answer_that_is_cut_short_is_for_another_server(place: Place, command: Command, start: Start) -> None:
    place.write(prompts(30))
    cutting, other = start(lambda path, body: None if path == "/v1/info" else "cut"), start()
    assert command(cutting, other)[0] == 0
    assert drawn(cutting)
    assert set(drawn(other)) == {f"prompt {i}" for i in range(1, 31)}


def test_a_server_that_is_not_there_yet_is_asked_later(place: Place, command: Command, start: Start) -> None:
    """The second one comes while the first one works, which waits for it."""
    place.write(prompts(30))
    late = FakeServer()
    late.stop()
    came = threading.Event()

    def waits(path: str, body: Mapping[str, Any]) -> None:
        if path != "/v1/info" and not came.is_set():
            came.set()
            late.start()
        while path != "/v1/info" and not drawn(late):
            threading.Event().wait(0.01)

    first = start(waits)
    try:
        assert command(first, late)[0] == 0
        assert drawn(late)
    finally:
        late.stop()
    assert len(place.results()) == 30


def test_a_busy_server_is_asked_again_and_no_attempt_is_counted(place: Place, command: Command, start: Start) -> None:
    place.write(prompts(5))
    tried: Counter[str] = Counter()

    def busy(path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, str], str] | None:
        if path == "/v1/info":
            return None
        tried[body["prompt"]] += 1
        if tried[body["prompt"]] > 4:
            return None
        return (429, {"Retry-After": "0"}, "full") if tried[body["prompt"]] % 2 else (503, {}, "loading")

    assert command(start(busy))[0] == 0
    assert set(tried.values()) == {5}
    assert not (place.out / "failed.jsonl").exists()


@pytest.mark.parametrize(("after", "seconds"), [("7", 7.0), ("900", 60.0), ("-1", 0.1), ("nan", 0.1), ("a date", 1.0)])
def test_how_long_a_busy_server_is_left_alone(start: Start, after: str, seconds: float) -> None:
    server = start(lambda path, body: (429, {"Retry-After": after}, "full"))
    with pytest.raises(Busy) as caught:
        Server(server.url).ask("GET", "/v1/info")
    assert caught.value.seconds == seconds


def test_a_redirect_is_named(place: Place, command: Command, start: Start) -> None:
    place.write(prompts(1))
    server = start(lambda path, body: (301, {"Location": "https://mac.local/"}, ""))
    status, _, err = command(server)
    assert status == 2
    assert f"{server.url} sends on to 'https://mac.local/'; give the address of the server itself." in err


def test_a_line_that_kills_servers_is_given_up(place: Place, command: Command, start: Start) -> None:
    place.write([*prompts(10), {"id": "x", "prompt": "poison"}, *prompts(20)[10:]])

    def dies(path: str, body: Mapping[str, Any]) -> str | None:
        return "die" if body.get("prompt") == "poison" else None

    first, second = start(dies), start(dies)
    status, _, err = command(first, second)
    assert status == 1
    assert "line 11 failed: http://127.0.0.1:" in err
    (failure,) = place.failures()
    assert (failure["id"], failure["attempts"]) == ("x", 3)
    assert "went away while it worked on this" in failure["error"]
    assert len(place.results()) == 21


def test_what_a_server_refuses_is_the_lines_fault(place: Place, command: Command, start: Start) -> None:
    place.write([*prompts(3), {"id": "x", "prompt": "bad"}, {"id": "y", "prompt": "worse"}])
    answers = {"bad": (400, {}, "steps 99999 is too many."), "worse": (500, {}, "The server failed.")}
    server = start(lambda path, body: answers.get(body.get("prompt", "")))
    assert command(server)[0] == 1
    assert {(record["id"], record["attempts"], record["error"]) for record in place.failures()} == {
        ("x", 3, f"{server.url}: steps 99999 is too many."),
        ("y", 3, f"{server.url}: The server failed."),
    }
    assert len(place.results()) == 5


def test_an_answer_that_makes_no_sense_is_a_failure(place: Place, start: Start, command: Command) -> None:
    place.write([{"id": "x", "prompt": "x"}])
    server = start()
    for made in ({}, {"data": []}, {"data": [{"b64_json": "!"}]}, {"data": [{"b64_json": "aGVsbG8="}]}, []):
        server._made = lambda path, body, made=made: dict(INFO) if path == "/v1/info" else made  # type: ignore[method-assign]
        assert command(server, options=("--retry-failed",))[0] == 1
        assert place.failures()[0]["attempts"] == 3
        assert place.failures()[0]["error"].startswith(f"{server.url} has answered ")


def test_keys(place: Place, command: Command, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write(prompts(4))
    first, second = start(key="one"), start(key="two")
    status, _, err = command(first)
    assert status == 2
    assert f"{first.url} refuses the request (wrong key); give its key in the file of --servers" in err
    listed = tmp_path / "servers.txt"
    listed.write_text(f"# at home\n{first.url} one\n\n{second.url}\n")
    monkeypatch.setenv("MOBILEO_API_KEY", "two")
    assert command(listed)[0] == 0
    assert len(place.results()) == 4
    assert "one" not in repr(Server("http://x", "one"))


def test_a_key_that_is_refused_later_ends_the_run(place: Place, command: Command, start: Start) -> None:
    place.write(prompts(40))
    server = start()
    server.fault = lambda path, body: (403, {}, "no") if len(server.requests) > 9 else None
    status, _, err = command(server)
    assert status == 2
    assert "refuses the request (no)" in err
    server.fault = None
    assert command(server)[0] == 0
    assert Counter(drawn(server)).most_common(1)[0][1] <= 2


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({**INFO, "version": "2"}, "has another version than that of"),
        ({**INFO, "identity": {"weights": "other"}}, "has another weights than that of"),
        ({**INFO, "identity": None, "model": {"id": "tiny"}}, "has another model and weights than that of"),
        ({"x": 1}, "does not say which model it runs"),
    ],
)
def test_servers_of_different_models_are_refused(
    place: Place, command: Command, start: Start, info: dict[str, Any], words: str
) -> None:
    place.write(prompts(1))
    status, _, err = command(start(), start(info=info))
    assert status == 2
    assert words in err


def test_without_any_server(place: Place, command: Command, start: Start) -> None:
    place.write(prompts(30))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        status, _, err = command(url)
    assert status == 2
    assert f"no server answers: {url} does not answer (Connection refused)." in err


def test_patience_ends_where_all_servers_are_gone(place: Place, start: Start) -> None:
    server = start()
    engine = Servers([Server(server.url)], Setup(place.folder), patience=0.0)
    engine.identity()
    server.stop()
    server.stop = lambda: None  # type: ignore[method-assign]

    class Source:
        tasks = iter([[_task(place)]])

        def take(self) -> Any:
            return next(self.tasks, [])

    with pytest.raises(MobileOError, match="no server has answered for 0 seconds; start them"):
        list(engine.outcomes(Source()))


def _task(place: Place) -> Any:
    from mobileo_mlx.batch.tasks import Common, read_task

    return read_task({"prompt": "x"}, 1, Common(place.folder))


def test_closing_the_engine_hangs_up(place: Place, start: Start) -> None:
    """Requests that a server works on end at once, and it hears of that."""
    arrived, gone = threading.Event(), threading.Event()

    def waits(path: str, body: Mapping[str, Any]) -> None:
        if path != "/v1/info":
            arrived.set()
            gone.wait(60)

    server = start(waits)
    engine = Servers([Server(server.url)], Setup(place.folder))
    engine.identity()

    class Source:
        taken = False

        def take(self) -> Any:
            if self.taken:
                arrived.wait(60)
                raise KeyboardInterrupt
            self.taken = True
            return [_task(place)]

    with pytest.raises(KeyboardInterrupt):
        list(engine.outcomes(Source()))
    gone.set()
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(_serve)")]


def test_addresses(tmp_path: Path) -> None:
    servers = read_servers("mac.local:8642, http://10.0.0.2/v1/ ,https://[::1]:9", "k")
    assert [server.url for server in servers] == ["http://mac.local:8642", "http://10.0.0.2", "https://[::1]:9"]
    assert {server.key for server in servers} == {"k"}
    for text in ("", ",", "http://", "http://key@x", "x:99999", "file:///etc/passwd", "http://x,http://x/"):
        with pytest.raises(OptionError, match="--servers"):
            read_servers(text, None)
    listed = tmp_path / "list"
    listed.write_text("http://x one two\n")
    with pytest.raises(OptionError, match="the name of a file with one, and its key, a line"):
        read_servers(str(listed), None)
