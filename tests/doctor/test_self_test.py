import mlx.core as mx
import pytest
from PIL import Image

from mobileo_mlx import MobileO
from mobileo_mlx.doctor import self_test
from mobileo_mlx.models.sana import SanaTransformer
from mobileo_mlx.results import Answer


def results() -> dict[str, bool]:
    return {check.name: check.passed for check in self_test.self_test()}


def test_everything_passes_here() -> None:
    checks = list(self_test.self_test())
    assert [(check.name, check.passed) for check in checks] == [
        (name, True) for name in ("draw", "ask", "edit", "goldens")
    ]
    assert "red left of blue" in checks[0].detail


def test_a_drawing_that_is_not_what_was_asked_for_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    original = MobileO.generate

    def mirrored(self: MobileO, *args: object, **options: object) -> object:
        result = original(self, *args, **options)
        result.images[0] = result.images[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return result

    monkeypatch.setattr(MobileO, "generate", mirrored)
    assert results() == {"draw": False, "ask": True, "edit": True, "goldens": True}


def test_a_wrong_answer_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MobileO, "ask", lambda *args, **options: Answer("green", [1], "stop", 1, {}, 0))
    assert results() == {"draw": False, "ask": False, "edit": False, "goldens": True}


def test_an_error_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> mx.array:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(SanaTransformer, "velocity", broken)
    checks = {check.name: check for check in self_test.self_test()}
    assert [name for name, check in checks.items() if check.passed] == ["ask"]
    assert checks["draw"].detail == "RuntimeError: no such kernel"


def test_what_is_not_finite_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    original = SanaTransformer.velocity
    monkeypatch.setattr(SanaTransformer, "velocity", lambda *args: original(*args) * float("nan"))
    assert results() == {"draw": False, "ask": True, "edit": False, "goldens": False}
