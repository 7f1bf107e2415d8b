# ruff: noqa: E501
"""Inputs that other tools met, each read as the plain scan, read with a word, or refused in a line.

`docs/cases.md` says where each was seen.
"""

import gzip
import re
import struct
import zipfile
import zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageCms

pydicom = pytest.importorskip("pydicom")
sitk = pytest.importorskip("SimpleITK")

from infnet_jax.clinic import imaging  # noqa: E402
from tests import test_volumes, test_ways as ways  # noqa: E402
from tests.scans import ct_header  # noqa: E402

HU, MASK = ways.chest()
ONE = 5  # the slice of inputs that have one
AXIAL, XYZ = ways.AXIAL, (2, 1, 0)
SHOWN = np.round(np.clip((HU[ONE].astype(float) + 1350) / 1500, 0, 1) * 255).astype(np.uint8)


def nii(name="a.nii.gz", array=HU, affine=AXIAL, **fields):
    """A NIfTI with fields of its header set behind nibabel's back."""
    return lambda folder: [test_volumes._nifti(folder / name, array, affine, **fields)]


def then(make, change):
    """The bytes of the last file go through `change`."""

    def save(folder):
        *_, path = paths = make(folder)
        path.write_bytes(change(path.read_bytes()))
        return paths

    return save


def by_nibabel(array=HU, kind=nib.Nifti1Image, name="a.nii", comment=b"", forms=(1, 1), axes=0):
    def save(folder):
        stored = array.transpose(XYZ) if array.ndim == 3 else array.T
        image = kind(stored.reshape(*stored.shape, *(1,) * axes), None)
        for form, code in zip((image.set_qform, image.set_sform), forms, strict=True):
            form(AXIAL if code else None, code)
        image.header.set_zooms((1.6, 1.6, 5.0, 1, 1)[: image.ndim])
        if comment:
            image.header.extensions.append(nib.nifti1.Nifti1Extension(6, comment))
        image.to_filename(folder / name)
        return [folder / name]

    return save


def in_folder(make, *names):
    """The file in a folder, beside others that hold these bytes; the folder is given."""

    def save(folder):
        place = folder / "given.nii.gz"  # as archivers name it
        place.mkdir()
        make(place)
        for name, data in names:
            (place / name).write_bytes(data)
        return [place]

    return save


def text_volume(name, header, data, files=()):
    """A header in plain text, its voxels behind it or in files."""

    def save(folder):
        (folder / name).write_bytes(header.encode() + data)
        for other, more in files:
            (folder / other).write_bytes(more)
        return [folder / name]

    return save


DIRECTIONS = "space directions: ({:g},0,0) (0,{:g},0) (0,0,{:g})\nspace origin: ({:g},{:g},{:g})\n"
LPS = DIRECTIONS.format(1.6, 1.6, 5, -50, -60, -100)
RAS = DIRECTIONS.format(-1.6, -1.6, 5, 50, 60, -100)
LAS = DIRECTIONS.format(1.6, -1.6, 5, -50, 60, -100)
RAW = HU.astype("<i2").tobytes()
PAGES = [(f"p{i:02}.raw", page.astype("<i2").tobytes()) for i, page in enumerate(HU)]


def nrrd(space="left-posterior-superior", pose=LPS, more="encoding: raw\n", data=RAW, files=()):
    start = "NRRD0005\ntype: short\ndimension: 3\nsizes: 64 64 12\nendian: little\n"
    start += f"space: {space}\n" if space else ""
    return text_volume("a.nhdr" if files else "a.nrrd", f"{start}{pose}{more}\n", data, files)


def meta(more="", data=RAW, files=(), turn="1 0 0 0 1 0 0 0 1", step=5.0, at=-100, end="LOCAL"):
    start = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 64 64 12\n"
    start += f"TransformMatrix = {turn}\nOffset = -50 -60 {at}\n" if turn else ""
    start += f"ElementSpacing = 1.6 1.6 {step}\n{more}ElementType = MET_SHORT\n"
    return text_volume("a.mha", f"{start}ElementDataFile = {end}\n", data, files)


