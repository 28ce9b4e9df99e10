import errno
import io
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from mobileo_mlx.errors import ImageError, OutputError
from mobileo_mlx.image_settings import encode, read_metadata
from mobileo_mlx.images import load_image
from mobileo_mlx.serving import picture_stores, pictures
from mobileo_mlx.serving.pictures import Pictures, UnknownPictureError, is_id

SETTINGS = {
    "software": "mobileo-mlx 1",
    "model": "tiny",
    "task": "generate",
    "prompt": "a red circle",
    "seed": 7,
    "steps": 8,
}
RED = (255, 0, 0)


def picture(size: tuple[int, int] = (64, 32), color: tuple[int, int, int] = RED) -> Image.Image:
    return Image.new("RGB", size, color)


def drawn(image: Image.Image | None = None, **more: object) -> bytes:
    return encode(image or picture(), "PNG", {**SETTINGS, **more})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.fixture(params=["folder", "memory"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Pictures:
    return Pictures(tmp_path / "pictures" if request.param == "folder" else None)


def test_what_was_kept_is_found_again(shelf: Pictures) -> None:
    kept = shelf.add(drawn())
    assert is_id(kept.id)
    assert shelf.get(kept.id) == kept
    data, media_type = shelf.content(kept.id)
    assert media_type == "image/png"
    assert load_image(data).tobytes() == picture().tobytes()
    assert shelf.image(kept.id).getpixel((0, 0)) == RED
    shown = kept.as_json()
    assert (shown["width"], shown["height"]) == (64, 32)
    assert shown["bytes"] == len(data)
    assert shown["seed"] == 7
    assert shown["settings"] == SETTINGS
    assert shown["url"] == f"/v1/pictures/{kept.id}/content"
    assert abs(shown["created_at"] - time.time()) < 60
    assert "warning" not in shown
    json.dumps(shown)


@pytest.mark.parametrize(("kind", "media_type"), [("PNG", "image/png"), ("WEBP", "image/webp"), ("JPEG", "image/jpeg")])
def test_a_file_is_kept_byte_for_byte(shelf: Pictures, kind: str, media_type: str) -> None:
    data = encode(picture(), kind, SETTINGS)
    assert shelf.content(shelf.add(data).id) == (data, media_type)


def test_newest_first_in_pages(shelf: Pictures) -> None:
    made = [shelf.add(drawn(picture((8, 8 + i)))).id for i in range(7)]
    first, more = shelf.page(3)
    assert [one.id for one in first] == made[:3:-1]
    assert more
    second, more = shelf.page(3, first[-1].id)
    assert [one.id for one in second] == made[3:0:-1]
    last, more = shelf.page(3, second[-1].id)
    assert [one.id for one in last] == made[:1]
    assert not more
    # The one that a page ended with may be deleted meanwhile.
    shelf.delete(second[-1].id)
    assert shelf.page(3, second[-1].id)[0] == last


def test_deleted_and_restored(shelf: Pictures) -> None:
    one, other = shelf.add(drawn()), shelf.add(drawn())
    shelf.thumbnail(one.id)
    shelf.delete(one.id)
    assert [found.id for found in shelf.page(10)[0]] == [other.id]
    for ask in (shelf.get, shelf.content, shelf.thumbnail, shelf.delete):
        with pytest.raises(UnknownPictureError, match="there is no picture"):
            ask(one.id)
    assert shelf.restore(one.id) == one
    assert shelf.restore(one.id) == one  # clicked twice
    assert [found.id for found in shelf.page(10)[0]] == [other.id, one.id]
    with pytest.raises(UnknownPictureError):
        shelf.restore("20260101-000000-000000-" + "0" * 32)


def test_the_bin_is_emptied_after_a_day(shelf: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = shelf.add(drawn()), shelf.add(drawn())
    shelf.delete(old.id)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 23 * 3600)
    shelf.page(1)
    utime = os.utime
    monkeypatch.setattr(os, "utime", lambda path: utime(path, (time.time(),) * 2))
    shelf.delete(new.id)
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    shelf.page(1)
    with pytest.raises(UnknownPictureError):
        shelf.restore(old.id)
    assert shelf.restore(new.id).id == new.id


NOUGHTS = "0" * 32
IDS = ["", "a", "../../etc/passwd", "..", ".bin", "x" * 10_000, "\0", "\ud800", "20260101-000000-000000-" + "g" * 32]
IDS += [
    f"20261301-000000-000000-{NOUGHTS}",
    f"２0260101-000000-000000-{NOUGHTS}",
    f"20260101-000000-000000-{NOUGHTS}\n",
]


@pytest.mark.parametrize("id", IDS)
def test_ids_that_are_none(shelf: Pictures, id: str) -> None:
    for ask in (shelf.get, shelf.content, shelf.thumbnail, shelf.image, shelf.delete, shelf.restore):
        with pytest.raises(UnknownPictureError) as caught:
            ask(id)
        assert len(str(caught.value)) < 500
    with pytest.raises(UnknownPictureError):
        shelf.page(1, id)


def test_an_edit_says_what_it_came_from(tmp_path: Path) -> None:
    shelf = Pictures(tmp_path)
    source = shelf.upload(encode(picture(), "PNG", None))
    edited = shelf.add(drawn(task="edit", image_sha256="00", source=source.id))
    assert source.as_json()["kind"] == "uploaded"
    assert source.as_json()["settings"] is source.as_json()["seed"] is None
    again = Pictures(tmp_path)  # from the files alone
    assert again.get(edited.id) == edited
    assert again.get(edited.id).source == source.id
    assert again.get(edited.id).kind == "edited"
    metadata = read_metadata(tmp_path / f"{edited.id}.png")
    assert (metadata["task"], metadata["source"]) == ("edit", source.id)
    assert again.get(source.id) == source


def test_a_restart_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Pictures(tmp_path)
    made = [shelf.add(drawn()) for _ in range(5)]
    opened = []
    read = picture_stores.files.read_bytes
    monkeypatch.setattr(
        picture_stores.files, "read_bytes", lambda path, **rest: opened.append(path) or read(path, **rest)
    )
    again = Pictures(tmp_path)
    assert opened == []
    assert again.page(2)[0] == made[:2:-1]
    assert len(opened) == 2
    assert again.page(2)[0] == made[:2:-1]  # and what is known is not read again
    assert len(opened) == 2


def test_thousands_of_files(tmp_path: Path) -> None:
    data = drawn(picture((2, 2)))
    for i in range(3000):
        (tmp_path / f"20260101-{i // 3600:02}{i // 60 % 60:02}{i % 60:02}-000000-{i:032x}.png").write_bytes(data)
    shelf = Pictures(tmp_path)
    seen, before = [], None
    while True:
        found, more = shelf.page(100, before)
        seen += [one.id for one in found]
        if not more:
            break
        before = found[-1].id
    assert len(seen) == 3000
    assert seen == sorted(seen, reverse=True)


def test_a_thumbnail_is_made_once_and_again_when_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Pictures(tmp_path)
    wide = shelf.add(drawn(picture((640, 64))))
    data, media_type = shelf.thumbnail(wide.id)
    image = Image.open(io.BytesIO(data))
    assert (media_type, image.format, image.size) == ("image/webp", "WEBP", (320, 32))
    assert names(tmp_path / ".thumbnails") == [f"{wide.id}.webp"]
    with monkeypatch.context() as patched:
        patched.setattr(pictures, "load_image", lambda *_, **__: pytest.fail("it is made already"))
        assert shelf.thumbnail(wide.id)[0] == data
    shutil.rmtree(tmp_path / ".thumbnails")
    assert shelf.thumbnail(wide.id)[0] == data
    assert names(tmp_path / ".thumbnails") == [f"{wide.id}.webp"]
    small = shelf.add(drawn(picture((20, 10))))
    assert Image.open(io.BytesIO(shelf.thumbnail(small.id)[0])).size == (20, 10)


def test_thumbnails_of_what_is_gone_go(tmp_path: Path) -> None:
    shelf = Pictures(tmp_path)
    deleted, removed, kept = (shelf.add(drawn()) for _ in range(3))
    for one in (deleted, removed, kept):
        shelf.thumbnail(one.id)
    shelf.delete(deleted.id)
    (tmp_path / f"{removed.id}.png").unlink()
    Pictures(tmp_path)
    assert names(tmp_path / ".thumbnails") == [f"{kept.id}.webp"]


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    secret = tmp_path.parent / "secret.png"
    picture().save(secret)
    folder = tmp_path / "pictures"
    folder.mkdir()
    stem = "20260101-000000-000000-" + "0" * 31
    picture().save(folder / "holiday.png")
    (folder / f"{stem}1.txt").write_text("notes")
    (folder / f"{stem}2.png").symlink_to(secret)
    (folder / f"{stem}3.png").mkdir()
    (folder / f"{stem}4.png").write_text("no picture")
    (folder / ".hidden").write_text("")
    before = sorted(folder.iterdir())
    shelf = Pictures(folder)
    assert shelf.page(10) == ([], False)
    for last in "123":
        for ask in (shelf.get, shelf.content, shelf.thumbnail, shelf.delete):
            with pytest.raises(UnknownPictureError):
                ask(stem + last)
    with pytest.raises(ImageError, match="is not an image"):
        shelf.get(f"{stem}4")
    mine = shelf.add(drawn())
    assert [one.id for one in shelf.page(10)[0]] == [mine.id]
    assert sorted(set(folder.iterdir()) - {folder / f"{mine.id}.png"}) == before


def test_two_servers_on_one_folder(tmp_path: Path) -> None:
    one, other = Pictures(tmp_path), Pictures(tmp_path)
    first = one.add(drawn())
    second = other.add(drawn())
    assert one.page(10)[0] == other.page(10)[0] == [second, first]
    other.delete(first.id)
    assert one.page(10)[0] == [second]
    with pytest.raises(UnknownPictureError):
        one.content(first.id)
    with pytest.raises(UnknownPictureError):
        one.delete(first.id)
    assert one.restore(first.id) == first
    assert other.page(10)[0] == [second, first]


def test_what_others_change_shows_after_the_folder_was_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_stores, "_SETTLED", -(2**62))  # as if the last look was long after the last change
    one, other = Pictures(tmp_path), Pictures(tmp_path)
    os.utime(tmp_path, (0, 0))
    assert one.page(10) == ([], False)
    made = other.add(drawn())  # which changes the time of the folder
    assert one.page(10)[0] == [made]


def test_many_threads(tmp_path: Path) -> None:
    shelves = [Pictures(tmp_path), Pictures(tmp_path)]
    made: list[str] = []
    errors: list[Exception] = []

    def work(shelf: Pictures) -> None:
        try:
            for i in range(5):
                one = shelf.add(drawn(picture((8, 8))))
                shelf.thumbnail(one.id)
                shelf.page(50)
                if i == 2:
                    shelf.delete(one.id)
                else:
                    made.append(one.id)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(shelves[i % 2],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [one.id for one in shelves[0].page(100)[0]] == sorted(made, reverse=True)


def test_a_full_disk_costs_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Pictures(tmp_path)
    kept = shelf.add(drawn())

    def write(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)
    late = shelf.add(drawn())
    assert "the disk is full" in late.as_json()["warning"]
    assert str(tmp_path) not in late.warning
    assert shelf.page(10)[0] == [late, kept]
    assert load_image(shelf.content(late.id)[0]).tobytes() == picture().tobytes()
    assert shelf.thumbnail(late.id)[1] == shelf.thumbnail(kept.id)[1] == "image/webp"  # which was not written
    assert names(tmp_path) == [f"{kept.id}.png"]
    shelf.delete(late.id)
    assert shelf.restore(late.id).id == late.id
    assert "the disk is full" in shelf.upload(encode(picture(), "PNG", None)).warning


def test_a_folder_that_was_removed(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    shelf = Pictures(folder)
    kept = shelf.add(drawn())
    shutil.rmtree(folder)
    late = shelf.add(drawn())
    assert "make it first" in late.warning
    assert str(folder) not in late.warning
    assert shelf.content(late.id)[1] == "image/png"
    for ask in (lambda: shelf.page(10), lambda: shelf.get(kept.id), lambda: shelf.delete(kept.id)):
        with pytest.raises(OutputError, match=r"can't be read .*; make it again"):
            ask()
    with pytest.raises(OutputError):
        shelf.restore(kept.id)
    folder.mkdir()
    later = shelf.add(drawn())
    assert shelf.page(10)[0] == [later, late]


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/pictures' can't be made \(Not a directory\); choose another one"):
        Pictures(tmp_path / "file" / "pictures")
    with pytest.raises(OutputError, match=r"can't be made"):
        Pictures(tmp_path / "file")


def test_memory_has_a_limit() -> None:
    size = len(drawn())
    shelf = Pictures(None, memory_limit=3 * size)
    made = [shelf.add(drawn()) for _ in range(3)]
    shelf.delete(made[2].id)
    made.append(shelf.add(drawn()))
    assert [one.id for one in shelf.page(10)[0]] == [made[i].id for i in (3, 1, 0)]  # the bin was emptied for it
    with pytest.raises(UnknownPictureError):
        shelf.restore(made[2].id)
    made.append(shelf.add(drawn()))
    assert [one.id for one in shelf.page(10)[0]] == [made[i].id for i in (4, 3, 1)]
    tiny = Pictures(None, memory_limit=1)
    newest = [tiny.add(drawn()).id for _ in range(2)][-1]
    assert [one.id for one in tiny.page(10)[0]] == [newest]  # whatever its size


def uploaded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_uploads_are_upright_and_say_nothing_of_their_makers(shelf: Pictures) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    exif[0x010F] = "a camera"
    photo = shelf.upload(uploaded(picture((64, 32)), "JPEG", exif=exif, comment=b"at home"))
    data, media_type = shelf.content(photo.id)
    assert (photo.width, photo.height, media_type) == (32, 64, "image/webp")
    assert b"camera" not in data
    assert b"at home" not in data
    assert shelf.content(shelf.upload(uploaded(picture(), "BMP")).id)[1] == "image/png"
    assert photo.kind == "uploaded"


def test_an_upload_of_ours_keeps_its_settings(shelf: Pictures) -> None:
    ours = {
        **SETTINGS,
        "guidance_interval": [0.1, 0.9],
        "adapter": "/home/somebody/cats",
        "kind": "generated",
        "odd": 1,
    }
    for kind in ("PNG", "WEBP", "JPEG"):
        again = shelf.upload(encode(picture(), kind, ours))
        assert again.settings == {name: value for name, value in ours.items() if name not in ("kind", "odd")}
        assert again.kind == "uploaded"
        assert again.as_json()["seed"] == 7
        assert again.as_json()["settings"]["adapter"] == "cats"


@pytest.mark.parametrize(
    "damage",
    [{"prompt": 5}, {"prompt": "half \ud800"}, {"prompt": "x" * 70_000}, {"prompt": None}, {"prompt": ["a"]}],
)
def test_settings_that_can_not_be(shelf: Pictures, damage: dict[str, object]) -> None:
    found = shelf.upload(encode(picture(), "PNG", {**SETTINGS, **damage}))
    assert found.settings is None
    json.dumps(found.as_json(), ensure_ascii=False).encode()


def test_settings_out_of_range_are_left_out(shelf: Pictures) -> None:
    odd = {"steps": 10**30, "seed": "x", "scheduler": "none", "width": [1], "quantize": 3, "guidance_interval": "zz"}
    found = shelf.upload(encode(picture(), "PNG", {**SETTINGS, **odd}))
    assert found.settings == {name: value for name, value in SETTINGS.items() if name not in odd}


def test_uploads_that_are_refused(shelf: Pictures) -> None:
    with pytest.raises(ImageError, match=r"has 100x100 pixels, and at most 0\.009 million are accepted"):
        shelf.upload(encode(picture((100, 100)), "PNG", None), max_pixels=9000)
    for data in (b"", b"no image", encode(picture(), "PNG", None)[:60]):
        with pytest.raises(ImageError):
            shelf.upload(data)
    assert shelf.page(10) == ([], False)


def test_uploads_are_made_smaller(shelf: Pictures) -> None:
    wide = shelf.upload(uploaded(Image.new("L", (8192, 16)), "PNG"))
    assert (wide.width, wide.height) == (4096, 8)
