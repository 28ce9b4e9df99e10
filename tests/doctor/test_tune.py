"""Tuning with forms and timers that are made up, and once with all that is real but the clock's verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mobileo_mlx.checkpoints import precision
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.doctor import tune as tune_module
from mobileo_mlx.doctor import tune_cases
from mobileo_mlx.doctor.tune import FormTiming, difference, save, tune
from mobileo_mlx.doctor.tune_cases import Case, model_cases
from mobileo_mlx.ops import backend, bands, conv, device_settings, forms
from mobileo_mlx.ops.conv import Conv2d
from mobileo_mlx.ops.device_settings import DeviceSettings

ANSWER = mx.array([1.0, 2.0, 3.0])


class Fakes:
    """Forms that give these results, and a timer that says that they take these seconds."""

    def __init__(self, seconds: dict[str, float], results: dict[str, mx.array] | None = None, default: str = "plain"):
        self.seconds, self.results, self.default = seconds, results or {}, default
        self.order: list[str] = []

    def form(self) -> str:
        return forms.chosen("conv3x3", "fake", self.default)

    def run(self) -> mx.array:
        return self.results.get(self.form(), ANSWER)

    def timer(self, run: Callable[[], mx.array]) -> float:
        self.order.append(self.form())
        return self.seconds[self.form()]

    def tune(self, *names: str) -> FormTiming:
        case = Case("conv3x3", "fake", lambda: self.run, names or tuple(self.seconds))
        (timing,) = tune(cases=[case], timer=self.timer)
        return timing


def test_the_faster_of_two_is_picked_and_taken_by_the_next_run() -> None:
    fakes = Fakes({"plain": 2.0, "flipped": 1.0})
    timing = fakes.tune()
    assert timing == FormTiming("conv3x3", "fake", {"plain": 2.0, "flipped": 1.0}, "plain", "flipped")
    assert timing.gain == 2
    assert fakes.form() == "plain"  # not before it is saved
    save([timing])
    device_settings.forget()  # as in another process
    assert fakes.form() == "flipped"
    assert fakes.tune().default == "plain"  # what is stored changes no default


def test_they_are_timed_in_turns() -> None:
    fakes = Fakes({"plain": 0.2, "flipped": 0.1})
    fakes.tune()
    assert fakes.order == ["plain", "flipped", "flipped", "plain"] * 2 + ["plain", "flipped"]
    slow = Fakes({"plain": 1.0, "flipped": 1.0})
    slow.tune()
    assert len(slow.order) == 2 * tune_module.SLOW_ROUNDS


def test_one_slow_round_decides_nothing() -> None:
    fakes = Fakes({"plain": 0.2, "flipped": 0.1})
    taken = iter([9.0, *[0.0] * 99])
    plain = fakes.timer
    fakes.timer = lambda run: plain(run) + next(taken)  # type: ignore[method-assign]
    assert fakes.tune().seconds == {"plain": 0.2, "flipped": 0.1}


@pytest.mark.parametrize(("seconds", "fastest"), [(0.96, "plain"), (0.94, "flipped"), (1.5, "plain")])
def test_a_gain_within_the_noise_is_none(seconds: float, fastest: str) -> None:
    assert Fakes({"plain": 1.0, "flipped": seconds}).tune().fastest == fastest


def test_a_default_that_is_best_now_replaces_what_was_stored() -> None:
    save([Fakes({"plain": 2.0, "flipped": 1.0}).tune()])
    fakes = Fakes({"plain": 1.0, "flipped": 2.0})
    save([fakes.tune()])
    assert fakes.form() == "plain"
    assert device_settings.current() == DeviceSettings()


def test_saving_keeps_what_is_known_of_other_things() -> None:
    device_settings.save(DeviceSettings({"dit": "float32"}, {"upsample other": "unfolded"}))
    save([Fakes({"plain": 2.0, "flipped": 1.0}).tune()])
    expected = {"upsample other": "unfolded", "conv3x3 fake": "flipped"}
    assert device_settings.current() == DeviceSettings({"dit": "float32"}, expected)


NAN = ANSWER * float("nan")


@pytest.mark.parametrize("wrong", [-ANSWER, ANSWER + 0.01, NAN, ANSWER[:2], ANSWER.astype(mx.float16), ANSWER[::-1]])
def test_a_wrong_form_never_wins(wrong: mx.array) -> None:
    fakes = Fakes({"plain": 2.0, "flipped": 0.001, "unfolded": 1.0}, {"flipped": wrong})
    timing = fakes.tune()
    assert (timing.fastest, timing.wrong) == ("unfolded", ("flipped",))
    assert "flipped" not in timing.seconds
    assert "flipped" not in fakes.order


def test_a_form_that_fails_never_wins() -> None:
    fakes = Fakes({"plain": 2.0, "flipped": 0.001})
    plain = fakes.run

    def run() -> mx.array:
        if fakes.form() == "flipped":
            raise RuntimeError("[conv] no kernel")
        return plain()

    fakes.run = run  # type: ignore[method-assign]
    assert (fakes.tune().fastest, fakes.tune().wrong) == ("plain", ("flipped",))


def test_rounding_is_not_wrong() -> None:
    for dtype, tolerance in tune_module.TOLERANCES.items():
        x = mx.random.normal((1000,), key=mx.random.key(0))
        assert difference(x.astype(dtype), x.astype(dtype)) == 0
        assert difference(x.astype(dtype).astype(mx.float32), x) < tolerance / 3


@pytest.mark.parametrize("content", ["", "{", '{"format": 1, "devices": {"x": {}}}', '{"format": 9}'])
def test_a_damaged_file_is_no_obstacle(content: str) -> None:
    file = device_settings.path()
    file.parent.mkdir()
    file.write_text(content)
    fakes = Fakes({"plain": 2.0, "flipped": 1.0})
    assert fakes.form() == "plain"
    save([fakes.tune()])
    assert fakes.form() == "flipped"


def test_what_was_found_on_another_chip_or_version_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes({"plain": 2.0, "flipped": 1.0})
    save([fakes.tune()])
    monkeypatch.setattr(backend, "chip_name", lambda: "Apple M9")
    assert fakes.form() == "plain"
    monkeypatch.undo()


def test_an_unknown_form_is_ignored() -> None:
    device_settings.save(DeviceSettings(forms={"conv3x3 fake": "folded"}))
    assert Fakes({"plain": 1.0}).form() == "plain"


def test_progress_comes_before_each_case() -> None:
    events: list[str] = []
    fakes = Fakes({"plain": 1.0})
    cases = [Case("conv3x3", title, lambda: fakes.run, ("plain",)) for title in ("a", "b")]
    for timing in tune(events.append, cases=cases, timer=fakes.timer):
        events.append(timing.operation)
    assert events == ["conv3x3, a", "conv3x3", "conv3x3, b", "conv3x3"]


@pytest.mark.parametrize("device", ["cpu", "metal", "cuda"])
def test_every_case_of_a_model_is_asked_for_by_production(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    """In the forms of each backend: all are right, and each has something to choose from."""
    monkeypatch.setattr(backend, "backend", lambda: device)
    monkeypatch.setattr(bands, "GPU_BYTES", 2**14)
    monkeypatch.setattr(tune_cases, "ROWS", (2, 300))
    # The kernels are a CPU's, some of which sum in half precision.
    monkeypatch.setattr(precision, "default_dtype", lambda component, stored: mx.float32)
    config = Checkpoint.open(tiny_model).config
    timings = list(tune(cases=model_cases(config), timer=lambda run: 1.0))
    assert {t.operation for t in timings} == {*forms.FORMS}
    assert len({forms.key(t.operation, t.shape) for t in timings}) > len(forms.FORMS)
    for timing in timings:
        assert timing.default in timing.seconds
        assert len(timing.seconds) >= 2, timing
        assert timing.wrong == ()
        if device != "metal":
            assert "flipped" not in timing.seconds


def test_a_stored_form_of_a_real_layer_is_used(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    """Timed by a timer that likes one form, for a layer of the model, and then drawn with."""
    monkeypatch.setattr(precision, "default_dtype", lambda component, stored: mx.float32)
    config = Checkpoint.open(tiny_model).config
    cases = [case for case in model_cases(config) if case.operation == "conv3x3"]
    assert cases
    taken: list[int] = []
    unfolded = conv.unfolded

    def watched(*arguments: mx.array) -> mx.array:
        taken.append(1)
        return unfolded(*arguments)

    monkeypatch.setattr(conv, "unfolded", watched)

    def likes_unfolding(run: Callable[[], mx.array]) -> float:
        taken.clear()
        mx.eval(run())
        return 0.5 if taken else 1.0

    timings = list(tune(cases=cases, timer=likes_unfolding))
    assert {timing.fastest for timing in timings} == {"unfolded"}
    save(timings)
    dim, columns = config.vae.decoder_block_out_channels[0], config.default_size[0]
    layer, x = Conv2d(dim, dim, 3, padding=1).eval(), mx.random.normal((1, 8, columns, dim))
    taken.clear()
    y = layer(x)
    assert taken
    assert mx.allclose(y, mx.conv2d(x, layer.weight, padding=1) + layer.bias, atol=1e-4)


def test_whole_maps_are_tried_only_where_memory_is_enough() -> None:
    case = Case("map", "", lambda: lambda: ANSWER, forms.FORMS["map"])
    assert case.candidates("whole") == ("whole", "bands", "large bands")
    assert case.candidates("bands") == ("bands", "large bands")


def test_the_standard_cases_are_those_of_the_published_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    titles = [f"{case.operation}, {case.title}" for case in tune_cases.standard_cases()]
    dtype = forms.dtype_name(precision.default_dtype("vae_decoder", mx.bfloat16))
    for title in (
        f"conv3x3, 128 channels, 512 pixels wide, {dtype}",
        "quantized, 896 to 4864 channels, 4 bits, 512 rows",
        "quantized, 1152 to 5760 channels, 8 bits, 512 rows",  # a step with guidance
        "dit_block, a step of two blocks, 1152 channels",
        f"map, decoder, 1024 x 1024 pixels, {dtype}",
    ):
        assert title in titles
    assert len(titles) == len(set(titles))
