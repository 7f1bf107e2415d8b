"""Damaged scans and masks: each is read as the whole file is, or refused in one line naming it.

Formats without a checksum cannot show that a number of theirs has changed; there a flipped bit
may change numbers, but raises nothing else, and what is cut off is never read.
"""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom")

from infnet_jax.clinic import imaging  # noqa: E402
from tests import test_ways as ways  # noqa: E402

FEW, MANY = 80, 1000  # damaged copies of each file


def small():
    """A chest of four slices of 32 x 32 pixels, as `test_ways.chest`."""
    hu, mask = ways.chest()
    return hu[4:8, ::2, ::2], mask[4:8, ::2, ::2]


def picture(name, **how):
    def save(folder):
        grey = np.clip((ways.chest()[0][1] + 1350.0) / 1500 * 255, 0, 255).astype(np.uint8)
        Image.fromarray(grey).resize((96, 96)).save(folder / name, **how)
        return [folder / name]

    return save


# Name -> how it is saved, and whether a checksum covers all of it.
SAVED = {
    "nii.gz": (ways.nifti(), True),
    "nii": (ways.nifti("a.nii"), False),
    "nifti-2": (ways.WAYS["nifti-2"], False),
    "png": (picture("a.png"), True),
    "jpg": (picture("a.jpg"), False),
    "bmp": (picture("a.bmp"), False),
    "tiff": (ways.stack(), False),
    "tiff packed": (ways.stack(compression="tiff_deflate"), False),
    "nrrd packed": (ways.volume("a.nrrd", packed=True), False),  # the header is plain text
    "nhdr": (ways.volume("a.nhdr"), False),
    "mha": (ways.volume("a.mha"), False),
    "mha packed": (ways.volume("a.mha", packed=True), False),
    "dicom": (ways.dicom(), False),
    "dicom RLE": (ways.WAYS["dicom RLE"], False),
    "dicom enhanced": (ways.enhanced, False),
    "dicom zip": (ways.dicom(given="zip"), True),
}


def flip(rng, data):
    """One bit."""
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)


def flip_first(rng, data):
    """Three bytes among the first, where headers are."""
    for place in rng.integers(min(len(data), 1000), size=3):
        data[place] = rng.integers(256)


def blank(rng, data):
    """Sixty bytes become zero."""
    place = rng.integers(len(data))
    data[place : place + 60] = bytes(len(data[place : place + 60]))


def insert(rng, data):
    """Nine bytes more."""
    place = rng.integers(len(data))
    data[place:place] = rng.bytes(9)


def cut(rng, data):
    """The end is missing."""
    del data[rng.integers(len(data)) :]


DAMAGE = [flip, flip_first, blank, insert, cut]


def read(path):
    """The scans in a file or folder; what is read of each must be whole numbers of sense."""
    scans = [imaging.read(source, not_hu=False) for source in imaging.find([path])]
    for scan in scans:
        assert np.isfinite(scan.values).all() and scan.values.ndim == 3
        assert scan.spacing is None or min(scan.spacing) > 0
        scan.pictures()
    return scans


def alike(scans, good):
    """Whether these are the scan of the undamaged file, or doubts of them are said.

    Of a series slices at an end may be missing, if a line names their files.
    """
    (one,), (other,) = scans, good
    if len(one.values) < len(other.values):
        assert any("/im" in line for line in one.warnings)
        kept = len(one.values)
        ends = other.values[:kept], other.values[-kept:]
        assert any(np.array_equal(one.values, part) for part in ends)
        return
    np.testing.assert_array_equal(one.values, other.values)
    if not one.warnings:
        assert one.spacing == other.spacing and one.oriented == other.oriented
        if one.affine is not None:
            np.testing.assert_array_equal(one.affine, other.affine)


def save(name, folder, monkeypatch):
    """Saves the small chest; returns what is read and the file that is damaged."""
    chest = small()
    monkeypatch.setattr(ways, "chest", lambda: chest)
    folder.mkdir()
    (path,) = SAVED[name][0](folder)
    victims = sorted(p for p in folder.rglob("*") if p.is_file())
    return path, victims


def one_line(error, path):
    """A refusal names the file and says why, in a line."""
    text = str(error)
    assert str(path) in text and "\n" not in text and len(text) > len(str(path)) + 5, text
    return True


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # pydicom's, of headers that break the standard
@pytest.mark.parametrize("n", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.long])])
@pytest.mark.parametrize("name", SAVED)
def test_a_damaged_scan_is_read_right_or_refused(name, n, tmp_path, monkeypatch):
    path, victims = save(name, tmp_path / "a", monkeypatch)
    good, strict, refused = read(path), SAVED[name][1], 0
    rng = np.random.default_rng(n)
    for i in range(n):
        how, victim = DAMAGE[i % len(DAMAGE)], victims[int(rng.integers(len(victims)))]
        whole = victim.read_bytes()
        data = bytearray(whole)
        how(rng, data)
        victim.write_bytes(data)
        try:
            scans = read(path)
            if bytes(data) != whole and (strict or how is cut):
                alike(scans, good)
        except ValueError as error:
            refused += one_line(error, path)
        victim.write_bytes(whole)
    assert refused > n // 20


