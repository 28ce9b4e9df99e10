import pytest

from mobileo_mlx.errors import OutputError
from mobileo_mlx.ops import backend, device_settings
from mobileo_mlx.ops.device_settings import DeviceSettings

pytestmark = pytest.mark.usefixtures("settings_file")


def test_what_was_saved_is_found_by_this_device_alone(monkeypatch):
    assert device_settings.current() == DeviceSettings()
    saved = DeviceSettings({"dit": "bfloat16"}, {"conv": "flipped"})
    device_settings.save(saved)
    assert device_settings.current() == saved
    monkeypatch.setattr(backend, "chip_name", lambda: "Apple M9")
    assert device_settings.current() == DeviceSettings()
    device_settings.save(DeviceSettings(forms={"conv": "products"}))
    monkeypatch.undo()


def test_settings_of_several_devices_are_kept_side_by_side(monkeypatch):
    device_settings.save(DeviceSettings({"dit": "bfloat16"}))
    with monkeypatch.context() as other:
        other.setattr(backend, "chip_name", lambda: "Apple M9")
        device_settings.save(DeviceSettings({"dit": "float16"}))
        assert device_settings.current().precision == {"dit": "float16"}
    assert device_settings.current().precision == {"dit": "bfloat16"}
    assert device_settings.reset()
    assert not device_settings.reset()
    assert device_settings.current() == DeviceSettings()


@pytest.mark.parametrize(
    "content", ["", "[1]", "{", '{"format": 2, "devices": {}}', '{"format": 1, "devices": 3}', "[" * 100000]
)
def test_a_damaged_or_foreign_file_counts_as_empty(content):
    file = device_settings.path()
    file.parent.mkdir()
    file.write_text(content)
    assert device_settings.current() == DeviceSettings()
    device_settings.save(DeviceSettings({"dit": "float16"}))
    assert device_settings.current().precision == {"dit": "float16"}


def test_entries_of_other_types_are_left_out():
    file = device_settings.path()
    file.parent.mkdir()
    key = device_settings.device_key()
    file.write_text(
        f'{{"format": 1, "devices": {{"{key}": {{"precision": {{"dit": 3, "llm": "float16"}}, "forms": []}}}}}}'
    )
    assert device_settings.current() == DeviceSettings({"llm": "float16"})


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOBILEO_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match=r"device\.json"):
        device_settings.save(DeviceSettings())


def test_a_user_without_a_home_has_no_settings(monkeypatch):
    for name in ("MOBILEO_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert device_settings.current() == DeviceSettings()
    with pytest.raises(OutputError, match="set MOBILEO_CACHE"):
        device_settings.save(DeviceSettings())


def test_what_cannot_be_removed_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOBILEO_CACHE", str(tmp_path / "file"))
    assert not device_settings.reset()
    monkeypatch.setenv("MOBILEO_CACHE", str(tmp_path))
    device_settings.path().mkdir()
    with pytest.raises(OutputError, match=r"device\.json' can't be removed"):
        device_settings.reset()


def test_what_another_process_stored_for_another_device_meanwhile_stays(monkeypatch):
    assert device_settings.current() == DeviceSettings()
    other = '"metal, Apple M9, MLX 9": {"precision": {"dit": "float16"}, "forms": {}}'
    device_settings.path().parent.mkdir()
    device_settings.path().write_text(f'{{"format": 1, "devices": {{{other}}}}}')
    device_settings.save(DeviceSettings({"dit": "bfloat16"}))
    assert device_settings.current().precision == {"dit": "bfloat16"}
    assert "Apple M9" in device_settings.path().read_text()