def tiff(pages=HU, dtype=np.float32, **how):
    def save(folder):
        first, *rest = [
            page if isinstance(page, Image.Image) else Image.fromarray(page.astype(dtype))
            for page in pages
        ]
        first.save(folder / "a.tif", save_all=True, append_images=rest, **how)
        return [folder / "a.tif"]

    return save


def motorola(folder):
    """A TIFF of two bytes a voxel whose bytes run from the high one to the low one."""
    data, where = b"MM\0*" + struct.pack(">I", 8), 8
    for i, page in enumerate(HU):
        last = i == len(HU) - 1
        tags = {256: 64, 257: 64, 258: 16, 259: 1, 262: 1, 273: where + 102, 277: 1, 279: 8192}
        fields = b"".join(struct.pack(">HHII", tag, 4, 1, n) for tag, n in tags.items())
        where += 102 + 8192
        data += struct.pack(">H", len(tags)) + fields + struct.pack(">I", 0 if last else where)
        data += (page.astype(int) + 1024).astype(">u2").tobytes()
    (folder / "a.tif").write_bytes(data)
    return [folder / "a.tif"]


def raw(keyword, value):
    """A tag of these bytes, right or wrong."""

    def change(d, path):
        tag, how = pydicom.tag.Tag(keyword), pydicom.datadict.dictionary_VR(keyword)
        d._dict[tag] = pydicom.dataelem.RawDataElement(tag, how, len(value), value, 0, False, True)

    return change


def odd(change):
    """Changes every second slice only."""
    return lambda d, path: change(d, path) if d.InstanceNumber % 2 else None


def after(change):
    """Changes the bytes of each file."""

    def save(d, path):
        d.save_as(path, enforce_file_format=True)
        path.write_bytes(change(path.read_bytes()))
        return path

    return save


def item(**tags):
    found = pydicom.Dataset()
    for tag, value in tags.items():
        setattr(found, tag, value)
    return found


def crowded(d, path):
    """An icon, an overlay, private sequences and much private data."""
    d.IconImageSequence = [item(Rows=4, Columns=4, BitsAllocated=8, PixelData=bytes(16))]
    d.add_new(0x60000010, "US", 64), d.add_new(0x60000011, "US", 64)
    d.add_new(0x60003000, "OW", bytes(512))
    block = d.private_block(0x0029, "VENDOR", create=True)
    block.add_new(1, "OB", bytes(2**20)), block.add_new(2, "SQ", [item(Rows=7)])


def by_table(d, path):
    """Stored numbers run backwards; a Modality LUT turns them into HU + 1024."""
    stored = np.frombuffer(d.PixelData, np.uint16)
    d.PixelData = (4095 - stored).tobytes()
    table = item(LUTDescriptor=[4096, 0, 16], ModalityLUTType="US")
    table.add_new(0x00283006, "US", list(range(4095, -1, -1)))
    d.ModalityLUTSequence = [table]
    del d.RescaleSlope, d.RescaleIntercept


def as_floats(d, path):
    d.FloatPixelData = (np.frombuffer(d.PixelData, np.uint16) - 1024.0).astype("<f4").tobytes()
    d.BitsAllocated = 32
    del d.PixelData, d.RescaleSlope, d.RescaleIntercept, d.BitsStored, d.HighBit
    del d.PixelRepresentation


