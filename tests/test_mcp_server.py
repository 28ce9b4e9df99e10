"""`mobileo-mlx mcp`, spoken to by the official client package over a real process's standard input and output."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mcp.server.lowlevel", reason="the extra mcp is not installed")

from mcp import Client, MCPError, StdioServerParameters, stdio_client

from benchmarks.shapes.edits import sample_edit
from benchmarks.shapes.scorer import edit_succeeded, read_picture, satisfies
from benchmarks.shapes.text import sample_caption
from benchmarks.shapes.world import render
from mobileo_mlx import MobileO
from mobileo_mlx.image_settings import read_metadata

COMMAND = [sys.executable, "-m", "mobileo_mlx", "mcp"]
LIMIT = 120  # seconds; what takes longer hangs


def talk(scenario: Callable[[Client], Awaitable[None]], *arguments: object, model: str = "tiny") -> str:
    """Runs a client against a server of its own, and returns what the server wrote to standard error."""

    async def run() -> None:
        server = StdioServerParameters(
            command=COMMAND[0],
            args=[*COMMAND[1:], "--model", model, *map(str, arguments)],
            env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"},
        )
        async with Client(stdio_client(server, errlog=log)) as client:
            await asyncio.wait_for(scenario(client), LIMIT)

    with tempfile.TemporaryFile("w+") as log:
        asyncio.run(run())
        log.seek(0)
        return log.read()


def data_uri(pixels: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def picture(result: Any, index: int = 0) -> tuple[bytes, dict[str, Any]]:
    """The file of a picture and what was said of it."""
    assert not result.is_error, result.content
    image, text = result.content[2 * index : 2 * index + 2]
    assert image.mime_type == "image/png"
    return base64.b64decode(image.data), json.loads(text.text)


def refusal(result: Any) -> str:
    assert result.is_error
    (content,) = result.content
    return str(content.text)


def test_tools_take_what_the_library_declares() -> None:
    async def scenario(client: Client) -> None:
        from mobileo_mlx.capabilities import capabilities

        tools = {tool.name: tool.input_schema for tool in (await client.list_tools()).tools}
        assert list(tools) == ["draw", "edit", "ask"]
        for name, task, own in (
            ("draw", "generate", ["prompt"]),
            ("edit", "edit", ["image", "prompt"]),
            ("ask", "answer", ["images", "question"]),
        ):
            options = [option["name"] for option in capabilities()["tasks"][task]]
            assert list(tools[name]["properties"]) == [*own, *options]
            assert tools[name]["required"] == own
        steps = tools["draw"]["properties"]["steps"]
        assert (steps["type"], steps["minimum"], steps["default"]) == ("integer", 1, 20)
        assert tools["draw"]["properties"]["flow_shift"]["exclusiveMinimum"] == 0
        assert tools["draw"]["properties"]["best_of"]["maximum"] == 10
        assert tools["edit"]["properties"]["until_pass"]["type"] == "boolean"
        assert tools["edit"]["properties"]["scheduler"]["enum"] == ["dpm++", "dpm++3", "euler"]

    talk(scenario)


def test_draws_edits_and_answers() -> None:
    """Each as the library does with the same seed; what is drawn and edited is judged, too."""
    caption = sample_caption(np.random.default_rng(5), "two")
    edit = sample_edit(np.random.default_rng(5), "colour")
    model = MobileO.load("tiny")

    async def scenario(client: Client) -> None:
        seen: list[tuple[float, float | None, str | None]] = []

        async def progress(*values: Any) -> None:
            seen.append(values)

        drawn = await client.call_tool("draw", {"prompt": caption.text, "seed": [3, 4]}, progress_callback=progress)
        assert seen[0] == (0, None, "loading the model")
        assert [value[:2] for value in seen[1:]] == [(step, 40) for step in range(1, 41)]
        expected = model.generate(caption.text, seed=[3, 4]).images
        for index in range(2):
            file, said = picture(drawn, index)
            pixels = np.asarray(Image.open(io.BytesIO(file)))
            assert satisfies(read_picture(pixels), caption.spec)
            assert np.abs(pixels.astype(int) - np.asarray(expected[index])).max() <= 1
            assert read_metadata(file) == said["settings"]
            assert (said["name"], said["seed"]) == (f"picture-{index + 1}", 3 + index)

        uri = data_uri(render(edit.before))
        file, said = picture(await client.call_tool("edit", {"prompt": edit.text, "image": uri, "seed": 1}))
        assert edit_succeeded(read_picture(np.asarray(Image.open(io.BytesIO(file)))), edit)
        assert said["name"] == "picture-3"

        answered = await client.call_tool("ask", {"question": "How many shapes are there?", "images": ["picture-1"]})
        (content,) = answered.content
        assert content.text == model.ask(expected[0], "How many shapes are there?").text

    assert "Traceback" not in talk(scenario)


def test_mistakes_are_results_that_say_so(tmp_path: Path) -> None:
    async def scenario(client: Client) -> None:
        for arguments, sentence in (
            ({}, "give prompt, a text."),
            ({"prompt": 3}, "give prompt, a text."),
            ({"prompt": " "}, "The prompt is empty; say in words what you want."),
            ({"prompt": "x", "steps": 0}, "steps 0 is not possible; choose 1 to 10000."),
            ({"prompt": "x", "colour": "red"}, "there is no argument 'colour'; there are prompt, "),
            ({"prompt": "x", "seed": list(range(11))}, "11 seeds are too many; give at most 10."),
            (
                {"prompt": "x", "seed": [1, 2], "best_of": 6},
                "best_of 6 of 2 seeds makes 12 drawings; choose at most 10.",
            ),
            ({"prompt": "x", "preset": "fast"}, "there is no argument 'preset'; "),
        ):
            assert refusal(await client.call_tool("draw", arguments)).startswith(sentence)
        secret = tmp_path / "secret.png"
        Image.new("RGB", (8, 8)).save(secret)
        for image in (str(secret), "picture-1", "/etc/passwd", "data:,", f"file://{secret}"):
            said = refusal(await client.call_tool("edit", {"prompt": "x", "image": image}))
            assert said.startswith(f"There is no image {image!r}"[:60])
        uri = "data:image/png;base64,"
        for image in (f"{uri}@", f"{uri}AAA"):
            said = refusal(await client.call_tool("ask", {"question": "x", "images": [image]}))
            assert said == "The image's base64 is damaged; send the whole file again."
        said = refusal(await client.call_tool("ask", {"question": "x", "images": [uri]}))
        assert said == "The image is empty (0 bytes); give an intact copy."
        assert (
            refusal(await client.call_tool("ask", {"question": "x", "images": "x"})) == "give images, a list of texts."
        )
        with pytest.raises(MCPError, match="there is no tool 'paint'; there are draw, edit, ask"):
            await client.call_tool("paint", {})

    assert "Traceback" not in talk(scenario)


def test_paths_inside_of_a_folder_that_was_allowed(tmp_path: Path) -> None:
    shown, hidden, saved = tmp_path / "shown", tmp_path / "shown-not", tmp_path / "saved"
    for folder in (shown, hidden, saved):
        folder.mkdir()
    for folder in (shown, hidden):
        Image.new("RGB", (64, 64), "white").save(folder / "a.png")
    (shown / "link.png").symlink_to(hidden / "a.png")
    (shown / "text.png").write_text("not an image")

    async def scenario(client: Client) -> None:
        image = str(shown / "a.png")
        said = picture(await client.call_tool("edit", {"prompt": "x", "image": image, "steps": 1}))[1]
        assert said["settings"]["image"] == "a.png"
        assert Path(said["saved"]).parent == saved
        assert read_metadata(Path(said["saved"])) == said["settings"]
        for wrong in (hidden / "a.png", shown / "link.png", f"{shown}/../shown-not/a.png", shown, "\0"):
            refusal(await client.call_tool("edit", {"prompt": "x", "image": str(wrong)}))
        assert "is not an image" in refusal(
            await client.call_tool("edit", {"prompt": "x", "image": str(shown / "text.png")})
        )

    talk(scenario, "--allow-folder", shown, "--output", saved)


def test_a_call_that_is_cancelled_stops() -> None:
    """The next one would wait for hundreds of steps otherwise, as calls are answered one after the other."""

    async def scenario(client: Client) -> None:
        begun, steps = asyncio.Event(), []

        async def progress(done: float, *more: Any) -> None:
            steps.append(done)
            if done == 2:
                begun.set()

        long = asyncio.create_task(client.call_tool("draw", {"prompt": "x", "steps": 1000}, progress_callback=progress))
        await begun.wait()
        waiting = asyncio.create_task(client.call_tool("draw", {"prompt": "y", "steps": 1000}))
        await client.list_tools()  # answered meanwhile
        waiting.cancel()
        long.cancel()
        picture(await client.call_tool("draw", {"prompt": "z", "steps": 1}))
        assert max(steps) < 500
        assert picture(await client.call_tool("draw", {"prompt": "z", "steps": 1}))[1]["name"] == "picture-2"

    assert "Traceback" not in talk(scenario)


def test_a_model_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    async def scenario(client: Client) -> None:
        said = refusal(await client.call_tool("draw", {"prompt": "x"}))
        assert said == (
            "The model 'somebody/model' is not on this machine; download it with `mobileo-mlx models pull "
            "somebody/model`, and call again."
        )

    talk(scenario, model="somebody/model")


def server(*arguments: object, stdin: Any = subprocess.DEVNULL, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "--model", "tiny", *map(str, arguments)],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )


def test_an_end_of_the_input_is_the_end() -> None:
    process = server()
    out, _ = process.communicate(timeout=LIMIT)
    assert (process.returncode, out) == (0, b"")


def test_a_client_that_is_gone_is_no_bug() -> None:
    process = server(stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
    process.stdin.flush()
    process.wait(timeout=LIMIT)
    assert process.returncode == 141
    assert process.stderr.read().decode().count("\n") == 1  # that it waits for a client


ENDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}


def ask(process: subprocess.Popen[bytes], *methods: str) -> None:
    assert process.stdin is not None
    requests = [{"jsonrpc": "2.0", "id": 1, "method": method} for method in methods]
    process.stdin.write("".join(f"{json.dumps(request)}\n" for request in requests).encode())
    process.stdin.flush()


def check_end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """While the standard input is open."""
    assert process.stderr is not None
    process.wait(timeout=LIMIT)
    _, *said = process.stderr.read().decode().splitlines()
    assert (process.returncode, said) == (128 + number, [f"mobileo-mlx: {ENDS[number]}"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_by_a_signal_while_the_input_is_open(number: signal.Signals) -> None:
    process = server(stdin=subprocess.PIPE)
    ask(process, "ping")
    assert process.stdout is not None
    process.stdout.readline()  # it serves
    process.send_signal(number)
    check_end(process, number)


# A server to which one signal comes in the middle of a task that answers, and others while its event loop ends.
SIGNALLED = """
import asyncio, signal, sys
from mobileo_cli.main import main
from mobileo_mlx import mcp_server

