"""The server under requests that schemathesis makes of `/openapi.json`: no 500, and answers as they are described.

Of its checks two are left out. `positive_data_acceptance`: a schema can't say that a text is an image, or that two
numbers are in order. `use_after_free`: it does not know that a picture that was deleted can be restored; that it is not
served meanwhile is tested in `test_pictures_api`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")
pytest.importorskip("schemathesis")

from mobileo_mlx.serving.service import Service
from mobileo_mlx.serving.settings import ServerSettings

from .live import live


def explore(url: str, folder: Path, *options: str) -> str:
    """Runs schemathesis' command, prints its summary, and returns it.

    The requests follow from the seed, as far as they do not from answers.
    """
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--seed", "1", "--no-color"]
    command += [
        "--exclude-checks",
        "positive_data_acceptance,use_after_free",
        "--warnings",
        "off",
        "--request-timeout",
        "60",
    ]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH")))
    )
    done = subprocess.run([*command, *options], cwd=folder, env=environment, capture_output=True, text=True)
    output = done.stdout + done.stderr
    summary = output[output.find("= SUMMARY =") :]
    print(summary)
    assert done.returncode == 0, output
    return summary


@pytest.fixture
def url(tiny_worker, tmp_path):
    """Of a server with small pictures, so that there is time for many."""
    settings = ServerSettings(pictures=tmp_path / "pictures", max_steps=2, max_side=64, max_pictures=2)
    with live(Service(settings, tiny_worker)) as running:
        yield str(running.client.base_url)


def cases(summary: str) -> int:
    return int(re.search(r"(\d+) generated", summary)[1])


def test_a_few_requests_to_each_route(url, tmp_path):
    assert (
        cases(
            explore(
                url,
                tmp_path,
                "--phases",
                "examples,fuzzing,stateful",
                "--max-examples",
                "3",
                "--exclude-path-regex",
                "chat",
            )
        )
        > 50
    )


@pytest.mark.slow
def test_many_requests_to_each_route(url, tmp_path):
    assert cases(explore(url, tmp_path, "--max-examples", "200")) > 3000
