"""Two thousand spoilt files in archives: each is read rightly or skipped with a reason."""

import io
import json
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import tfds_builders
from tfds_builders import shard_writers

SIDE = 24


def encoded(array, kind="png", mode="L"):
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, kind, **({"lossless": True}
                                                               if kind == "webp" else {}))
    return buffer.getvalue()


def flip(rng, array, data):
    data = bytearray(data)
    for place in rng.integers(0, len(data), rng.choice([1, 3, 30])):
        data[place] ^= int(rng.integers(1, 256))
    return bytes(data)


def insert(rng, array, data):
    place = int(rng.integers(0, len(data)))
    return data[:place] + rng.bytes(9) + data[place:]


def larger(rng, array, data):
    return encoded(np.kron(array, np.ones((2, 2), np.uint8)))


MUTATIONS = {  # name -> (what to do with the bytes, what is read of it, None: either or nothing)
    "flip": (flip, None),
    "insert": (insert, None),
    "truncate": (lambda rng, array, data: data[: int(rng.integers(0, len(data)))], None),
    "noise": (lambda rng, array, data: rng.bytes(200), None),
    "empty": (lambda rng, array, data: b"", None),
    "webp": (lambda rng, array, data: encoded(array, "webp"), lambda a: a),
    "rgb": (lambda rng, array, data: encoded(array, mode="RGB"), lambda a: a),
    "alpha": (lambda rng, array, data: encoded(array, mode="RGBA"), lambda a: a),
    "larger": (larger, lambda a: np.kron(a, np.ones((2, 2), np.uint8))),
    "none": (lambda rng, array, data: data, lambda a: a),
}


def build(name, source, tmp_path):
    folder = tfds_builders.prepare(name, data_dir=tmp_path / "data", manual_dir=source)
    builder = tfds.builder_from_directory(folder)
    found = {e["id"].decode(): e for s in builder.info.splits
             for e in builder.as_data_source(split=s)}
    return found, json.loads((folder / "report.json").read_text())["skipped"]


def same(read, array):
    return read.shape == array.shape and (read == array).all()


def test_slices_of_cc_ccii(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writers, "_cores", lambda: 1)
    rng, source = np.random.default_rng(0), tmp_path / "source"
    source.mkdir()
    names, wanted = list(MUTATIONS), {}
    with zipfile.ZipFile(source / "CP-1.zip", "w") as archive:
        for number in range(1500):
            array = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            how = names[number % len(names)]
            mutate, expected = MUTATIONS[how]
            name = f"CP/{number // 100}/{number // 20}/{number:04d}"
            archive.writestr(f"{name}.png", mutate(rng, array, encoded(array)))
            wanted[name] = (how, array if expected is None else expected(array), expected is None)
    found, skipped = build("cc_ccii/slices", source, tmp_path)
    assert len(found) + len(skipped) == 1500
    survivors = 0
    for name, (how, array, may_fail) in wanted.items():
        file = f"CP-1.zip/{name}.png"
        assert (name in found) != (file in skipped)
        if name in found:
            assert same(found[name]["image"][..., 0], array), (name, how)
            survivors += may_fail
        else:
            assert may_fail and skipped[file], (name, how, skipped[file])
    assert survivors < 100  # most damage shows


def test_masks_of_the_lesion_set_stay_in_step(tmp_path):
    rng, source = np.random.default_rng(1), tmp_path / "source"
    source.mkdir()
    names, wanted = list(MUTATIONS), {}
    with zipfile.ZipFile(source / "ct_lesion_seg.zip", "w") as archive:
        for number in range(500):
            array = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            classes = rng.integers(0, 4, (SIDE, SIDE), dtype=np.uint8)
            how = names[number % len(names)], names[number // len(names) % len(names)]
            parts = [("image", array, how[0]), ("mask", classes, how[1])]
            for part, picture, mutation in parts:
                data = MUTATIONS[mutation][0](rng, picture, encoded(picture))
                archive.writestr(f"{part}/{number // 5}/{number}.png", data)
            wanted[f"{number // 5}/{number}"] = how, array, classes
    found, skipped = build("cc_ccii/lesions", source, tmp_path)
    for name, (how, array, classes) in wanted.items():
        reasons = [r for part in ("image", "mask") if (r := skipped.get(f"{part}/{name}.png"))]
        assert (name in found) != bool(reasons), (name, how)
        if name not in found:
            continue
        example = found[name]
        assert example["mask"].shape == example["image"].shape == example["lung"].shape
        # Both as they were, or both enlarged: nothing else is in step.
        scale = np.ones((2, 2) if example["image"].shape[0] > SIDE else (1, 1), np.uint8)
        assert same(example["image"][..., 0], np.kron(array, scale)), how
        truth = np.array([0, 0, 1, 2], np.uint8)[np.kron(classes, scale)]
        assert same(example["mask"][..., 0], truth), how
    # Of ten mutations four keep the picture and its size, and `larger` fits itself alone: 4 x 4 + 1
    # in a hundred, and what damage leaves whole.
    assert 85 <= len(found) < 110


@pytest.mark.parametrize("seed", range(20))
def test_a_spoilt_archive_is_never_a_crash(seed, tmp_path, monkeypatch):
    """Bytes flipped anywhere in the archive itself: its directory, headers, and members."""
    monkeypatch.setattr(shard_writers, "_cores", lambda: 1)
    rng, source = np.random.default_rng(seed), tmp_path / "source"
    source.mkdir()
    buffer, arrays = io.BytesIO(), {}
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(10):
            array = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            archive.writestr(f"NCP/1/2/{number}.png", encoded(array))
            arrays[f"NCP/1/2/{number}"] = array
    (source / "NCP-1.zip").write_bytes(flip(rng, None, buffer.getvalue()))
    with zipfile.ZipFile(source / "NCP-2.zip", "w") as archive:
        archive.writestr("NCP/9/9/whole.png", encoded(array))
    found, skipped = build("cc_ccii/slices", source, tmp_path)
    assert same(found.pop("NCP/9/9/whole")["image"][..., 0], array)
    originals = {a.tobytes() for a in arrays.values()}  # a flip may change a member's name
    assert all(e["image"].tobytes() in originals for e in found.values())
    assert len(found) == 10 or skipped
