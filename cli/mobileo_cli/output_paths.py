"""Names of output files: a pattern with placeholders, checked before anything is computed."""

from __future__ import annotations

import os
import re
import string
import sys
import unicodedata
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from . import printing

DEFAULT_PATTERN = "{prompt}-{seed}.png"
PLACEHOLDERS = ("prompt", "seed", "index", "model")

STDOUT = Path("-")

# Suffixes of images that are not written; any other is taken for a part of the name.
_UNWRITTEN = (".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm")

# What may follow the colon of a placeholder: alignment, a width of three digits at most, precision and kind.
SPEC = re.compile(r"(.?[<>^=])?[0-9]{0,3}(\.[0-9]{1,3})?[sdxXob]?")

# In characters: a name has at most 255 bytes, and one character takes up to four.
MAX_SLUG = 48


def slug(text: str) -> str:
    """Words of `text` in lower case, joined with hyphens: safe in a file name on any system."""
    kept = ""
    # Composed, as people type it; the signs by which characters are shown in another form are no letters.
    for char in unicodedata.normalize("NFC", re.sub("[\ufe00-\ufe0f]", "", text.lower())):
        # Many scripts write vowels as marks, which belong to the letter before.
        is_mark = unicodedata.category(char) in ("Mn", "Mc") and kept[-1:] not in ("", "-")
        kept += char if char.isalnum() or is_mark else "-"
    return re.sub("-+", "-", kept).strip("-")[:MAX_SLUG].strip("-") or "image"


def plan(pattern: str | None, *, prompt: str, model: str, seeds: Sequence[int], overwrite: bool = False) -> list[Path]:
    """One path per seed from the name pattern; `index` counts from 1.

    A pattern that is a folder, or ends with a slash, gets the default name inside it; one without a suffix
    gets `.png`. `-` is standard output, for one image.

    Raises:
        OptionError: an unknown placeholder, a malformed pattern, a format that is not written, or several images for
            standard output.
        OutputError: a folder does not exist or can't be written, or a name is too long.
    """
    if pattern == str(STDOUT):
        return [_standard_output(len(seeds))]
    pattern = complete(pattern)
    values = {"prompt": slug(prompt), "model": slug(Path(model).name)}
    paths = [_render(pattern, {**values, "seed": s, "index": i}) for i, s in enumerate(seeds, start=1)]
    for path in paths:
        check(free(path, overwrite=overwrite))
    return paths


def complete(pattern: str | None) -> str:
    """Adds what a pattern leaves open: the name inside a folder, the suffix."""
    if not pattern:
        return DEFAULT_PATTERN
    from mobileo_mlx.errors import OptionError, OutputError
    from mobileo_mlx.files import expand, is_folder, kind_of
    from mobileo_mlx.image_settings import FORMATS, can_write

    slash = pattern.endswith(("/", os.sep))
    pattern = str(expand(pattern))
    if slash or is_folder(pattern, error=OutputError):
        return os.path.join(pattern, DEFAULT_PATTERN)
    suffix = os.path.splitext(pattern)[1].lower()
    if suffix in _UNWRITTEN or not can_write(FORMATS.get(suffix, "PNG")):
        raise OptionError(f"--output {pattern}: end the name with .png, .jpg or .webp, which are the formats written.")
    if suffix in FORMATS:
        return pattern
    if kind_of(Path(pattern), error=OutputError) == "other":  # and not a new file beside /dev/null
        raise OutputError(f"'{pattern}' is not a regular file; name a file, or - for standard output.")
    return pattern + ".png"


def _standard_output(images: int) -> Path:
    from mobileo_mlx.errors import OptionError

    if images > 1:
        raise OptionError(f"--output -: standard output takes one image, and there are {images}; name a file.")
    if printing.output_closed:
        raise OptionError("--output -: standard output is closed; redirect it, or name a file.")
    if sys.stdout.isatty():
        raise OptionError("--output -: standard output is a terminal; redirect it, or name a file.")
    return STDOUT


def _render(pattern: str, values: dict[str, str | int]) -> Path:
    from mobileo_mlx.errors import OptionError

    try:
        fields = [(name, spec or "") for _, name, spec, _ in string.Formatter().parse(pattern) if name is not None]
        unknown = sorted({name for name, _ in fields} - set(PLACEHOLDERS))
        strange = [f"{name}:{spec}" for name, spec in fields if not SPEC.fullmatch(spec)]
        if not unknown and not strange:
            return Path(pattern.format(**values))
    except (ValueError, KeyError, IndexError) as error:
        raise OptionError(f"--output {pattern}: {error}; write {{{{ and }}}} for braces.") from None
    if not unknown:
        raise OptionError(f"--output {pattern}: {{{strange[0]}}} is not possible; write it like {{seed:010}}.")
    known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    raise OptionError(f"--output {pattern}: unknown placeholder {{{unknown[0]}}}; there are {known}.")


def free(path: Path, *, overwrite: bool = False, taken: Collection[Path] = ()) -> Path:
    """`path`, or when it exists the first free one of `name-1.png`, `name-2.png`, ...

    Args:
        path: the name wished for.
        overwrite: an existing file may be replaced.
        taken: names that this run has used: never replaced.
    """
    candidate, number = path, 0
    while candidate in taken or (not overwrite and os.path.lexists(candidate)):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def write_free(
    path: Path, write: Callable[[Path], None], *, overwrite: bool = False, taken: Collection[Path] = ()
) -> Path:
    """Writes a file under the first free name, and the next one where another process takes that meanwhile.

    Args:
        path, overwrite, taken: see `free`.
        write: writes the file; raises an ExistsError where the name is taken.

    Returns:
        the name.

    Raises:
        OutputError: it can't be written.
    """
    from mobileo_mlx.errors import ExistsError

    while True:
        name = free(path, overwrite=overwrite, taken=taken)
        try:
            write(name)
        except ExistsError:
            continue
        return name


def check(path: Path) -> None:
    """Makes sure that a file of this name can be created.

    Raises:
        OutputError: its folder does not exist or can't be written, or the name is too long.
    """
    from mobileo_mlx.atomic import check_output

    check_output(path, overwrite=True)


def check_folder(path: Path) -> None:
    """Makes sure that files can be created in a folder, which may be new.

    Raises:
        OutputError: it is a file, or it or the folder around it can't be written.
    """
    from mobileo_mlx.errors import OutputError
    from mobileo_mlx.files import kind_of

    kind = kind_of(path, error=OutputError)
    if kind == "folder":
        check(path / "name.png")
    elif kind or os.path.lexists(path):
        raise OutputError(f"'{path}' is a file; name a folder.")
    else:
        check(path)
