"""Errors that a user can cause and correct.

Each message is one clear sentence that names the file (or option) and the remedy. The command line prints it without a
traceback and exits with status 2; anything else that is raised is a bug and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable

_SHOWN = 20  # names of one kind in a message
_LONGEST = 150  # characters of a name


def format_names(names: Iterable[str]) -> str:
    """The names for a message: sorted, only the first ones where there are very many, and long ones shortened."""
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in names[:_SHOWN]) + more


def format_number(number: float) -> str:
    """A number for a message; not all digits of one that somebody leaned on the keyboard for."""
    return str(number) if isinstance(number, float) or abs(number) < 10**15 else "with so many digits"


class MobileOError(Exception):
    """Base of all errors that a user can cause and correct."""


class ConfigError(MobileOError):
    """A configuration lacks a key, or a value makes no sense."""


class CheckpointError(MobileOError):
    """A model folder is missing, damaged, foreign, or does not fit its configuration."""


class DownloadError(CheckpointError):
    """A model is neither cached nor reachable on the hub."""


class ImageError(MobileOError):
    """An image is missing, broken, not an image, or too large."""


class PromptError(MobileOError):
    """A prompt is empty, or longer than the model's context."""


class OptionError(MobileOError, ValueError):
    """An argument is outside of its range: size, steps, guidance, scheduler, temperature and the like."""


class OutputError(MobileOError):
    """A file can't be written: it exists, the folder is not writable, the disk is full."""


class ExistsError(OutputError):
    """There is something of this name already: another name would do."""


class TrainingError(MobileOError):
    """Training can't go on: the loss is not a number, or the data are not fit for it."""


class NotFiniteError(MobileOError):
    """A network gives, or its weights hold, NaN or infinity: what follows from it would be noise.

    Args:
        component: of `mobileo_mlx.models.mobileo.COMPONENTS`: the first one where such values were found.
        cause: why, and the remedy; "" where it is not known.
        dtype: what the component computes in, such as "float16"; "" where it makes no difference.

    Attributes:
        component: see above.
        cause: see above.
    """

    def __init__(self, component: str, cause: str = "", dtype: str = ""):
        super().__init__(component, cause, dtype)
        self.component, self.cause, self._dtype = component, cause, dtype

    def __str__(self) -> str:
        dtype = f" in {self._dtype}" if self._dtype else ""
        cause = f": {self.cause}" if self.cause else ""
        return f"{self.component}{dtype} has values that are not finite{cause}."