number = int(sys.argv.pop())

async def describe(tools, context, params):
    try:
        signal.raise_signal(number)
        await asyncio.Event().wait()
    finally:
        for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.raise_signal(each)

mcp_server.Tools.describe = describe
sys.exit(main())
"""


@pytest.mark.parametrize("number", ENDS)
def test_signals_in_the_middle_of_tasks_leave_no_traceback(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SIGNALLED, *COMMAND[3:], "--model", "tiny", str(int(number))],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    start = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    assert process.stdin is not None
    request = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": start}
    process.stdin.write(f"{json.dumps(request)}\n".encode())
    ask(process, "tools/list")
    check_end(process, number)


def test_ends_by_a_signal_while_nobody_reads_its_answers() -> None:
    fcntl = pytest.importorskip("fcntl")
    process = server(stdin=subprocess.PIPE)
    assert process.stdout is not None
    ask(process, "ping")
    length = len(process.stdout.readline())
    size = fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096) if hasattr(fcntl, "F_SETPIPE_SZ") else 65536
    ask(process, *["ping"] * (2 * size // length))
    limit, waiting = time.monotonic() + LIMIT, bytearray(4)
    while int.from_bytes(waiting, sys.byteorder) <= size - length:  # the pipe is full
        assert time.monotonic() < limit
        time.sleep(0.01)
        fcntl.ioctl(process.stdout, termios.FIONREAD, waiting)
    process.send_signal(signal.SIGTERM)
    check_end(process, signal.SIGTERM)


def test_a_missing_package_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['mcp'] = None")
    process = server(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    out, error = process.communicate(timeout=LIMIT)
    assert (process.returncode, out) == (2, b"")
    assert error.decode().count("\n") == 1
    assert "pip install 'mobileo-mlx[mcp]'" in error.decode()


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    for option in ("--allow-folder", "--output"):
        process = server(option, tmp_path / "none")
        _, error = process.communicate(timeout=LIMIT)
        assert process.returncode == 2
        assert error.decode().count("\n") == 1
        assert f"{option} {tmp_path / 'none'}: there is no such folder" in error.decode()
