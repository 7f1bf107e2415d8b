"""One chest, saved in many ways: equal numbers, equal scores, and masks at the same world points.

Masks are read back by plain nibabel, pydicom and Pillow, which know nothing of this package.
"""

import functools
import itertools
import zipfile

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations
from PIL import Image
from scipy.spatial import cKDTree

from infnet_jax.clinic import case, imaging, lungs, severity
from tests.scans import ct_header
from tfds_builders.phantom.phantom_dataset_builder import make_patient

GREY = [0, 50, 77, 107, 150, 204, 255]
LEVELS = [-1024, -1000, -850, -550, 40, 300, 700]
# Columns run to the left, rows to the back, slices to the head; RAS in mm.
AXIAL = np.array([[-1.6, 0, 0, 50], [0, -1.6, 0, 60], [0, 0, 5.0, -100], [0, 0, 0, 1]])
TURN = nib.eulerangles.euler2mat(0.1, -0.15, 0.2)
OBLIQUE = nib.affines.from_matvec(TURN) @ AXIAL
TO_LPS = np.diag([-1.0, -1.0, 1.0])
SIDE = 64
TOLERANCE = 1e-4 * 1500  # of the lung window, in HU


@functools.cache
def chest():
    """HU int16, mask uint8 (0..2), both [D, H, W] from the feet up, in radiological display."""
    slices = list(make_patient(1, 0, n_slices=12, size=SIDE))
    grey, mask = (
        np.stack([s[key].reshape(SIDE, SIDE) for s in slices]) for key in ("image", "mask")
    )
    return np.round(np.interp(grey, GREY, LEVELS)).astype(np.int16), mask.astype(np.uint8)


def turned(codes, affine=AXIAL, shift=0):
    """HU [i, j, k] with the axes that `codes` names, and its affine."""
    array = chest()[0].transpose(2, 1, 0) + np.int16(shift)
    way = orientations.ornt_transform(
        orientations.axcodes2ornt("LPS"), orientations.axcodes2ornt(codes)
    )
    back = orientations.inv_ornt_aff(way, array.shape)
    return orientations.apply_orientation(array, way), affine @ back


def nifti(name="a.nii.gz", codes="LPS", dtype=np.int16, affine=AXIAL, kind=nib.Nifti1Image, **how):
    """Saves as NIfTI; `how` are `slope`, `inter`, `codes_of` (qform, sform) and `extra` axes."""

    def save(folder):
        array, pose = turned(codes, affine)
        slope, inter = how.get("slope", 1), how.get("inter", 0)
        stored = (array.astype(float) - inter) / slope
        stored = (stored if np.dtype(dtype).kind == "f" else np.round(stored)).astype(dtype)
        stored = stored.reshape(*stored.shape, *(1,) * how.get("extra", 0))
        header = kind.header_class(endianness=how.get("endian", "<"))
        header.set_data_dtype(np.dtype(dtype))
        image = kind(stored, pose, header, dtype=np.dtype(dtype))
        qform, sform = how.get("codes_of", (1, 1))
        image.set_qform(pose if qform else None, qform)
        image.set_sform(pose if sform else None, sform)
        image.header.set_slope_inter(*((1, 0) if how.get("lost") else (slope, inter)))
        path = folder / name
        image.to_filename(path)
        if how.get("disguised"):  # packed inside, whatever its name says
            path = path.rename(folder / "b.nii")
        return [path]

    save.affine = affine
    return save


def _pixels(d, array, *, signed=False, inter=-1024, slope=1):
    """Puts numbers in HU, [..., H, W], into a dataset."""
    d.Rows, d.Columns = array.shape[-2:]
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit, d.PixelRepresentation = 15, int(signed)
    stored = np.round((array.astype(float) - inter) / slope)
    d.RescaleSlope, d.RescaleIntercept = slope, inter
    d.PixelData = stored.astype(np.int16 if signed else np.uint16).tobytes()


def _geometry(affine):
    """Row and column cosines, spacing [rows, columns], and the position of slice k, in LPS."""
    lps = TO_LPS @ affine[:3]
    edges = np.linalg.norm(lps[:, :3], axis=0)
    cosines = [float(f"{x:.8f}") for x in (*(lps[:, 0] / edges[0]), *(lps[:, 1] / edges[1]))]
    place = lambda k: [float(f"{x:.6f}") for x in lps[:, 3] + k * lps[:, 2]]  # noqa: E731
    return cosines, [edges[1], edges[0]], edges[2], place


