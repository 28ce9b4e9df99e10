"""What tasks yield, and what they keep from clients."""

import shutil

import pytest
from mobileo_weights import bundled

from mobileo_mlx import MobileO
from mobileo_mlx.generation_options import ModelSpeeds
from mobileo_mlx.image_settings import read_metadata
from mobileo_mlx.serving.requests import read_drawing
from mobileo_mlx.serving.service import Service
from mobileo_mlx.serving.settings import ServerSettings
from mobileo_mlx.serving.tasks import Drawing, preview_steps, without_folders
from mobileo_mlx.serving.worker import Worker


def test_a_model_s_folder_is_the_server_s_own(tmp_path):
    """Its name is in what clients get, and its place is not: in pictures, their records, and the name of the model."""
    folder = tmp_path / "secret" / "my-model"
    shutil.copytree(bundled()["tiny"], folder)
    model = MobileO.load(folder)
    worker = Worker(lambda: model, limit=1, max_bytes=1)
    worker.model = model
    service = Service(ServerSettings(), worker)
    task = Drawing("generate", "a red star", [1], {"steps": 1}, {}, keep=service.keep)
    (drawn,) = [data for kind, data in task.run(model, 0) if kind == "picture"]
    assert service.model_id == "my-model"
    assert read_metadata(drawn.data)["model"] == "my-model"
    assert b"secret" not in drawn.data
    assert "secret" not in str(drawn)


def test_names_that_are_no_folders_stay():
    settings = {"model": "owner/name", "adapter": ["/a/b/c", "owner/adapter"], "prompt": "/a/b"}
    assert without_folders(settings) == {"model": "owner/name", "adapter": ["c", "owner/adapter"], "prompt": "/a/b"}


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [(20, 3, {5, 10, 15}), (20, 0, set()), (2, 3, {1}), (1, 3, set()), (4, 3, {1, 2, 3})],
)
def test_previews_are_evenly_spread(steps, count, expected):
    assert preview_steps(steps, count) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"steps": 5}),
        ({"speed": "faster"}, {"speed": "faster", "steps": 5}),
        ({"steps": 4}, {"steps": 4}),
    ],
)
def test_a_limit_of_steps_holds_for_defaults(fields, expected):
    assert read_drawing("generate", fields, ServerSettings(max_steps=5), ModelSpeeds())[0] == expected


def test_defaults_below_the_limit_are_the_library_s():
    assert read_drawing("generate", {"speed": "faster"}, ServerSettings(), ModelSpeeds())[0] == {"speed": "faster"}
