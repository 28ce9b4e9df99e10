"""What a machine is: chip, memory, versions, device, caches, models. Without network, and without names of users."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import mlx.core as mx
from mobileo_weights import SIZES, bundled, manifest

from .. import blas, mlx_library
from .._version import __version__
from ..checkpoints import hub, precision
from ..checkpoints.checkpoint import Checkpoint
from ..errors import MobileOError
from ..files import without_home
from ..models.mobileo import COMPONENTS
from ..ops import backend, device_settings

_PUBLISHED = {f"Amshaker/Mobile-O-{size}": size for size in SIZES}
_STORED = mx.bfloat16  # of the published checkpoints
_PACKAGES = ("mlx", "mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "mlx-lm", "numpy", "safetensors")


@dataclass(frozen=True)
class Model:
    """A model that can be used, or downloaded.

    Attributes:
        name: what `--model` takes.
        state: "bundled", "cached", "incomplete" (a download was broken off) or "absent".
        nbytes: of its weights on disk, or those that would be downloaded.
    """

    name: str
    state: str
    nbytes: int


@dataclass(frozen=True)
class Precision:
    """What a component computes in where nothing is asked for, and why."""

    component: str
    dtype: str
    reason: str


@dataclass(frozen=True)
class Machine:
    """Of this process.

    Attributes:
        chip: name of the processor, and of the GPU where it is another one.
        cores: for people, such as "8 performance, 4 efficiency".
        memory: bytes.
        system, python: names and versions.
        packages: version by name, of those that are installed.
        device, backend: MLX's.
        architecture: of the device, such as "applegpu_g14s"; "" where MLX does not say.
        device_memory: bytes that MLX may use on a GPU; 0 where it does not say.
        backend_package: the package whose library computes on Linux; "" on a Mac.
        hidden_cuda: the command that puts CUDA's library in its place, where another one hides it; else "".
        blas: the fast BLAS of the CPU backend; "" where none is found.
        cache: the hub's folder of models, with ~ for the user's.
        settings_file: where `mobileo_mlx.ops.device_settings` keeps what was found, with ~ likewise.
        settings: what it holds for this device: precision and forms.
        models: those bundled, and those published.
        precision: of each component of `precision_of`.
        precision_of: a model.
    """

    mobileo: str
    chip: str
    cores: str
    memory: int
    system: str
    python: str
    packages: dict[str, str]
    device: str
    backend: str
    architecture: str
    device_memory: int
    backend_package: str
    hidden_cuda: str
    blas: str
    cache: str
    settings_file: str
    settings: dict[str, dict[str, str]]
    models: tuple[Model, ...]
    precision: tuple[Precision, ...]
    precision_of: str


def describe() -> Machine:
    """Looks at this machine, which takes about a second and computes nothing."""
    packages = _versions()
    found = models()
    named = next((model.name for model in found if model.state == "cached"), hub.DEFAULT_MODEL)
    settings = device_settings.current()
    name = backend.chip_name()
    chip = _chip()
    return Machine(
        mobileo=__version__,
        chip=chip if backend.on_cpu() or name in chip else f"{chip}; {name}",
        cores=_cores(),
        memory=_memory(),
        system=_system(),
        python=f"{platform.python_implementation()} {platform.python_version()} ({platform.machine()})",
        packages=packages,
        device="CPU" if backend.on_cpu() else "GPU",
        backend=backend.backend(),
        architecture=str(backend.device_info().get("architecture", "")),
        device_memory=0 if backend.on_cpu() else backend.stated_memory(),
        backend_package=mlx_library.computing(),
        hidden_cuda=mlx_library.hidden_cuda() or "",
        blas=blas.loaded(),
        cache=without_home(str(_cache())),
        settings_file=without_home(str(device_settings.path())),
        settings={"precision": dict(settings.precision), "forms": dict(settings.forms)},
        models=found,
        precision=_precision(named),
        precision_of=named,
    )


def models() -> tuple[Model, ...]:
    """The bundled models, and the published ones with what is cached of them."""
    here = [Model(name, "bundled", _weights_size(folder)) for name, folder in bundled().items()]
    for repo, size in _PUBLISHED.items():
        state, folder = hub.cached_state(repo, _cache())
        if folder is not None:
            here.append(Model(repo, state, _weights_size(folder)))
        else:
            parameters = sum(math.prod(shape) for shape in manifest(size).values())
            here.append(Model(repo, state, parameters * _STORED.size))
    return tuple(here)


def _precision(model: str) -> tuple[Precision, ...]:
    """By component of a model that is cached or, as far as its dtype is known beforehand, published."""
    stored = dict.fromkeys(COMPONENTS, _STORED)
    if hub.cached_state(model, _cache())[0] == "cached":
        try:
            checkpoint = Checkpoint.open(model)
            stored = {name: checkpoint.stored_dtype(name) for name in COMPONENTS if checkpoint.has(name)}
        except MobileOError:
            pass  # `models` says that it is not whole
    choices = {name: precision.choice(name, dtype) for name, dtype in stored.items()}
    return tuple(Precision(name, precision.dtype_name(choice.dtype), choice.reason) for name, choice in choices.items())


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _weights_size(folder: Path) -> int:
    total = 0
    for file in folder.glob("*.safetensors"):
        with contextlib.suppress(OSError):  # a link into a cache from which somebody removed files
            total += file.stat().st_size
    return total


def _chip() -> str:
    if sys.platform == "darwin":
        model = _sysctl("hw.model")
        return _sysctl("machdep.cpu.brand_string") + (f" ({model})" if model else "")
    found = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def _cores() -> str:
    if sys.platform == "darwin":
        fast, slow = _sysctl("hw.perflevel0.physicalcpu"), _sysctl("hw.perflevel1.physicalcpu")
        return ", ".join(f"{count} {kind}" for count, kind in ((fast, "performance"), (slow, "efficiency")) if count)
    there = os.cpu_count() or 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    return str(there) if usable == there else f"{usable} of {there}"


def _memory() -> int:
    if sys.platform == "darwin":
        return int(_sysctl("hw.memsize") or 0)
    found = re.search(r"^MemTotal:\s*(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}"
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _sysctl(name: str) -> str:
    try:
        return subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