def dicom(
    codes="LPS", affine=AXIAL, *, change=None, order=None, given="folder", each=None, **pixels
):
    """Saves a series: `change(d, path)` alters a slice, `given` says how it is handed over."""

    def save(folder):
        array, pose = turned(codes, affine)
        cosines, spacing, step, place = _geometry(pose)
        inside = folder / "series"
        inside.mkdir()
        paths = []
        for i in range(array.shape[2]):
            d = ct_header("1.2.3.4", i + 1)
            d.ImageOrientationPatient, d.ImagePositionPatient = cosines, place(i)
            d.PixelSpacing, d.SliceThickness = spacing, step
            _pixels(d, array[..., i].T, **pixels, **(each(i) if each else {}))
            path = inside / f"im{order[i] if order else i:03}"
            saved = change(d, path) if change else None
            if saved is None:
                d.save_as(path, enforce_file_format=True)
            paths.append(path)
        if given == "zip":
            with zipfile.ZipFile(folder / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for path in paths:
                    archive.write(path, f"study/{path.name}.dcm")
            return [folder / "series.zip"]
        if given == "pacs":
            _beside(inside)
        return paths if given == "files" else [inside]

    save.affine = affine
    return save


def _beside(folder):
    """What a PACS puts next to a series: a scout, a report, a text file and an index."""
    scout = ct_header("1.2.3.5", 1)
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    _pixels(scout, np.zeros((32, 32)))
    report = ct_header("1.2.3.6", 1)
    report.Modality = "SR"
    for name, d in (("scout", scout), ("report", report)):
        d.save_as(folder / name, enforce_file_format=True)
    (folder / "readme.txt").write_text("a disc for patients")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")


def syntax(name):
    """Saves each slice in a transfer syntax, packed by pydicom where it is packed."""

    def change(d, path):
        import pydicom

        uid = getattr(pydicom.uid, name)
        if uid.is_compressed and uid != pydicom.uid.DeflatedExplicitVRLittleEndian:
            if name.startswith("JPEGLS"):
                pytest.importorskip("jpeg_ls")
            d.compress(uid, generate_instance_uid=False)
        else:
            d.file_meta.TransferSyntaxUID = uid
        if name == "ExplicitVRBigEndian":
            d.PixelData = np.frombuffer(d.PixelData, "<u2").byteswap().tobytes()
        d.save_as(path, enforce_file_format=True)
        return path

    return change


def no_preamble(d, path):
    """Bare elements in implicit VR, as old archives hold them."""
    del d.file_meta
    d.save_as(path, implicit_vr=True, little_endian=True)
    return path


def set_to(**tags):
    """Sets or deletes (None) tags."""

    def change(d, path):
        for tag, value in tags.items():
            setattr(d, tag, value) if value is not None else delattr(d, tag)

    return change


def twelve_bits(d, path):
    """12 of 16 bits, with an old overlay in the bits above."""
    d.BitsStored, d.HighBit = 12, 11
    stored = np.frombuffer(d.PixelData, np.uint16).copy()
    stored[::7] |= 0x8000
    d.PixelData = stored.tobytes()


def enhanced(folder):
    """All slices as the frames of one file, in disorder, with geometry and rescale in groups."""
    pydicom = pytest.importorskip("pydicom")
    d, array = ct_header("1.2.3.7", 1), chest()[0]
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = pydicom.uid.EnhancedCTImageStorage
    cosines, spacing, step, place = _geometry(AXIAL)
    frames = sorted(range(len(array)), key=lambda k: 5 * k % 7)
    _pixels(d, array[frames])
    del d.RescaleSlope, d.RescaleIntercept
    d.NumberOfFrames = len(frames)

    def of(**tags):
        one = pydicom.Dataset()
        for tag, value in tags.items():
            setattr(one, tag, value)
        return [one]

    (shared,) = d.SharedFunctionalGroupsSequence = of(
        PixelMeasuresSequence=of(PixelSpacing=spacing, SliceThickness=step),
        PlaneOrientationSequence=of(ImageOrientationPatient=cosines),
        PixelValueTransformationSequence=of(RescaleSlope=1, RescaleIntercept=-1024),
    )
    d.PerFrameFunctionalGroupsSequence = [
        of(PlanePositionSequence=of(ImagePositionPatient=place(k)))[0] for k in frames
    ]
    d.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return [folder / "enhanced.dcm"]


def volume(name, codes="LPS", dtype=np.int16, affine=AXIAL, packed=False):
    """Saves by SimpleITK."""

    def save(folder):
        sitk = pytest.importorskip("SimpleITK")
        array, pose = turned(codes, affine)
        lps = TO_LPS @ pose[:3]
        edges = np.linalg.norm(lps[:, :3], axis=0)
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.T.astype(dtype)))
        image.SetSpacing(edges.tolist())
        image.SetOrigin(lps[:, 3].tolist())
        image.SetDirection((lps[:, :3] / edges).ravel().tolist())
        sitk.WriteImage(image, str(folder / name), packed)
        return [folder / name]

    save.affine = affine
    return save


