"""Volumes, stacks and pictures as people save them: read right, or refused in one line."""

import gzip

import cv2
import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageOps

from infnet_jax.clinic import imaging

AFFINE = np.array([[-0.7, 0, 0, 90], [0, -0.7, 0, 80], [0, 0, 2.5, -40], [0, 0, 0, 1.0]])


def _chest(depth=6, size=40):
    """A small chest in HU, int16 [D, H, W], nothing in it symmetrical."""
    z, y, x = np.mgrid[:depth, :size, :size]
    hu = np.full((depth, size, size), -1000, np.int16)
    hu[((x - 20) / 18) ** 2 + ((y - 20) / 15) ** 2 < 1] = 40
    hu[((x - 12) / 6) ** 2 + ((y - 20) / 9) ** 2 < 1] = -850
    hu[((x - 28) / 5) ** 2 + ((y - 21) / 8) ** 2 < 1] = -820
    hu[0, 18:22, 10:13] = 30
    return hu


HU = _chest()
MASK = (HU == 30).astype(np.uint8)
SHOWN = np.round(np.clip((HU.astype(float) + 1350) / 1500, 0, 1) * 255).astype(np.uint8)


def _nifti(path, array=HU, affine=AFFINE, **fields):
    """A NIfTI of [D, H, W], its header's fields put in behind nibabel's back."""
    data = bytearray(nib.Nifti1Image(array.transpose(2, 1, 0), affine).to_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def _read(path):
    return imaging.read(imaging.find([path])[0])


@pytest.fixture
def scan(tmp_path):
    """The chest as NIfTI."""
    return _read(_nifti(tmp_path / "scan.nii"))


@pytest.mark.parametrize("array", [HU, MASK], ids=["image", "mask"])
def test_a_flipped_bit_of_a_packed_volume_is_noticed(array, tmp_path):
    path, rng, refused = _nifti(tmp_path / "a.nii.gz", array), np.random.default_rng(0), 0
    whole, read = path.read_bytes(), lambda: imaging.read_labels(path)
    if array is HU:
        read = lambda: _read(path).values  # noqa: E731
    good = read()
    for _ in range(100):
        spoilt = bytearray(whole)
        spoilt[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(spoilt)
        try:
            np.testing.assert_array_equal(read(), good)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused > 80


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("more than", {"dim": [3, 30000, 30000, 30000, 1, 1, 1, 1]}),
        ("axes of", {"dim": [3, 40, -40, 6, 1, 1, 1, 1]}),
        ("truncated", {"dim": [3, 40, 40, 7, 1, 1, 1, 1]}),
        ("bytes more", {"dim": [3, 40, 40, 5, 1, 1, 1, 1]}),
        ("begin at byte", {"vox_offset": 1e9}),
        ("not supported", {"datatype": 1536}),
        ("scaled by inf", {"scl_slope": np.inf, "scl_inter": 0}),
        ("no orientation", {"srow_x": [np.nan] * 4}),
        ("colours", {"datatype": 128, "bitpix": 24, "dim": [3, 40, 16, 10, 1, 1, 1, 1]}),
    ],
)
def test_a_header_that_cannot_be_is_one_line(name, words, fields, tmp_path):
    path = _nifti(tmp_path / name, **fields)
    with pytest.raises(ValueError, match=words) as caught:
        _read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "spacing", "how"),
    [
        ("no orientation", (2.5, 0.7, 0.7), {"sform_code": 0}),
        ("no size", None, {"sform_code": 0, "qform_code": 1, "pixdim": [1, 0.7, 0.7, 0] + [0] * 4}),
        ("identity", None, {"affine": np.eye(4)}),
        ("identity", None, {"affine": np.diag([-1.0, -1, 1, 1])}),
        ("cannot be of a CT", None, {"affine": np.diag([-0.0007, -0.0007, 0.0025, 1])}),
        ("its unit", (2.5, 0.7, 0.7), {"xyzt_units": 1}),
        ("pixdim and sform", (2.5, 0.7, 0.7), {"pixdim": [1, 0.9, 0.7, 2.5] + [0] * 4}),
        ("", (2.5, 0.7, 0.7), {"affine": np.diag([-700.0, -700, 2500, 1]), "xyzt_units": 3}),
    ],
)
def test_what_a_header_leaves_in_doubt_is_said(words, spacing, how, tmp_path):
    scan = _read(_nifti(tmp_path / "a.nii", **how))
    assert bool(words) == bool(scan.warnings) and words in " ".join(scan.warnings)
    assert scan.spacing == (spacing and pytest.approx(spacing, rel=1e-5))
    if "sform_code" in how and "pixdim" not in how:
        np.testing.assert_array_equal(scan.values, HU)  # as the builders take it
        (path,), _ = imaging.write_mask(scan, MASK, tmp_path / "out")
        assert nib.load(path).header["sform_code"] == nib.load(path).header["qform_code"] == 0
        np.testing.assert_array_equal(imaging.read_labels(path, scan), MASK)


