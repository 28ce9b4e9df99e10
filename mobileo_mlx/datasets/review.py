"""One HTML file in which a person looks at all samples and chooses; its list is what `kept.py` reads.

It needs no network and can't reach one: its policy allows its own script and style alone, by their digests. Texts and
names, which anybody may have written, stand in it as JSON in which no `<` is left, and are shown as text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path

from ..atomic import atomic_write
from .samples import Sample

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def write_review(samples: Iterable[Sample], path: Path, *, title: str, overwrite: bool = False) -> None:
    """Writes the page, 3 to 14 kB for each picture.

    Args:
        samples: in the order in which they are shown.
        path: of the new file.
        title: what it is about.
        overwrite: whether a file that is there is replaced.

    Raises:
        OutputError: it exists, or can't be written.
    """
    # Unlike what would be replaced in the samples.
    before, after = _page(title).split("{samples}")
    with atomic_write(path, overwrite=overwrite) as temporary, temporary.open("w", encoding="utf-8") as out:
        out.write(before)
        out.writelines(_json(samples))
        out.write(after)


def _page(title: str) -> str:
    here = files(__package__ or "")
    style, script = (here.joinpath(f"review.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    page = here.joinpath("review.html").read_text(encoding="utf-8")
    parts = {"policy": policy, "style": style, "script": script, "title": html.escape(title).replace("{", "&#123;")}
    for name, text in parts.items():
        page = page.replace(f"{{{name}}}", text)
    return page


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(samples: Iterable[Sample]) -> Iterator[str]:
    yield "["
    for number, sample in enumerate(samples):
        pictures = [picture for picture in (sample.source, sample.picture) if picture is not None]
        text = json.dumps(
            {
                "id": sample.id,
                "prompt": sample.prompt,
                "path": sample.picture.path,
                "width": sample.picture.width,
                "height": sample.picture.height,
                "origin": sample.origin,
                "held_out": sample.held_out,
                "qa": [[pair.question, pair.answer] for pair in sample.qa],
                "thumbnails": [picture.thumbnail for picture in pictures],
            }
        )
        for sign, escape in _ESCAPES.items():
            text = text.replace(sign, escape)
        yield (",\n" if number else "") + text
    yield "]"
