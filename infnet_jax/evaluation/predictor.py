"""The weights that a run trained, and the one way from them and slices to maps."""

import copy
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import cv2
import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from infnet_jax import models, tasks
from infnet_jax.data import Source, eval_batches, resize
from infnet_jax.evaluation.soft_metrics import resize_map
from infnet_jax.plan import Plan, Stage
from infnet_jax.plan.resolve import resolve
from infnet_jax.runs import mesh as meshes, read_config, read_statistics
from infnet_jax.runs.checkpoint import load_parameters
from infnet_jax.tasks import supervised

EXPORTED = "weights.safetensors"
Weights = dict[str, Any]  # `params` and `batch_stats`, as `Module.apply` takes them
_Mapped = tuple[jax.Array, jax.Array | None]  # maps and their spread


def load_final(plan: Plan) -> tuple[str, list[Weights]]:
    """The weights used for evaluation, of each network; averaged over steps where there is one.

    With where they are from: `best` (on the held-out slices), `latest`, where nothing was held out,
    or `exported`. FileNotFoundError: a network is not trained yet; ValueError: a damaged export.
    """
    stage = plan.final
    if (plan.workdir / EXPORTED).exists():
        return "exported", _read_exported(plan.workdir, stage)
    if stage.averages:
        return "latest", load_all(stage)
    part = "best" if stage.section.validation else "latest"
    return part, [load_weights(stage.folder / "checkpoints", part)]


def load_priors(plan: Plan) -> list[Weights]:
    """The networks whose mean map is the prior, if any; ValueError also where it is the truth."""
    if plan.final.prior == "none" or plan.prior is None:
        return []
    if plan.prior_kind != "crossfit":
        reason = "its prior is the truth (an upper bound), which no new scan has"
        raise ValueError(f"{plan.workdir}: {reason}")
    if (plan.workdir / EXPORTED).exists():
        return _read_exported(plan.workdir, plan.prior)
    return load_all(plan.prior)


def load_all(stage: Stage) -> list[Weights]:
    """The last weights of each network of a stage; FileNotFoundError if one is missing."""
    folders = [network.folder / "checkpoints" for network in stage.networks]
    trained = sum(folder.exists() for folder in folders)
    if trained < len(folders):
        raise FileNotFoundError(f"{stage.folder}: {trained} of {len(folders)} networks are trained")
    return [load_weights(folder, "latest") for folder in folders]


def load_weights(checkpoints: Path, part: str) -> Weights:
    """The weights of a checkpoint, `latest` or `best`, averaged over steps if it has an average."""
    player = load_parameters(checkpoints, part=part)["net"]
    return player["ema"] or {k: player[k] for k in ("params", "batch_stats")}


def _read_exported(folder: Path, stage: Stage) -> list[Weights]:
    """A stage's networks in an export."""
    try:
        flat = load_file(folder / EXPORTED)
    except SafetensorError as error:
        raise ValueError(f"{folder / EXPORTED}: not readable ({error})") from error
    tree = unflatten_dict({tuple(name.split("/")): value for name, value in flat.items()})
    if stage.name not in tree:
        raise ValueError(f"{folder / EXPORTED}: has no network of stage {stage.name}")
    networks = tree[stage.name]
    return [networks[str(number)] for number in range(len(networks))]


class Prediction(NamedTuple):
    """What the networks find in one slice, at the slice's own size."""

    mask: np.ndarray  # uint8 [H, W]: 0, or 1, 2, ... for the Predictor's `classes`
    probs: np.ndarray  # float32 [H, W, C], 0..1: one channel of one class, else background first
    # float32 [H, W], 0..0.5: standard deviation of the lesion's probability over views and
    # networks; None where there is one view of one network.
    spread: np.ndarray | None


def mark(probs: np.ndarray, thresholds: Mapping[str, float]) -> np.ndarray:
    """The mask of a map: a pixel gets the class that exceeds its threshold by the largest factor.

    `probs` [..., C] holds the classes of `thresholds` last; a pixel is marked from its class's
    threshold on, which is above 0. Returns uint8 [...]: 0 for none, 1 for the first class, ...
    """
    values = np.asarray(list(thresholds.values()), np.float32)
    ratio = probs[..., -len(values) :] / values
    return np.where(ratio.max(-1) >= 1, ratio.argmax(-1) + 1, 0).astype(np.uint8)