def test_slices_first_without_geometry_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(HU, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ValueError, match=r"a.nii: 40 slices of 40 x 6 .*\[slice, row, column\]"):
        _read(tmp_path / "a.nii")


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "PIR"])
@pytest.mark.parametrize("off", [0, 0.02])
def test_a_map_in_another_order_is_turned(codes, off, scan, tmp_path):
    image = nib.Nifti1Image(MASK.transpose(2, 1, 0), AFFINE + off * np.eye(4, k=3))
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(AFFINE), nib.orientations.axcodes2ornt(codes)
    )
    nib.save(image.as_reoriented(turn), tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(imaging.read_labels(tmp_path / "m.nii.gz", scan), MASK)


def test_maps_of_one_patient_are_compared_without_an_image(tmp_path):
    mask, high = _nifti(tmp_path / "m.nii", MASK), AFFINE.copy()
    high[2, 3] += 30
    shown = imaging.scan_of_labels(mask, "m")
    lung = _nifti(tmp_path / "lung.nii", (HU < -800).astype(np.uint8), high)
    with pytest.raises(ValueError, match="lung.nii: has another affine than its scan .up to 30 mm"):
        imaging.read_labels(lung, shown)


def test_another_grid_is_resampled_by_the_nearest_voxel(scan, tmp_path):
    fine, affine = MASK.repeat(2, 0).repeat(2, 1).repeat(2, 2), AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] -= AFFINE[:3, :3] @ np.full(3, 0.25)
    path = _nifti(tmp_path / "m.nii", fine, affine)
    with pytest.raises(ValueError, match="m.nii: shape .*--resample"):
        imaging.read_labels(path, scan)
    np.testing.assert_array_equal(imaging.read_labels(path, scan, resample=True), MASK)
    assert "resampled" in scan.warnings[-1]
    far = _nifti(tmp_path / "far.nii", MASK, AFFINE + 500 * np.eye(4, k=3))
    with pytest.raises(ValueError, match="far.nii: nothing that it marks"):
        imaging.read_labels(far, scan, resample=True)


def test_numbers_that_are_no_hu_pass_only_by_name(tmp_path):
    (source,) = imaging.find([_nifti(tmp_path / "a.nii", SHOWN.astype(np.int16) * 16)])
    with pytest.raises(ValueError, match="a.nii: values 960 to 3776 are not HU; --not-hu"):
        imaging.read(source, not_hu=False)
    assert not imaging.read(source).is_hu
    (source,) = imaging.find([_nifti(tmp_path / "eight.nii", SHOWN)])
    assert imaging.read(source, not_hu=False).window == (0, 255)


def _tiff(path, pages, **how):
    first, *rest = [Image.fromarray(page) for page in pages]
    first.save(path, save_all=True, append_images=rest, **how)
    return path


IMAGEJ = "ImageJ=1.53t\nimages=6\nslices=6\nunit=mm\nspacing=2.5\n"


