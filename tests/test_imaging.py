"""Pictures and volumes in, masks out on the same grid, and one clear line for each bad input."""

import zipfile

import cv2
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from infnet_jax.clinic import imaging
from infnet_jax.clinic.imaging.hounsfield import to_hu

SIZE = 40
FLAT = np.diag([-0.7, -0.7, 2.5, 1])  # an affine without a turn


def _chest(depth=6, size=SIZE):
    """A small chest in HU, int16 [D, H, W], nothing in it symmetrical."""
    z, y, x = np.mgrid[:depth, :size, :size]
    hu = np.full((depth, size, size), -1000, np.int16)
    hu[((x - 20) / 18) ** 2 + ((y - 20) / 15) ** 2 < 1] = 40
    hu[((x - 12) / 6) ** 2 + ((y - 20) / 9) ** 2 < 1] = -850
    hu[((x - 28) / 5) ** 2 + ((y - 21) / 8) ** 2 < 1] = -820
    hu[0, 18:22, 10:13] = 30  # a lesion in the patient's right lung, at the feet
    return hu


def _shown():
    """The chest in a lung window, 0..1."""
    return np.clip((_chest().astype(float) + 1350) / 1500, 0, 1)


def _affine(seed=0):
    """An oblique affine whose nearest axes are a permutation with flips."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(np.eye(3) + 0.15 * rng.standard_normal((3, 3)))
    axes = np.eye(3)[rng.permutation(3)] * rng.choice((-1, 1), 3)
    affine = np.eye(4)
    affine[:3, :3] = turn * np.sign(np.diag(turn)) @ axes @ np.diag((0.7, 0.8, 2.5))
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


def _nifti(path, array, affine):
    image = nib.Nifti1Image(array, affine)
    image.header["descrip"] = b"DOE^JANE 1950"
    nib.save(image, path)
    return path


def _read(path):
    return imaging.read(imaging.find([path])[0])


@pytest.mark.parametrize("seed", range(6))
def test_a_mask_lies_on_the_grid_and_affine_of_its_oblique_volume(seed, tmp_path):
    array = np.random.default_rng(seed).integers(-1000, 400, (7, 9, 11)).astype(np.int16)
    path = _nifti(tmp_path / "a.nii.gz", array, _affine(seed))
    scan = _read(path)
    mask = (scan.values > 0).astype(np.uint8)
    files, notes = imaging.write_mask(scan, mask, tmp_path / "out")
    back, source = nib.load(files[0]), nib.load(path)
    assert [f.name for f in files] == ["a.nii.gz"] and not notes
    np.testing.assert_array_equal(back.affine, source.affine)
    np.testing.assert_array_equal(np.asarray(back.dataobj), array > 0)
    assert back.get_data_dtype() == np.uint8
    for code in ("sform_code", "qform_code"):
        assert back.header[code] == source.header[code]
    assert b"DOE" not in back.header["descrip"].tobytes()


@pytest.mark.parametrize("qform, sform", [(1, 0), (1, 2), (0, 1)])
def test_the_codes_of_both_forms_pass_on(qform, sform, tmp_path):
    image = nib.Nifti1Image(_chest().transpose(2, 1, 0), None)
    image.set_qform(np.diag([-0.7, -0.7, 2.5, 1.0]) if qform else None, qform)
    image.set_sform(np.diag([-0.7, -0.7, 2.6, 1.0]) if sform else None, sform)
    nib.save(image, tmp_path / "a.nii")
    scan = _read(tmp_path / "a.nii")
    (path,), _ = imaging.write_mask(scan, np.zeros(scan.values.shape, np.uint8), tmp_path)
    source, back = nib.load(tmp_path / "a.nii"), nib.load(path)
    np.testing.assert_array_equal(back.affine, source.affine)
    for form in ("get_qform", "get_sform"):
        (want, code), (got, kept) = (getattr(i.header, form)(coded=True) for i in (source, back))
        assert code == kept
        if code:
            np.testing.assert_array_equal(want, got)


def test_hu_are_shown_in_the_stated_window(tmp_path):
    scan = _read(_nifti(tmp_path / "a.nii", _chest().transpose(2, 1, 0), FLAT))
    assert scan.window == (-1350, 150) and scan.pictures().dtype == np.uint8
    assert scan.picture(1)[20, 12] == round((1350 - 850) / 1500 * 255)
    np.testing.assert_array_equal(scan.pictures()[2], scan.picture(2))


@pytest.mark.parametrize("scale, dtype", [(1, np.uint8), (16, np.int16), (1 / 255, np.float32)])
def test_values_that_cannot_be_hu_are_a_lung_window_with_a_warning(scale, dtype, tmp_path):
    array = (_shown() * 255 * scale).astype(dtype).transpose(2, 1, 0)
    scan = _read(_nifti(tmp_path / "a.nii", array, FLAT))
    assert not scan.is_hu and "cannot be HU" in scan.warnings[0]
    assert abs(int(scan.picture(1)[20, 12]) - 85) <= 25 and scan.picture(1).max() >= 235


def test_pictures_of_8_and_16_bits_and_a_visible_mask(tmp_path):
    grey = _shown()[1]
    cv2.imwrite(str(tmp_path / "a.png"), np.round(grey * 255).astype(np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.round(grey * 65535).astype(np.uint16))
    cv2.imwrite(str(tmp_path / "c.jpg"), np.round(grey * 255).astype(np.uint8))
    a, b, c = (imaging.read(s) for s in imaging.find([tmp_path]))
    assert a.values.shape == (1, SIZE, SIZE) and not a.is_hu and not a.oriented and not a.warnings
    for other, slack in ((b, 20), (c, 25)):
        assert np.abs(a.picture(0).astype(int) - other.picture(0)).max() <= slack
    mask = np.zeros((1, SIZE, SIZE), np.uint8)
    mask[0, 3, 4], mask[0, 5, 6] = 1, 2
    (path,), _ = imaging.write_mask(a, mask, tmp_path / "out")
    with Image.open(path) as picture:
        assert picture.mode == "P" and max(picture.convert("RGB").getpixel((4, 3))) == 255
    np.testing.assert_array_equal(imaging.read_labels(path, a), mask)


def test_label_pictures_of_every_mode(tmp_path):
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    for mode, name in (("L", "l.png"), ("1", "one.png"), ("RGB", "rgb.png")):
        Image.fromarray(labels * (255 if mode == "1" else 1)).convert(mode).save(tmp_path / name)
        np.testing.assert_array_equal(imaging.read_labels(tmp_path / name)[0], labels)
    cv2.imwrite(str(tmp_path / "deep.png"), labels.astype(np.uint16) * 300)
    with pytest.raises(ValueError, match="deep.png: label 300"):
        imaging.read_labels(tmp_path / "deep.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="bad.png: not a readable picture"):
        imaging.read_labels(tmp_path / "bad.png")


def _written(path, data):
    path.write_bytes(data)
    return path


def _truncated(path, end):
    _nifti(path, _chest().transpose(2, 1, 0), np.eye(4))
    return _written(path, path.read_bytes()[:end])


def _picture(path, array):
    cv2.imwrite(str(path), array)
    return path


def _film():
    """A soft picture, as X-ray films are."""
    soft = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, (90, 90)), (0, 0), 12)
    return (127 + 120 * soft / np.abs(soft).max()).astype(np.uint8)


PHOTO = np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)
VOLUME = _chest().transpose(2, 1, 0).astype(np.float32)
BAD = [  # words of the line, and what writes such a file
    ("one volume", lambda p: _nifti(p / "4d.nii", np.stack([VOLUME, VOLUME], -1), np.eye(4))),
    ("NaN", lambda p: _nifti(p / "a.nii", np.where(VOLUME > 35, np.nan, VOLUME), np.eye(4))),
    ("one grey level", lambda p: _nifti(p / "a.nii", np.zeros_like(VOLUME), np.eye(4))),
    ("not a readable NIfTI", lambda p: _truncated(p / "a.nii", 9000)),
    ("not a readable NIfTI", lambda p: _truncated(p / "a.nii.gz", 600)),
    ("not a readable NIfTI", lambda p: _written(p / "a.nii", b"hello")),
    ("a colour picture", lambda p: _picture(p / "a.png", PHOTO)),
    ("not look like a chest CT", lambda p: _picture(p / "a.png", _film())),
    ("not a readable picture", lambda p: _written(p / "a.png", b"\x89PNG nothing")),
]


@pytest.mark.parametrize("words, make", BAD, ids=[words for words, _ in BAD])
def test_bad_input_is_one_line_that_names_the_file(words, make, tmp_path):
    path = make(tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        _read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_and_missing_inputs(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="a.txt: not a picture"):
        imaging.find([tmp_path / "a.txt"])
    with pytest.raises(ValueError, match="no picture, NIfTI, DICOM"):
        imaging.find([tmp_path])
    with pytest.raises(FileNotFoundError, match="b.nii does not exist"):
        imaging.find([tmp_path / "b.nii"])


def test_a_mask_of_another_grid_is_refused(tmp_path):
    array = _chest().transpose(2, 1, 0)
    scan, mask = _read(_nifti(tmp_path / "a.nii", array, FLAT)), (array > 0).astype(np.uint8)
    wide = np.diag([-2.0, -1, 1, 1])
    bad = {"shape": (mask[1:], FLAT), "has another affine": (mask, wide)}
    for words, (labels, affine) in (bad | {"not a label map": (mask + 0.5, FLAT)}).items():
        with pytest.raises(ValueError, match=f"m.nii: {words}"):
            imaging.read_labels(_nifti(tmp_path / "m.nii", labels, affine), scan)


def test_a_mask_that_cannot_be_written_leaves_the_old_one(tmp_path):
    picture, out = (_shown()[1] * 255).astype(np.uint8), tmp_path / "out"
    scan = _read(_picture(tmp_path / "a.png", picture))
    (path,), _ = imaging.write_mask(scan, np.ones(scan.values.shape, np.uint8), out)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="label 4: 0 to 3 allowed"):
        imaging.write_mask(scan, np.full(scan.values.shape, 4, np.uint8), out)
    assert list(out.iterdir()) == [path] and path.read_bytes() == before


def test_a_zip_member_outside_its_folder_is_refused(tmp_path):
    for name in ("../evil.dcm", "a/../../evil.dcm", "/evil.dcm", "C:/evil.dcm"):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(ValueError, match=f"a.zip: member '{name}'"):
            _read(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("slope", "inter", "kind"),
    [(1.0, -1024.0, np.int16), (0.125, 0.0, np.float32), (0.125, -3.0, np.float32)],
)
def test_slope_and_intercept_are_those_of_nibabel(slope, inter, kind, tmp_path):
    """Read slice by slice, a scaled volume holds what nibabel makes of it at once."""
    stored = (_chest() + 1024).clip(0).transpose(2, 1, 0).astype(np.uint16)
    stored[1, 2, 3] += 1  # the only odd one: half of it is no whole number
    image = nib.Nifti1Image(stored, np.diag([-1, -1, 2, 1]))
    image.header.set_slope_inter(slope, inter)
    nib.save(image, tmp_path / "scaled.nii.gz")
    whole, scan = nib.load(tmp_path / "scaled.nii.gz"), _read(tmp_path / "scaled.nii.gz")
    assert (whole.dataobj.slope, whole.dataobj.inter) == (slope, inter)
    assert scan.values.dtype == kind
    np.testing.assert_array_equal(scan.values, scan.grid.canonical(whole.get_fdata()))


def test_names_are_unique_and_end_at_the_common_folder(tmp_path):
    """Masks bear these names: none may fall on another, none may tell where the input lies."""
    for name in ("a.jpg", "a.png", "a_2.png", "sub/a_png.png", "sub/b c.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    names = [source.name for source in imaging.find([tmp_path / "in"])]
    assert len(set(names)) == 5 and {"a_jpg", "a_2", "sub_b_c"} <= set(names)
    assert not any(part in name for part in tmp_path.parts[1:] for name in names)
    assert [source.name for source in imaging.find([tmp_path / "in/sub"])] == ["a_png", "b_c"]


@pytest.mark.parametrize("offset", [1024, 1000, 32768])
def test_a_constant_added_to_hu_is_found(offset):
    """By the peak of air; the lowest number may be padding, or all the air there is."""
    rng, hu = np.random.default_rng(0), _chest().astype(np.int32)
    noisy = np.where(hu < -900, -1000 + rng.integers(-9, 9, hu.shape), hu)
    for values in (hu, noisy, np.where(np.arange(hu.shape[-1]) < 2, -1024, noisy)):
        found, is_hu, notes = to_hu(values + offset)
        assert is_hu and f"HU + {offset}" in notes[0]
        np.testing.assert_array_equal(found, values)
