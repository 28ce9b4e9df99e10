"""What the model can do so far: images and answers, written while it is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from ..errors import OutputError
from ..files import is_file
from ..images import contact_sheet, save_png
from ..pipeline import MobileO
from .quadruplets import Sample

_MAX_TOKENS = 64


def holds_samples(folder: Path, step: int) -> bool:
    """Whether all that `write_samples` writes is there.

    Raises:
        OutputError: the folder can't be read.
    """
    return is_file(folder / f"{step:07d}.json", error=OutputError)  # written last


def write_samples(
    model: MobileO,
    samples: Sequence[Sample],
    folder: Path,
    step: int,
    questions: bool,
    drawing: Mapping[str, Any] | None = None,
) -> Path:
    """Generates an image for each sample, and answers its first question.

    Written are `<step>.png`, a sheet of the images, beside each the sample's own; and `<step>.json` with the prompts,
    questions, answers and the answers as they should be.

    Args:
        questions: whether to ask.
        drawing: options of `MobileO.generate`.

    Returns:
        the sheet.

    Raises:
        OutputError: a file can't be written.
    """
    images, entries = [], []
    for sample in samples:
        if sample.source_image is None:
            generated = model.generate(sample.prompt, **{"seed": 0, **(drawing or {})}).images[0]
        else:
            source = sample.source_image.open()
            generated = model.edit(source, sample.prompt, **{"seed": 0, **(drawing or {})}).images[0]
        images += [generated, sample.image.open().resize(generated.size)]
        entry = {"sample": sample.name, "prompt": sample.prompt}
        if questions and sample.qa:
            qa = sample.qa[0]
            answer = model.ask(sample.question_image.open(), qa.question, max_tokens=_MAX_TOKENS).text
            entry |= {"question": qa.question, "answer": answer, "expected": qa.answer}
        entries.append(entry)
    model.parts.release("vae_decoder")  # which training does not need
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"'{folder}' can't be made ({error.strerror}); free some space, or choose another folder."
        ) from error
    sheet = folder / f"{step:07d}.png"
    save_png(contact_sheet(images, 2), sheet, overwrite=True)
    with atomic_write(sheet.with_suffix(".json"), overwrite=True) as temporary:
        temporary.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return sheet
