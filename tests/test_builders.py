"""The dataset command and the covid_semiseg builder, on made-up and (if at hand) real files."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tests.builders import assert_equal_bytes, assert_stops, build, configs, dummy, read
from tfds_builders import __main__ as command, base
from tfds_builders.covid_semiseg import covid_semiseg_dataset_builder as semiseg, dummy_data

ROOT = Path(__file__).parents[1]
DOCTOR = "TrainingSet/LungInfection-Train/Doctor-label"
PSEUDO = "TrainingSet/LungInfection-Train/Pseudo-label"


@pytest.fixture
def source(tmp_path):
    return dummy_data.make(tmp_path / "COVID-SemiSeg")


def test_splits_features_and_orientation(source, tmp_path):
    folder = build("covid_semiseg/binary", source.parent, tmp_path)  # the folder above works too
    assert folder == tmp_path / "data/covid_semiseg/binary/1.0.0"
    train, test, rest = (read(folder, s) for s in ("train", "test", "unlabeled"))
    assert (set(train), set(test), len(rest)) == ({"4", "10", "43"}, {"6", "91"}, 4)
    example = train["10"]
    decoded = cv2.imread(str(source / DOCTOR / "Imgs/10.jpg"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(example["image"][..., 0], decoded.T)
    truth = cv2.imread(str(source / DOCTOR / "GT/10.png"), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(example["mask"][..., 0], truth.T > 0)
    assert example["mask"].dtype == np.uint8 and example["mask"].sum() == 60 + 80
    assert example["labelled"] and example["patient"] == b"" and example["slice"] == b"10"
    groups = {k: v["group"].decode() for k, v in (train | test).items()}
    assert groups["4"] == groups["91"] != groups["10"] == groups["43"]
    assert groups["6"] == "6"


def test_unlabelled_slices_are_turned_by_source_and_carry_no_truth(source, tmp_path):
    rest = read(build("covid_semiseg/binary", source, tmp_path), "unlabeled")
    for key, undo in (
        ("coronacases_org_001_2", lambda a: np.rot90(a, -1)),
        ("radiopaedia_org_covid-19-pneumonia-10_85902_3-dcm_7", np.transpose),
    ):
        path = source / PSEUDO / f"Imgs/Data-1_{key}.jpg"
        example = rest[path.stem]
        original = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(undo(example["image"][..., 0]), original)
        assert not example["labelled"] and not example["mask"].any()
        volume, number = key.rsplit("_", 1)
        assert (example["patient"].decode(), example["slice"].decode()) == (volume, number)
    groups = {v["group"] for v in rest.values()}
    assert groups == {b"coronacases_org_001", b"radiopaedia_org_covid-19-pneumonia-10"}


def test_multiclass_reads_palette_indices_and_the_manifest_lists_what_was_read(source, tmp_path):
    folder = build("covid_semiseg/multiclass", source, tmp_path)
    example = read(folder, "test")["91"]
    assert np.bincount(example["mask"].ravel()).tolist() == [40 * 24 - 140, 60, 80]
    lines = (folder / base.MANIFEST).read_text().splitlines()
    assert len(lines) == 2 * 5 + 4
    for line in lines:
        digest, name = line.split("  ", 1)
        assert hashlib.sha256((source / name).read_bytes()).hexdigest() == digest


@pytest.mark.slow
@pytest.mark.parametrize("name", configs(manual=True))
def test_equal_sources_give_equal_bytes(name, tmp_path):
    source = dummy(name, tmp_path / "source")
    first, second = (build(name, source, tmp_path / n) for n in "ab")
    assert list(first.glob("*array_record*"))
    assert_equal_bytes(first, second)


def picture(array):
    """A function that overwrites a file with a picture."""
    return lambda path: Image.fromarray(np.asarray(array)).save(path)


BLANK = np.zeros((40, 24), np.uint8)
MASK, MULTI = f"{DOCTOR}/GT/10.png", "TestingSet/MultiClassInfection-Test/GT/6.png"
SLICE, UNLABELLED = f"{DOCTOR}/Imgs/4.jpg", f"{PSEUDO}/Imgs/Data-1_coronacases_org_001_1.jpg"
BAD_INPUTS = [  # config, file, what to do with it, what the message says
    ("binary", MASK, Path.unlink, "Imgs/10.jpg.*image without mask"),
    ("binary", f"{DOCTOR}/Imgs/10.jpg", Path.unlink, "GT/10.png.*mask without image"),
    ("binary", MASK, picture(BLANK.T), r"GT/10.png.*\(24, 40\).*\(40, 24\)"),
    ("binary", MASK, picture(BLANK + 100), r"GT/10.png.*\[100\]"),
    ("binary", MASK, picture(BLANK.astype(np.uint16)), "GT/10.png.*8-bit"),
    ("multiclass", MULTI, picture(BLANK + 38), r"GT/6.png.*\[38\]"),
    ("multiclass", MULTI, picture(np.eye(3, dtype=np.uint8)[BLANK]), "GT/6.png.*RGB"),
    ("binary", SLICE, lambda p: p.write_bytes(b""), "Imgs/4.jpg.*0 bytes"),
    ("binary", SLICE, lambda p: p.write_bytes(p.read_bytes()[:300]), "4.jpg.*not a readable pict"),
    ("binary", UNLABELLED, lambda p: p.rename(p.with_name("odd.jpg")), "odd.*Data-1_<volume>_<n>"),
    ("binary", SLICE, lambda p: picture(BLANK)(p.with_suffix(".png")), "Imgs/4.png.*same stem"),
]


@pytest.mark.parametrize(("config", "file", "spoil", "words"), BAD_INPUTS)
def test_bad_input_is_named_and_leaves_nothing(config, file, spoil, words, source, tmp_path):
    spoil(source / file)
    assert_stops(words, f"covid_semiseg/{config}", source, tmp_path)
    names = [p.name for p in (tmp_path / "data/covid_semiseg").rglob("*")]
    assert names and not [n for n in names if n.startswith("incomplete")]  # the lock was taken


def test_lossy_binary_masks_pass_within_the_tolerance(source, tmp_path):
    truth = np.where(np.arange(24) < 6, 255 - semiseg.BINARY_TOLERANCE, semiseg.BINARY_TOLERANCE)
    picture(np.tile(truth, (40, 1)).astype(np.uint8))(source / MASK)
    example = read(build("covid_semiseg/binary", source, tmp_path), "train")["10"]
    assert example["mask"].sum() == 40 * 6


def test_repeated_keys_are_refused(source, tmp_path, monkeypatch):
    once = semiseg.Builder._examples
    twice = lambda self, **kwargs: [*once(self, **kwargs), *once(self, **kwargs)]  # noqa: E731
    monkeypatch.setattr(semiseg.Builder, "_examples", twice)
    assert_stops("share the key '10'", "covid_semiseg/binary", source, tmp_path)


def test_a_killed_build_is_cleaned_up_by_the_next(source, tmp_path):
    code = f"""
