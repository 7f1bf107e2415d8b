"""A trained workdir as a function from slices to lesion probabilities."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from infnet_jax import tasks
from infnet_jax.evaluation import networks
from infnet_jax.runs.workdir import read_config, read_statistics
from infnet_jax.tasks import multi, segment


class Found(NamedTuple):
    """What a network says of one slice, at the slice's own size.

    Attributes:
      mask: uint8 [H, W], 0, then a label for each of the Segmenter's `classes`.
      probs: float32 [H, W], or [H, W, 3] (background, ground glass, consolidation), 0..1.
      spread: float32 [H, W], standard deviation of the lesion's probability over the eight views,
        0..0.5, and over the networks of an ensemble; None where there is one view of one network.
    """

    mask: np.ndarray
    probs: np.ndarray
    spread: np.ndarray | None


class Segmenter:
    """The network that a workdir trained last, with its weights, input scale and prior.

    Attributes:
      classes: what its maps tell apart: `infection`, `lung`, or `ggo` and `consolidation`.
      thresholds: class -> probability from which it is marked, see `networks.mark`.
      identity: name to text, for reports: run, stage, digest of the weights, network, data.
    """

    def __init__(
        self,
        workdir: Path | str,
        *,
        tta: bool | None = None,
        batch_size: int = 0,
        lungs: bool = False,
    ):
        """Loads weights; nothing is compiled yet.

        Args:
          workdir: of a finished run, or what `export` made of one.
          tta: average over eight views, at the sizes of the config; False takes the slice as it
            stands; None does as the config does.
          batch_size: slices at once; 0 takes that of the config.
          lungs: a network of lungs is wanted, not one of lesions.

        Raises:
          FileNotFoundError: no run there, or it has not trained its last network yet.
          ValueError: weights are damaged or belong to another network, or it finds another thing.
        """
        self._workdir = Path(workdir)
        self._config = read_config(self._workdir)
        self.classes = tuple(networks.classes(self._config))
        if (self.classes == ("lung",)) != lungs:
            raise ValueError(
                f"{workdir}: that run finds {' and '.join(self.classes)}; "
                + ("give a run of configs/lung.py" if lungs else "it is for --lungs")
            )
        if tta is not None:
            self._config.evaluate.tta = tta
            if not tta:
                self._config.evaluate.scales = (1.0,)
        self._batch = batch_size or self._config.evaluate.batch_size
        self._norm = tasks.make_norm(self._config, read_statistics(self._workdir))
        self.stage = tasks.last_trained(self._config)
        chosen = self._workdir / "thresholds.json"  # where the run chose them on unseen slices
        self.thresholds = dict.fromkeys(self.classes, self._config.evaluate.threshold)
        if chosen.exists():
            self.thresholds = json.loads(chosen.read_text())
        _, ensemble = networks.load_evaluated(self._config, self._workdir)
        self.identity = {
            "run": self._workdir.resolve().name,
            "stage": self.stage,
            "weights": _digest(ensemble),
            "trained on": f"{self._config.data.name}, {self._config.data.train}",
            "network": _describe(self._config, self.stage)
            + (f", mean of {len(ensemble)} networks" if len(ensemble) > 1 else ""),
            "views": _count_views(self._config),
        }
        self._priors = [
            self._compile("segment", weights)
            for weights in networks.load_priors(self._config, self._workdir)
        ]
        runs = [self._compile(self.stage, weights) for weights in ensemble]
        self._run = runs[0] if len(runs) == 1 else lambda batch: _mean([r(batch) for r in runs])

    def __call__(self, slices: Iterator[np.ndarray]) -> Iterator[Found]:
        """Yields what the network finds, slice by slice; any number of slices, few in memory.

        Args:
          slices: uint8 [H, W] in the lung window, upright as a radiologist sees them; sizes may
            differ.
        """
        waiting: list[np.ndarray] = []
        for picture in slices:
            waiting.append(picture)
            if len(waiting) == self._batch:
                yield from self._batch_of(waiting)
                waiting = []
        if waiting:
            yield from self._batch_of(waiting)

    def _batch_of(self, pictures: list[np.ndarray]) -> Iterator[Found]:
        image = self._stack(pictures, self._config[self.stage].size)
        batch = {"image": image}
        if self.stage == "multi" and self._config.multi.with_prior:
            side = self._config.segment.size
            small = {"image": self._stack(pictures, side)}
            maps = np.mean([run(small)[0] for run in self._priors], axis=0)
            # The stages stored their priors in eight bits, at the single-class network's size.
            eight = np.round(255 * maps).astype(np.uint8)
            batch["prior"] = self._stack(list(eight), self._config.multi.size)
        probs, spread = self._run(batch)
        for i, picture in enumerate(pictures):
            size = picture.shape[::-1]
            full = cv2.resize(probs[i], size, interpolation=cv2.INTER_LINEAR)
            yield Found(
                networks.mark(full, self.thresholds),
                full,
                None if spread is None else cv2.resize(spread[i], size),
            )

    def _stack(self, pictures: list[np.ndarray], side: int) -> np.ndarray:
        """Slices resized as in training, filled up to the compiled batch: uint8 [B, S, S, 1]."""
        out = np.zeros((self._batch, side, side, 1), np.uint8)
        for i, picture in enumerate(pictures):
            shrinks = min(picture.shape) >= side
            how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            out[i, ..., 0] = cv2.resize(picture, (side, side), interpolation=how)
        return out

    def _compile(self, stage: str, weights: Mapping) -> Callable:
        """batch -> (probs, spread or None), numpy, for one set of weights."""
        config, norm, views = self._config, self._norm, tasks.views_of(self._config)
        if stage == "segment":
            net = tasks.make_net(config)

            def probs(variables, batch):
                return segment.views(net, variables, batch["image"], norm, **views)
        else:
            net, use = tasks.make_multi_net(config), tasks.prior_use(config)

            def probs(variables, batch):
                return multi.views(
                    net,
                    variables,
                    batch["image"],
                    batch.get("prior"),
                    norm,
                    **views,
                    head=config.multi.loss.head,
                    prior_use=use,
                )

        step, placed = jax.jit(probs), jax.device_put(weights)

        def run(batch: Mapping) -> tuple[np.ndarray, np.ndarray | None]:
            mean, spread = jax.device_get(step(placed, batch))
            mean = np.array(mean[..., 0] if stage == "segment" else mean)
            if spread is None:
                return mean, None
            # Of background: how sure the network is that there is any lesion.
            return mean, np.array(spread[..., 0])

        return run


def _mean(found: list[tuple[np.ndarray, np.ndarray | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Maps of several networks as one, and the standard deviation over all their views."""
    means = np.stack([mean for mean, _ in found])
    lesion = means[..., 0] if means.ndim == 5 else means  # of classes the background's, as one does
    within = np.mean([0.0 if sd is None else sd**2 for _, sd in found], axis=0)
    return means.mean(0), np.sqrt(within + lesion.var(0))


def _digest(weights: Mapping) -> str:
    """The first 12 hex digits of a sha256 over all weights, in the order of their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:12]


def _count_views(config: ConfigDict) -> str:
    views = tasks.views_of(config)
    said = "8 flips and quarter turns" if views["tta"] else "1"
    return said if len(views["scales"]) == 1 else f"{said}, at {len(views['scales'])} sizes"


def _describe(config: ConfigDict, stage: str) -> str:
    side = config[stage].size
    if stage == "segment":
        unets = {"unet": "U-Net", "unet_lite0": "U-Net on efficientnet_lite0"}
        name = unets.get(config.model.get("kind"), f"Inf-Net on {config.model.backbone}")
        return f"{name}, width {config.model.width}, {side} x {side}"
    net = config.multi.net
    return f"{net.kind}, width {net.width}, {side} x {side}"
