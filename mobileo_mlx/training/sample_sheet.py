"""What the model can do so far: pictures and answers, written while it is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..files import atomic_write
from ..images import contact_sheet, save_png
from ..pipeline import MobileO
from .data import Sample

_MAX_TOKENS = 64


def write_samples(model: MobileO, samples: Sequence[Sample], folder: Path, step: int, questions: bool) -> Path:
    """Draws the samples' prompts, and answers their first questions.

    Written are `<step>.png`, a sheet of the pictures, beside each the sample's own image; and `<step>.json` with the
    prompts, questions, answers and the answers as they should be.

    Args:
        questions: whether to ask.

    Returns:
        the sheet.

    Raises:
        OutputError: a file can't be written.
    """
    pictures, told = [], []
    for sample in samples:
        if sample.source_image is None:
            drawn = model.generate(sample.prompt, seed=0).images[0]
        else:
            drawn = model.edit(sample.source_image.open(), sample.prompt, seed=0).images[0]
        pictures += [drawn, sample.image.open().resize(drawn.size)]
        entry = {"sample": sample.name, "prompt": sample.prompt}
        if questions and sample.qa:
            qa = sample.qa[0]
            answer = model.ask(sample.seen.open(), qa.question, max_tokens=_MAX_TOKENS).text
            entry |= {"question": qa.question, "answer": answer, "expected": qa.answer}
        told.append(entry)
    model.parts.release("vae_decoder")
    folder.mkdir(exist_ok=True)
    sheet = folder / f"{step:07d}.png"
    save_png(contact_sheet(pictures, 2), sheet, overwrite=True)
    with atomic_write(sheet.with_suffix(".json"), overwrite=True) as temporary:
        temporary.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return sheet