def beside(uid="1.2.3.8", n=3, colour=False, name="zz", **tags):
    """The series with `n` more files in its folder."""

    def save(folder):
        (place,) = ways.dicom()(folder)
        for i in range(n):
            d = ct_header(uid, 50 + i)
            d.ImageOrientationPatient, d.PixelSpacing = [1, 0, 0, 0, 1, 0], [1.6, 1.6]
            d.ImagePositionPatient, d.SliceThickness = [-50, -60, -100 + 5 * i], 5
            ways._pixels(d, np.minimum(HU[i] + 30, 700))
            if colour:
                d.SamplesPerPixel, d.PlanarConfiguration, d.BitsAllocated = 3, 0, 8
                d.BitsStored, d.HighBit, d.PixelData = 8, 7, bytes(3 * 64 * 64)
            for tag, value in tags.items():
                setattr(d, tag, value)
            d.save_as(place / f"{name}{i}", enforce_file_format=True)
        return [place]

    return save


def linked(target):
    def save(folder):
        (place,) = ways.dicom()(folder)
        link = place / "im011"
        if target is None:
            (place / "loop").symlink_to(place)
        else:
            link.unlink(), link.symlink_to(target)
        return [place]

    return save


def in_zip(method=zipfile.ZIP_DEFLATED, name="study/{}.dcm", nested=False, more=(), **how):
    def save(folder):
        (place,) = ways.dicom()(folder)
        with zipfile.ZipFile(folder / "a.zip", "w", method) as archive:
            for path in sorted(place.iterdir()):
                with archive.open(name.format(path.name), "w", **how) as member:
                    member.write(path.read_bytes())
            for other, data in more:
                archive.writestr(other, data)
        if nested:
            with zipfile.ZipFile(folder / "b.zip", "w") as archive:
                archive.write(folder / "a.zip", "a.zip")
        return [folder / ("b.zip" if nested else "a.zip")]

    return save


def index(folder):
    d = ct_header("1.2.3.4", 1)
    d.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    kept = item(FileSetID="DISC", DirectoryRecordSequence=[item(DirectoryRecordType="PATIENT")])
    kept.file_meta = d.file_meta
    kept.save_as(folder / "DICOMDIR", enforce_file_format=True)
    return [folder / "DICOMDIR"]


def frames(folder):
    d = ct_header("1.2.3.4", 1)
    ways._pixels(d, HU)
    d.NumberOfFrames, d.PixelSpacing = len(HU), [1.6, 1.6]
    d.save_as(folder / "a.dcm", enforce_file_format=True)
    return [folder / "a.dcm"]


def own_uid(d, path):
    d.SeriesInstanceUID = f"1.2.{d.InstanceNumber}"


def turned_bmp(folder):
    """Rows run from the top, as a negative height says."""
    Image.fromarray(SHOWN[::-1]).save(folder / "a.bmp")
    data = bytearray((folder / "a.bmp").read_bytes())
    data[22:26] = struct.pack("<i", -64)
    (folder / "a.bmp").write_bytes(data)
    return [folder / "a.bmp"]


def png(chunks=(), samples=SHOWN, bits=8, passes=((0, 0, 1, 1),)):
    """A grey PNG written by hand; `passes` as of Adam7."""

    def save(folder):
        parts = [samples[y::dy, x::dx] for x, y, dx, dy in passes]
        rows = [row for part in parts for row in part]
        per = 8 // bits
        if per > 1:
            rows = [sum(row[i::per] << (8 - bits - i * bits) for i in range(per)) for row in rows]
        head = struct.pack(">IIBBBBB", 64, 64, bits, 0, 0, 0, len(passes) > 1)
        body = zlib.compress(b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in rows))
        out = b"\x89PNG\r\n\x1a\n"
        for kind, data in ((b"IHDR", head), *chunks, (b"IDAT", body), (b"IEND", b"")):
            out += struct.pack(">I", len(data)) + kind + data
            out += struct.pack(">I", zlib.crc32(kind + data))
        (folder / "a.png").write_bytes(out)
        return [folder / "a.png"]

    return save


