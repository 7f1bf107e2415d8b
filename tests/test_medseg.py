"""The medseg builder: both sets in both forms, on made-up and (if at hand) real slices."""

import csv
import gzip

import cv2
import nibabel as nib
import numpy as np
import pytest

from tests.builders import assert_stops, build_and_read
from tests.test_mutations import DAMAGE
from tfds_builders import archives, nifti
from tfds_builders.medseg import dummy_data, grey, pose, sources, stacks
from tfds_builders.medseg.medseg_dataset_builder import TEST_SLICES


@pytest.fixture
def source(tmp_path):
    return dummy_data.make(tmp_path / "medseg")


def assert_is(example, made, k):
    """An example is slice `k` of a chest, in the window of -1250 to 250 HU."""
    grey = np.clip((made["image"][k].astype(float) + 1250) / 1500 * 255, 0, 255)
    np.testing.assert_allclose(example["image"][..., 0], grey, atol=0.51)
    np.testing.assert_array_equal(example["mask"][..., 0], made["labels"][k])
    np.testing.assert_array_equal(example["lung"][..., 0], made["lung"][k])


def test_slices_are_upright_windowed_and_split_like_covid_semiseg(source, tmp_path):
    found, report = build_and_read("medseg/slices", source, tmp_path)
    assert set(found["test"]) == {f"slice{k:03d}" for k in (6, 7, 8, 9)}
    assert len(found["train"]) == 8 and len(found["unlabeled"]) == 2
    made = dummy_data.chest(12)
    for name, example in (found["train"] | found["test"]).items():
        assert_is(example, made, int(name[5:]))
        assert example["labelled"] and example["lung_known"] and example["patient"] == b""
    assert found["train"]["slice004"]["group"] == found["train"]["slice005"]["group"]
    assert found["train"]["slice010"]["group"] != found["train"]["slice003"]["group"]
    for example in found["unlabeled"].values():
        assert not (example["labelled"] or example["lung_known"] or example["mask"].any())
    assert report["expected"]["labelled slices"] == {"expected": 100, "found": 12}


def test_volumes_are_split_by_patient(source, tmp_path):
    found, report = build_and_read("medseg/volumes", source, tmp_path)
    patients = {s: {e["patient"].decode() for e in found[s].values()} for s in found}
    assert len(patients["train"]) == 6 and len(patients["test"]) == 2
    assert not patients["train"] & patients["test"]
    everything = found["train"] | found["test"]
    two, three = everything["volume2_001"], everything["volume3_002"]
    assert two["patient"] == three["patient"] == b"volume2+3"
    assert two["group"] == three["group"] == b"radiopaedia_org_covid-19-pneumonia-10"
    assert everything["volume9_000"]["group"] == b"volume9"
    groups = {s: {e["group"] for e in found[s].values()} for s in found}
    assert not groups["train"] & groups["test"]
    assert report["expected"]["volumes"] == {"expected": 9, "found": 9}
    assert report["mask_classes"]["1"]["examples"] == 9


def test_a_partial_download_is_split_like_the_whole(source, tmp_path):
    whole, _ = build_and_read("medseg/volumes", source, tmp_path)
    for number in (1, 4, 7):
        (source / f"rp_im/{number}.nii.gz").unlink()
    part, report = build_and_read("medseg/volumes", source, tmp_path / "again")
    assert all(set(part[split]) <= set(whole[split]) for split in part)
    assert "expected rp_im/4.nii.gz" in report["skipped"]["rp_msk/4.nii.gz"]


