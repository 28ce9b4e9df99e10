"""The README.md of an exported model: a model card as the Hugging Face hub reads it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from .._version import __version__
from .hub_download import split_name

if TYPE_CHECKING:
    from .adapters import Adapter
    from .checkpoint import Checkpoint


@dataclass(frozen=True)
class _Program:
    title: str  # what the format is
    library: str  # the hub's name of it
    task: str  # of the hub's list
    content: str
    use: str


_PROGRAMS = {
    "app": _Program(
        "the language model of Mobile-O's iOS app",
        "mlx",
        "image-text-to-text",
        "The `llm` folder of the app: the language model, its head and the projector of image features, for MLX Swift. "
        "The app's Core ML parts (vision tower, connector, diffusion transformer, autoencoder) are not in it; they "
        "come from the original's `export.py`, of the same weights.",
        "Copy the files into the app's `llm` folder.",
    ),
    "mlx-lm": _Program(
        "the language model, for mlx-lm",
        "mlx",
        "text-generation",
        "The language model alone, a Qwen2: it neither sees nor draws.",
        "```bash\npip install mlx-lm\nmlx_lm.chat --model FOLDER\n"
        'mlx_lm.generate --model FOLDER --prompt "What is a star?"\n```',
    ),
    "mlx-vlm": _Program(
        "vision and language, for mlx-vlm",
        "mlx",
        "image-text-to-text",
        "Vision tower, projector and language model, which are a FastVLM. It does not draw.",
        "```bash\npip install mlx-vlm\n"
        'mlx_vlm.generate --model FOLDER --image photo.jpg --prompt "What is in this image?" --temperature 0\n```',
    ),
    "upstream": _Program(
        "all of it, in the original's layout",
        "transformers",
        "any-to-any",
        "All networks, with the names, shapes and configuration of the original's checkpoint, for PyTorch.",
        "With the code of [Mobile-O](https://github.com/Amshaker/Mobile-O), as its own checkpoints; or\n\n"
        '```bash\npip install mobileo-mlx\nmobileo-mlx generate "a photo of a cat" --model FOLDER\n```',
    ),
}


def model_card(
    source: Checkpoint,
    format_name: str,
    *,
    bits: str,
    folder: str,
    adapters: Sequence[Adapter] = (),
    options: Sequence[str] = (),
) -> str:
    """The text of the card, with the header that the hub reads.

    Paths are left out but for their last part: a card is made to be shared.

    Args:
        source: the model.
        format_name: one of the formats' names.
        bits: how the weights are stored, in words.
        folder: the name of the folder.
        adapters: that are merged into it.
        options: of the command that made it, beside the format, the folder, the model and the adapters.
    """
    program = _PROGRAMS[format_name]
    name = _shared_name(source.name)
    merged = [(_shared_name(adapter.name), adapter.scale) for adapter in adapters]
    command = ["mobileo-mlx", "export", folder, "--format", format_name, "--model", name]
    for adapter, _ in merged:
        command += ["--adapter", adapter]
    if any(scale != 1 for _, scale in merged):
        for _, scale in merged:
            command += ["--adapter-scale", f"{scale:g}"]
    command += options
    licence, explained = _licence(source.name)
    header = ["---", *licence, f"library_name: {program.library}", f"pipeline_tag: {program.task}"]
    bases = [found for found in (_on_hub(source.name), *(_on_hub(adapter.name) for adapter in adapters)) if found]
    header += ["base_model:", *(f"- {base}" for base in bases)] if bases else []
    header += ["tags:", *(f"- {tag}" for tag in (*(["mlx"] if program.library == "mlx" else []), "mobile-o")), "---"]
    with_adapters = ", ".join(f"`{adapter}` at scale {scale:g}" for adapter, scale in merged)
    rows = [
        ("model", f"`{name}`"),
        *([("adapters merged into it", with_adapters)] if merged else []),
        ("weights", bits),
        ("made by", f"mobileo-mlx {__version__}"),
    ]
    return "\n".join(
        [
            *header,
            "",
            f"# {PurePath(name).name}: {program.title}",
            "",
            program.content,
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in rows),
            "",
            "```bash",
            " ".join(map(shlex.quote, command)),
            "```",
            "",
            "## Use",
            "",
            program.use.replace("FOLDER", folder),
            "",
            "## Licence",
            "",
            explained,
            "",
        ]
    )


def _licence(model: str) -> tuple[list[str], str]:
    from mobileo_weights import bundled

    if model in bundled():
        return ["license: mit"], "MIT: the model is bundled with mobileo-mlx, and was trained from nothing for it."
    explained = (
        "Mobile-O's weights are under CC BY-NC-SA 4.0, for non-commercial research only, and so is what is made of "
        "them. Their vision tower comes from Apple's FastVLM, with a licence of its own. If this model was trained "
        "from other weights, write their licence here and in the header."
    )
    return ["license: cc-by-nc-sa-4.0"], explained


def _on_hub(name: str) -> str | None:
    """The repository of a name on the hub, without a revision."""
    from ..files import expand, kind_of

    if kind_of(expand(name)):
        return None
    found = split_name(name)
    return found[0] if found else None


def _shared_name(name: str) -> str:
    return name if _on_hub(name) else PurePath(name).name
