"""A detector of somebody else's, `package.module:name`: what goes wrong in it is said in a sentence."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import MobileOError, OptionError
from ...files import read_bytes
from ..detections import Detection, Detector

if TYPE_CHECKING:
    from PIL import Image

_MAX_SOURCE = 2**26  # bytes


class ForeignDetector:
    """A detector whose every answer is checked.

    Args:
        name: as the user has given it.
        detector: what does the work.

    Attributes:
        identity: the detector's own; otherwise the digest of the file that it is written in, so that verdicts of
            an earlier state of it are not taken for those of this one.
        notes: sentences that a report must say.
    """

    def __init__(self, name: str, detector: Any) -> None:
        self._name, self._detector = name, detector
        identity = getattr(detector, "identity", None)
        self.identity: str = _source_digest(detector) if identity is None else str(identity)
        self.notes: tuple[str, ...] = tuple(getattr(detector, "notes", ()))

    def detect(self, image: Image.Image) -> list[Detection]:
        """As `Detector.detect`.

        Raises:
            OptionError: it fails, or gives something else than a list of detections.
        """
        try:
            found = self._detector.detect(image)
        except Exception as error:
            raise _failed(self._name, error) from error
        if not isinstance(found, list | tuple) or not all(map(_is_detection, found)):
            raise OptionError(f"the detector '{self._name}' must give a list of Detection with finite numbers.")
        return list(found)

    def colours(self, image: Image.Image, found: Sequence[Detection]) -> list[str]:
        """As `Detector.colours`.

        Raises:
            OptionError: it fails, or does not give a colour for each object.
        """
        try:
            colours = self._detector.colours(image, found)
        except Exception as error:
            raise _failed(self._name, error) from error
        if not isinstance(colours, list | tuple) or len(colours) != len(found):
            raise OptionError(f"the detector '{self._name}' must give a list of colours, one for each object.")
        return list(colours)


def load_foreign(name: str, module: str, attribute: str) -> Detector:
    """The detector that a callable in a module gives.

    Raises:
        OptionError: there is none, or it fails.
    """
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"there is no detector '{name}' ({error}); see that Python finds the module.") from error
    except Exception as error:
        raise _failed(name, error) from error
    if not callable(make):
        raise OptionError(f"'{name}' can't be called; name a class, or a function that gives a detector.")
    try:
        detector = make()
    except Exception as error:
        raise _failed(name, error) from error
    if not all(callable(getattr(detector, method, None)) for method in ("detect", "colours")):
        raise OptionError(f"'{name}' gives no detector: it needs the methods detect(image) and colours(image, found).")
    return ForeignDetector(name, detector)


def _failed(name: str, error: Exception) -> MobileOError:
    """What went wrong and where, as far as it is the user's to correct."""
    if isinstance(error, MobileOError):
        return error
    last = traceback.extract_tb(error.__traceback__)[-1]
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return OptionError(f"the detector '{name}' failed ({what}, '{last.filename}', line {last.lineno}); correct it.")


def _is_detection(found: Any) -> bool:
    try:
        numbers = [*map(float, found.box), float(found.score)]
    except (AttributeError, TypeError, ValueError):
        return False
    return isinstance(found.name, str) and len(numbers) == 5 and all(map(math.isfinite, numbers))


def _source_digest(detector: Any) -> str:
    try:
        path = inspect.getsourcefile(type(detector))
        return hashlib.sha256(read_bytes(Path(path or ""), limit=_MAX_SOURCE)).hexdigest()[:16]
    except (TypeError, OSError, MobileOError):  # it is not written in Python
        return ""
