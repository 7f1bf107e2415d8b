"""The medseg sets (medicalsegmentation.com/covid19) from NIfTI or from Kaggle's npy files."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import archives, base, splits
from tfds_builders.covid_semiseg.covid_semiseg_dataset_builder import SAME_PATIENT
from tfds_builders.medseg import sources, stacks

WHOLE = {  # what a whole download holds
    "slices": {"labelled slices": 100, "unlabelled slices": 10},
    "volumes": {"volumes": 9, "labelled slices": 829, "slices with infection": 373},
}
HIGHEST = {"slices": 3, "volumes": 2}  # published label values
# Slice k is COVID-SemiSeg's slice k, so its test slices are this set's test slices too.
TEST_SLICES = frozenset((*range(6, 10), 18, 21, 36, 38, *range(59, 67), *range(68, 100)))
PATIENTS = {str(n): f"volume{n}" for n in range(1, 10)} | {"2": "volume2+3", "3": "volume2+3"}
# COVID-SemiSeg's unlabelled slices of the same cases; found by `overlap`, so that both agree.
CASES = {
    n: f"radiopaedia_org_covid-19-pneumonia-{case}"
    for n, case in {"1": 7, "2": 10, "3": 10, "4": 4, "5": 27}.items()
}
SHARES = {"train": 0.75, "test": 0.25}


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """Which set: `slices` (set 1) or `volumes` (set 2)."""


class Builder(base.Builder):
    """Upright lung-window slices with 0 background, 1 ground glass, 2 consolidation, and lungs."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        Config(name="slices", description="set 1: 100 labelled slices and 10 without labels"),
        Config(name="volumes", description="set 2: 829 slices of 9 volumes"),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Download set 1 (tr_im.nii.gz, tr_mask.nii.gz, val_im.nii.gz, lung masks) or set 2 (rp_im.zip,
    rp_msk.zip, rp_lung_msk.zip) from http://medicalsegmentation.com/covid19/, or the npy files of
    Kaggle's covid-segmentation, and pass their folder as manual_dir. Zips of NIfTI may stay packed.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._counts: collections.Counter[str] = collections.Counter()
        self._last: tuple[sources.Source, stacks.Stack | None] | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        features = base.segmentation_features(
            lung=base.picture_feature(), lung_known=np.bool_, labelled=np.bool_
        )
        return self.dataset_info_from_configs(
            features=features, homepage="http://medicalsegmentation.com/covid19/"
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = Path(dl_manager.manual_dir)
        found = sources.find(root, self.builder_config.name, self.report.skip)
        of_patient = splits.split_groups(PATIENTS.values(), SHARES)
        by_split: dict[str, list[sources.Source]] = collections.defaultdict(list)
        for source in found:
            if source.stack == "slices":
                by_split["train"].append(source)
                by_split["test"].append(source)
            elif source.stack == "unlabelled":
                by_split["unlabeled"].append(source)
            else:
                patient = PATIENTS.get(source.stack, "")
                by_split[of_patient.get(patient, "train")].append(source)
        return {
            split: self._generate_examples(found=by_split[split], split=split)
            for split in ("train", "test", "unlabeled")
            if split in by_split
        }

    def _examples(
        self, found: list[sources.Source], split: str
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for source in found:
            if self._last is None or self._last[0] is not source:  # set 1 is asked for twice
                self._last = (
                    source,
                    self.report.attempt(source.image.name, stacks.read, source, self._remember),
                )
            stack = self._last[1]
            if stack is None:
                continue
            for note in stack.notes:
                self.report.note(note)
            self._counts["volumes"] += source.stack.isdigit()
            for z in range(len(stack.image)):
                if source.stack == "slices" and (z in TEST_SLICES) != (split == "test"):
                    continue
                example = self._example(source, stack, z)
                if example is not None:
                    yield example["id"], example

    def _example(
        self, source: sources.Source, stack: stacks.Stack, z: int
    ) -> dict[str, Any] | None:
        """Makes one example; None when its labels had to be skipped."""
        mask = np.zeros(stack.image[z].shape, np.uint8)
        if stack.labels is not None:
            name = f"{source.mask.name}[{z}]"
            highest = HIGHEST[self.builder_config.name]
            mask = self.report.attempt(name, stacks.classes, stack.labels[z], highest, name)
            if mask is None:
                return None
        labelled = stack.labels is not None
        self._counts["labelled slices" if labelled else "unlabelled slices"] += 1
        self._counts["slices with infection"] += int(mask.any())
        lung = np.zeros_like(mask) if stack.lung is None else stack.lung[z].astype(np.uint8)
        pictures = {"image": stack.image[z], "mask": mask, "lung": lung}
        return {
            **{name: base.encode_png(np.ascontiguousarray(a)) for name, a in pictures.items()},
            "lung_known": stack.lung is not None,
            "labelled": labelled,
            "slice": str(z),
            **names(source.stack, z),
        }

    def _complete_report(self) -> None:
        for what, expected in WHOLE[self.builder_config.name].items():
            if what == "volumes" and not self._counts[what]:
                self.report.note("the npy form does not tell where a volume ends: one group")
                continue
            self.report.expect(what, expected, self._counts[what])

    def _remember(self, member: archives.Member, data: bytes | None) -> None:
        if data is not None:
            self.remember(data, member.name)
            return
        with member.path.open("rb") as file:
            self._read_files[member.name] = hashlib.file_digest(file, "sha256").hexdigest()


def names(stack: str, z: int) -> dict[str, str]:
    """Returns patient, id and group of slice z of a stack (see `sources.Source`).

    Set 1 has no patient ids: each slice is its own group, but for those that look like one
    patient. Volumes 1 to 5 are groups of COVID-SemiSeg too, and called as there. The npy form of
    set 2 does not say where a volume ends: all of it is one group.
    """
    if stack == "slices":
        return {
            "patient": "",
            "id": f"slice{z:03d}",
            "group": SAME_PATIENT.get(str(z), f"slice{z:03d}"),
        }
    if stack == "unlabelled":
        return {"patient": "", "id": f"unlabelled{z:03d}", "group": f"unlabelled{z:03d}"}
    if stack == "all":
        return {"patient": "", "id": f"volumes_{z:03d}", "group": "all volumes"}
    patient = PATIENTS.get(stack, f"volume{stack}")
    return {"patient": patient, "id": f"volume{stack}_{z:03d}", "group": CASES.get(stack, patient)}
