"""`mobileo-mlx doctor --verify`: every component against float32 on the CPU, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import printing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mobileo_mlx.doctor.comparison import Comparison
    from mobileo_mlx.doctor.verify import ComponentReport, Conclusion


# The widths are fixed, so that each row can be shown when it is known.
_ROW = "{:19}  {:9}  {:28}  {:28}  {:38}  {:>10}  {}"


def run(model: str | None, dtype: str | None, *, as_json: bool) -> dict[str, Any]:
    """Verifies, shows each component when it is done (on standard error where JSON is wanted), and stores what follows.

    Args:
        model: by default random weights.
        dtype: to be tried alone, and then nothing is stored.

    Returns:
        what was found, for JSON; "healthy" says whether all defaults passed, or all that was tried where that is no
        default.

    Raises:
        MobileOError: there is no such model or dtype, or what follows can't be stored.
    """
    import dataclasses

    from mobileo_mlx.checkpoints.precision import parse_dtype
    from mobileo_mlx.doctor import goldens
    from mobileo_mlx.doctor.sources import CheckpointSource, RandomSource
    from mobileo_mlx.doctor.verify import ComponentReport, conclude, store, verify
    from mobileo_mlx.files import without_home
    from mobileo_mlx.ops import device_settings

    parsed = None if dtype is None else parse_dtype(dtype)
    if parsed is None:
        device_settings.check_writable()
    source = RandomSource() if model is None else CheckpointSource(model, progress=printing.draws_bars())
    name = without_home(source.name)
    show = printing.note if as_json else printing.out  # minutes pass until the JSON is there
    show(f"{name} on {device_settings.device_key()}, against float32 on the CPU\n")
    show(_ROW.format("component", "precision", "worst block", "whole", "largest value", "time", "").rstrip())
    reports = []
    with printing.Progress() as progress:
        for event in verify(source, dtype=parsed):
            if not isinstance(event, ComponentReport):
                progress.say(f"{event.component}: {event.text}")
                continue
            reports.append(event)
            progress.say("")
            show(_report_line(event))
        progress.say("known results of tiny")
        known = goldens.compare_bundled(dtype)
    conclusions = conclude(reports)
    stored = store(conclusions, trained=source.trained) if parsed is None else None
    counting = [report for report in reports if report.rank == 0 or parsed is not None]
    healthy = all(one.passed for one in known) and all(report.failure is None for report in counting)
    if not as_json:
        printing.out("")
        for line in (*_findings(reports, known, conclusions), _stored_line(stored is not None, conclusions)):
            if line:
                printing.out(line)
    return {
        "source": name,
        "device": device_settings.device_key(),
        "components": [dataclasses.asdict(report) for report in reports],
        "goldens": [dataclasses.asdict(one) for one in known],
        "conclusions": [dataclasses.asdict(one) for one in conclusions],
        "healthy": healthy,
    }


def _report_line(report: ComponentReport) -> str:
    peak = report.peak
    return _ROW.format(
        report.component,
        report.dtype,
        _worst(report.blocks),
        _worst(report.whole),
        f"{peak.peak:.3g} {_shortened(peak.peak_layer, 29)}",
        printing.seconds(report.seconds),
        "passed" if report.failure is None else f"FAILED: {report.failure.name}",
    ).rstrip()


def _worst(comparisons: Sequence[Comparison]) -> str:
    from mobileo_mlx.doctor.comparison import worst

    largest = worst(comparisons)
    return f"{largest.rms:.1e} {_shortened(largest.name, 20)}".rstrip()


def _shortened(name: str, width: int) -> str:
    """The end of a path, which tells more than its beginning."""
    return name if len(name) <= width else f"..{name[2 - width :]}"


def _findings(
    reports: Sequence[ComponentReport], known: Sequence[Comparison], conclusions: Sequence[Conclusion]
) -> list[str]:
    from mobileo_mlx.models.sana import FLOAT16_MAX

    lines = []
    for report in reports:
        failure, peak = report.failure, report.peak
        if failure is not None:
            found = failure.stopped_by or f"a relative error of {failure.rms:.1e}, at most {failure.largest:.1e}"
            lines.append(
                f"{report.component} in {report.dtype} is wrong from {failure.name or 'its layer'} on: {found}."
            )
        if report.dtype == "float32" and (peak.peak or 0.0) > FLOAT16_MAX / 4:
            lines.append(
                f"{report.component} reaches {peak.peak:.3g} in {peak.peak_layer}: float16 ends at {FLOAT16_MAX:.0f}."
            )
    for conclusion in conclusions:
        if conclusion.failure is not None:
            instead = conclusion.instead
            lines.append(
                f"take {instead} for {conclusion.component} instead of {conclusion.default}."
                if instead
                else f"no precision of {conclusion.component} passes; please report this."
            )
    return [*lines, _known_line(known)]


def _known_line(known: Sequence[Comparison]) -> str:
    from mobileo_mlx.doctor.comparison import worst

    stopped = next((one.stopped_by for one in known if one.stopped_by), "")
    if stopped:
        return f"tiny does not reach its known results: {stopped.rstrip('.')}."
    wrong = [f"{one.name} ({one.rms:.1e})" for one in known if not one.passed]
    if wrong:
        return f"tiny's known results differ: {', '.join(wrong)}."
    largest = worst(known)
    differ = f"differ by at most {largest.rms:.1e} ({largest.name})" if largest.rms else "are all equal"
    return f"tiny's {len(known)} known results {differ}."


def _stored_line(stored: bool, conclusions: Sequence[Conclusion]) -> str:
    if not stored:
        return ""
    taken = [f"{one.component} in {one.instead}" for one in conclusions if one.instead]
    return f"stored for the runs that follow: {', '.join(taken) or 'every component in its default'}."