@pytest.mark.parametrize("config", ["slices", "volumes"])
def test_npy_equals_nifti(config, source, tmp_path):
    npy = dummy_data.make_npy(tmp_path / "npy")
    found, report = build_and_read(f"medseg/{config}", npy, tmp_path / "b")
    made = dummy_data.chest(12)
    examples = found["train"] | found.get("test", {})
    assert len(examples) == 12
    for name, example in examples.items():
        assert_is(example, made, int(name[-3:]))
    if config == "volumes":
        assert set(found) == {"train"}
        assert {e["group"] for e in examples.values()} == {b"all volumes"}
        assert any("one group" in note for note in report["notes"])


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SPR", "AIL", "PRI"])
def test_any_header_orientation_comes_out_upright(codes):
    made = dummy_data.chest(3)["image"]
    lps = nib.Nifti1Image(made.transpose(2, 1, 0), dummy_data.LPS)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(lps.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = lps.as_reoriented(turn)
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    volume = nifti.load(turned.to_bytes(), "x.nii")
    np.testing.assert_array_equal(nifti.slices(volume), made)


@pytest.mark.parametrize(
    ("parts", "diagonal", "note"),
    [
        ("im mask lungmasks", (1, 1, 5, 1), "turned by 180 degrees"),  # says: feet up
        ("mask lungmasks", (0.7, -0.7, 5, 1), "not by their own"),
    ],
)
def test_a_wrong_header_is_noticed_in_the_picture(parts, diagonal, note, source, tmp_path):
    made, kinds = dummy_data.chest(12), {"im": "image", "mask": "labels", "lungmasks": "lung"}
    for part in parts.split():
        dummy_data.save_nifti(made[kinds[part]], source / f"tr_{part}.nii.gz", np.diag(diagonal))
    found, report = build_and_read("medseg/slices", source, tmp_path)
    np.testing.assert_array_equal(found["test"]["slice007"]["mask"][..., 0], made["labels"][7])
    assert any(note in text for text in report["notes"])


def test_unfit_files_are_skipped_with_the_reason(source, tmp_path):
    made = dummy_data.chest(3)
    path = source / "rp_im/1.nii.gz"
    path.write_bytes(path.read_bytes()[:200] + bytes(64) + path.read_bytes()[264:])
    (source / "rp_im/3.nii.gz").write_bytes(gzip.compress(b"no volume at all" * 50))
    low, odd = np.zeros_like(made["labels"]), made["labels"].copy()
    low[:, 37:39, 38:43] = 1  # the lowest tip of the left lung
    assert made["lung"][low > 0].all()
    odd[1, 0, 0] = 7
    for number, labels in ((4, low[:, ::-1]), (5, odd), (6, made["labels"][:, :-1])):
        dummy_data.save_nifti(labels, source / f"rp_msk/{number}.nii.gz")
    found, report = build_and_read("medseg/volumes", source, tmp_path)
    words = dict.fromkeys((1, 3), "not a readable NIfTI")
    words |= dict.fromkeys((4, 6), "out of step with rp_msk")
    words = {f"rp_im/{n}.nii.gz": why for n, why in words.items()} | {"rp_msk/5.nii.gz[1]": "[7]"}
    assert report["skipped"].keys() == words.keys()
    for file, reason in report["skipped"].items():
        assert words[file] in reason and "\n" not in reason
    assert report["expected"]["volumes"]["found"] == 5
    assert sum(map(len, found.values())) == 5 * 3 - 1
    words = r"rp_im/.\.nii\.gz: .*--strict"
    assert_stops(words, "medseg/volumes", source, tmp_path / "strict", strict=True)


def test_declared_and_real_size_bombs_are_refused(monkeypatch):
    image = nib.Nifti1Image(np.zeros((8, 8, 8), np.int16), dummy_data.LPS)
    data = bytearray(image.to_bytes())
    monkeypatch.setattr(nifti, "MAX_BYTES", 2**16)
    data[42:48] = np.array([1000, 1000, 1000], np.int16).tobytes()  # dim[1..3]
    with pytest.raises(ValueError, match=r"bomb\.nii: .*more than 65536 bytes"):
        nifti.load(bytes(data), "bomb.nii")
    with pytest.raises(ValueError, match="more than 65536 bytes"):
        nifti.load(gzip.compress(image.to_bytes() + bytes(2**17)), "bomb.nii.gz")


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # a NaN that signals
def test_mutated_npy_files_are_read_in_step_or_refused(tmp_path):
    """Of NIfTI files: test_mutations."""
    rng, names, refused = np.random.default_rng(7), ("image.npy", "labels.npy"), 0
    paths = [tmp_path / name for name in names]
    dummy_data.save_npy(dummy_data.chest(3), *paths)
    files = [archives.Member(path.name, path.read_bytes, path) for path in paths]
    for number in range(60):
        path = paths[number % 2]
        whole, how = path.read_bytes(), list(DAMAGE.values())[number % len(DAMAGE)]
        other = paths[1 - number % 2].read_bytes()
        path.write_bytes(how(rng, whole) if number % 7 else other)
        try:
            stack = stacks.read(sources.Source("1", *files), lambda *_: None)
            assert stack.image.dtype == np.uint8 and stack.image.ndim == 3
            assert stack.image.shape == stack.labels.shape == stack.lung.shape
        except ValueError as error:
            refused += 1
            assert ".npy" in str(error) and "\n" not in str(error)
        path.write_bytes(whole)
    assert 20 < refused < 60


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "medseg/slices is empty. Download set 1"), ("a.txt", "tr_im.nii.gz and tr_mask.nii.gz")],
)
def test_missing_files_say_what_is_expected(name, words, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / name).touch()
    assert_stops(words, "medseg/slices", tmp_path / "empty", tmp_path)


def test_scaled_numbers_are_unscaled():
    data = bytearray(nib.Nifti1Image(np.full((2, 3, 4), 12, np.int16), dummy_data.LPS).to_bytes())
    data[112:120] = np.array([2, -1024], np.float32).tobytes()  # scl_slope, scl_inter
    got = nifti.values(nifti.load(bytes(data), "x"))
    assert got.shape == (4, 3, 2) and (got == -1000).all()