SPOILT = {  # what a tag's bytes become; None: the tag is deleted
    "deleted": None,
    "empty": b"",
    "words": b"none",
    "zero": b"0 ",
    "several": b"1\\2\\3\\4\\5\\6\\7 ",
    "no ASCII": b"\xff\xfe\xf0\x80",
    "not finite": b"nan ",
    "huge": b"1e30",
}


def spoil(path, tag, value):
    """Writes a DICOM file anew with one tag deleted or of other bytes."""
    d = pydicom.dcmread(path)
    old = d[tag]
    if value is None:
        del d[tag]
    else:
        raw = pydicom.dataelem.RawDataElement(tag, old.VR, len(value), value, 0, False, True)
        d._dict[pydicom.tag.Tag(tag)] = raw
    pydicom.dcmwrite(path, d)


def tags_to_spoil(path, how):
    """The tags of a file; some values are as good as others and show no damage."""
    valid = {"RescaleIntercept"} if how == "zero" else set()
    if how not in ("deleted", "empty"):
        valid.add("SeriesInstanceUID")  # it names another series
    return [e.tag for e in pydicom.dcmread(path) if e.keyword not in valid]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", ["one", "all"])
@pytest.mark.parametrize("how", SPOILT)
def test_a_series_with_a_spoilt_tag_is_read_right_or_refused(how, which, tmp_path, monkeypatch):
    path, victims = save("dicom", tmp_path / "a", monkeypatch)
    good = read(path)
    whole = [victim.read_bytes() for victim in victims]
    for tag in tags_to_spoil(victims[0], how):
        for victim in victims if which == "all" else victims[-1:]:
            spoil(victim, tag, SPOILT[how])
        try:
            alike(read(path), good)
        except ValueError as error:
            one_line(error, path)
        for victim, data in zip(victims, whole, strict=True):
            victim.write_bytes(data)


def of_mask(name, folder):
    """Saves a label map of the small chest as one file."""
    mask = small()[1]
    if name.endswith((".png", ".tif")):
        pages = [Image.fromarray(page) for page in (mask[:1] if name == "a.png" else mask)]
        how = {} if name == "a.png" else {"save_all": True, "append_images": pages[1:]}
        pages[0].save(folder / name, **how)
    elif name.endswith(".nrrd"):
        sitk = pytest.importorskip("SimpleITK")
        sitk.WriteImage(sitk.GetImageFromArray(mask), str(folder / name), True)
    else:
        nib.Nifti1Image(mask.transpose(2, 1, 0), ways.AXIAL).to_filename(folder / name)
    return folder / name


@pytest.mark.parametrize("n", [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.long])])
@pytest.mark.parametrize(
    ("name", "strict"), [("a.nii.gz", 1), ("a.nii", 0), ("a.png", 1), ("a.tif", 0), ("a.nrrd", 0)]
)
def test_a_damaged_mask_is_read_right_or_refused(name, strict, n, tmp_path):
    path = of_mask(name, tmp_path)
    whole, good = path.read_bytes(), imaging.read_labels(path)
    rng = np.random.default_rng(n)
    for i in range(n):
        how, data = DAMAGE[i % len(DAMAGE)], bytearray(whole)
        how(rng, data)
        path.write_bytes(data)
        try:
            found = imaging.read_labels(path)
            if strict or how is cut:
                np.testing.assert_array_equal(found, good)
        except ValueError as error:
            one_line(error, path)


@pytest.mark.parametrize(
    ("words", "damage"),
    [
        ("damaged or no DICOM file", lambda path: path.write_bytes(b"")),
        ("damaged or no DICOM file", lambda path: path.write_bytes(bytes(5000))),
        ("has no SeriesInstanceUID", lambda path: spoil(path, 0x0020000E, None)),
        ("no RescaleIntercept, unlike", lambda path: spoil(path, 0x00281052, None)),
        ("no RescaleSlope, unlike", lambda path: spoil(path, 0x00281053, b"")),
    ],
)
def test_a_slice_that_says_less_than_the_others_is_named(words, damage, tmp_path, monkeypatch):
    path, victims = save("dicom", tmp_path / "a", monkeypatch)
    damage(victims[-1])
    try:
        ((line,),) = [scan.warnings for scan in read(path)]
    except ValueError as error:
        line = str(error)
    assert words in line and str(victims[-1]) in line