import os, signal, tfds_builders
from tfds_builders.covid_semiseg import covid_semiseg_dataset_builder as semiseg
semiseg.Builder.read_grey = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
tfds_builders.prepare("covid_semiseg", data_dir={str(tmp_path / "data")!r},
                      manual_dir={str(source)!r})
"""
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert child.returncode == -signal.SIGKILL
    config = tmp_path / "data/covid_semiseg/binary"
    assert list(config.glob("incomplete.*")) and not (config / "1.0.0").exists()
    build("covid_semiseg/binary", source, tmp_path)
    assert not list(config.glob("incomplete.*")) and (config / "1.0.0").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("build nonsense", 2, "unknown dataset"),
        ("build", 2, "NAME"),
        ("build phantom/huge --data_dir {0}", 1, "phantom has: default, tiny"),
        ("build covid_semiseg --data_dir {0}", 1, "needs manual_dir"),
        ("build covid_semiseg --data_dir {0} --manual_dir {0}", 1, "TrainingSet/ and TestingSet/"),
        ("build covid_semiseg --data_dir {0} --manual_dir {0}/no", 1, "no folder"),
    ],
)
def test_command_errors_are_one_line(arguments, code, words, tmp_path, capsys):
    try:
        got = command.main(arguments.format(tmp_path).split())
    except SystemExit as stop:  # argparse
        got = stop.code
    err = capsys.readouterr().err
    assert got == code and words in err and "Traceback" not in err
    assert code == 2 or err.count("\n") == 1


def test_command_prints_the_folder_and_builds_once(source, tmp_path, capsys):
    data = tmp_path / "data"
    words = ["build", "covid_semiseg/multiclass", f"--data_dir={data}"]
    folder, stamps = data / "covid_semiseg/multiclass/1.0.0", set()
    for more in ([f"--manual_dir={source}"], []):
        assert command.main([*words, *more]) == 0
        assert capsys.readouterr().out == f"{folder}\n"
        stamps.add((folder / "dataset_info.json").stat().st_mtime_ns)
    assert len(stamps) == 1


def test_help_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys, tfds_builders.__main__ as m\n"
        "try: m.main(['build', '--help'])\n"
        "except SystemExit as s: assert s.code == 0\n"
        "assert not {'tensorflow_datasets', 'numpy', 'cv2', 'jax'} & set(sys.modules)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--manual_dir" in done.stdout and time.monotonic() - start < 10


@pytest.mark.slow
def test_real_covid_semiseg(shared, tmp_path):
    real = shared / "data" / "COVID-SemiSeg"
    if not real.is_dir():
        pytest.skip("no COVID-SemiSeg")
    folder = build("covid_semiseg/multiclass", real, tmp_path)
    info = tfds.builder_from_directory(folder).info
    counts = {name: split.num_examples for name, split in info.splits.items()}
    assert counts == {"train": 50, "test": 48, "unlabeled": 1600}
    train, test = read(folder, "train"), read(folder, "test")
    assert sum(not (e["mask"] == 2).any() for e in test.values()) == 10
    binary = real / semiseg.FOLDERS["binary"]["train"] / "GT"
    for stem, example in train.items():  # both truths are one: any lesion = infection
        truth = cv2.imread(str(binary / f"{stem}.png"), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(example["mask"][..., 0] > 0, truth.T > 127)
    upright = {}
    for example in read(folder).values():
        key = example["split"], example["patient"]
        upright.setdefault(key, []).append(spine_below(example["image"][..., 0]))
    assert len(upright) == 2 + 20
    for key, values in upright.items():
        assert np.mean(values) > 5, f"{key} is not upright"


def spine_below(image):
    """Grey levels by which the lowest quarter of the middle fifth is brighter than the highest."""
    h, w = image.shape
    middle = image[:, 2 * w // 5 : 3 * w // 5].astype(float)
    return middle[-h // 4 :].mean() - middle[: h // 4].mean()
