"""The dtype that each component computes in: one table, by device and component, with reasons.

What is asked for wins over what `mobileo-mlx doctor --verify` stored for this device, and that over the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from ..errors import OptionError
from ..models.mobileo import COMPONENTS
from ..ops import backend, device_settings
from ..ops.forms import dtype_name
from . import by_component

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
Dtypes = str | Mapping[str, str | mx.Dtype] | None

_EARLY_CHIP = re.compile(r"Apple (M[12]|A\d|A1[0-6])\b")  # A17 is the first that computes as M3 does
_VAE = by_component.ALIASES["vae"]
_VAE_RANGE = "the autoencoder's activations leave float16's range"


@dataclass(frozen=True)
class _Row:
    """What a component may compute in on a device, the best first, and why that is the best.

    Attributes:
        device: of `_device`.
        components: that the row is for, as far as no earlier one is.
        stored: the checkpoint's dtype; None is any.
    """

    device: str
    components: tuple[str, ...]
    stored: mx.Dtype | None
    dtypes: tuple[mx.Dtype, ...]
    reason: str


_F32, _F16, _BF16 = mx.float32, mx.float16, mx.bfloat16
# The first row that fits counts. The autoencoder is never float16: its gated products leave that range, as the
# documentation of SANA in diffusers says too, which keeps it in bfloat16 or float32. From M3 on float32 would gain it
# little: on M5 MLX multiplies float32 as TF32 and takes Winograd's convolutions, which make that worse.
_TABLE = (
    _Row("cpu", COMPONENTS, None, (_F32,), "a CPU has no fast half precision"),
    _Row("early", _VAE, None, (_F32, _BF16), f"{_VAE_RANGE}, and this chip emulates bfloat16"),
    _Row("early", COMPONENTS, None, (_F16, _BF16, _F32), "this chip is fast in float16 and emulates bfloat16"),
    _Row("apple", COMPONENTS, None, (_BF16, _F32), "this chip is fast in bfloat16, whose range nothing leaves"),
    _Row("gpu", _VAE, _F16, (_F32, _BF16), f"{_VAE_RANGE}, in which the checkpoint is stored"),
    _Row("gpu", COMPONENTS, _F16, (_F16, _BF16, _F32), "the checkpoint is stored in float16"),
    _Row("gpu", COMPONENTS, _BF16, (_BF16, _F32), "the checkpoint is stored in bfloat16"),
    _Row("gpu", COMPONENTS, _F32, (_F32,), "the checkpoint is stored in float32"),
)


@dataclass(frozen=True)
class Choice:
    """The dtype that a component computes in where none is asked for, and why: half a sentence for the user."""

    dtype: mx.Dtype
    reason: str


def choice(component: str, stored: mx.Dtype) -> Choice:
    """What a component computes in on MLX's default device, where nothing is asked for.

    Args:
        component: one of `mobileo_mlx.models.mobileo.COMPONENTS`.
        stored: the dtype of its weights in the checkpoint.
    """
    found = DTYPES.get(device_settings.current().precision.get(component, ""))
    if found is not None and found in candidates(component, stored):  # else somebody else wrote it, or another version
        return Choice(found, "`mobileo-mlx doctor --verify` found it to be right on this device")
    row = _row(component, stored)
    return Choice(row.dtypes[0], row.reason)


def default_dtype(component: str, stored: mx.Dtype) -> mx.Dtype:
    """The dtype of `choice`."""
    return choice(component, stored).dtype


def candidates(component: str, stored: mx.Dtype) -> tuple[mx.Dtype, ...]:
    """Every dtype that a component may compute in on MLX's default device, the best first, float32 among them.

    This is the table's, whatever is stored for the device.
    """
    return _row(component, stored).dtypes


def training_dtype(stored: Mapping[str, mx.Dtype]) -> mx.Dtype:
    """The one dtype to train components in: float32 where the default of one of them is, else bfloat16.

    Never float16, whose range is too small for gradients.

    Args:
        stored: their dtypes in the checkpoint.
    """
    wide = any(default_dtype(name, dtype) == mx.float32 for name, dtype in stored.items())
    return mx.float32 if wide else mx.bfloat16


def parse_dtype(name: str) -> mx.Dtype:
    """float32, float16 or bfloat16.

    Raises:
        OptionError: another name.
    """
    if not isinstance(name, str) or name not in DTYPES:
        raise OptionError(f"dtype {name!r} is unknown; there are {', '.join(DTYPES)}.")
    return DTYPES[name]


def parse_dtypes(value: Dtypes) -> dict[str, mx.Dtype]:
    """What is asked for, by component; a component that is not in it has its default.

    Args:
        value: one name for all components, a text such as "dit=float16,vae=float32", a mapping of that kind, or None.
            `all` and `vae` stand for several components, and what is named more closely counts.

    Raises:
        OptionError: an unknown dtype or component, or a text of another form.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        form = "component=dtype,..., as in dit=float16,vae=float32"
        value = by_component.parse(value, "dtype", form) if set(value) & {"=", ","} else {"all": value}
    if not isinstance(value, Mapping):
        raise OptionError(f"dtype {value!r} is neither a name nor a mapping of components to names.")
    asked = {name: parse_dtype(dtype_name(d) if isinstance(d, mx.Dtype) else d) for name, d in value.items()}
    return by_component.resolve(asked, "to choose a dtype for")


def dtypes_text(dtypes: Mapping[str, mx.Dtype]) -> str | None:
    """The text that `parse_dtypes` reads as `dtypes`; None where there are none."""
    names = {name: dtype_name(dtypes[name]) for name in COMPONENTS if name in dtypes}
    if len(names) == len(COMPONENTS) and len(set(names.values())) == 1:
        return names[COMPONENTS[0]]
    return ",".join(f"{name}={dtype}" for name, dtype in names.items()) or None


def _row(component: str, stored: mx.Dtype) -> _Row:
    device = _device()
    rows = (row for row in _TABLE if row.device == device and component in row.components)
    return next(row for row in rows if row.stored is None or row.stored == stored)


def _device() -> str:
    """A CPU, an early chip of Apple's, a later one (or one that does not say which, as virtual machines), or a GPU."""
    if backend.on_cpu():
        return "cpu"
    chip = backend.chip_name()
    if not chip.startswith("Apple"):
        return "gpu"
    return "early" if _EARLY_CHIP.match(chip) else "apple"
