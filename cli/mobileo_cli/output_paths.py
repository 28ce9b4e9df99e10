"""Names of output files: a pattern with placeholders, checked before anything is computed."""

from __future__ import annotations

import os
import re
import string
from collections.abc import Collection, Sequence
from pathlib import Path

DEFAULT_PATTERN = "{prompt}-{seed}.png"
PLACEHOLDERS = ("prompt", "seed", "index", "model")

# What may follow the colon of a placeholder: alignment, a width of three digits at most, precision and kind.
SPEC = re.compile(r"(.?[<>^=])?[0-9]{0,3}(\.[0-9]{1,3})?[sdxXob]?")

# In characters: a name has at most 255 bytes, and one character takes up to four.
MAX_SLUG = 48


def slug(text: str) -> str:
    """Words of `text` in lower case, joined with hyphens: safe in a file name on any system."""
    words = re.sub(r"[\W_]+", "-", text.lower())
    return words[:MAX_SLUG].strip("-") or "image"


def plan(pattern: str | None, *, prompt: str, model: str, seeds: Sequence[int], overwrite: bool = False) -> list[Path]:
    """One path per seed from the name pattern; `index` counts from 1.

    A pattern that is a folder, or ends with a slash, gets the default name inside it; one without a suffix
    gets `.png`.

    Raises:
        OptionError: an unknown placeholder, a malformed pattern, or a suffix other than `.png`.
        OutputError: a folder does not exist or can't be written, or a name is too long.
    """
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
    pattern = os.path.expanduser(pattern)
    if pattern.endswith(("/", os.sep)) or os.path.isdir(pattern):
        return os.path.join(pattern, DEFAULT_PATTERN)
    suffix = os.path.splitext(pattern)[1].lower()
    if suffix == ".png":
        return pattern
    if suffix in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif"):
        from mobileo_mlx.errors import OptionError

        raise OptionError(f"--output {pattern}: only PNG files are written; end the name with .png.")
    return pattern + ".png"


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


def check(path: Path) -> None:
    """Makes sure that a file of this name can be created.

    Raises:
        OutputError: its folder does not exist or can't be written, or the name is too long.
    """
    from mobileo_mlx.atomic import check_output
    from mobileo_mlx.errors import OutputError

    try:
        check_output(path, overwrite=True)
    except OSError as error:
        raise OutputError(f"'{path}' can't be written ({error.strerror}); choose another name.") from None


def check_folder(path: Path) -> None:
    """Makes sure that files can be created in a folder, which may be new.

    Raises:
        OutputError: it is a file, or it or the folder around it can't be written.
    """
    from mobileo_mlx.errors import OutputError

    if os.path.isdir(path):
        check(path / "name.png")
    elif os.path.lexists(path):
        raise OutputError(f"'{path}' is a file; name a folder.")
    else:
        check(path)
