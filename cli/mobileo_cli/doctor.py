"""`mobileo-mlx doctor`: what this machine is, whether it computes right, and what is fast on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import doctor_verify, options, printing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mobileo_mlx.doctor.machine import Machine
    from mobileo_mlx.doctor.self_test import Check
    from mobileo_mlx.doctor.tune import FormTiming

NAME = "doctor"


def command(
    as_json: options.Json = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare every part, in every precision that it may take here, with float32 on the CPU (minutes); "
            "what fails is replaced from then on.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", help="The model to verify. [default: random weights of the 0.5B's size]"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="DTYPE", help="Verify this precision alone, and store nothing."),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Time equivalent forms, and keep the fastest for this device.")
    ] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Forget what was found out about devices.")] = False,
) -> None:
    """Check this machine.

    Shows what it is and whether the bundled model tiny draws, answers and edits right on it. Needs no network.
    Exit status 1 says that something is wrong.
    """
    from mobileo_mlx.errors import OptionError

    if not verify and (model is not None or dtype is not None):
        raise OptionError(f"{'--model' if model is not None else '--dtype'} goes with --verify.")
    found: dict[str, Any] = {}
    healthy = True
    if reset:
        found["reset"] = _reset(as_json)
    if verify:
        found["verify"] = doctor_verify.run(model, dtype, as_json=as_json)
        healthy = found["verify"]["healthy"]
    if tune:
        found["tune"] = _tune(as_json)
    if not (reset or verify or tune):
        found = _examine(as_json)
        healthy = found["healthy"]
    if as_json:
        printing.report(found)
    if not healthy:
        raise typer.Exit(1)


def _examine(as_json: bool) -> dict[str, Any]:
    import dataclasses

    from mobileo_mlx.doctor.machine import describe
    from mobileo_mlx.doctor.self_test import self_test

    machine = describe()
    if not as_json:
        _show_machine(machine)
        printing.out("\nself-test with tiny")
    checks = []
    with printing.Progress() as progress:
        progress.say("drawing")
        for check in self_test():
            checks.append(check)
            if not as_json:
                progress.say("")
                printing.out(f"  {_check_line(check)}")
    verdict = _verdict(machine, checks)
    if not as_json:
        printing.out(f"\nverdict: {verdict}\n\nTo report a problem, paste this:\n\n```text")
        printing.out("\n".join(_block(machine, checks, verdict)))
        printing.out("```")
    return {
        "machine": dataclasses.asdict(machine),
        "self_test": [dataclasses.asdict(check) for check in checks],
        "verdict": verdict,
        "healthy": all(check.passed for check in checks),
    }


def _show_machine(machine: Machine) -> None:
    rows = [
        ("mobileo-mlx", machine.mobileo),
        ("chip", machine.chip),
        ("cores", machine.cores),
        ("memory", printing.size(machine.memory)),
        ("system", machine.system),
        ("python", machine.python),
        ("packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items())),
        ("device", f"{machine.device} ({_device(machine)}), MLX's backend {machine.backend}{_won(machine)}"),
        ("BLAS of the CPU", machine.blas or "none that is fast"),
        ("models' cache", machine.cache),
        ("found by doctor", f"{machine.settings_file}: {_settings(machine)}"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        printing.out(f"{name.ljust(width)}  {value}")
    printing.out("\nmodels")
    for model in machine.models:
        printing.out(f"  {model.name}: {_model_state(model.state, model.nbytes)}")
    printing.out(f"\nprecision of {machine.precision_of}")
    for one in machine.precision:
        printing.out(f"  {one.component.ljust(19)}  {one.dtype.ljust(8)}  {one.reason}")


def _won(machine: Machine) -> str:
    return f" of {machine.backend_package}" if machine.backend_package else ""


def _device(machine: Machine) -> str:
    memory = f", {printing.size(machine.device_memory)} for MLX" if machine.device_memory else ""
    return f"{machine.architecture or 'unnamed'}{memory}"


def _settings(machine: Machine) -> str:
    precision, forms = machine.settings["precision"], machine.settings["forms"]
    chosen = [f"{component} in {dtype}" for component, dtype in precision.items()]
    chosen += [f"{len(forms)} forms"] if forms else []
    return ", ".join(chosen) or "nothing for this device"


def _model_state(state: str, nbytes: int) -> str:
    size = printing.size(nbytes)
    return {
        "bundled": f"comes with the program, {size}",
        "cached": f"whole, {size}",
        "incomplete": f"incomplete: its first use downloads what is missing of {size}",
        "absent": f"not here: its first use downloads {size}",
    }[state]


def _check_line(check: Check) -> str:
    from mobileo_mlx.files import without_home

    mark, time = "passed" if check.passed else "FAILED", printing.seconds(check.seconds)
    return f"{check.name.ljust(8)} {mark}  {time.rjust(7)}  {without_home(check.detail)}"


def _verdict(machine: Machine, checks: Sequence[Check]) -> str:
    failed = [check.name for check in checks if not check.passed]
    where = f"{machine.chip} ({machine.backend})"
    if failed:
        return (
            f"something is wrong on {where}: {', '.join(failed)} failed; run `mobileo-mlx doctor --verify`, which "
            "names the part, and report both."
        )
    if machine.hidden_cuda:
        return f"all is right on {where}, but MLX's library for CPUs hides the one for CUDA: {machine.hidden_cuda}"
    if machine.backend == "cpu" and not machine.blas:
        return f"all is right on {where}, but slow: no fast BLAS was found; install OpenBLAS (libopenblas0-pthread)."
    return f"all is right on {where}: the small model draws, answers and edits as it should."


def _block(machine: Machine, checks: Sequence[Check], verdict: str) -> list[str]:
    """What tells the machine apart, without paths and names of users."""
    by_dtype: dict[str, list[str]] = {}
    for one in machine.precision:
        by_dtype.setdefault(one.dtype, []).append(one.component)
    dtypes = [f"{dtype}: {', '.join(names)}" for dtype, names in by_dtype.items()]
    return [
        f"mobileo-mlx {machine.mobileo}, "
        + ", ".join(f"{name} {version}" for name, version in machine.packages.items()),
        f"{machine.chip}, {machine.cores} cores, {printing.size(machine.memory)}, {machine.system}, {machine.python}",
        f"backend {machine.backend}{_won(machine)} ({_device(machine)}), BLAS {machine.blas or 'none'}",
        f"found by doctor: {_settings(machine)}",
        "models: " + ", ".join(f"{model.name} {model.state}" for model in machine.models),
        "precision: " + "; ".join([f"all {dtypes[0].partition(':')[0]}"] if len(dtypes) == 1 else dtypes),
        *map(_check_line, checks),
        f"verdict: {verdict}",
    ]


def _tune(as_json: bool) -> list[dict[str, Any]]:
    """Shows each operation when it is timed, and stores what there is when it is interrupted, too."""
    import dataclasses

    from mobileo_mlx.doctor.tune import save, tune
    from mobileo_mlx.ops import device_settings

    device_settings.check_writable()
    show = printing.note if as_json else printing.out
    show(_TUNE_ROW.format("operation", "shape", "kept", "gain", "milliseconds of each form"))
    timings: list[FormTiming] = []
    try:
        with printing.Progress() as progress:
            for timing in tune(progress.say):
                timings.append(timing)
                progress.say("")
                show(_timing_line(timing))
    finally:
        if timings:
            save(timings)
    return [dataclasses.asdict(timing) for timing in timings]


# The widths are fixed, so that each row can be shown when it is known.
_TUNE_ROW = "{:9}  {:34}  {:11}  {:>5}  {}"


def _timing_line(timing: FormTiming) -> str:
    forms = [f"{form} {_milliseconds(taken)}" for form, taken in timing.seconds.items()]
    forms += [f"{form} wrong" for form in timing.wrong]
    return _TUNE_ROW.format(timing.operation, timing.shape, timing.fastest, f"{timing.gain:.2f}", ", ".join(forms))


def _milliseconds(seconds: float) -> str:
    """With three digits: `0.0420`, `12.3`, `1230`."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def _reset(as_json: bool) -> bool:
    from mobileo_mlx.ops import device_settings

    known = device_settings.reset()
    if not as_json:
        printing.out("what was found out about devices is forgotten." if known else "nothing was stored.")
    return known
