"""Times the equivalent forms of operations on this device, and keeps those that are faster than the default.

What is compared is the production code, each time with another form forced. A form whose result is not that of the
default, up to the rounding of its dtype, is never taken, however fast it is. See `ops.forms` for the forms and
`tune_cases` for what is timed.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..ops import backend, device_settings, forms
from .tune_cases import Case, standard_cases

ROUNDS, SLOW_ROUNDS, SLOW_SECONDS = 5, 3, 0.3  # what is slow is timed less often
NOISE = 0.05  # a form is taken if it saves more than this share of the default's time
ENOUGH_SECONDS, MOST_AT_ONCE = 0.02, 8  # shorter work is timed several times at once

# The largest difference from the default's result, root mean square and relative. Twice or more what the order of a sum
# does in each dtype; Metal's Winograd in half precision is ten times as far off.
TOLERANCES = {mx.float32: 2e-5, mx.float16: 1.5e-3, mx.bfloat16: 1e-2}
TF32_TOLERANCE = 2e-3  # of float32 on CUDA, where all products and convolutions round their factors to 10 bits

Run = Callable[[], mx.array]


@dataclass(frozen=True)
class FormTiming:
    """The forms of one operation for one shape.

    Attributes:
        operation, shape: as `ops.forms.chosen` is asked.
        seconds: the median of each form whose result is right.
        default: the form that is taken where nothing is known.
        fastest: the form to take: another one than the default only if it saves more than `NOISE`.
        wrong: the forms whose result is another, or that failed.
    """

    operation: str
    shape: str
    seconds: dict[str, float]
    default: str
    fastest: str
    wrong: tuple[str, ...] = ()

    @property
    def gain(self) -> float:
        """How many times as fast as the default the form to take is."""
        return self.seconds[self.default] / self.seconds[self.fastest]


def tune(
    progress: Callable[[str], object] | None = None,
    *,
    cases: Iterable[Case] | None = None,
    timer: Callable[[Run], float] | None = None,
) -> Iterator[FormTiming]:
    """Times all forms of all cases, one case after the other: after a warm-up in turns, and takes the medians.

    Args:
        progress: called with the operation and what it is timed for, before it is.
        cases: by default those of the 0.5B model at 512 px; `tune_cases.model_cases` makes those of another one.
        timer: the seconds of one run; by default those on the clock until the result is there.
    """
    for case in standard_cases() if cases is None else cases:
        if progress is not None:
            progress(f"{case.operation}, {case.title}")
        try:
            timing = _timed_case(case, timer or seconds_of)
        except (RuntimeError, ValueError):
            continue  # not even the default has a kernel or enough memory here, so that nothing is to be chosen
        finally:
            mx.clear_cache()
        yield timing


def save(timings: Iterable[FormTiming]) -> Path:
    """Stores which forms to take on this device with this MLX, and returns the file.

    What was stored for other shapes stays; the default is stored by leaving out what was.

    Raises:
        OutputError: the file can't be written.
    """
    settings = device_settings.current()
    stored = dict(settings.forms)
    for timing in timings:
        key = forms.key(timing.operation, timing.shape)
        stored.pop(key, None)
        if timing.fastest != timing.default:
            stored[key] = timing.fastest
    return device_settings.save(dataclasses.replace(settings, forms=stored))


def _timed_case(case: Case, timer: Callable[[Run], float]) -> FormTiming:
    with forms.recorded() as asked:
        mx.eval(case.prepare()())
    shape, default = _asked_for(case.operation, asked)
    runs: dict[str, Run] = {}
    wrong = []
    expected = None
    for form in (default, *(f for f in case.candidates(default) if f != default)):
        try:
            with forms.forced({case.operation: form}):
                run = case.prepare()
                y = run()
                mx.eval(y)
        except (RuntimeError, ValueError):
            if form == default:
                raise
            wrong.append(form)  # there is no kernel, or not enough memory
            continue
        expected = y if expected is None else expected
        if form == default or difference(y, expected) <= case.tolerance * tolerance(y.dtype):
            runs[form] = run
        else:
            wrong.append(form)
    samples: dict[str, list[float]] = {form: [] for form in runs}
    for i in range(ROUNDS):
        if i == SLOW_ROUNDS and max(samples[default]) > SLOW_SECONDS:
            break
        for form in list(runs)[:: 1 if i % 2 == 0 else -1]:  # whoever comes first in a round is last in the next
            with forms.forced({case.operation: form}):
                samples[form].append(timer(runs[form]))
    seconds = {form: statistics.median(taken) for form, taken in samples.items()}
    fastest = min(seconds, key=lambda form: seconds[form])
    if seconds[fastest] >= (1 - NOISE) * seconds[default]:
        fastest = default
    return FormTiming(case.operation, shape, seconds, default, fastest, tuple(wrong))


def _asked_for(operation: str, asked: list[tuple[str, str, str]]) -> tuple[str, str]:
    """The shape and the default of an operation among all that was asked."""
    shapes = [shape for name, shape, _ in asked if name == operation]
    defaults = [default for name, shape, default in asked if name == operation and shape == shapes[0]]
    # A network asks for each of its maps, and is cut from the first one on that is too large.
    return shapes[0], "bands" if "bands" in defaults else defaults[0]


def tolerance(dtype: mx.Dtype) -> float:
    """The largest difference between forms of one operation on this backend."""
    return TF32_TOLERANCE if dtype == mx.float32 and backend.backend() == "cuda" else TOLERANCES[dtype]


def difference(y: mx.array, expected: mx.array) -> float:
    """The root mean square of y - expected relative to that of what is expected; infinite where y is not finite."""
    if y.shape != expected.shape or y.dtype != expected.dtype:
        return float("inf")
    y, expected = y.astype(mx.float32), expected.astype(mx.float32)
    error: float = mx.sqrt(mx.square(y - expected).mean() / mx.square(expected).mean()).item()  # type: ignore[assignment]
    return error if error < float("inf") else float("inf")  # so is what is no number


def seconds_of(run: Run) -> float:
    """Seconds on the clock that a run takes, the mean of several where they are short."""
    begin = time.perf_counter()
    mx.eval(run())
    once = time.perf_counter() - begin
    count = min(MOST_AT_ONCE, int(ENOUGH_SECONDS / max(once, 1e-9)))
    if count < 2:
        return once
    begin = time.perf_counter()
    mx.eval([run() for _ in range(count)])
    return (time.perf_counter() - begin) / count
