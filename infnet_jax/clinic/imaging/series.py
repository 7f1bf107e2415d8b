"""Which CT series lie among DICOM files, in a folder or a zip; what is no CT slice is passed over.

Headers are read here, once; the pixels stay in the file until the series is read.
"""

import functools
import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from infnet_jax.clinic.imaging.scan import one_line

if TYPE_CHECKING:
    import pydicom

SUFFIXES = (".dcm", ".dicom", ".ima", ".zip")
# Modalities that are certainly no CT. Others (NM, OT, SC: converters write them) get a warning.
NOT_CT = frozenset(
    "CR DX RG MG MR US PT XA RF ECG SR SEG PR KO REG FID RWV DOC PLAN RTSTRUCT RTDOSE RTPLAN "
    "RTRECORD RTIMAGE OP ES SM AU HD EPS IVUS IO PX SMR".split()
)
MAX_BYTES = 2**30  # of one member of a zip; the largest enhanced series have half of it
# How files without a preamble begin: group 0008, with one of its first elements.
_FIRST = tuple(b"\x08\x00" + bytes([i, 0]) for i in (0, 1, 5, 8, 18, 19, 20, 22, 24))
_ASKED = """
Modality ImageType SeriesInstanceUID SOPInstanceUID SeriesNumber SeriesDescription Rows Columns
ImagePositionPatient InstanceNumber RescaleIntercept PhotometricInterpretation
StudyInstanceUID FrameOfReferenceUID
""".split()
# Words of ImageType of pictures that show the brightest or the mean of many slices, or a surface.
_PROJECTIONS = re.compile(r"\b(MIP|MINIP|MNIP|MIN_IP|MAX_IP|VRT|PROJECTION IMAGE|VOLREN)\b")
LEAST = 3  # slices of a series that stands beside others
STRAY = "of a series of less than 3 slices beside a longer one (damaged? a slice of that one?)"
PIXELS = "PixelData", "FloatPixelData", "DoubleFloatPixelData"  # the tags that may hold them
OWN_UID = "each has a SeriesInstanceUID of its own; joined to one series"
PER_FRAME = "PerFrameFunctionalGroupsSequence"  # of enhanced files: an item a frame
_DEFERRED = 2048  # longer values, such as pixels, wait in the file


@functools.cache
def _tag(name: str) -> int:
    from pydicom.datadict import tag_for_keyword

    return tag_for_keyword(name) or 0


@dataclass(frozen=True, eq=False)
class Slice:
    """One DICOM file, or a member of a zip."""

    label: str  # for messages
    header: "pydicom.Dataset"
    file: Path
    member: str = ""  # its name in the zip `file`
    _values: dict[str, Any] = field(default_factory=dict)

    def get(self, name: str) -> Any:
        """A value of the header, looked up once (pydicom is slow at it); None if it is not said."""
        if name not in self._values:
            element = self.header.get(_tag(name))
            self._values[name] = None if element is None else element.value
        return self._values[name]


class Series(NamedTuple):
    """The slices of one series; `number` is the header's SeriesNumber, "" without one."""

    number: str
    description: str
    slices: tuple[Slice, ...]


def has_mark(path: Path) -> bool:
    """Whether a file is DICOM: its mark after the preamble, or a first group 0008 without one.

    One that cannot be opened may be; that is said when it is read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return True
    return start[128:] == b"DICM" or start[:4] in _FIRST


def has_start(path: Path) -> bool:
    """Whether anything is in the bytes that would hold DICOM's mark; of a cut copy nothing is."""
    with path.open("rb") as file:
        start = file.read(132)
    return len(start) == 132 and any(start)


def group(files: Sequence[Path]) -> tuple[list[Series], list[str]]:
    """Sorts DICOM files, or the members of one zip, into CT series by their headers.

    Copies of a slice (of the same SOPInstanceUID and place) count once. Structured reports, masks,
    plans, localizers and screen copies are passed over; so are damaged files beside good ones, and
    series of one or two slices beside longer ones.

    Returns:
      The series in order of number, and a line for each kind of file that was passed over.

    Raises:
      ValueError: no CT slice at all; names the files and why.
      ImportError: pydicom is not installed.
    """
    found: dict[str, dict[str, Slice]] = {}
    passed: dict[str, list[str]] = {}
    for label, one in _opened(files):
        if isinstance(one, str):
            passed.setdefault(one, []).append(label)
            continue
        if reason := _no_slice(one):
            passed.setdefault(reason, []).append(label)
            continue
        key = str(one.get("SeriesInstanceUID") or "")
        name = str(one.get("SOPInstanceUID") or label)
        if found.setdefault(key, {}).setdefault(name, one) is not one:
            if not _same(found[key][name], one):
                name = f"{name} in {label}"  # another slice under the same name is no copy
                found[key][name] = one
    if len(found) > 1:
        lost = found.pop("", {})
        passed |= {"has no SeriesInstanceUID": [one.label for one in lost.values()]} if lost else {}
    if lone := _one_each(found):
        passed[OWN_UID] = [one.label for one in lone]
        found = {"": {one.label: one for one in lone}}
    if any(len(slices) >= LEAST for slices in found.values()):
        few = {uid: s for uid, s in found.items() if len(s) < LEAST and not _frames(s)}
        for uid, slices in few.items():
            passed.setdefault(STRAY, []).extend(one.label for one in slices.values())
            del found[uid]
    lines = [_line(labels, reason) for reason, labels in passed.items()]
    if not found:
        where = files[0].parent if len(files) > 1 else files[0]
        raise ValueError("; ".join(lines) if lines else f"{where}: no DICOM slice in it")
    grouped = [_series(list(slices.values())) for slices in found.values()]
    return sorted(grouped, key=lambda s: (s.number.zfill(8), s.description)), lines


