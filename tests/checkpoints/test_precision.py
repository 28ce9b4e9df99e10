"""The dtype of each component: the table, what is stored for a device, and what is asked for."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from mobileo_mlx import MobileO
from mobileo_mlx.checkpoints import precision
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.precision import (
    candidates,
    choice,
    dtypes_text,
    parse_dtype,
    parse_dtypes,
    training_dtype,
)
from mobileo_mlx.errors import OptionError
from mobileo_mlx.models.mobileo import COMPONENTS
from mobileo_mlx.ops import backend, device_settings
from mobileo_mlx.ops.device_settings import DeviceSettings
from mobileo_mlx.parts import Parts

VAE = ("vae_encoder", "vae_decoder")
DTYPES = (mx.float16, mx.bfloat16, mx.float32)
EARLY = ("M1", "M1 Max", "M2", "M2 Pro", "M2 Ultra", "A14 GPU", "A16 GPU")
LATER = ("M3", "M3 Max", "M4 Pro", "M5", "M10", "M12 Pro", "A17 Pro GPU", "Paravirtual device")


def default_dtype(component: str, stored: mx.Dtype) -> mx.Dtype:
    """The table's, with what is stored for the device."""
    return choice(component, stored).dtype


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, table_defaults: None):
    """Sets the device that is asked for: a backend, and the name that it says."""

    def use(chip: str, kind: str = "metal") -> None:
        monkeypatch.setattr(backend, "backend", lambda: kind)
        monkeypatch.setattr(mx, "device_info", lambda _: {"device_name": chip} if chip else {})

    return use


@pytest.mark.parametrize("chip", EARLY)
def test_early_chips_take_float16_but_for_the_autoencoder(device, chip: str) -> None:
    device(f"Apple {chip}")
    for name in COMPONENTS:
        for stored in DTYPES:
            assert default_dtype(name, stored) == (mx.float32 if name in VAE else mx.float16)


@pytest.mark.parametrize("chip", LATER)
def test_later_chips_take_bfloat16(device, chip: str) -> None:
    device(f"Apple {chip}")
    assert {default_dtype(name, stored) for name in COMPONENTS for stored in DTYPES} == {mx.bfloat16}


@pytest.mark.parametrize("chip", ["NVIDIA H100 80GB HBM3", ""])
def test_other_gpus_take_the_checkpoints_but_no_float16_for_the_autoencoder(device, chip: str) -> None:
    device(chip, "cuda")
    for name in COMPONENTS:
        for stored in DTYPES:
            wide = name in VAE and stored == mx.float16
            assert default_dtype(name, stored) == (mx.float32 if wide else stored)


def test_where_the_backend_tells_no_chip_the_checkpoints_dtype_is_taken(device, monkeypatch) -> None:
    device("")
    for error in (RuntimeError, ValueError, AttributeError):

        def fails(_: object, error: type[Exception] = error) -> dict[str, str]:
            raise error("no device")

        monkeypatch.setattr(mx, "device_info", fails)
        assert default_dtype("dit", mx.bfloat16) == mx.bfloat16


def test_a_cpu_computes_in_float32(device) -> None:
    device("Apple M1", "cpu")
    assert {default_dtype(name, stored) for name in COMPONENTS for stored in DTYPES} == {mx.float32}


@pytest.mark.parametrize(
    ("chip", "kind"), [("Apple M1", "metal"), ("Apple M4", "metal"), ("H100", "cuda"), ("", "cpu")]
)
def test_every_choice_is_a_candidate_with_a_reason(device, chip: str, kind: str) -> None:
    device(chip, kind)
    for name in COMPONENTS:
        for stored in DTYPES:
            possible, chosen = candidates(name, stored), choice(name, stored)
            assert possible[0] == chosen.dtype
            assert mx.float32 in possible
            assert len(set(possible)) == len(possible)
            assert name not in VAE or mx.float16 not in possible
            assert chosen.reason


def test_reasons_tell_apart_what_the_table_tells_apart(device) -> None:
    device("Apple M1")
    assert choice("vae_decoder", mx.float16).reason != choice("dit", mx.float16).reason
    assert "range" in choice("vae_decoder", mx.float16).reason


# What is stored for a device


def test_what_the_doctor_stored_wins_over_the_table(device) -> None:
    device("Apple M1")
    try:
        device_settings.save(DeviceSettings(precision={"dit": "bfloat16", "llm": "float8", "unknown": "float32"}))
        assert choice("dit", mx.float16).dtype == mx.bfloat16
        assert "doctor" in choice("dit", mx.float16).reason
        assert default_dtype("llm", mx.float16) == mx.float16  # the table's: there is no such dtype
        assert candidates("dit", mx.float16)[0] == mx.float16  # what there is to verify is as before
        device("Apple M2")
        assert default_dtype("dit", mx.float16) == mx.float16
    finally:
        device_settings.reset()


