"""Damaged scans and masks: each is read as the whole file is, or refused in one line naming it.

Formats without a checksum cannot show that a number of theirs has changed; there a flipped bit
may change numbers, but raises nothing else, and what is cut off is never read.
"""

import numpy as np
import pytest
from PIL import Image

from infnet_jax.clinic import imaging
from tests import test_ways as ways

FEW, MANY = 200, 1000  # damaged copies of each file


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
    scans = [imaging.read(source) for source in imaging.find([path])]
    for scan in scans:
        assert np.isfinite(scan.values).all() and scan.values.ndim == 3
        assert scan.spacing is None or min(scan.spacing) > 0
        scan.pictures()
    return scans


def alike(scans, good):
    """Whether these are the scans of the undamaged file, at the same place."""
    (one,), (other,) = scans, good
    assert one.values.shape == other.values.shape
    np.testing.assert_array_equal(one.values, other.values)
    if not one.warnings:
        assert one.spacing == other.spacing and one.oriented == other.oriented
        if one.affine is not None:
            np.testing.assert_array_equal(one.affine, other.affine)
    return True


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


@pytest.mark.filterwarnings("ignore")  # pydicom's, of headers that break the standard
@pytest.mark.parametrize("n", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
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
