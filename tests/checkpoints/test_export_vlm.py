"""What mlx-vlm makes of an exported model: the features of an image, and the answer to a question about it.

mlx-vlm's tower has the published size, so the model here has it, too; all else of it is small. Besides the tests' own
packages it takes `pip install --no-deps mlx-vlm==0.7.10` and `pip install "transformers>=5.14" requests`: all that
mlx-vlm names (mlx-audio, OpenCV, datasets, a server) is not needed for an image and a question.
"""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mobileo_mlx import MobileO
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.convert import write_config
from mobileo_mlx.checkpoints.export import export
from mobileo_mlx.checkpoints.modules import named_parameters
from mobileo_mlx.checkpoints.random_model import random_parameter, write_random_model
from mobileo_mlx.checkpoints.tensor_files import write_tensors
from mobileo_mlx.errors import OptionError
from mobileo_mlx.models.fastvithd import FastViTHDConfig, MMProjectorConfig
from mobileo_mlx.models.mobileo import COMPONENTS, build

QUESTION = "What is in this image?"


def published_tower(folder: Path, dtype: mx.Dtype = mx.float32) -> Path:
    """A random model whose vision tower has the published size."""
    write_random_model(folder)
    config = Checkpoint.open(folder).config
    tower = FastViTHDConfig()
    width = config.llm.hidden_size
    config = replace(config, vision_tower=tower, mm_projector=MMProjectorConfig(tower.output_dim, width, width))
    for component in ("vision_tower", "mm_projector"):
        parameters = named_parameters(build(component, config))
        tensors = {n: random_parameter(0, component, n, a.shape, published=True) for n, a in parameters.items()}
        write_tensors(folder / f"{component}.safetensors", {n: a.astype(dtype) for n, a in tensors.items()})
    write_config(folder, config, COMPONENTS)
    return folder


def test_a_tower_that_mlx_vlm_has_not(tmp_path):
    with pytest.raises(OptionError, match="'tiny' can't be written as mlx-vlm: its vision tower is not"):
        export(tmp_path / "made", "mlx-vlm", model="tiny")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return published_tower(tmp_path_factory.mktemp("published") / "model")


@pytest.fixture(scope="module", params=[None, 4])
def exported(request, model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "vlm"
    export(folder, "mlx-vlm", model=model, bits=request.param)
    return folder


@pytest.mark.slow
def test_mlx_vlm_sees_and_answers_the_same(model, exported):
    mlx_vlm = pytest.importorskip("mlx_vlm")
    from mlx_vlm.prompt_utils import apply_chat_template

    theirs, processor = mlx_vlm.load(str(exported))
    config = json.loads((exported / "config.json").read_text())
    bits = config.get("quantization", {}).get("bits")
    ours = MobileO.load(model, dtype="float32", quantize={"llm": bits, "lm_head": bits} if bits else None)
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 2, (8, 8, 3)), np.ones((16, 16, 1))) * 255
    image = Image.fromarray(pixels.astype(np.uint8))

    prompt = apply_chat_template(processor, config, QUESTION, num_images=1)
    inputs = processor(images=[image], text=prompt)
    given = mx.array(inputs["pixel_values"])
    seen = theirs.vision_tower(given.transpose(0, 2, 3, 1))[1].reshape(1, -1, 3072)
    features = theirs.mm_projector(seen)
    expected = ours.parts.mm_projector(ours.parts.vision_tower(given.transpose(0, 2, 3, 1)))
    error = float(mx.abs(features - expected.reshape(features.shape)).max() / mx.abs(expected).max())
    print(f"{bits or 32} bits: image features differ by {error:.1e} of the largest")
    assert error < 1e-4

    answer = [token.token for token in ours.stream_ask(image, QUESTION, max_tokens=24)]
    found = [
        part.token
        for part in mlx_vlm.stream_generate(theirs, processor, prompt, [image], max_tokens=24, temperature=0.0)
    ]
    print(f"ask:     {answer}\nmlx-vlm: {found[: len(answer)]}")
    assert len(set(answer)) > 3
    assert found[: len(answer)] == answer