def test_what_is_asked_for_wins_over_what_is_stored(device, tiny_model: Path) -> None:
    device("Apple M1")
    checkpoint = Checkpoint.open(tiny_model)
    try:
        device_settings.save(DeviceSettings(precision={"dit": "bfloat16", "llm": "bfloat16"}))
        parts = Parts(checkpoint, dtypes=parse_dtypes("dit=float32"))
        assert parts.dtype("dit") == mx.float32
        assert parts.dtype("llm") == mx.bfloat16
        assert parts.dtype("mm_projector") == mx.float16
    finally:
        device_settings.reset()


def test_networks_have_the_dtype_that_parts_say(device, tiny_model: Path) -> None:
    device("Apple M1")
    parts = MobileO.load(tiny_model, dtype={"dit": "bfloat16"}).parts
    assert parts.dit.proj_out.weight.dtype == parts.dtype("dit") == mx.bfloat16
    assert parts.llm.norm.weight.dtype == parts.dtype("llm") == mx.float16
    assert parts.vae_decoder.conv_in.weight.dtype == parts.dtype("vae_decoder") == mx.float32
    assert parts.vae_encoder.conv_out.weight.dtype == parts.dtype("vae_encoder") == mx.float32


# What is asked for


@pytest.mark.parametrize("chip", ["Apple M1", "Apple M4"])
def test_training_is_never_in_float16(device, chip: str) -> None:
    device(chip)
    assert training_dtype({"llm": mx.float16, "dit": mx.float32}) == mx.bfloat16


def test_training_takes_the_widest_of_the_defaults(device) -> None:
    device("H100", "cuda")
    assert training_dtype({"llm": mx.float16, "dit": mx.bfloat16}) == mx.bfloat16
    assert training_dtype({"llm": mx.float16, "dit": mx.float32}) == mx.float32


def test_a_stored_dtype_that_is_no_candidate_does_not_count(device) -> None:
    device("Apple M1")
    try:
        device_settings.save(DeviceSettings({"vae_decoder": "float16", "dit": "bfloat16"}))
        assert default_dtype("vae_decoder", mx.bfloat16) == mx.float32
        assert default_dtype("dit", mx.bfloat16) == mx.bfloat16
    finally:
        device_settings.reset()


@pytest.mark.parametrize("asked", [3, b"float16", ["float16"], {"dit": ["float16"]}, {"dit": mx.int32}])
def test_what_is_no_dtype_is_refused(asked) -> None:
    with pytest.raises(OptionError, match="dtype"):
        parse_dtypes(asked)


def test_dtype_names() -> None:
    assert parse_dtype("bfloat16") == mx.bfloat16
    with pytest.raises(OptionError, match="'int8' is unknown; there are float32, float16, bfloat16"):
        parse_dtype("int8")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, {}),
        ("float16", dict.fromkeys(COMPONENTS, mx.float16)),
        ("dit=float16, vae_decoder = float32", {"dit": mx.float16, "vae_decoder": mx.float32}),
        ("vae_encoder=bfloat16,vae=float32", {"vae_encoder": mx.bfloat16, "vae_decoder": mx.float32}),
        ("all=float16,llm=bfloat16", dict.fromkeys(COMPONENTS, mx.float16) | {"llm": mx.bfloat16}),
        ({"vae": "float32", "dit": mx.float16}, dict.fromkeys(VAE, mx.float32) | {"dit": mx.float16}),
        ({}, {}),
    ],
)
def test_what_is_asked_for_is_read(asked, expected) -> None:
    dtypes = parse_dtypes(asked)
    assert dtypes == expected
    assert parse_dtypes(dtypes_text(dtypes)) == expected


def test_one_dtype_for_all_is_one_word() -> None:
    assert dtypes_text(parse_dtypes("all=float16")) == "float16"
    assert dtypes_text({}) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("", "dtype '' is unknown"),
        ("float8", "dtype 'float8' is unknown"),
        ("dit=float8", "dtype 'float8' is unknown"),
        ("float16,dit=float32", "not of the form component=dtype"),
        ("dit=", "not of the form component=dtype"),
        ("dit=float16,dit=float32", "names 'dit' twice"),
        ("unet=float16", "there is no component 'unet' to choose a dtype for; there are vision_tower,"),
        ({"dit": 16}, "dtype 16 is unknown"),
    ],
)
def test_what_cannot_be_is_refused(asked, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_dtypes(asked)
    with pytest.raises(OptionError, match=message):
        MobileO.load("tiny", dtype=asked)


def test_the_default_is_the_choice() -> None:
    """Of the function that all others call, as long as nothing replaces it."""
    if precision.default_dtype.__module__ == precision.__name__:
        assert precision.default_dtype("dit", mx.float16) == choice("dit", mx.float16).dtype
