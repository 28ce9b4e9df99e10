from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from mobileo_mlx.ops import device_settings, forms


def store(monkeypatch: pytest.MonkeyPatch, entries: Mapping[str, str]) -> None:
    monkeypatch.setattr(device_settings, "current", lambda: device_settings.DeviceSettings(forms=entries))


def test_what_is_stored_wins_over_the_default_for_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    store(monkeypatch, {forms.key("conv3x3", "4>4"): "unfolded"})
    assert forms.chosen("conv3x3", "4>4", "plain") == "unfolded"
    assert forms.chosen("conv3x3", "4>8", "plain") == "plain"
    assert forms.chosen("upsample", "4>4", "plain") == "plain"


@pytest.mark.parametrize("name", ["", "packed", "Unfolded"])
def test_an_unknown_form_is_ignored(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    store(monkeypatch, {forms.key("conv3x3", "4>4"): name})
    assert forms.chosen("conv3x3", "4>4", "flipped") == "flipped"


def test_what_is_forced_wins_over_all_and_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    store(monkeypatch, {forms.key("conv3x3", "4>4"): "unfolded"})
    with forms.forced({"conv3x3": "plain"}), forms.forced({"map": "bands"}):
        assert forms.chosen("conv3x3", "4>4", "flipped") == "plain"
        assert forms.chosen("map", "", "whole") == "bands"
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.append(forms.chosen("map", "", "whole")))
        thread.start()
        thread.join()
        assert seen == ["whole"]
    assert forms.chosen("conv3x3", "4>4", "flipped") == "unfolded"
    assert forms.chosen("map", "", "whole") == "whole"


def test_only_forms_that_there_are_can_be_forced() -> None:
    for wrong in ({"conv3x3": "folded"}, {"conv": "plain"}):
        with pytest.raises(ValueError, match="there is no form"), forms.forced(wrong):
            pass


def test_sizes_that_are_near_share_a_choice() -> None:
    assert [forms.about(n) for n in (1, 3, 300, 384, 512, 640)] == [1, 4, 256, 512, 512, 512]
