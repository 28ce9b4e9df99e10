"""Two real servers as the engine: what they make is what a model in this process makes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("multipart")

from mobileo_cli.main import main
from serving.live import live

from mobileo_mlx import MobileO
from mobileo_mlx.image_settings import read_metadata
from mobileo_mlx.serving.service import Service
from mobileo_mlx.serving.settings import ServerSettings
from mobileo_mlx.serving.worker import Worker

from .conftest import Place, records


def test_servers_and_this_process_make_the_same(place: Place, photo: Path) -> None:
    edit = {"task": "edit", "image": str(photo), "instruction": "make it red", "seed": 2}
    place.write(
        [
            {"id": "star", "prompt": "a red star", "steps": 3, "seed": 5},
            {"prompt": "a blue square", "size": "96x64", "guidance_interval": [0.2, 0.9], "negative_prompt": "green"},
            {**edit, "id": "edited"},
            {**edit, "id": "changed", "strength": 0.9},
            {"id": "best", "prompt": "a red star", "best_of": 2},
            {"task": "ask", "id": "asked", "image": str(photo), "question": "what is it?"},
            {"task": "caption", "id": "told", "image": [str(photo), str(photo)]},
        ]
    )
    there, here = place.folder / "there", place.folder / "here"
    common = ["--steps", "2", "--max-tokens", "5"]
    workers = [Worker(lambda: MobileO.load("tiny"), limit=64, max_bytes=2**30) for _ in range(2)]
    try:
        for worker in workers:
            worker.start()
        with live(Service(ServerSettings(), workers[0])) as one, live(Service(ServerSettings(), workers[1])) as two:
            urls = f"{one.client.base_url},{two.client.base_url}"
            assert main(["batch", str(place.jobs), "--out", str(there), "--servers", urls, *common]) == 0
            assert main(["batch", str(place.jobs), "--out", str(here), "-m", "tiny", *common]) == 0
            # One may go on where the other has stopped: a folder does not know who has worked on it.
            (there / "0000" / "star.png").unlink()
            assert main(["batch", str(place.jobs), "--out", str(there), "-m", "tiny", *common]) == 0
    finally:
        for worker in workers:
            assert worker.stop(60)
    assert (there / "results.jsonl").read_bytes() == (here / "results.jsonl").read_bytes()
    pictures = sorted(path.relative_to(here) for path in here.rglob("*.png"))
    assert len(pictures) == 5
    best = next(record for record in records(here / "results.jsonl") if record["id"] == "best")
    settings = read_metadata(here / best["picture"])
    kept = next(one for one in settings["best_of"]["candidates"] if one["seed"] == settings["seed"])
    assert {name: best[name] for name in ("seed", "score", "passes")} == kept
    for path in pictures:
        assert (there / path).read_bytes() == (here / path).read_bytes(), path
        assert read_metadata(there / path)["model"] == "tiny"