def _one_each(found: Mapping[str, Mapping[str, Slice]]) -> list[Slice]:
    """The slices of a study whose series have one slice each, as some devices write; or none."""
    slices = [one for series in found.values() for one in series.values()]
    if not len(slices) == len(found) >= LEAST:
        return []
    said = "StudyInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient"
    alike = *said[:2], "SeriesNumber", "Rows", "Columns"
    known = all(one.get(tag) for one in slices for tag in said)
    same = len({tuple(str(one.get(tag)) for tag in alike) for one in slices}) == 1
    return slices if known and same else []


def _frames(slices: Mapping[str, Slice]) -> bool:
    """Whether one of these files holds many frames."""
    return any(one.get(PER_FRAME) is not None for one in slices.values())


def _series(slices: list[Slice]) -> Series:
    number, text = (str(slices[0].get(tag) or "") for tag in ("SeriesNumber", "SeriesDescription"))
    return Series(number, text, tuple(slices))


def _line(labels: list[str], reason: str) -> str:
    """One line of what was passed over: the first file, how many more, and why."""
    more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
    return f"{labels[0]}{more}: {reason}"


def _no_slice(one: Slice) -> str:
    """Why a file is no CT slice; empty if it is one."""
    modality = str(one.get("Modality") or "")
    kind = [str(word).upper() for word in one.get("ImageType") or []]
    if modality in NOT_CT:
        return f"modality {modality}; CT expected"
    if "LOCALIZER" in kind:
        return "a localizer (scout), no axial slice"
    if "SCREEN SAVE" in kind:
        return "a screen copy, no slice"
    if any(_PROJECTIONS.search(word) for word in kind):
        return "a projection of many slices, no slice"
    levels = str(one.get("PhotometricInterpretation") or "MONOCHROME2")
    if not levels.startswith("MONOCHROME"):
        return f"holds colours ({levels}), no CT slice"
    if one.get("Rows") is None or one.get("Columns") is None:
        return "holds no picture (truncated?)"
    return ""


def _same(a: Slice, b: Slice) -> bool:
    """Whether two headers of one SOPInstanceUID are of the same slice."""
    tags = "ImagePositionPatient", "InstanceNumber", "RescaleIntercept"
    return all(str(a.get(tag)) == str(b.get(tag)) for tag in tags)


def _opened(files: Sequence[Path]) -> Iterator[tuple[str, Slice | str]]:
    """The label of each file or zip member, and its header or why there is none."""
    for path in files:
        if path.suffix.lower() == ".zip":
            yield from _in_zip(path)
        else:
            yield str(path), _slice(str(path), path, path)


def _in_zip(path: Path) -> Iterable[tuple[str, Slice | str]]:
    """The members of a zip; nothing is written to disk, nothing large is unpacked unseen."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                place = PurePosixPath(info.filename.replace("\\", "/"))
                drive = info.filename[1:2] == ":"  # as in C:
                if place.is_absolute() or ".." in place.parts or drive:
                    raise ValueError(f"{path}: member {info.filename!r} lies outside its folder")
                if info.is_dir() or not place.name or place.name.startswith("."):
                    continue
                if place.name.upper() == "DICOMDIR" or "__MACOSX" in place.parts:
                    continue
                label = f"{path}:{info.filename}"
                if info.flag_bits & 1:
                    raise ValueError(f"{path}: needs a password; unpack it first")
                with archive.open(info) as member:
                    start = member.read(132)
                named = place.suffix.lower() in SUFFIXES[:-1]
                if not named and start[128:] != b"DICM":
                    continue
                if info.file_size > MAX_BYTES:
                    yield label, f"unpacks to {info.file_size} bytes; at most {MAX_BYTES} pass"
                    continue
                with archive.open(info) as member:
                    yield label, _slice(label, member, path, info.filename)
    except ValueError:
        raise
    except Exception as error:  # a damaged zip makes its decoders raise nearly anything
        raise ValueError(f"{path}: damaged zip ({one_line(error)})") from None


def unpacked(one: Slice, archive: zipfile.ZipFile) -> "pydicom.Dataset":
    """The whole dataset of a member of an open zip."""
    import pydicom

    return pydicom.dcmread(io.BytesIO(archive.read(one.member)), force=True)


def _slice(label: str, data: Path | IO[bytes], file: Path, member: str = "") -> Slice | str:
    """One file's header; or, of a damaged one, why it cannot be read."""
    try:
        import pydicom
    except ImportError:
        raise ImportError("DICOM needs more packages: pip install 'infnet-jax[dicom]'") from None
    how = {"stop_before_pixels": True} if member else {"defer_size": _DEFERRED}
    try:  # force: without a preamble the first group decides
        header = pydicom.dcmread(data, force=True, **how)
        if "DirectoryRecordSequence" in header:
            return "an index (DICOMDIR), no slice; give its folder"
        if "SOPClassUID" not in header and "Rows" not in header:
            return "damaged or no DICOM file"
        if not hasattr(header, "file_meta") or "TransferSyntaxUID" not in header.file_meta:
            header.ensure_file_meta()
            header.file_meta.TransferSyntaxUID = _guess(header)
        one = Slice(label, header, file, member)
        if not member and not any(tag in header for tag in PIXELS) and not _no_slice(one):
            return "holds no picture (truncated?)"
        for tag in _ASKED:  # decoded here, where damage is caught; later from memory
            one.get(tag)
        return one
    except Exception as error:  # damaged headers make pydicom raise nearly anything
        return f"damaged or no DICOM file ({one_line(error)})"


def _guess(header: "pydicom.Dataset") -> "pydicom.uid.UID":
    """The transfer syntax of a file without a preamble, as it was decoded."""
    import pydicom

    implicit, little = header.original_encoding
    if implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian
