"""iCTCF (ictcf.biocuckoo.cn) from patient zips or folders, or its slice-level set."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import archives, base, splits
from tfds_builders.ictcf import clinical

KINDS = {"nict": "non_informative", "nct": "negative", "pct": "positive"}  # of the slice-level set
SUFFIXES = (*base.IMAGE_SUFFIXES, ".webp", ".bmp")
_BESIDE = (".txt", ".xlsx", ".csv", ".tsv", ".md", ".pdf", ".db", ".ini", "")  # no pictures
_PATIENT = re.compile(r"patient(?:[ _-]|%20)*(\d+)", re.IGNORECASE)


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """Which set: `patients` (severity by patient) or `slices` (three kinds of slice)."""


class Builder(base.Builder):
    """CT slices without masks; severity, test results and outcome are the patient's."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        Config(name="patients", description="slices of 1,521 patients with clinical labels"),
        Config(name="slices", description="19,685 slices: non-informative, negative, positive"),
    ]
    COUNTED = ("label", "severity", "outcome")
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download Patients.xlsx and as many "Patient N.zip" as you like from http://ictcf.biocuckoo.cn
    (or the slice-level NiCT, nCT and pCT pictures for ictcf/slices), and pass their folder as
    manual_dir. Zips may stay packed or be unpacked to folders of the same names.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {n: tfds.features.Text() for n in ("patient", "slice", "id", "group")}
        if self.builder_config.name == "slices":
            extra = {"label": tfds.features.ClassLabel(names=list(KINDS.values()))}
        else:
            words = {
                "severity": clinical.SEVERITIES,
                "outcome": clinical.OUTCOMES,
                "nucleic_acid": clinical.RESULTS,
                "ct": clinical.RESULTS,
                "sex": clinical.SEXES,
            }
            extra = {n: tfds.features.ClassLabel(names=list(w)) for n, w in words.items()}
            extra |= {"age": np.int32, "hospital": tfds.features.Text()}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {"image": base.picture_feature(), **texts, **extra}
            ),
            homepage="http://ictcf.biocuckoo.cn",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = Path(dl_manager.manual_dir)
        if self.builder_config.name == "slices":
            return self._slice_splits(root)
        table = clinical.find(root)
        name = table.relative_to(root).as_posix()
        rows = clinical.read(table, name, self.report.skip)
        self.remember(table.read_bytes(), name)
        self.report.expect("patients in the table", clinical.PATIENTS, len(rows))
        split_of, there = clinical.split_patients(rows), set()
        for picture in self._pictures(root):
            if picture.patient in rows:
                there.add(picture.patient)
            else:
                self.report.skip(
                    picture.member.name,
                    f"no patient of {name} in its path; expected Patient N/... or Patient N.zip",
                )
        if not there:
            raise FileNotFoundError(
                f"{root}: no pictures of patients; expected Patient N.zip, or "
                "Patient N/CT/*.jpg, beside the table"
            )
        return {
            split: self._generate_examples(
                root=root, rows={n: rows[n] for n in sorted(there) if split_of[n] == split}
            )
            for split in clinical.SHARES
            if any(split_of[n] == split for n in there)
        }

    def _slice_splits(self, root: Path) -> dict[str, Any]:
        """Splits by patient where names tell it; slices of nobody known all train."""
        kinds, known = set(), set()
        for picture in self._pictures(root):
            if picture.kind is None:
                self.report.skip(picture.member.name, "not below NiCT, nCT or pCT")
            else:
                kinds.add(picture.kind)
                known.add(picture.patient)
        if not kinds:
            raise FileNotFoundError(f"{root}: no pictures in NiCT, nCT or pCT folders or zips")
        everybody = [str(n) for n in range(1, clinical.PATIENTS + 1)]
        split_of = splits.split_groups(everybody, clinical.SHARES)
        splits_there = {split_of.get(str(n), "train") for n in known}
        if None in known:
            self.report.note("slices whose names tell no patient are one group, in train")
        return {
            split: self._generate_examples(root=root, split_of=split_of, split=split)
            for split in clinical.SHARES
            if split in splits_there
        }

    def _pictures(self, root: Path) -> Iterator["Picture"]:
        """Lists every picture below root; what is none is skipped with its reason."""
        for member in archives.walk(root):
            if isinstance(member, ValueError):
                self.report.skip(str(member).split(": ")[0], str(member))
                continue
            suffix = PurePosixPath(member.name).suffix.lower()
            if suffix in SUFFIXES:
                yield Picture(member)
            elif suffix not in _BESIDE:
                self.report.skip(member.name, f"{suffix} is no picture")

    def _examples(
        self,
        root: Path,
        rows: dict[int, clinical.Row] | None = None,
        split_of: dict[str, str] | None = None,
        split: str = "",
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        seen: dict[str, str] = {}
        for picture in self._pictures(root):
            name, patient = picture.member.name, picture.patient
            if rows is not None:
                wanted = patient in rows
            else:
                wanted = picture.kind and split_of.get(str(patient), "train") == split
            if not wanted:
                continue
            if picture.key in seen:
                self.report.skip(name, f"{seen[picture.key]} is read in its place")
                continue
            data = self.report.attempt(name, picture.member.read)
            if data is None:
                continue
            image = self.report.attempt(name, self.grey_from, data, name)
            if image is not None:
                seen[picture.key] = name
                labels = dataclasses.asdict(rows[patient]) if rows else {"label": picture.kind}
                yield picture.key, {"image": base.encode_png(image), **picture.names(), **labels}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture file, with what its path tells."""

    member: archives.Member

    @property
    def patient(self) -> int | None:
        """The patient's number; None when the path names none, or two that differ."""
        numbers = {int(number) for number in _PATIENT.findall(self.member.name)}
        return numbers.pop() if len(numbers) == 1 else None

    @property
    def kind(self) -> str | None:
        """The slice-level class, from the lowest folder or zip that names one."""
        for part in reversed(PurePosixPath(self.member.name).parts[:-1]):
            stem = part.lower().removesuffix(".zip")
            if stem in KINDS:
                return KINDS[stem]
        return None

    @property
    def slice(self) -> str:
        """The path below the last part that names the patient or the class, without suffix."""
        path = PurePosixPath(self.member.name).with_suffix("")
        marks = [
            i
            for i, part in enumerate(path.parts[:-1])
            if _PATIENT.search(part) or part.lower().removesuffix(".zip") in KINDS
        ]
        return "/".join(path.parts[marks[-1] + 1 :] if marks else path.parts)

    @property
    def key(self) -> str:
        """One name for the same slice, packed or unpacked."""
        if self.kind is not None and self.patient is None:
            return f"{self.kind}/{self.slice}"
        start = f"{self.kind}/" if self.kind else ""
        return f"{start}patient{self.patient:04d}/{self.slice}"

    def names(self) -> dict[str, str]:
        """Returns the text features patient, slice, id, group."""
        known = self.patient is not None
        patient = f"patient{self.patient:04d}" if known else ""
        return {
            "patient": patient,
            "slice": self.slice,
            "id": self.key,
            "group": patient or "unknown",
        }
