"""Image files that say how they were made: PNG, JPEG and WebP, written whole or not at all; and reading what they say.

The settings are JSON. A PNG has them in a text named `mobileo-mlx`, JPEG and WebP in an XMP packet. Beside them is what
other programs read: the text `parameters`, in JPEG and WebP EXIF's comment.
"""

from __future__ import annotations

import html
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import atomic_write
from .errors import ImageError, OutputError
from .files import JSONError, parse_json
from .image_files import TEXT_KEY, XMP_MARKER
from .image_sources import ImageSource, opened, subject

if TYPE_CHECKING:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

# Formats that are written, by the suffix of a name.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}
_MAX_SEGMENT = 65_000  # bytes of settings that fit into a JPEG file

_XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\
<rdf:Description rdf:about="" xmlns:mobileo="urn:mobileo-mlx" mobileo:settings="{}"/></rdf:RDF></x:xmpmeta>"""
_XMP_SETTINGS = re.compile(rb'mobileo:settings="([^"]*)"')

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286

# Names that other programs have for our schedulers.
_SAMPLERS = {"dpm++": "DPM++ 2M", "dpm++3": "DPM++ 3M", "euler": "Euler"}


def save_image(
    image: Image.Image, path: str | Path, metadata: dict[str, Any] | None = None, *, overwrite: bool = False
) -> None:
    """Writes an image file, whole or not at all, in the format that its name ends with; PNG where it ends otherwise.

    Args:
        image: what to write.
        path: the file.
        metadata: goes into the file; None for none.
        overwrite: whether a file of this name may be replaced.

    Raises:
        ExistsError: the file exists, and `overwrite` is False.
        OutputError: the folder is missing or not writable, the disk is full, or the metadata do not fit into a JPEG.
    """
    data = encode(image, FORMATS.get(Path(path).suffix.lower(), "PNG"), metadata)
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


def save_png(
    image: Image.Image, path: str | Path, metadata: dict[str, Any] | None = None, *, overwrite: bool = False
) -> None:
    """As `save_image`, and a PNG whatever the name is."""
    data = encode(image, "PNG", metadata)
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


def encode(
    image: Image.Image, kind: str, metadata: dict[str, Any] | None = None, *, quality: int | None = None
) -> bytes:
    """The bytes of an image file.

    Args:
        image: what to write.
        kind: one of `FORMATS`.
        metadata: goes into the file; None for none.
        quality: of JPEG and WebP, 0 to 100; 95 by default.

    Raises:
        OutputError: the metadata do not fit into a JPEG.
    """
    stream = io.BytesIO()
    # Escapes for all that is not ASCII: programs that write the file again take it for Latin-1, or for UTF-8.
    settings = None if metadata is None else json.dumps(metadata)
    others = "" if metadata is None else parameters_text(metadata)
    if kind == "PNG":
        image.save(stream, "PNG", pnginfo=_png_texts(settings, others))
        return stream.getvalue()
    options = _OPTIONS[kind] | ({} if quality is None else {"quality": quality})
    if len(exif := _exif_comment(others)) <= _MAX_SEGMENT:
        options["exif"] = exif
    packet = b"" if settings is None else _XMP.format(html.escape(settings)).encode()
    if kind == "WEBP":
        image.save(stream, "WEBP", **options, **({"xmp": packet} if packet else {}))
        return stream.getvalue()
    if len(packet) > _MAX_SEGMENT:
        raise OutputError("The settings are too long for a JPEG file; choose a name that ends with .png or .webp.")
    image.save(stream, "JPEG", **options)
    return _with_xmp(stream.getvalue(), packet)


def can_write(kind: str) -> bool:
    """Whether Pillow writes a format here; WebP may have been left out."""
    from PIL import features

    return kind != "WEBP" or bool(features.check("webp"))


def fits(kind: str, *texts: str) -> bool:
    """Whether settings with these texts have place in a file, so that it is known before they are drawn."""
    return kind != "JPEG" or sum(len(html.escape(json.dumps(text))) for text in texts) < _MAX_SEGMENT * 2 // 3


def parameters_text(metadata: dict[str, Any]) -> str:
    """The settings as one text in the form that most programs for Stable Diffusion write and read.

    Prompt, negative prompt, and a line of names and values; "" where there is no prompt.
    """
    if not isinstance(metadata.get("prompt"), str):
        return ""
    values = {
        "Steps": metadata.get("steps"),
        "Sampler": _SAMPLERS.get(str(metadata.get("scheduler"))),
        "CFG scale": metadata.get("guidance_scale"),
        "Seed": metadata.get("seed"),
        "Size": f"{metadata.get('width')}x{metadata.get('height')}" if metadata.get("width") else None,
        "Model": Path(str(metadata.get("model") or "")).name or None,
        "Denoising strength": metadata.get("strength"),
        "Version": metadata.get("software"),
    }
    shown = {name: str(value) for name, value in values.items() if value is not None}
    # A value that holds what separates values stands in quotes.
    quoted = {name: json.dumps(value) if re.search(r"[,:\n]", value) else value for name, value in shown.items()}
    lines = [metadata["prompt"]]
    if metadata.get("negative_prompt"):
        lines.append(f"Negative prompt: {metadata['negative_prompt']}")
    lines.append(", ".join(f"{name}: {value}" for name, value in quoted.items()))
    return "\n".join(lines)


def read_metadata(source: ImageSource) -> dict[str, Any]:
    """The metadata that `save_image` wrote into a file.

    Args:
        source: the file's path, or its bytes.

    Raises:
        ImageError: the file is not a readable image, or does not hold such metadata.
    """
    with opened(source) as (_, file):
        text: str | bytes | None = file.texts.get(TEXT_KEY)
        if text is None and isinstance(file.xmp, bytes) and (found := _XMP_SETTINGS.search(file.xmp)):
            text = html.unescape(found[1].decode("utf-8", "replace"))
    who = subject(source, "the image")
    if text is None:
        raise ImageError(
            f"{who} does not say how it was made: it is not from mobileo-mlx, or its metadata was removed; "
            "give the prompt and the options instead."
        )
    try:
        metadata = parse_json(text, surrogates=True)  # an odd name of a file may be half a pair
    except JSONError as error:
        raise ImageError(f"{who} says in a damaged way how it was made: it {error}; give the prompt instead.") from None
    if not isinstance(metadata, dict):
        raise ImageError(f"{who} says in a damaged way how it was made; give the prompt and the options instead.")
    return metadata


def _png_texts(settings: str | None, others: str) -> PngInfo:
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    if settings is not None:
        texts.add_text(TEXT_KEY, settings)
    if others:
        text = others.encode("utf-8", "replace").decode()  # half a pair is no text
        texts.add_text("parameters", text)  # as UTF-8 where it is not Latin-1
    return texts


def _exif_comment(text: str) -> bytes:
    """An EXIF block with a comment; empty for none."""
    from PIL import Image

    if not text:
        return b""
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be", "replace")
    return exif.tobytes()


def _with_xmp(data: bytes, packet: bytes) -> bytes:
    """A JPEG file with an XMP packet, behind the segment of JFIF, which is the first."""
    if not packet:
        return data
    begin = 4 + int.from_bytes(data[4:6], "big")
    body = XMP_MARKER + packet
    return data[:begin] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[begin:]