def full_size(probs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map [S, S, C] at the size (H, W) of its slice, [H, W, C]."""
    return np.stack([resize_map(p, size) for p in np.moveaxis(probs, -1, 0)], axis=-1)


class Predictor:
    """The networks of a `stage` as one function; of several the mean of their maps counts.

    Its masks tell `classes` apart, by the `thresholds` of `mark`; `identity` (name to text) is for
    reports: run, stage, digest of the weights, network, data.
    """

    def __init__(
        self,
        stage: Stage,
        statistics: tuple[float, float],
        *,
        views: Mapping[str, Any],
        batch_size: int,
        thresholds: Mapping[str, float] | None = None,
        prior: "Predictor | None" = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Makes the function of a supervised stage, without weights (`using`), not yet compiled.

        Args:
          statistics: mean and sd of the training images, 0..1.
          views: arguments of `supervised.average_views`; thresholds: of masks; None: 0.5.
          batch_size: slices at once; ValueError if the devices (None: all) cannot share them.
          prior: makes the prior of new slices, for a stage that has one.
        """
        self.stage, self.classes = stage, stage.classes
        self.thresholds = dict(thresholds or dict.fromkeys(self.classes, 0.5))
        self.identity: dict[str, str] = {}
        self._batch_size, self._prior = batch_size, prior
        self._ensemble: list[Weights] = []
        self._mesh = meshes.make_mesh(devices)
        meshes.check_batch(batch_size, self._mesh, "evaluate.batch_size")
        net = models.make(**stage.net.arguments)
        target, norm = tasks.make_target(stage), tasks.make_norm(stage, statistics)

        def probs(weights: Weights, batch: Mapping[str, jax.Array]) -> _Mapped:
            return supervised.views(net, target, weights, batch, norm, **views)

        self._step = jax.jit(probs, out_shardings=meshes.replicated(self._mesh))

    def using(self, weights: Sequence[Weights]) -> Self:
        """The same function, compiled once for all, with the weights of these networks."""
        other = copy.copy(self)
        other._ensemble = [meshes.replicate(tree, self._mesh) for tree in weights]
        return other

    @classmethod
    def load(
        cls,
        workdir: Path | str,
        *,
        tta: bool | None = None,
        batch_size: int = 0,
        lungs: bool = False,
    ) -> Self:
        """The networks that a workdir, or what `export` made of one, trained last.

        With `tta` the mean of eight views, at the sizes of the config, counts; False takes the
        slice as it stands. None, and a `batch_size` (slices at once) of 0, take what the config
        says. With `lungs` it has to be a network of lungs, else one of lesions. FileNotFoundError:
        no run there, or its last network is not trained; ValueError: another network, or damaged.
        """
        workdir = Path(workdir)
        plan = resolve(read_config(workdir), workdir)
        if (plan.final.classes == ("lung",)) != lungs:
            way = "give a run of configs/lung.py" if lungs else "it is for --lungs"
            raise ValueError(f"{workdir}: that run finds {' and '.join(plan.final.classes)}; {way}")
        if tta is not None:
            scales = plan.evaluate.scales if tta else (1.0,)
            plan.evaluate.update(tta=tta, scales=scales)
        chosen = workdir / "thresholds.json"  # where the run chose them on out-of-fold slices
        thresholds = json.loads(chosen.read_text()) if chosen.exists() else None
        thresholds = thresholds or dict.fromkeys(plan.final.classes, plan.evaluate.threshold)
        _, ensemble = load_final(plan)
        shared: dict[str, Any] = dict(views=plan.views, devices=jax.devices()[:1])
        shared["statistics"] = read_statistics(workdir)
        shared["batch_size"] = batch_size or plan.evaluate.batch_size
        priors = load_priors(plan)
        prior = cls(plan.prior, **shared).using(priors) if plan.prior and priors else None
        found = cls(plan.final, **shared, thresholds=thresholds, prior=prior).using(ensemble)
        found.identity = _identity(plan, ensemble)
        return found

    def maps(self, source: Source) -> list[np.ndarray]:
        """Maps of examples (with a `prior` if the stage has one), float32 [S, S, C], S its size."""
        fields, size = [k for k in self.stage.fields if k != "mask"], self.stage.section.size
        found: list[np.ndarray] = []
        for batch in eval_batches(source, batch_size=self._batch_size, size=size, fields=fields):
            found.extend(self._run({name: batch[name] for name in fields})[0])
        return found[: len(source)]

    def __call__(self, slices: Iterable[np.ndarray]) -> Iterator[Prediction]:
        """Yields what the networks find, slice by slice; any number of slices, few in memory.

        Slices are uint8 [H, W] in the lung window, upright as a radiologist sees them; sizes may
        differ. ValueError for other numbers, such as HU, and other shapes.
        """
        waiting = map(_checked, slices)
        while batch := list(itertools.islice(waiting, self._batch_size)):
            yield from self._predict(batch)

    def _predict(self, pictures: Sequence[np.ndarray]) -> Iterator[Prediction]:
        batch = {"image": self._stack(pictures)}
        if self._prior is not None:
            maps, _ = self._prior._run({"image": self._prior._stack(pictures)})
            # As in training: priors are stored in eight bits, at the single-class network's size.
            batch["prior"] = self._stack(list(np.round(255 * maps[..., 0]).astype(np.uint8)))
        probs, spread = self._run(batch)
        for i, size in enumerate(picture.shape[::-1] for picture in pictures):
            full = cv2.resize(probs[i], size, interpolation=cv2.INTER_LINEAR)
            full = full.reshape(*size[::-1], -1)  # cv2 drops a single channel
            unsure = None if spread is None else cv2.resize(spread[i], size)
            yield Prediction(mark(full, self.thresholds), full, unsure)

    def _stack(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Slices resized as in training, filled up to the compiled batch: uint8 [B, S, S, 1]."""
        side = self.stage.section.size
        out = np.zeros((self._batch_size, side, side, 1), np.uint8)
        for i, picture in enumerate(pictures):
            out[i] = resize(picture[..., None], side, labels=False)
        return out

    def _run(self, batch: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """Mean map [B, S, S, C] and spread [B, S, S] over the networks and their views."""
        sharded = meshes.shard_batch(batch, self._mesh)
        found = [jax.device_get(self._step(weights, sharded)) for weights in self._ensemble]
        means = np.stack([mean for mean, _ in found])
        # Channel 0: the only one, or the background: how sure it is that there is any lesion.
        within = [None if sd is None else sd[..., 0] for _, sd in found]
        if len(found) == 1:
            return means[0], within[0]
        variance = np.mean([0.0 if sd is None else sd**2 for sd in within], axis=0)
        return means.mean(0), np.sqrt(variance + means[..., 0].var(0))


def _checked(picture: np.ndarray) -> np.ndarray:
    if picture.dtype != np.uint8 or picture.ndim != 2:  # HU would give nonsense without a word
        raise ValueError(f"a slice of {picture.dtype}; uint8 [H, W] in the lung window expected")
    return picture


def _identity(plan: Plan, ensemble: Sequence[Weights]) -> dict[str, str]:
    """What a report says of the networks; of their weights 12 hex digits of a sha256 over all."""
    side, sizes, digest = plan.final.section.size, len(plan.views["scales"]), hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(ensemble):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    several = f", mean of {len(ensemble)} networks" if len(ensemble) > 1 else ""
    said = "8 flips and quarter turns" if plan.views["tta"] else "1"
    return {
        "run": plan.workdir.resolve().name,
        "stage": plan.final.name,
        "weights": digest.hexdigest()[:12],
        "trained on": f"{plan.data.name}, {plan.data.train}",
        "network": f"{plan.final.net}, {side} x {side}{several}",
        "views": said if sizes == 1 else f"{said}, at {sizes} sizes",
    }