def picture(name="a.png", mode="L", **how):
    def save(folder):
        Image.fromarray(SHOWN).convert(mode).save(folder / name, **how)
        return [folder / name]

    return save


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)]
ADAM7 += [(0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
HALVES = lambda data: gzip.compress(data[:9999]) + gzip.compress(data[9999:])  # noqa: E731
GROUP = b"\x08\0\0\0UL\x04\0\xff\xff\0\0"
LIST = "encoding: raw\ndata file: LIST\n" + "".join(f"{name}\n" for name, _ in PAGES)[:-1]
OME = '<OME><Image><Pixels SizeZ="{}" SizeC="{}" SizeT="1"/></Image></OME>'
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SCANS = {  # name -> "" reads as the plain scan; "+words" with a warning; "!words" is refused
    "nifti: header and voxels in two files": ("!a.hdr: not a picture", by_nibabel(kind=nib.Nifti1Pair, name="a.hdr")),
    "nifti: two gzip members": ("", then(nii("a.nii"), HALVES)),
    "nifti: named .gz, not packed": ("", then(nii(), gzip.decompress)),
    "nifti: zeros behind the packed data": ("", then(nii(), lambda data: data + bytes(512))),
    "nifti: a few bytes behind the voxels": ("", then(nii("a.nii"), lambda data: data + b"end")),
    "nifti: other bytes behind the packed data": ("!a.nii.gz: not a readable", then(nii(), lambda data: data + b"end of file")),
    "nifti: qform, pixdim[0] is 0": ("", nii(sform_code=0, qform_code=1, quatern_b=0, quatern_c=0, quatern_d=1, qoffset_x=50, qoffset_y=60, qoffset_z=-100, pixdim=[0, 1.6, 1.6, 5, 0, 0, 0, 0])),
    "nifti: a million millimetres off": ("", nii(affine=AXIAL + 1e6 * np.eye(4, k=3))),
    "nifti: complex numbers": ("!numbers of type complex64", by_nibabel(HU.astype(np.complex64))),
    "nifti: uint64 and an intercept": ("", ways.nifti(dtype=np.uint64, inter=-1024)),
    "nifti: cal_min and cal_max of another window": ("", nii(cal_min=0, cal_max=80)),
    "nifti: slice times and an intent": ("", nii(slice_duration=0.5, slice_code=3, slice_end=11, intent_code=1002)),
    "nifti: five axes of one": ("", by_nibabel(axes=2)),
    "nifti: an extension of a page": ("", by_nibabel(comment=b"x" * 5000)),
    "nifti: unused axes of 0": ("", nii(dim=[3, 64, 64, 12, 0, 0, 0, 0])),
    "nifti: a fourth axis of 0": ("!axes of", nii(dim=[4, 64, 64, 12, 0, 1, 1, 1])),
    "nifti: slope 0": ("", nii(scl_slope=0, scl_inter=-1024)),
    "nifti: slope and intercept nan": ("", nii(scl_slope=np.nan, scl_inter=np.nan)),
    "nifti: bitpix of another type": ("", nii(bitpix=8)),
    "nifti: voxels from byte 0": ("!inside the header", nii(vox_offset=0)),
    "nifti: one slice": ("", by_nibabel(HU[ONE : ONE + 1])),
    "nifti: sform code 5": ("", by_nibabel(forms=(0, 5))),
    "nifti: an sform of zeros": ("!no orientation", nii(srow_x=0, srow_y=0, srow_z=0)),
    "nifti: in a folder named as a file": ("", in_folder(nii("a.nii"))),
    "nifti: beside files of the desktop": ("", in_folder(nii("a.nii"), ("._a.nii", b"\0\5\x16\7"), (".DS_Store", b"Bud1"), ("Thumbs.db", b"\xd0\xcf\x11\xe0" * 99), ("a.json", b"{}"))),
    "nifti: beside a link to nothing": ("", lambda folder: [*in_folder(nii("a.nii"))(folder), *((folder / "given.nii.gz" / name).symlink_to("gone") for name in ("README", "DICOMDIR"))][:1]),
    "nrrd: space RAS": ("", nrrd("right-anterior-superior", RAS)),
    "nrrd: space LAS": ("", nrrd("left-anterior-superior", LAS)),
    "nrrd: space by letters": ("", nrrd("RAS", RAS)),
    "nrrd: no space, spacings only": ("+no orientation", nrrd("", "spacings: 1.6 1.6 5\n")),
    "nrrd: space of no patient": ("+no orientation", nrrd("3D-right-handed")),
    "nrrd: numbers as text": ("", nrrd(more="encoding: ascii\n", data=" ".join(map(str, HU.ravel())).encode())),
    "nrrd: byte skip -1": ("", nrrd(more="encoding: raw\nbyte skip: -1\n", data=b"a header" + RAW)),
    "nrrd: a list of files": ("", nrrd(more=LIST, data=b"", files=PAGES)),
    "nrrd: numbered files": ("", nrrd(more="encoding: raw\ndata file: p%02d.raw 0 11 1 2\n", data=b"", files=PAGES)),
    "mha: three values a voxel": ("!3 values a voxel", meta("ElementNumberOfChannels = 3\n", RAW * 3)),
    "mha: negative spacing": ("", meta(data=HU[::-1].astype("<i2").tobytes(), step=-5.0, at=-45)),
    "mha: left-handed": ("", ways.volume("a.mha", "LPI")),
    "mha: high bytes first": ("", meta("BinaryDataByteOrderMSB = True\n", HU.astype(">i2").tobytes())),
    "mha: no TransformMatrix": ("+no orientation", meta(turn="")),
    "mha: a list of files": ("", meta(data=("\n".join(name for name, _ in PAGES) + "\n").encode(), files=PAGES, end="LIST")),
    "mha: its voxels are not there": ("!a.mha: not a readable", meta(data=b"", end="b.raw")),
    "tiff: high bytes first": ("+no orientation", motorola),
    "tiff: of 64-bit offsets": ("+no orientation", tiff(big_tiff=True)),
    "tiff: OME, slices": ("+no orientation", tiff(description=OME.format(12, 1))),
    "tiff: OME, two channels": ("!several channels", tiff(description=OME.format(6, 2))),
    "tiff: NaN": ("!NaN", tiff(np.where(HU < -900, np.nan, HU))),
    "tiff: one page in colours": ("!unlike size or type", tiff([SHOWN, Image.new("RGB", (64, 64))], np.uint8)),
    "dicom: several windows": ("", ways.dicom(change=ways.set_to(WindowCenter=[40, -600], WindowWidth=[400, 1500]))),
    "dicom: RescaleType US": ("", ways.dicom(change=ways.set_to(RescaleType="US"))),
    "dicom: Modality LUT": ("+HU + 1024", ways.dicom(change=by_table)),
    "dicom: decimal commas": ("!PixelSpacing", ways.dicom(change=raw("PixelSpacing", b"1,6\\1,6 "))),
    "dicom: ImagerPixelSpacing only": ("!no PixelSpacing", ways.dicom(change=ways.set_to(PixelSpacing=None, ImagerPixelSpacing=[1.6, 1.6]))),
    "dicom: negative SpacingBetweenSlices": ("", ways.dicom(change=ways.set_to(SpacingBetweenSlices=-5))),
    "dicom: slices thicker than their steps": ("", ways.dicom(change=ways.set_to(SliceThickness=8))),
    "dicom: positions of two values": ("!3 numbers expected", ways.dicom(change=ways.set_to(ImagePositionPatient=[1, 2]))),
    "dicom: UIDs with blanks": ("", ways.dicom(change=odd(raw("SeriesInstanceUID", b"1.2.3.4 ")))),
    "dicom: icon, overlay, private data": ("", ways.dicom(change=crowded)),
    "dicom: equal instance numbers": ("", ways.dicom(change=ways.set_to(InstanceNumber=1))),
    "dicom: one SOPInstanceUID for all": ("", ways.dicom(change=ways.set_to(SOPInstanceUID="1.2.3"))),
    "dicom: a SeriesInstanceUID for each slice": ("+SeriesInstanceUID of its own", ways.dicom(change=own_uid)),
    "dicom: two phases in one series": ("!at the same position", beside("1.2.3.4", 12)),
    "dicom: scout in the series": ("+a localizer", beside("1.2.3.4", 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    "dicom: MIP beside": ("+a projection", beside(ImageType=["DERIVED", "SECONDARY", "MIP"])),
    "dicom: MIP of Siemens beside": ("+a projection", beside(ImageType=["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MIP"])),
    "dicom: PET beside": ("+modality PT", beside(Modality="PT")),
    "dicom: colour captures beside": ("+colours", beside(colour=True, PhotometricInterpretation="RGB")),
    "dicom: palette colours": ("!colours", ways.dicom(change=ways.set_to(PhotometricInterpretation="PALETTE COLOR"))),
    "dicom: float pixels": ("", ways.dicom(change=as_floats)),
    "dicom: group lengths": ("", ways.dicom(change=after(lambda data: data.replace(b"\x08\0\x16\0UI", GROUP + b"\x08\0\x16\0UI", 1)))),
    "dicom: trailing padding": ("", ways.dicom(change=lambda d, path: d.add_new(0xFFFCFFFC, "OB", bytes(64)))),
    "dicom: two bytes behind the pixels": ("", ways.dicom(change=lambda d, path: setattr(d, "PixelData", d.PixelData + b"\0\0"))),
    "dicom: NumberOfFrames 1": ("", ways.dicom(change=ways.set_to(NumberOfFrames=1))),
    "dicom: character set of another name": ("", ways.dicom(change=after(lambda data: data.replace(b"\x08\0\x16\0UI", b"\x08\0\x05\0CS\x0c\0Not Supplied\x08\0\x16\0UI", 1)))),
    "dicom: frames without geometry": ("!a.dcm: pixels of shape", frames),
    "dicom: DICOMDIR by its name": ("!an index", index),
    "dicom: a link to its own folder": ("", linked(None)),
    "dicom: a slice is a dangling link": ("+im011", linked("annex/gone")),
    "dicom: a slice links to itself": ("+im011", linked("im011")),
    "zip: 64 bits": ("", in_zip(force_zip64=True)),
    "zip: LZMA": ("", in_zip(zipfile.ZIP_LZMA)),
    "zip: back slashes": ("", in_zip(name="study\\{}.dcm")),
    "zip: files of the desktop": ("", in_zip(more=(("__MACOSX/study/._im000.dcm", b"\0\5\x16\7"), ("study/.DS_Store", b"Bud1")))),
    "zip: Deflate64": ("!compression method", then(in_zip(), lambda data: re.sub(rb"(PK\x03\x04....)\x08|(PK\x01\x02......)\x08", lambda m: (m[1] or m[2]) + b"\x09", data, flags=re.S))),
    "zip: a zip inside": ("!no DICOM slice", in_zip(nested=True)),
    "png: interlaced": ("", png(passes=ADAM7)),
    "png: one grey is transparent": ("", png([(b"tRNS", b"\0\0")])),
    "png: gamma": ("", png([(b"gAMA", struct.pack(">I", 100000))])),
    "png: four bits": ("", png(samples=SHOWN >> 4, bits=4)),
    "png: a profile": ("", picture(icc_profile=PROFILE)),
    "png: animated": ("!holds 2 pictures", picture(save_all=True, append_images=[Image.fromarray(255 - SHOWN)])),
    "jpeg: CMYK": ("", picture("a.jpg", "CMYK", quality=98)),
    "jpeg: progressive": ("", picture("a.jpeg", progressive=True, quality=98)),
    "bmp: from the top": ("", turned_bmp),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of pydicom and nibabel, on what breaks the standard
@pytest.mark.parametrize("name", SCANS)
def test_a_scan_is_read_right_or_refused(name, tmp_path):
    words, make = SCANS[name]
    if words.startswith("!"):
        with pytest.raises(ValueError, match=re.escape(words[1:])) as caught:
            [imaging.read(source, not_hu=False) for source in imaging.find(make(tmp_path))]
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
        return
    (source,) = imaging.find(make(tmp_path))
    scan = imaging.read(source, not_hu=False)
    said = " ".join(scan.warnings)
    assert words[1:] in said and bool(said) == bool(words), said
    if scan.affine is None and len(scan.values) == 1:
        off = np.abs(scan.picture(0).astype(int) - SHOWN)
        assert off.max() <= (17 if "four" in name else 0 if "jpeg" not in name else 8)
        return
    gone = words == "+im011"
    expected = HU[ONE : ONE + 1] if len(scan.values) == 1 else HU[:-1] if gone else HU
    np.testing.assert_allclose(scan.values, expected, rtol=0, atol=1e-3)
    assert scan.spacing == (
        pytest.approx((5, 1.6, 1.6), rel=1e-4) if scan.affine is not None else None
    )
    if scan.oriented:
        marks = np.zeros((2, *scan.values.shape), np.uint8)
        marks[0, 0, 0, 0] = marks[1, -1, 40, 20] = 1
        (a,), (b,) = (np.argwhere(scan.grid.source(one)) for one in marks)
        way = scan.affine[:3, :3] @ (b - a)[:3]
        np.testing.assert_allclose(way, [-1.6 * 20, -1.6 * 40, 5 * (len(expected) - 1)], atol=0.3)


def test_slices_of_several_studies_are_not_joined(tmp_path):
    def change(d, path):
        own_uid(d, path)
        d.StudyInstanceUID = f"1.3.{d.InstanceNumber}"

    assert len(imaging.find(ways.dicom(change=change)(tmp_path))) == len(HU)


def mask_tiff(folder):
    return tiff([Image.fromarray(page > 0) for page in MASK], compression="group4")(folder)


FLOAT = np.array([0, 1, 2], np.float32)
MASKS = {  # the labels that are read of numbers 0, 1, 2, or why they are not
    "values of .9999999": ((0, 1, 2), nii(array=(FLOAT * 0.9999999)[MASK])),
    "scaled by 1/100": ((0, 1, 2), nii(array=MASK * np.uint8(100), scl_slope=0.01, scl_inter=0)),
    "interpolated, .9882": ("not a label map", nii(array=(FLOAT * 0.9882)[MASK])),
    "NaN where nothing is": ("not a label map", nii(array=np.where(MASK, 1, np.nan))),
    "0 and 65535": ((0, 255, 255), nii(array=np.uint16(65535) * (MASK > 0))),
    "uint32": ((0, 1, 2), nii(array=MASK.astype(np.uint32))),
    "a volume for each class": ("one volume", lambda folder: [nib.save(nib.Nifti1Image(np.eye(3, dtype=np.uint8)[MASK.transpose(XYZ)], AXIAL), folder / "a.nii"), folder / "a.nii"][1:]),
    "fax TIFF": ((0, 1, 1), mask_tiff),
    "numbers of 64 bits, one axis more": ((0, 1, 2), by_nibabel(MASK.astype(np.float64), axes=1)),
    "MHA of two layers": ("2 values a voxel", meta("ElementNumberOfChannels = 2\n", RAW * 2)),
    "cut to what is marked": ("shape", nii(array=MASK[3:9])),
    "SEG": ("no readable mask", beside(Modality="SEG")),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_read_right_or_refused(name, tmp_path):
    expected, make = MASKS[name]
    scan = imaging.read(imaging.find(nii("scan.nii")(tmp_path))[0])
    *_, path = make(tmp_path)
    path = path / "zz0" if path.is_dir() else path
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected) as caught:
            imaging.read_labels(path, scan)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    else:
        np.testing.assert_array_equal(
            imaging.read_labels(path, scan), np.array(expected, np.uint8)[MASK]
        )
