"""A procedural chest-CT dataset: exact truth, and lesions that no grey level gives away."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import base
from tfds_builders.phantom import anatomy, lesions, render

HEALTHY_EVERY = 5  # each fifth patient is healthy


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """Size and numbers of a phantom dataset."""

    size: int = 256  # pixels of a square slice
    seed: int = 0
    split_patients: tuple[tuple[str, int, int], ...] = ()  # split, patients, slices of each


class Builder(base.Builder):
    """Made-up patients, several coherent slices each, split by patient."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {
        "1.1.0": "Labelled slices of 20 patients instead of 10, so other patients in all splits.",
        "1.0.0": "First version.",
    }
    BUILDER_CONFIGS = [
        Config(
            name="default",
            description="240 slices of 256 x 256",
            split_patients=(("train", 20, 3), ("unlabeled", 20, 5), ("test", 16, 5)),
        ),
        Config(
            name="tiny",
            description="24 slices of 64 x 64, for tests",
            size=64,
            split_patients=(("train", 5, 2), ("unlabeled", 4, 2), ("test", 3, 2)),
        ),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        features = base.segmentation_features(
            lung=base.picture_feature(),
            region=base.picture_feature(),
            region_share=tfds.features.Tensor(shape=(20,), dtype=np.float32),
            labelled=np.bool_,
        )
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing to download
        splits, first = {}, 0
        for split, n_patients, n_slices in self.builder_config.split_patients:
            splits[split] = self._generate_examples(
                patients=range(first, first + n_patients),
                n_slices=n_slices,
                labelled=split != "unlabeled",
            )
            first += n_patients
        return splits

    def _examples(
        self, patients: range, n_slices: int, labelled: bool
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        config = self.builder_config
        for patient in patients:
            slices = make_patient(config.seed, patient, n_slices=n_slices, size=config.size)
            for i, example in enumerate(slices):
                name, key = f"patient{patient:03d}", f"patient{patient:03d}_slice{i:02d}"
                pictures = {k: v for k, v in example.items() if k != "region_share"}
                yield (
                    key,
                    {
                        **{k: base.encode_png(v) for k, v in pictures.items()},
                        "region_share": example["region_share"],
                        "labelled": labelled,
                        "patient": name,
                        "slice": str(i),
                        "id": key,
                        "group": name,
                    },
                )


def make_patient(
    seed: int, patient: int, *, n_slices: int, size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Makes one patient's slices from base to apex; equal arguments give equal pixels.

    Yields:
      image, mask (0, 1, 2), lung (0, 1), region (0..20): uint8 [size, size];
      region_share: float32 [20], counted from mask and region.
    """
    rng = np.random.default_rng([seed, patient])
    person = anatomy.Patient(rng, size)
    findings = lesions.Lesions(rng, infected=patient % HEALTHY_EVERY != HEALTHY_EVERY - 1)
    heights = np.linspace(0.15, 0.86, n_slices) + rng.uniform(-0.04, 0.04, n_slices)
    for t in heights:
        cut = anatomy.outlines(person, float(t))
        lung = (cut.lung < 0).astype(np.uint8)
        mask = findings.mask(cut, lung)
        region = lesions.regions(lung, cut.x - 0.02)
        yield {
            "image": render.render(person, cut, findings, rng),
            "mask": mask,
            "lung": lung,
            "region": region,
            "region_share": lesions.region_shares(mask, region),
        }
