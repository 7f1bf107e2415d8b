"""The cc_ccii builder and the resumable shards below it, on made-up archives."""

import io
import shutil
import sys
import time
import zipfile
import zlib
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests import builders
from tests.builders import add, assert_equal_bytes, encoded, read, report, skipped, the_skip
from tfds_builders import RESUMABLE, shard_writers, shards
from tfds_builders.cc_ccii import cc_ccii_dataset_builder as cc_ccii, dummy_data, layout
from tfds_builders.report import Report

ROOT = Path(__file__).parents[1]
SLICES = 200
build = partial(builders.build, "cc_ccii/slices")
lesions = partial(builders.build, "cc_ccii/lesions")


@pytest.fixture(autouse=True, scope="module")
def small_shards_in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cc_ccii.Builder, "EXAMPLES_PER_SHARD", 30)
        patch.setattr(shard_writers, "_cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return dummy_data.make(tmp_path_factory.mktemp("cc") / "CC-CCII", SLICES, size=16)


@pytest.fixture(scope="module")
def straight(source, tmp_path_factory):
    """What a build that nothing stops makes of `source`."""
    return build(source, tmp_path_factory.mktemp("straight"))


@pytest.fixture
def archive(tmp_path):
    """A folder with one archive of one NCP scan of 3 slices, to add to; and that archive."""
    path = tmp_path / "source" / "COVID19-1.zip"
    path.parent.mkdir()
    for index in range(3):
        add(path, f"NCP/7/70/{index:04d}.png", encoded(np.full((8, 8), 10 + index)))
    return path


def test_every_slice_arrives_with_what_the_tables_say(source, straight):
    found = read(straight)
    assert len(found) == SLICES and not skipped(straight)
    shown = tfds.builder_from_directory(straight).info.splits["train"]
    assert shown.num_shards == -(-shown.num_examples // 30) > 1
    with zipfile.ZipFile(source / "COVID19-1.zip") as archive:
        name = archive.namelist()[4]  # 0004.jpg of the first scan: a multiple of 4 is on the list
        pixels = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_GRAYSCALE)
    example = found[name.removesuffix(".jpg")]
    np.testing.assert_array_equal(example["image"][..., 0], pixels)
    assert (example["patient"], example["scan"], example["slice"]) == (b"0", b"1000", b"0004")
    assert (example["label"], example["lesion"], example["sex"]) == (2, 1, b"M")
    assert (example["age"], example["liver_function"], example["progression_days"]) == (40, 2.5, 1)
    assert np.isnan(example["lung_function"]) and example["critical_illness"] == 0
    other = next(e for e in found.values() if e["label"] == 0)
    assert other["lesion"] == 0 and other["sex"] == b"" and np.isnan(other["age"])
    assert all(e["group"] == e["patient"] for e in found.values())
    sides = {(e["patient"], e["split"]) for e in found.values()}
    assert len(sides) == len(dict(sides)) > 5  # a patient is on one side
    assert set(dict(sides).values()) == {"train", "validation", "test"}


def test_a_part_of_the_archives_is_split_like_the_whole(source, straight, tmp_path):
    whole = {key: e["split"] for key, e in read(straight).items()}
    for label in ("COVID19", "CP", "Normal"):
        part = tmp_path / label
        part.mkdir()
        for name in (f"{label}-1.zip", "unzip_filenames.csv"):
            shutil.copy(source / name, part)
        found = read(build(part, part))
        assert 0 < len(found) < SLICES
        assert {key: e["split"] for key, e in found.items()} == {key: whole[key] for key in found}
        assert {e["lesion"] for e in found.values()} == {-1}  # no list


def test_folders_give_the_records_of_archives(source, straight, tmp_path):
    unpacked = tmp_path / "unpacked"
    for path in source.glob("*-1.zip"):
        zipfile.ZipFile(path).extractall(unpacked)  # ours, so it may be unpacked
    for path in source.glob("*.csv"):
        shutil.copy(path, unpacked)
    second = build(unpacked, tmp_path)
    for path in straight.glob("*array_record*"):
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_damaged_slices_are_skipped_with_a_reason(tmp_path):
    spoilt = dummy_data.make(tmp_path / "spoilt", 120, size=16, damaged=0.2)
    reasons = skipped(folder := build(spoilt, tmp_path))
    assert len(read(folder)) + len(reasons) == 120 and 5 < len(reasons) < 50
    assert all(".zip/" in file and "not a readable picture" in r for file, r in reasons.items())
    builders.assert_stops("--strict", "cc_ccii/slices", spoilt, tmp_path / "strict", strict=True)


BLANK = encoded(np.zeros((8, 8)))
DEEP = cv2.imencode(".png", np.zeros((8, 8), np.uint16))[1].tobytes()
HUGE = bytearray(BLANK)
HUGE[16:24] = (8_000).to_bytes(4, "big") * 2  # IHDR's width and height, and then its CRC
HUGE[29:33] = zlib.crc32(HUGE[12:29]).to_bytes(4, "big")
REFUSED = [  # member, its bytes, how it is stored, words of the reason
    ("../NCP/7/70/9.png", BLANK, zipfile.ZIP_STORED, "leaves the archive"),
    ("/NCP/7/70/9.png", BLANK, zipfile.ZIP_STORED, "leaves the archive"),
    ("C:\\NCP\\7\\70\\9.png", BLANK, zipfile.ZIP_STORED, "leaves the archive"),
    ("NCP\\..\\..\\9.png", BLANK, zipfile.ZIP_STORED, "leaves the archive"),
    ("NCP/7/70/9.png", bytes(layout.MAX_SLICE + 1), zipfile.ZIP_DEFLATED, "at most"),
    ("NCP/7/70/9.png", bytes(1000), zipfile.ZIP_LZMA, "compression"),
    ("NCP/7/70/9.png", b"", zipfile.ZIP_STORED, "empty"),
    ("ncp/7/70/0001.png", BLANK, zipfile.ZIP_STORED, "came before"),
    ("NCP/7/70/notes.txt", b"x", zipfile.ZIP_STORED, "not a slice"),
    ("9.png", BLANK, zipfile.ZIP_STORED, "out of place"),
    ("NCP/7/70/9.png", DEEP, zipfile.ZIP_STORED, "8-bit"),
    ("NCP/7/70/9.png", bytes(HUGE), zipfile.ZIP_STORED, "8000 x 8000"),
]


@pytest.mark.parametrize(("member", "data", "how", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_is_named_and_the_rest_is_read(member, data, how, words, archive, tmp_path):
    add(archive, member, data, compress_type=how)
    folder = build(archive.parent, tmp_path)
    file, reason = the_skip(folder)
    assert file == f"COVID19-1.zip/{member}" and words in reason
    assert sorted(e["image"][0, 0, 0] for e in read(folder).values()) == [10, 11, 12]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "source"]
    assert len(list(archive.parent.iterdir())) == 1  # nothing came out of it


def test_what_is_odd_in_an_archive_is_named_and_the_rest_is_read(source, archive, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        add(archive, "NCP/7/70/0000.png", encoded(np.full((8, 8), 200)))
    add(archive, "NCP/7/70/9.png", bytes(1 << 20), compress_type=zipfile.ZIP_DEFLATED)
    data = archive.read_bytes()  # both headers say 1 MiB; make them say 100 bytes
    assert data.count((1 << 20).to_bytes(4, "little")) == 2
    archive.write_bytes(data.replace((1 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    data = (source / "CP-1.zip").read_bytes()
    (archive.parent / "CP-1.zip").write_bytes(data[: len(data) // 2])
    table = archive.parent / "unzip_filenames.csv"
    table.write_text("zip_file,label,patient_id,scan_id,n_slice\nNCP-1.zip,NCP,7,70,5\n")
    found, reasons = read(folder := build(archive.parent, tmp_path)), skipped(folder)
    assert len(found) == len(reasons) == 3 and found["NCP/7/70/0000"]["image"].max() == 10
    assert "damaged" in reasons["COVID19-1.zip/NCP/7/70/9.png"]
    assert "came before" in reasons["COVID19-1.zip/NCP/7/70/0000.png"]
    assert "not a whole zip" in reasons["CP-1.zip"]
    assert any("7/70: 4 of 5" in note for note in report(folder)["notes"])


def test_a_file_beyond_the_limit_is_refused_in_a_folder_too(tmp_path):
    below = tmp_path / "source/CP/1/2"
    below.mkdir(parents=True)
    (below / "3.png").write_bytes(BLANK)
    (below / "4.png").write_bytes(BLANK + bytes(layout.MAX_SLICE))
    folder = build(tmp_path / "source", tmp_path)
    assert "at most" in skipped(folder)["CP/1/2/4.png"] and list(read(folder)) == ["CP/1/2/3"]


def test_shards_and_splits_without_anything_readable(source, tmp_path, monkeypatch):
    """A shard may be empty, a split is left out; both are read past."""
    monkeypatch.setattr(cc_ccii.Builder, "EXAMPLES_PER_SHARD", 2)
    monkeypatch.setattr(cc_ccii, "SHARES", {"train": 0.5, "test": 0.5})
    path = tmp_path / "source/CP-1.zip"
    path.parent.mkdir()
    for patient in (1, 2):
        for number in range(6):
            whole = patient == 1 and number not in (2, 3)
            add(path, f"CP/{patient}/1/{number}.png", encoded(np.zeros((8, 8))) if whole else b"no")
    folder = build(path.parent, tmp_path)
    found = read(folder)
    assert list(found) == [f"CP/1/1/{number}" for number in (0, 1, 4, 5)]
    (split,) = tfds.builder_from_directory(folder).info.splits.values()
    assert split.shard_lengths == [2, 0, 2]
    assert len(list(folder.glob("*array_record*"))) == 3
    assert any("nothing in it was readable" in note for note in report(folder)["notes"])
    assert report(folder)["skipped_count"] == 8


def test_ids_of_members():
    for source, member, id in (
        ("COVID19-3.zip", "NCP/1/2/0003.jpg", "NCP/1/2/0003"),
        ("NCP-3.zip", "1/2/0003.png", "NCP/1/2/0003"),
        ("Normal-1.zip", "data/normal/1/2/x.y.png", "Normal/1/2/x.y"),
        ("NCP", "1/2/3.png", "NCP/1/2/3"),
        ("below/CP", "1/2/3.png", "CP/1/2/3"),
        ("CP-1.zip", "odd/1/2/3.png", "CP/1/2/3"),
    ):
        assert layout.parse(source, member, 0).id == id


def test_sources_come_in_order_of_their_numbers(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("CP-10.zip", "CP-9.zip", "COVID19-1.zip", "below/Normal-2.zip", "other.zip"):
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in layout.sources(tmp_path)]
    assert names == ["below/Normal-2.zip", "CP-9.zip", "CP-10.zip", "COVID19-1.zip"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [("metadata.csv", "a,b\n1,2\n", "patient_id"), ("unzip_filenames.csv", "", "no table")],
)
def test_a_malformed_table_stops_the_build(name, text, words, archive, tmp_path):
    (archive.parent / name).write_text(text)
    builders.assert_stops(f"{name}.*{words}", "cc_ccii/slices", archive.parent, tmp_path)


def test_no_archive_and_no_slice(tmp_path):
    source, archive = tmp_path / "empty", tmp_path / "empty/CP-1.zip"
    stops = partial(builders.assert_stops, name="cc_ccii/slices", source=source, tmp_path=tmp_path)
    source.mkdir()
    (source / "other.zip").touch()
    stops("COVID19-1.zip")
    archive.write_bytes(b"no zip")
    stops("no archive there holds a slice")
    archive.unlink()
    add(archive, "CP/1/2/3.png", b"no picture")
    stops("not one readable example")


@pytest.mark.slow
def test_killed_twice_and_resumed_gives_the_same_bytes(source, straight, tmp_path):
    """Two processes; killed with SIGKILL once one shard, and once three are finished."""
    code = f"""
import tfds_builders
from tfds_builders import shard_writers
from tfds_builders.cc_ccii import cc_ccii_dataset_builder as cc_ccii
cc_ccii.Builder.EXAMPLES_PER_SHARD = 30
shard_writers._cores = lambda: 2
tfds_builders.prepare("cc_ccii", data_dir={str(tmp_path / "data")!r}, manual_dir={str(source)!r})
"""
    config = tmp_path / "data/cc_ccii/slices"
    journal = config / f"{RESUMABLE}1.0.0" / shards.JOURNAL
    kept = {}
    for number in (1, 3):
        child = Popen([sys.executable, "-c", code], cwd=ROOT, stdout=PIPE, stderr=DEVNULL)
        end = time.monotonic() + 60
        while len(list(journal.glob("*.json"))) < number:
            assert child.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        child.kill()
        child.communicate(timeout=60)  # the pipe closes once the last of its processes has ended
        assert not (config / "1.0.0").exists()
        for path, stamp in kept.items():
            assert path.stat().st_mtime_ns == stamp
        records = [journal.parent / path.stem for path in journal.glob("*.json")]
        kept = {path: path.stat().st_mtime_ns for path in records}
    folder = build(source, tmp_path)
    assert [path.name for path in config.iterdir() if path.name != ".lock"] == ["1.0.0"]
    for path, stamp in kept.items():  # made once
        assert (folder / path.name).stat().st_mtime_ns == stamp
    assert_equal_bytes(folder, straight)


def interrupted(source, tmp_path, monkeypatch, after):
    """A build that fails once `after` shards are written; returns the folder that is left."""
    count, write = iter(range(after)), shard_writers.write_shard

    def some(shard, **kwargs):
        if next(count, None) is None:
            raise OSError("no space left")
        write(shard, **kwargs)

    monkeypatch.setattr(shard_writers, "write_shard", some)
    with pytest.raises(OSError, match="no space left"):
        build(source, tmp_path)
    monkeypatch.setattr(shard_writers, "write_shard", write)
    return tmp_path / "data/cc_ccii/slices" / f"{RESUMABLE}1.0.0"


def test_leftovers_that_do_not_fit_are_made_again(source, straight, tmp_path, monkeypatch):
    left = interrupted(source, tmp_path, monkeypatch, after=4)
    records = sorted(left.glob("*array_record*"))
    assert len(records) == 4
    first, second, third, fourth = records
    first.write_bytes(first.read_bytes()[:1000])  # cut short
    second.unlink()
    (left / shards.JOURNAL / f"{third.name}.json").write_text('{"digest"')
    (left / "half.partial").touch()
    stamp = fourth.stat().st_mtime_ns
    folder = build(source, tmp_path)
    assert (folder / fourth.name).stat().st_mtime_ns == stamp
    assert_equal_bytes(folder, straight)


def test_other_sources_leave_nothing_of_the_old_ones(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path, monkeypatch, after=3)
    other = dummy_data.make(tmp_path / "other", SLICES, size=16, seed=1)  # shards of equal names
    assert_equal_bytes(build(other, tmp_path), build(other, tmp_path / "straight"))


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (tfds.core.DatasetInfo, "write_to_directory"),
        (Report, "write"),
        (shards.shutil, "rmtree"),
        (tfds.core.DatasetInfo, "read_from_directory"),
    ],
)
def test_killed_after_the_last_shard(owner, name, source, straight, tmp_path, monkeypatch):
    """At each of the last steps: metadata, report, clearing up, and just after the final name."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            build(source, tmp_path)
    monkeypatch.setattr(shard_writers, "ArrayRecordWriter", stop)  # shards are not touched again
    folder = build(source, tmp_path)
    assert_equal_bytes(folder, straight)
    assert [p.name for p in folder.parent.iterdir() if p.name != ".lock"] == ["1.0.0"]


def test_lesions_have_masks_and_lungs(source, tmp_path):
    folder = lesions(source, tmp_path)
    found = read(folder)
    assert len(found) == 6
    with zipfile.ZipFile(source / "ct_lesion_seg.zip") as archive:
        truth = np.array(Image.open(io.BytesIO(archive.read("mask/1/2.png"))))
    example = found["1/2"]
    np.testing.assert_array_equal(example["mask"][..., 0], np.array([0, 0, 1, 2])[truth])
    np.testing.assert_array_equal(example["lung"][..., 0], truth > 0)
    assert example["group"] == b"1" and example["patient"] == b""
    expected = report(folder)["expected"]
    assert expected["slices with masks"] == {"expected": 750, "found": 6}
    assert len((folder / "manifest.sha256").read_text().splitlines()) == 12
    with pytest.raises(ValueError, match="cc_ccii/lesions is not built in shards"):
        lesions(source, tmp_path / "beam", beam_options=["--runner=DirectRunner"])


ONES, FOURS = encoded(np.ones((16, 16))), encoded(np.full((16, 16), 4))
LESIONS = [  # member, its bytes, words of a reason
    ("mask/5/1.png", FOURS, "[4]"),
    ("mask/5/1.png", encoded(np.zeros((16, 15))), "(16, 15)"),
    ("mask/5/2.png", ONES, "no image"),
    ("image/5/2.jpg", ONES, "no mask"),
    ("image/../../9.jpg", ONES, "leaves"),
    ("readme.txt", ONES, "out of place"),
]


@pytest.mark.parametrize(("member", "data", "words"), LESIONS, ids=range(len(LESIONS)))
def test_lesion_slices_out_of_step_are_left_out(member, data, words, tmp_path):
    path = tmp_path / "source/ct_lesion_seg.zip"
    path.parent.mkdir()
    for name in ("image/5/0.jpg", "mask/5/0.png", "image/5/1.jpg"):
        add(path, name, ONES)
    add(path, member, data)
    folder = lesions(path.parent, tmp_path)
    assert words in "".join(skipped(folder).values()) and list(read(folder)) == ["5/0"]


def test_beam_gives_the_same_bytes(source, straight, tmp_path):
    pytest.importorskip("apache_beam")
    beam = build(source, tmp_path, beam_options=["--runner=DirectRunner"])
    assert_equal_bytes(beam, straight)