def stack(name="a.tif", dtype=np.uint16, shift=1024, compression=None):
    """Saves as pages with ImageJ's description; a page is a slice."""

    def save(folder):
        pages = [Image.fromarray((page + float(shift)).astype(dtype)) for page in chest()[0]]
        n = len(pages)
        said = f"ImageJ=1.53t\nimages={n}\nslices={n}\nunit=mm\nspacing=5.0\n"
        path, dots = folder / name, (1 / 1.6,) * 2
        how = {"append_images": pages[1:], "description": said, "compression": compression}
        pages[0].save(path, save_all=True, x_resolution=dots[0], y_resolution=dots[1], **how)
        return [path]

    save.affine = None
    return save


SHUFFLED = [7, 0, 11, 3, 9, 1, 5, 10, 2, 8, 4, 6]
SOME = ["RAS", "LAI", "PIR", "ASL", "SPL", "IAR", "RSP", "PLS"]
WAYS = {f"nifti {codes}": nifti(codes=codes) for codes in SOME} | {
    "nifti plain": nifti("a.nii"),
    "nifti upper case": nifti("A.NII.GZ"),
    "nifti packed inside": nifti("a.nii.gz", disguised=True),
    "nifti oblique": nifti("a.nii", affine=OBLIQUE),
    "nifti oblique turned": nifti("a.nii", "SRA", affine=OBLIQUE),
    "nifti int32": nifti(dtype=np.int32),
    "nifti int64": nifti(dtype=np.int64),
    "nifti float32": nifti(dtype=np.float32),
    "nifti float64": nifti(dtype=np.float64),
    "nifti uint16 and intercept": nifti(dtype=np.uint16, inter=-1024),
    "nifti slope of a half": nifti(dtype=np.int16, slope=0.5, inter=-1024),
    "nifti slope of a tenth": nifti(dtype=np.int32, slope=0.1, inter=3.7),
    "nifti negative slope": nifti(dtype=np.int16, slope=-1, inter=100),
    "nifti lost intercept": nifti(dtype=np.uint16, inter=-1024, lost=True),
    "nifti big endian": nifti(endian=">"),
    "nifti qform only": nifti(codes_of=(1, 0)),
    "nifti sform only": nifti(codes_of=(0, 2), codes="RAS"),
    "nifti four axes": nifti(extra=1),
    "nifti-2": nifti("a.nii", kind=nib.Nifti2Image, codes="RPI"),
    "nifti-2 packed": nifti("a.nii.gz", kind=nib.Nifti2Image, dtype=np.float32),
    "dicom": dicom(),
    "dicom shuffled": dicom(order=SHUFFLED),
    "dicom numbers against positions": dicom(codes="LPI", order=SHUFFLED),
    "dicom row cosine -1": dicom("RPS"),
    "dicom column cosine -1": dicom("LAS"),
    "dicom coronal": dicom("LIP"),
    "dicom sagittal": dicom("PIL"),
    "dicom oblique": dicom(affine=OBLIQUE),
    "dicom signed": dicom(signed=True, inter=0),
    "dicom signed and sloped": dicom(signed=True, slope=0.5, inter=10),
    "dicom rescale of its own for each slice": dicom(each=lambda i: {"inter": -1024 - 8 * i}),
    "dicom implicit VR": dicom(change=syntax("ImplicitVRLittleEndian")),
    "dicom big endian": dicom(change=syntax("ExplicitVRBigEndian")),
    "dicom deflated": dicom(change=syntax("DeflatedExplicitVRLittleEndian")),
    "dicom RLE": dicom(change=syntax("RLELossless")),
    "dicom JPEG-LS": dicom(change=syntax("JPEGLSLossless")),
    "dicom no preamble": dicom(change=no_preamble),
    "dicom 12 of 16 bits": dicom(change=twelve_bits),
    "dicom without thickness": dicom(change=set_to(SliceThickness=None)),
    "dicom without numbers": dicom(change=set_to(InstanceNumber=None), order=SHUFFLED),
    "dicom inverted": dicom(change=set_to(PhotometricInterpretation="MONOCHROME1")),
    "dicom enhanced": enhanced,
    "dicom zip": dicom(given="zip", order=SHUFFLED),
    "dicom files by name": dicom(given="files"),
    "dicom as a PACS gives it": dicom(given="pacs"),
    "nrrd": volume("a.nrrd", "RAS"),
    "nrrd packed": volume("a.nrrd", "PIR", packed=True),
    "nhdr": volume("a.nhdr", dtype=np.float32),
    "mha": volume("a.mha", "LAI", dtype=np.int32),
    "mhd packed oblique": volume("a.mhd", affine=OBLIQUE, packed=True),
    "tiff": stack(),
    "tiff packed": stack("A.TIFF", compression="tiff_deflate"),
    "tiff of floats": stack(dtype=np.float32, shift=0),
}