def test_classes_by_hand():
    got = stacks.classes(np.array([[0, 1], [2, 3]]), 3, "x")
    assert got.tolist() == [[0, 1], [2, 0]] and got.dtype == np.uint8
    for value, limit, words in ((3, 2, r"x: label values \[3\]"), (0.5, 3, "0.5")):
        with pytest.raises(ValueError, match=words):
            stacks.classes(np.array([[value]]), limit, "x")


def test_kinds_of_numbers_by_hand():
    nan = np.nan
    for values, kind in (([nan, -1000, 40], "hu"), ([0, 255], "grey"), ([0, 0.5], "share")):
        assert grey.kind_of(np.array(values), "x") == kind
    with pytest.raises(ValueError, match="x: values -100 to 300"):
        grey.kind_of(np.array([-100, 300]), "x")
    levels = grey.to_grey(np.array([[-1250, -500, 250, 3000, np.nan]]), "hu")
    assert levels.tolist() == [[0, 128, 255, 255, 0]]


def read_real(shared, name):
    folder = shared / "data" / name
    if not folder.is_dir():
        pytest.skip(f"no {name}")
    return folder, list(csv.DictReader((folder / "index.csv").read_text().splitlines()))


def load(path):
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)


def hounsfield(levels):
    return (levels / 255 * 1500 - 1250).round().astype(np.int16)


@pytest.mark.slow
def test_real_volumes(shared, tmp_path):
    folder, rows = read_real(shared, "medseg-volumes")
    source, made = tmp_path / "nii", {}
    for number in "12345":
        names = [r["name"] for r in rows if r["volume"] == number][::2]
        made[number] = [
            np.stack([load(folder / part / n) for n in names]) for part in ("img", "label", "lung")
        ]
        affine = [dummy_data.LPS, np.diag([-1.0, 1, 5, 1])][int(number) % 2]
        for part, stack in zip(("rp_im", "rp_msk", "rp_lung_msk"), made[number], strict=True):
            stack = hounsfield(stack) if part == "rp_im" else stack
            stored = stack if affine is dummy_data.LPS else stack[:, ::-1]
            dummy_data.save_nifti(stored, source / part / f"{number}.nii", affine)
            assert pose.quarter_turns(made[number][0]) == 0
            assert pose.quarter_turns(np.rot90(made[number][0], 1, (1, 2))) == 3
    found, report = build_and_read("medseg/volumes", source, tmp_path)
    assert not report["skipped"] and not report["notes"]
    examples = {k: e for split in found.values() for k, e in split.items()}
    assert len(examples) == sum(len(image) for image, _, _ in made.values())
    for key, example in examples.items():
        number, z = key[6], int(key[-3:])
        for name, stack in zip(("image", "mask", "lung"), made[number], strict=True):
            want = stack[z] > 0 if name == "lung" else stack[z]
            np.testing.assert_array_equal(example[name][..., 0], want, err_msg=f"{key} {name}")


@pytest.mark.slow
def test_real_slices_as_one_hundred(shared, tmp_path):
    folder, rows = read_real(shared, "COVID-SemiSeg-lungs")
    stored = {part: np.zeros((512, 512, 100), np.uint8) for part in ("img", "label", "lung")}
    for row in rows:
        y, x, k = int(row["y0"]), int(row["x0"]), int(row["id"])
        for part, array in stored.items():
            picture = load(folder / part / f"{k}.png")
            array[y : y + picture.shape[0], x : x + picture.shape[1], k] = picture
    (tmp_path / "s").mkdir()
    arrays = hounsfield(stored["img"]), stored["label"], stored["lung"]
    for name, array in zip(("tr_im", "tr_mask", "tr_lungmasks"), arrays, strict=True):
        nib.save(nib.Nifti1Image(array, dummy_data.LPS), tmp_path / f"s/{name}.nii")
    dummy_data.save_nifti(dummy_data.chest(10)["image"], tmp_path / "s/val_im.nii")
    found, _ = build_and_read("medseg/slices", tmp_path / "s", tmp_path, strict=True)
    assert {s: len(e) for s, e in found.items()} == {"train": 52, "test": 48, "unlabeled": 10}
    test = {int(r["id"]) for r in rows if r["split"] == "test"}
    assert {int(k[5:]) for k in found["test"]} == test == TEST_SLICES
    for key, example in (found["train"] | found["test"]).items():
        k = int(key[5:])
        label = stored["label"][..., k].T
        np.testing.assert_array_equal(example["mask"][..., 0], np.where(label == 3, 0, label))
        np.testing.assert_array_equal(example["image"][..., 0], stored["img"][..., k].T)
        np.testing.assert_array_equal(example["lung"][..., 0], stored["lung"][..., k].T > 0)
