from __future__ import annotations

import platform
from collections.abc import Iterator

import mlx.core as mx
import pytest

from mobileo_mlx.ops import backend


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    backend.metal_uses_tf32.cache_clear()
    yield
    backend.metal_uses_tf32.cache_clear()


@pytest.mark.parametrize(
    ("architecture", "system", "environment", "expected"),
    [
        ("applegpu_g13g", "26.2", None, False),  # M1
        ("applegpu_g16s", "26.3", None, False),  # M4 Max
        ("applegpu_g17g", "26.2", None, True),  # M5
        ("applegpu_g17g", "26.2", "1", True),
        ("applegpu_g17g", "26.2", "0", False),
        ("applegpu_g17g", "26.1", None, False),
        ("applegpu_g17g", "15.7.1", None, False),
        ("applegpu_g17p", "26.2", None, False),  # a phone's
        ("applegpu_g18p", "27.0", None, True),
        ("sm_90", "", None, False),
        ("", "", None, False),
    ],
)
def test_where_metal_rounds_float32_products(
    monkeypatch: pytest.MonkeyPatch, architecture: str, system: str, environment: str | None, expected: bool
) -> None:
    monkeypatch.setattr(mx, "device_info", lambda device: {"architecture": architecture})
    monkeypatch.setattr(platform, "mac_ver", lambda: (system, ("", "", ""), ""))
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    if environment is not None:
        monkeypatch.setenv("MLX_ENABLE_TF32", environment)
    assert backend.metal_uses_tf32() is expected


def test_the_memory_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for info, expected in (
        ({"max_recommended_working_set_size": 5, "memory_size": 8}, 5),  # Metal's
        ({"total_memory": 7, "free_memory": 3}, 7),  # CUDA's
        ({}, 2**33 * 2 // 3),
    ):
        monkeypatch.setattr(mx, "device_info", lambda device, info=info: info)
        assert backend.memory() == expected
    monkeypatch.delattr(mx, "device_info")
    assert backend.memory() == 2**33 * 2 // 3
    assert backend.chip_name() == ""