@functools.cache
def truth():
    """The chest from memory, without any file: its lung by morphology, and its case."""
    hu, mask = chest()
    grid, spacing = imaging.Grid.plain(hu.shape), (5.0, 1.6, 1.6)
    scan = imaging.Scan("a", "nifti", hu, True, True, spacing, grid, None, [], AXIAL)
    lung = lungs.segment(scan.pictures())
    return lung, case.assess(scan, mask.copy(), lung.copy())


def scores(found):
    """All that a table holds of a case, as numbers; what is not known is NaN."""
    graded = severity.grade(found.tally).as_dict()
    return {key: np.array(np.nan if x is None else x, float) for key, x in graded.items()}


@pytest.mark.parametrize("way", WAYS)
def test_a_chest_is_the_same_however_it_is_saved(way, tmp_path, caplog):
    hu, mask = chest()
    (source,) = imaging.find(WAYS[way](tmp_path))
    caplog.clear()
    scan = imaging.read(source, not_hu=False)
    assert not caplog.records  # no word of a library's on the terminal
    assert scan.is_hu and scan.values.shape == hu.shape
    np.testing.assert_allclose(scan.values, hu, rtol=0, atol=TOLERANCE)
    # Pictures are all that a network or the search for lungs sees: equal ones give equal results,
    # and lungs are looked for once, which is slow.
    lung, expected = truth()
    np.testing.assert_array_equal(scan.pictures(), expected.pictures)
    found = scores(case.assess(scan, mask.copy(), lung.copy()))
    for name, value in scores(expected).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    (tmp_path / "out").mkdir()
    written, _ = imaging.write_mask(scan, mask, tmp_path / "out")
    affine = getattr(WAYS[way], "affine", AXIAL)
    for path in written:
        points, labels = READERS[path.suffix](path)
        expected, marked = places(mask, affine)
        assert len(points) == len(expected)
        distance, nearest = cKDTree(points).query(expected)
        assert distance.max() < 0.8  # half of the shortest edge
        assert (labels[nearest] == marked).all()
    seg = way.startswith("dicom") and way != "dicom enhanced"
    assert {path.suffix for path in written} == ({".gz", ".dcm"} if seg else {written[0].suffix})


def places(mask, affine):
    """World points (mm, RAS) of the marked voxels of [D, H, W], and their labels."""
    index = np.argwhere(mask)
    xyz = index[:, ::-1].astype(float)
    xyz = xyz if affine is None else nib.affines.apply_affine(affine, xyz)
    return xyz, mask[tuple(index.T)]


def points_of_nifti(path):
    """Points and labels, by nibabel alone."""
    image = nib.load(path)
    array = np.asarray(image.dataobj)
    array = array.reshape(array.shape[:3])
    index = np.argwhere(array)
    return nib.affines.apply_affine(image.affine, index), array[tuple(index.T)]


def points_of_seg(path):
    """Points and labels, by pydicom alone and the geometry in the file itself."""
    import pydicom

    d = pydicom.dcmread(path)
    shared = d.SharedFunctionalGroupsSequence[0]
    spacing = [float(x) for x in shared.PixelMeasuresSequence[0].PixelSpacing]
    turn = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3))
    codes = [s.SegmentLabel for s in d.SegmentSequence]
    points, labels = [], []
    for frame, groups in zip(d.pixel_array, d.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        lps = place + np.outer(columns * spacing[1], turn[0]) + np.outer(rows * spacing[0], turn[1])
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        label = {"Ground-glass opacity": 1, "Consolidation": 2}[codes[number - 1]]
        points.append(lps @ TO_LPS)
        labels.append(np.full(len(lps), label))
    return np.concatenate(points), np.concatenate(labels)


def points_of_pages(path):
    """Column, row and page of what is marked, by Pillow alone."""
    with Image.open(path) as picture:
        pages = []
        for i in itertools.count():
            try:
                picture.seek(i)
            except EOFError:
                break
            pages.append(np.array(picture))
    return places(np.stack(pages), None)


READERS = {".gz": points_of_nifti, ".dcm": points_of_seg, ".tif": points_of_pages}
