"""COVID-CT from a copy of its repository (Yang, Zhao et al. 2020)."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from tfds_builders import archives, base, tables
from tfds_builders.report import Report

LABELS = ("non_covid", "covid")  # the positive class is 1; the released loader has it as 0
FOLDERS = {"covid": "CT_COVID", "non_covid": "CT_NonCOVID"}
SPLIT_FOLDERS = {"covid": "COVID", "non_covid": "NonCOVID"}
SPLITS = {"train": "train", "validation": "val", "test": "test"}
COUNTS = {"train": 425, "validation": 118, "test": 203}
META = ("COVID-CT-MetaInfo.xlsx", "COVID-CT-MetaInfo.csv")


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """There is one: all pictures in the official splits."""


class Picture(NamedTuple):
    """One line of a split file."""

    label: str
    name: str


class Builder(base.Builder):
    """Pictures with COVID / non-COVID labels in the official splits."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [Config(name="official", description="the published split files")]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Get a copy of https://github.com/UCSD-AI4H/COVID-CT and pass as manual_dir the folder that holds
    Images-processed/ (CT_COVID.zip and CT_NonCOVID.zip, or what they unpack to) and Data-split/.
    """
    COUNTED = ("label",)

    def _info(self) -> tfds.core.DatasetInfo:
        text = {name: tfds.features.Text() for name in ("patient", "slice", "id", "group")}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": base.picture_feature(),
                    "label": tfds.features.ClassLabel(names=list(LABELS)),
                    **text,
                }
            ),
            homepage="https://github.com/UCSD-AI4H/COVID-CT",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = find_root(Path(dl_manager.manual_dir))
        sources = {label: find_pictures(root, folder) for label, folder in FOLDERS.items()}
        for source in sources.values():
            check_pictures(source, root)
        pictures = read_splits(root)
        patients = read_patients(root, self.report)
        for split, count in COUNTS.items():
            self.report.expect(
                f"pictures listed for {split}", count, sum(s == split for s in pictures.values())
            )
        # Each split goes through the sources and reads its own pictures only.
        return {
            split: self._generate_examples(
                root=root,
                sources=sources,
                patients=patients,
                wanted={p for p, s in pictures.items() if s == split},
                others=set(pictures) if split == "train" else None,
            )
            for split in SPLITS
            if split in pictures.values()
        }

    def _examples(
        self,
        root: Path,
        sources: dict[str, Path],
        patients: dict[str, str],
        wanted: set[Picture],
        others: set[Picture] | None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the wanted pictures; with `others` given, skips those in no split by name."""
        known = {Picture(p.label, plain(p.name)): p for p in wanted}
        listed = {Picture(p.label, plain(p.name)) for p in others or ()}
        missing = dict(known)
        for label, source in sources.items():
            for member in _members(source, root):
                if isinstance(member, ValueError):
                    self.report.skip(source.relative_to(root), str(member))
                    continue
                key = Picture(label, plain(member.name))
                if key in missing:
                    picture = missing.pop(key)
                    yield from self._example(picture, member, patients)
                elif key in known:
                    self.report.skip(member.name, "the same name came before")
                elif others is not None and key not in listed:
                    self.report.skip(member.name, "in no split file")
        for picture in missing.values():
            file = f"{FOLDERS[picture.label]}/{picture.name}"
            self.report.skip(file, "listed in a split file, but not among the pictures")

    def _example(
        self, picture: Picture, member: archives.Member, patients: dict[str, str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        data = self.report.attempt(member.name, member.read)
        if data is None:
            return
        image = self.report.attempt(member.name, self.grey_from, data, member.name)
        if image is None:
            return
        patient = patients.get(stem(picture.name), "") if picture.label == "covid" else ""
        key = f"{picture.label}/{picture.name}"
        yield (
            key,
            {
                "image": base.encode_png(image),
                "label": picture.label,
                "patient": patient,
                "slice": picture.name,
                "id": key,
                "group": f"{picture.label}/{patient or origin(picture.name)}",
            },
        )


def _members(source: Path, root: Path) -> Iterator[archives.Member | ValueError]:
    name = source.relative_to(root).as_posix()
    if source.is_file():
        yield from archives.zip_members(source, name)
        return
    for member in archives.walk(source):
        yield (
            member
            if isinstance(member, ValueError)
            else dataclasses.replace(member, name=f"{name}/{member.name}")
        )


def find_root(manual_dir: Path) -> Path:
    """Finds the folder with Data-split/: that one, or one folder below.

    Raises:
      FileNotFoundError: it is nowhere; the message states the layout.
    """
    for root in (manual_dir, *sorted(path for path in manual_dir.iterdir() if path.is_dir())):
        if (root / "Data-split").is_dir():
            return root
    raise FileNotFoundError(
        f"{manual_dir}: not COVID-CT; expected Data-split/ and Images-processed/ in it or in a "
        "folder of it"
    )


def find_pictures(root: Path, name: str) -> Path:
    """Finds CT_COVID or CT_NonCOVID, unpacked or as a zip, in Images-processed/ or in `root`.

    Raises:
      FileNotFoundError: it is nowhere.
    """
    for folder in (root / "Images-processed", root):
        for path in (folder / name, folder / f"{name}.zip"):
            if path.exists():
                return path
    raise FileNotFoundError(f"{root}: no Images-processed/{name}.zip, nor the folder {name}/")


def check_pictures(source: Path, root: Path) -> None:
    """Raises ValueError when a source holds nothing to read: without it a whole class would lack.

    The message gives the reason for the first file, such as that the archive is cut short.
    """
    found = list(_members(source, root))
    if all(isinstance(member, ValueError) for member in found):
        raise ValueError(str(found[0]) if found else f"{source}: no pictures in it")


def read_splits(root: Path) -> dict[Picture, str]:
    """Reads the six split files: picture to split.

    Raises:
      FileNotFoundError: one is missing.
      ValueError: a picture is in two splits.
    """
    found: dict[Picture, str] = {}
    for label, folder in SPLIT_FOLDERS.items():
        for split, word in SPLITS.items():
            path = root / "Data-split" / folder / f"{word}{FOLDERS[label]}.txt"
            if not path.is_file():
                raise FileNotFoundError(f"{path}: split file missing; the repository has it")
            for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
                if not (name := PurePosixPath(line.strip().replace("\\", "/")).name):
                    continue
                if found.setdefault(Picture(label, name), split) != split:
                    raise ValueError(
                        f"{path}: {name} is in {split} and in {found[Picture(label, name)]}"
                    )
    return found


def read_patients(root: Path, report: Report) -> dict[str, str]:
    """Reads the meta table, if there is one: `stem` of a COVID picture to its patient's id."""
    path = next((root / name for name in META if (root / name).is_file()), None)
    if path is None:
        report.note(f"no {META[0]}: patients are unknown, groups are papers")
        return {}
    rows = tables.read(path)
    files = ("file_name", "filename", "image", "image_name")
    owners = ("patient_id", "patient", "patientid")
    pairs = ((tables.first(row, *files), tables.first(row, *owners)) for row in rows)
    found = {stem(name): patient.removesuffix(".0") for name, patient in pairs if name and patient}
    if not found:
        raise ValueError(
            f"{path}: no row has a file name and a patient; expected columns "
            f"{files[0]} and {owners[0]}, found {', '.join(rows[0])[:200]}"
        )
    return found


def plain(name: str) -> str:
    """A file name for comparison: without folders, Unicode composed, case folded."""
    return unicodedata.normalize("NFC", PurePosixPath(name).name.strip()).casefold()


def stem(name: str) -> str:
    """`plain` without the suffix of a picture; other dots belong to the name."""
    return re.sub(r"\.(png|jpe?g)$", "", plain(name))


def origin(name: str) -> str:
    """Names what a picture was cut from, as far as its name tells.

    `2020.01.24.919183-p27-132.png` is of the paper `2020.01.24.919183`, `21%0.jpg` of the case
    `21`; any other name stands for itself.
    """
    text = stem(name)
    match = re.match(r"(.+?)(?:-p\d+-\d+.*|%\d+.*)$", text)
    return match[1] if match else text
