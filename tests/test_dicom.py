"""DICOM series in, DICOM-SEG and NIfTI out; every broken series is one clear line."""

import shutil
import zipfile

import nibabel as nib
import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from infnet_jax.clinic import imaging  # noqa: E402
from tests.scans import ct_header  # noqa: E402

DEPTH, ROWS, COLS = 5, 24, 32
SECRET = ("DOE^JANE", "PATIENT-0815", "19500131", "Dr Knows")


def _values():
    """HU int16 [D, H, W], D from the head down; a chest of a kind."""
    z, y, x = np.mgrid[:DEPTH, :ROWS, :COLS]
    hu = np.full((DEPTH, ROWS, COLS), -1000, np.int16)
    hu[((x - 16) / 14) ** 2 + ((y - 12) / 10) ** 2 < 1] = 40
    hu[((x - 10) / 4) ** 2 + ((y - 12) / 6) ** 2 < 1] = -850
    hu[((x - 23) / 4) ** 2 + ((y - 11) / 5) ** 2 < 1] = -820
    hu[1, 3, 4] = 77
    return hu


def _slice(i, series="1.2.3.4", **changes):
    d = ct_header(series, i + 1)
    d.PatientName, d.PatientID, d.PatientBirthDate, d.ReferringPhysicianName = SECRET
    d.StudyDate, d.StudyTime, d.AccessionNumber, d.StudyID = "20200401", "101112", "ACC1", "ST1"
    d.PatientSex = "F"
    d.InstitutionName = "General Hospital"
    d.Rows, d.Columns, d.PixelSpacing, d.SliceThickness = ROWS, COLS, [0.8, 0.7], 2.5
    d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    d.ImagePositionPatient = [-10, -20, 300 - 2.5 * i]  # the first slice is at the head
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit, d.PixelRepresentation = 15, 0
    d.RescaleSlope, d.RescaleIntercept = 1, -1024
    d.PixelData = (_values()[i] + 1024).astype(np.uint16).tobytes()
    for tag, value in changes.items():
        if value is None:
            delattr(d, tag)
        else:
            setattr(d, tag, value)
    return d


def _save(path, i, **changes):
    path.parent.mkdir(exist_ok=True)
    _slice(i, **changes).save_as(path, enforce_file_format=True)


def _read(path):
    return imaging.read(imaging.find([path])[0])


@pytest.fixture
def folder(tmp_path):
    """A good series, its file names out of order: positions count."""
    (tmp_path / "a").mkdir()
    for i in range(DEPTH):
        _save(tmp_path / "a" / f"im{(7 * i) % 5}", i)
    return tmp_path / "a"


@pytest.fixture
def scan(folder):
    return _read(folder)


def test_a_series_is_sorted_by_position_and_is_hu(scan):
    assert (scan.name, scan.kind, scan.warnings) == ("a", "dicom", [])
    assert scan.is_hu and scan.oriented
    np.testing.assert_array_equal(scan.values, _values()[::-1])  # from the feet up
    assert scan.spacing == pytest.approx((2.5, 0.8, 0.7))


def test_masks_as_nifti_and_dicom_seg_lie_on_the_series(scan, tmp_path):
    mask = np.zeros(scan.values.shape, np.uint8)
    mask[3, 3, 4], mask[0, 12, 20:23] = 1, 2  # canonical slice 3 is the series' second
    (nifti, seg), notes = imaging.write_mask(scan, mask, tmp_path)
    assert not notes
    image = nib.load(nifti)
    place = np.argwhere(np.asarray(image.dataobj) == 1)
    assert len(place) == 1
    ras = nib.affines.apply_affine(image.affine, place[0])
    np.testing.assert_allclose(ras, [-(-10 + 0.7 * 4), -(-20 + 0.8 * 3), 300 - 2.5], atol=1e-4)
    found = pydicom.dcmread(seg)
    assert (found.Rows, found.Columns, found.Modality) == (ROWS, COLS, "SEG")
    names = [s.SegmentLabel for s in found.SegmentSequence]
    assert names == ["Ground-glass opacity", "Consolidation"]
    frames = found.pixel_array.reshape(-1, ROWS, COLS)
    groups = found.PerFrameFunctionalGroupsSequence
    for frame, group in zip(frames, groups, strict=True):
        segment = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        z = group.PlanePositionSequence[0].ImagePositionPatient[2]
        np.testing.assert_array_equal(frame > 0, mask[round((z - 290) / 2.5)] == segment)
    assert found.SOPInstanceUID != "1.2.3.4.2" and found.FrameOfReferenceUID == "1.2.9"


