"""Pictures and archives that somebody downloaded: decoded rightly, or refused with the reason."""

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from tfds_builders import archives, pictures, splits


def saved(picture, form="PNG", **kwargs):
    file = io.BytesIO()
    picture.save(file, form, **kwargs)
    return file.getvalue()


GREY = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)


WAYS = [("PNG", mode) for mode in ("L", "RGB", "RGBA", "LA")]
WAYS += [(form, "L") for form in ("WEBP", "BMP", "TIFF", "GIF")]


@pytest.mark.parametrize(("form", "mode"), WAYS)
def test_every_mode_and_format_of_a_grey_picture(form, mode):
    lossless = {"lossless": True} if form == "WEBP" else {}
    data = saved(Image.fromarray(GREY).convert(mode), form, **lossless)
    np.testing.assert_array_equal(pictures.decode_grey(data, "x"), GREY)


def test_labels_of_every_mode():
    labels = np.array([[0, 1], [2, 1]], np.uint8)
    palette = Image.fromarray(labels)
    palette.putpalette((0, 0, 0, 128, 0, 0, 0, 128, 0))
    bits = Image.fromarray(labels == 1)
    grey = Image.fromarray(labels)
    for picture in (palette, grey, grey.convert("RGB"), grey.convert("RGBA"), grey.convert("LA")):
        np.testing.assert_array_equal(pictures.decode_labels(saved(picture), "x"), labels)
    np.testing.assert_array_equal(pictures.decode_labels(saved(bits), "x"), labels == 1)
    with pytest.raises(ValueError, match="x: a label picture must be grey .*RGB"):
        pictures.decode_labels(saved(palette.convert("RGB")), "x")


def test_bombs_and_deep_pictures_are_refused(monkeypatch):
    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    size = struct.pack(">IIBBBBB", 10_000, 9_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(99)))
    with pytest.raises(ValueError, match="x: declares 10000 x 9000 pixels"):
        pictures.decode_grey(bomb, "x")
    deep = saved(Image.fromarray(np.zeros((2, 2), np.uint16)))
    with pytest.raises(ValueError, match="x: expected an 8-bit"):
        pictures.decode_grey(deep, "x")


def test_every_mutation_is_decoded_or_refused():
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (24, 24), dtype=np.uint8))
    originals = [saved(noise, form) for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")]
    originals += [saved(noise.convert(mode)) for mode in "P1"]
    refused = 0
    for i in range(700):
        data = bytearray(originals[i % len(originals)])
        if i % 3:
            for at in rng.integers(0, len(data), 1 + i % 5):
                data[at] = rng.integers(256)
        else:
            data = data[: rng.integers(len(data))]
        try:
            array = pictures.decode_grey(bytes(data), f"file{i}")
            assert array.dtype == np.uint8 and array.ndim == 2
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"file{i}: ") and "\n" not in str(error)
    assert 150 < refused < 650


def test_walk_lists_folders_and_zips(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/ü 21%0.jpg").write_bytes(b"one")
    (tmp_path / ".hidden").write_bytes(b"no")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("d/肺.jpg", b"two")
        archive.writestr("__MACOSX/d/._x.jpg", b"no")
        for name in ("../up.jpg", "/top.jpg", "d/../../x.jpg", "C:\\x.jpg", "d\\..\\..\\x.jpg"):
            archive.writestr(zipfile.ZipInfo(name), b"no")
    (tmp_path / "c.zip").write_bytes(b"PK no zip")
    found = list(archives.walk(tmp_path))
    good = {m.name: m for m in found if isinstance(m, archives.Member)}
    assert list(good) == ["a.zip/d/肺.jpg", "b/ü 21%0.jpg"]
    assert [m.read() for m in good.values()] == [b"two", b"one"]  # its zip is opened again
    errors = [str(e) for e in found if isinstance(e, ValueError)]
    assert len(errors) == 6 and sum("leaves the archive" in e for e in errors) == 5
    assert errors[-1].startswith("c.zip: not a whole zip")
    assert not (tmp_path.parent / "up.jpg").exists()


def test_members_are_bounded_whatever_they_declare(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big", bytes(5000))
    with pytest.raises(ValueError, match=r"a\.zip/big: declares 5000 bytes; at most 100 pass"):
        next(archives.walk(tmp_path, limit=100)).read()
    (tmp_path / "file").write_bytes(bytes(101))
    path.unlink()
    with pytest.raises(ValueError, match="file: holds more than the 100 bytes"):
        next(archives.walk(tmp_path, limit=100)).read()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("liar", bytes(5000))
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("liar")
        info.file_size = 50  # the central directory lies
        with pytest.raises(ValueError, match="liar: "):
            archives.read_member(archive, info, "liar", limit=100)


def test_splits_by_the_seeded_rule():
    names = [f"p{i}" for i in range(40)]
    shares = {"train": 0.7, "validation": 0.1, "test": 0.2}
    found = splits.split_groups(names, shares)
    counts = [list(found.values()).count(split) for split in shares]
    assert counts == [28, 4, 8] and set(found) == set(names)
    assert splits.split_groups(reversed(names + names), shares) == found
    assert splits.split_groups(names, shares, seed=1) != found
    assert splits.split_groups([], shares) == {}
    with pytest.raises(ValueError, match="sum to 1"):
        splits.split_groups(names, {"train": 0.5})