@pytest.mark.filterwarnings("ignore")  # the resolution is no exact fraction
@pytest.mark.parametrize(
    ("pages", "values", "how"),
    [
        (SHOWN, SHOWN, {}),
        (HU.astype(np.float32), HU, {}),
        (HU.astype(np.int32), HU, {"compression": "tiff_lzw"}),
        ((HU + 1024).astype(np.uint16), HU, {}),
        (
            (HU.astype(int) + 32768).astype(np.uint16),
            HU,
            {"description": IMAGEJ + "c0=-32768.0\nc1=1.0\nvf=0\n", "resolution": (1 / 0.7,) * 2},
        ),
    ],
)
def test_all_pages_of_a_stack_are_read(pages, values, how, tmp_path):
    scan = _read(_tiff(tmp_path / "a.tif", pages, **how))
    np.testing.assert_array_equal(scan.values, values)
    assert scan.spacing == (
        pytest.approx((2.5, 0.7, 0.7), rel=1e-3) if "resolution" in how else None
    )
    assert any("orientation" in note for note in scan.warnings)
    (path,), _ = imaging.write_mask(scan, MASK, tmp_path / "out")
    np.testing.assert_array_equal(imaging.read_labels(path, scan), MASK)


@pytest.mark.parametrize(
    ("words", "pages", "how"),
    [
        ("6 pages by its description, 1 can", SHOWN[:1], {"description": IMAGEJ}),
        ("several channels", SHOWN, {"description": IMAGEJ + "channels=2\n"}),
        ("unlike size", [SHOWN[0], SHOWN[1, :30]], {}),
    ],
)
def test_a_stack_that_is_no_volume_is_refused(words, pages, how, tmp_path):
    with pytest.raises(ValueError, match=f"a.tif: .*{words}"):
        _read(_tiff(tmp_path / "a.tif", pages, **how))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd"])
def test_volumes_of_itk_and_slicer(suffix, packed, scan, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for name, array in (("a", HU), ("m", MASK)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.7, 0.7, 2.5))
        image.SetOrigin((-90, -80, -40))
        sitk.WriteImage(image, str(tmp_path / f"{name}.{suffix}"), packed)
    path = tmp_path / f"a.{suffix}"
    found = _read(path)
    np.testing.assert_array_equal(found.values, HU)
    np.testing.assert_allclose(found.affine, AFFINE)
    assert found.oriented and not found.warnings
    np.testing.assert_array_equal(imaging.read_labels(tmp_path / f"m.{suffix}", scan), MASK)
    (mask,), _ = imaging.write_mask(found, MASK, tmp_path / "out")
    np.testing.assert_array_equal(imaging.read_labels(mask, scan), MASK)
    if suffix in ("nrrd", "mha"):
        whole = path.read_bytes()
        spoilt = bytearray(whole)
        spoilt[-60] ^= 4
        for data in (whole[:-40], bytes(spoilt)) if packed else (whole[:-40],):
            path.write_bytes(data)
            with pytest.raises(ValueError, match=f"a.{suffix}: "):
                _read(path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_viewers_do(orientation, suffix, tmp_path):
    path, exif = tmp_path / f"a.{suffix}", Image.Exif()
    exif[274] = orientation
    Image.fromarray(SHOWN[0]).save(path, exif=exif)
    with Image.open(path) as picture:
        want = np.array(ImageOps.exif_transpose(picture))
    scan = _read(path)
    assert np.abs(scan.values[0].astype(int) - want).max() <= 1
    assert any("EXIF" in note for note in scan.warnings) == (orientation > 1)
    np.testing.assert_array_equal(imaging.read_labels(path, scan)[0], want)


@pytest.mark.parametrize("offset", [1024, 32768])
def test_a_picture_of_16_bits_may_hold_hu(offset, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), (HU[1].astype(int) + offset).astype(np.uint16))
    scan = _read(tmp_path / "a.png")
    np.testing.assert_array_equal(scan.values[0], HU[1])
    assert scan.is_hu and f"HU + {offset}" in scan.warnings[0]


@pytest.mark.slow
@pytest.mark.parametrize("read", [_read, imaging.read_labels], ids=["scan", "mask"])
def test_pictures_that_are_spoilt_large_or_colourful_are_refused(read, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), SHOWN[0])
    spoilt = bytearray((tmp_path / "a.png").read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    (tmp_path / "a.png").write_bytes(spoilt)
    Image.new("1", (30000, 30000)).save(tmp_path / "b.png")
    red = np.zeros((40, 40, 3), np.uint8)
    red[:20, :, 2] = 255
    cv2.imwrite(str(tmp_path / "c.png"), red)
    (tmp_path / "d.png").write_bytes(b"")
    for name in "abcd":
        with pytest.raises(ValueError, match=f"{name}.png: "):
            read(tmp_path / f"{name}.png")