def test_a_single_class_is_called_infection(scan, tmp_path):
    mask = np.ones(scan.values.shape, np.uint8)
    (_, seg), _ = imaging.write_mask(scan, mask, tmp_path, classes=("infection",))
    (segment,) = pydicom.dcmread(seg).SegmentSequence
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    assert segment.SegmentLabel == kind.CodeMeaning == "Infection"
    assert kind.CodeValue == "infection"


@pytest.mark.parametrize("keep", [False, True])
def test_nothing_identifying_passes_unless_asked_for(keep, scan, tmp_path):
    mask = np.ones(scan.values.shape, np.uint8)
    files, _ = imaging.write_mask(scan, mask, tmp_path / "out", keep_identifiers=keep)
    nifti, seg = (path.read_bytes() for path in files)
    for word in (*SECRET, "ACC1", "20200401"):
        assert (word.encode() in seg) == keep, word
    for word in (*SECRET, "General Hospital"):
        assert word.encode() not in nifti
    assert b"General Hospital" not in seg
    assert not any(word in str(scan.warnings) + scan.name for word in SECRET)


def test_an_empty_mask_has_no_seg_but_a_nifti(scan, tmp_path):
    files, notes = imaging.write_mask(scan, np.zeros(scan.values.shape, np.uint8), tmp_path)
    assert [f.name for f in files] == ["a.nii.gz"] and "no infection" in notes[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.nii.gz"]


def _truncate(path, end):
    path.write_bytes(path.read_bytes()[:end])


def _third(**changes):
    return lambda folder: _save(folder / "im4", 2, **changes)


BROKEN = {  # words of the line: what is done to the folder; im4 is the third from the head
    "slices are missing": lambda folder: (folder / "im4").unlink(),
    "same position": lambda folder: _save(folder / "again", 2, SOPInstanceUID="1.2.3.4.99"),
    "several sizes": _third(Rows=12, PixelData=bytes(12 * COLS * 2)),
    "modality CR": _third(Modality="CR"),
    "less than 3 slices beside": _third(series="1.2.3.5"),
    "intercept 0 leave it without air": _third(RescaleIntercept=0),
    "has no position": _third(ImagePositionPatient=None),
    "several orientations": _third(ImageOrientationPatient=[0, 1, 0, 1, 0, 0]),
    "im4: truncated or unreadable pixels": lambda folder: _truncate(folder / "im4", -ROWS * COLS),
    "im4: damaged or no DICOM|im4: holds no": lambda folder: _truncate(folder / "im4", 300),
}


@pytest.mark.parametrize("words", BROKEN)
def test_a_broken_series_is_one_line_that_names_it(words, folder):
    BROKEN[words](folder)
    with pytest.raises(ValueError, match=words) as caught:
        _read(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_broken_files(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    (tmp_path / "a.dcm").write_bytes(b"nothing")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    said = {"bad.zip": "damaged zip", "a.dcm": "damaged or no DICOM", "a.zip": "no DICOM slice"}
    for name, words in said.items():
        with pytest.raises(ValueError, match=f"{name}: {words}"):
            _read(tmp_path / name)


@pytest.mark.filterwarnings("ignore")  # the headers of this series are as poor as can be
def test_the_real_hostile_series(shared, tmp_path):
    scan = _read(shared / "data" / "dicom-series" / "slices")
    assert scan.values.shape == (39, 630, 630) and not scan.is_hu
    assert "modality NM" in scan.warnings[0] and "without positions" in scan.warnings[1]
    mask = np.zeros(scan.values.shape, np.uint8)
    mask[5, 100, 200] = 1
    (path,), notes = imaging.write_mask(scan, mask, tmp_path)
    back = nib.load(path)
    assert "no positions" in notes[0] and back.shape == (630, 630, 39)
    assert np.argwhere(np.asarray(back.dataobj)).tolist() == [[200, 100, 5]]


def test_a_folder_as_a_pacs_gives_it(folder, tmp_path):
    """Two series, a scout, a report and a copy: both series are read, the rest is named."""
    expected = _read(folder).values
    for i in range(DEPTH):
        _save(folder / f"other{i}", i, series="1.2.3.5", SeriesNumber=7)
    _save(folder / "scout", 2, series="1.2.3.6", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    _save(folder / "report", 2, series="1.2.3.7", Modality="SR", PixelData=None)
    shutil.copy(folder / "im0", folder / "im0_copy")
    shutil.make_archive(tmp_path / "b", "zip", folder)
    for place in (folder, tmp_path / "b.zip"):
        one, other = imaging.find([place])
        assert (one.name, other.name) == (f"{place.stem}_series1", f"{place.stem}_series7")
        for source in (one, other):
            np.testing.assert_array_equal(imaging.read(source).values, expected)
        notes = " ".join(one.beside)
        assert "scout: a localizer" in notes and "report: modality SR" in notes
    (chosen,) = imaging.find([folder], number="7")
    assert chosen.about == "7"
    with pytest.raises(ValueError, match="no series of number 9; there are: -, 7"):
        imaging.find([folder], number="9")


def test_a_slice_that_bears_another_series_is_said(folder):
    _save(folder / "im0", 4, series="1.2.3.5")  # at an end: no gap tells of it
    (source,) = imaging.find([folder])
    assert len(source.slices) == len(source.files) == DEPTH - 1
    assert "less than 3 slices beside a longer one" in imaging.read(source).warnings[0]


def test_each_slice_may_have_a_rescale_of_its_own(tmp_path):
    for i in range(DEPTH):
        stored = (_values()[i] + 1000 + i).astype(np.uint16).tobytes()
        _save(tmp_path / f"{i}", i, RescaleIntercept=-1000 - i, PixelData=stored)
    np.testing.assert_array_equal(_read(tmp_path).values, _values()[::-1])


def test_files_given_by_name_are_grouped_by_series(folder):
    (source,) = imaging.find(sorted(folder.iterdir()))
    np.testing.assert_array_equal(imaging.read(source).values, _values()[::-1])


def _at(i, z, x=-10.0):
    return {"ImagePositionPatient": [x, -20, z]}


STACKS = {  # words of the line: position of slice i, which lies at 300 - 2.5 i by rights
    "uneven steps of 2.5 to 5 mm": lambda i: _at(i, 300 - 2.5 * i - 2.5 * max(0, i - 2)),
    "uneven steps of 2.5 to 3.5 mm": lambda i: _at(i, 300 - 2.5 * i - (i > 2)),
    "mm beside the line": lambda i: _at(i, 300 - 2.5 * i, -10.0 + 20 * (i > 1)),
    "PixelSpacing .* mixed": lambda i: {"PixelSpacing": [0.8, 0.7 + 0.01 * (i == 2)]},
    "two numbers above 0": lambda i: {"PixelSpacing": [0.8, 0.0]},
    "2 numbers expected": lambda i: {"PixelSpacing": [0.8]},
    "no PixelSpacing": lambda i: {"PixelSpacing": None},
    "no PixelSpacing, unlike": lambda i: {"PixelSpacing": None if i == 2 else [0.8, 0.7]},
    "has no orientation": lambda i: {"ImageOrientationPatient": None} if i == 2 else {},
}


@pytest.mark.parametrize("words", STACKS)
def test_a_stack_that_is_none_is_refused(words, tmp_path):
    for i in range(DEPTH):
        _save(tmp_path / f"{i}.dcm", i, **STACKS[words](i))
    with pytest.raises(ValueError, match=words) as caught:
        _read(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_positions_count_without_orientation(tmp_path):
    for i in range(DEPTH):
        _save(tmp_path / f"{i}.dcm", i, ImageOrientationPatient=None, InstanceNumber=DEPTH - i)
    scan = _read(tmp_path)
    np.testing.assert_array_equal(scan.values, _values()[::-1])
    assert not scan.oriented and "taken as axial" in scan.warnings[0]


def test_without_preamble_and_with_padding(tmp_path):
    """Bytes from group 0008 on; numbers far below air are air."""
    values = _values()
    values[:, 0] = -9999
    for i in range(DEPTH):
        pixels = values[i].astype(np.int16).tobytes()
        one = _slice(i, PixelRepresentation=1, RescaleIntercept=0, PixelData=pixels)
        del one.file_meta
        one.save_as(tmp_path / f"{i}", implicit_vr=True, little_endian=True)
    scan = _read(tmp_path)
    assert scan.is_hu and "taken as air" in scan.warnings[0]
    np.testing.assert_array_equal(scan.values, np.maximum(values, -1024)[::-1])


def test_a_lost_intercept_is_found_and_said(tmp_path):
    for i in range(DEPTH):
        _save(tmp_path / f"{i}", i, RescaleIntercept=None)
    scan = _read(tmp_path)
    assert scan.is_hu and "HU + 1024" in scan.warnings[0]
    np.testing.assert_array_equal(scan.values, _values()[::-1])


def test_black_for_white_without_hu_is_turned(tmp_path):
    window = np.interp(_values(), [-1350, 150], [0, 255]).astype(np.uint8)
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "RescaleIntercept": 0}
    for kind, values in (("MONOCHROME1", 255 - window), ("MONOCHROME2", window)):
        for i in range(DEPTH):
            pixels = {"PhotometricInterpretation": kind, "PixelData": values[i].tobytes()}
            _save(tmp_path / kind / f"{i}", i, **eight, **pixels)
    turned, plain = (_read(tmp_path / kind) for kind in ("MONOCHROME1", "MONOCHROME2"))
    assert any("MONOCHROME1" in note for note in turned.warnings)
    np.testing.assert_allclose(turned.pictures(), plain.pictures(), atol=1)


def test_an_enhanced_file_is_read_by_its_frames(tmp_path):
    highdicom = pytest.importorskip("highdicom")
    assert highdicom
    one, frames = _slice(0), []
    for i in range(DEPTH):
        frame, plane, value = (pydicom.Dataset() for _ in range(3))
        plane.ImagePositionPatient = [-10, -20, 300 - 2.5 * i]
        value.RescaleSlope, value.RescaleIntercept = 1, -1024
        frame.PlanePositionSequence = [plane]
        frame.PixelValueTransformationSequence = [value]
        frames.append(frame)
    shared, axes, size = (pydicom.Dataset() for _ in range(3))
    axes.ImageOrientationPatient = one.ImageOrientationPatient
    size.PixelSpacing, size.SliceThickness = one.PixelSpacing, 2.5
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [axes], [size]
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(one, tag)
    del one.RescaleSlope, one.RescaleIntercept
    one.NumberOfFrames, one.PerFrameFunctionalGroupsSequence = DEPTH, frames
    one.SharedFunctionalGroupsSequence = [shared]
    one.PixelData = (_values() + 1024).astype(np.uint16).tobytes()
    one.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    scan = _read(tmp_path / "enhanced.dcm")
    np.testing.assert_array_equal(scan.values, _values()[::-1])
    assert scan.is_hu and scan.spacing == pytest.approx((2.5, 0.8, 0.7))
    files, notes = imaging.write_mask(scan, np.ones(scan.values.shape, np.uint8), tmp_path / "out")
    assert len(files) == 1 and "enhanced" in notes[0]
