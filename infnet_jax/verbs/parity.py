"""`infnet-jax parity`: our outputs beside stored ones of the public PyTorch networks.

A reference is a pair NAME.json + NAME.npz: tensor names and shapes of a state dict, a rule that
fills them, a rule for the input, and the outputs in float64. No torch is needed.
"""

import argparse
import functools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from infnet_jax.models.coach import Coach, visible_from_score
from infnet_jax.verbs import existing
from infnet_jax.weights.convert import convert, make_network

TOLERANCE = 1e-4
_OUTPUTS = {"coarse": "map5", "s32": "map4", "s16": "map3", "s8": "map2"}  # ours -> public
_RANGES = {"norm_weight": (0.4, 0.9), "running_var": (0.5, 1.5)}
_BLOCK_HEADS = {"forward": "segment", "forward_inpainting": "inpaint"}


@dataclass(frozen=True)
class Row:
    """One stored output: its pair, its name, and how far ours is from it.

    `error` is the largest absolute difference, None if there is none to state; `note` says why
    then: "skipped: ..." for a pair that is left out on purpose, else what went wrong.
    """

    pair: str
    output: str
    error: float | None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the row passes: within TOLERANCE, or skipped."""
        if self.error is None:
            return self.note.startswith("skipped")
        return self.error <= TOLERANCE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("directory", type=existing, metavar="DIR")


def run(options: argparse.Namespace) -> int:
    """Prints the table of `compare` and returns an exit code: 1 if any row fails, else 0."""
    rows = compare(options.directory)
    print(f"{'pair':<22}{'output':<32}{'max |difference|':<18}")
    for row in rows:
        error = "-" if row.error is None else f"{row.error:.2e}"
        mark = row.note or ("" if row.ok else f"above {TOLERANCE:g}")
        print(f"{row.pair:<22}{row.output:<32}{error:<18}{mark}".rstrip())
    failed = sum(not row.ok for row in rows)
    print(f"{failed} of {len(rows)} rows failed" if failed else "all compared outputs agree")
    return int(failed > 0)


def rule_tensor(name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Returns the value of a state-dict tensor by the references' rule, float32.

    Raises:
      ValueError: for an unknown kind.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if kind in _RANGES:
        value = rng.uniform(*_RANGES[kind], shape)
    elif kind in ("weight", "bias", "running_mean"):
        scale = np.sqrt(1.5 / np.prod(shape[1:])) if kind == "weight" else 0.1
        value = rng.standard_normal(shape) * scale
    else:
        raise ValueError(f"tensor {name}: unknown kind {kind!r}")
    return value.astype(np.float32)


def _rule_case(spec: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """State dict and input of a reference."""
    state = {name: rule_tensor(name, tuple(shape), kind) for name, shape, kind in spec["params"]}
    rng = np.random.default_rng(spec["input"]["seed"])
    return state, rng.standard_normal(spec["input"]["shape"]).astype(np.float32)


def _network_outputs(spec: dict[str, Any], names: list[str]) -> dict[str, jax.Array]:
    """Maps of an Inf-Net or a U-Net, [B, H / stride, W / stride, C], by the names stored."""
    state, image = _rule_case(spec)
    variables, report = convert(state)
    model = make_network(report["network"], report["inpaint_head"])
    stride, ours = spec["stride"], {}
    for block in sorted({name.split("/")[0] for name in names} & set(_BLOCK_HEADS)):
        head = _BLOCK_HEADS[block]
        if head == "inpaint" and report["inpaint_head"] == "none":
            continue
        apply = jax.jit(functools.partial(model.apply, train=False, head=head))
        for name, value in apply(variables, image).items():
            ours[f"{block}/{_OUTPUTS.get(name, name)}"] = value[:, ::stride, ::stride]
    return ours


def _coach_outputs(spec: dict[str, Any], names: list[str]) -> dict[str, jax.Array]:
    """Outputs [B, h, w, C] of the coach, and masks [B, h, w, 1] made of its scores."""
    state, image = _rule_case(spec)
    ours = jax.jit(functools.partial(Coach().apply, train=False))(convert(state)[0], image)
    mask = functools.partial(visible_from_score, ours["score"], keep_ratio=0.75)
    masks = {"mask_eval": mask(alpha=100.0, hard=True)}
    return {**ours, **masks, "mask_soft_alpha1": mask(alpha=1.0, hard=False)}


def _loss_outputs(spec: dict[str, Any], names: list[str]) -> dict[str, jax.Array]:
    from infnet_jax.tasks import inpaint_losses, losses

    def normal(offset: int, channels: int) -> np.ndarray:
        rng = np.random.default_rng(spec["seed"] + offset)
        return rng.standard_normal((3, spec["size"], spec["size"], channels))

    logits = jnp.asarray(2 * normal(0, 1), jnp.float32)
    target = jnp.asarray(normal(100, 1) > 0.6, jnp.float32).at[2].set(0)
    image = jnp.asarray(np.clip(normal(300, 3), -1, 1), jnp.float32)
    visible = jnp.asarray(normal(400, 1) > -0.6, jnp.float32)
    heads = {"edge": jnp.asarray(normal(200, 3), jnp.float32)}

    def inpaint(region: Literal["erased", "visible"]) -> jax.Array:
        return inpaint_losses.reconstruction(heads, image, visible, region=region)[0]

    return {
        "structure_weighted": losses.structure_loss(logits, target, weighting="boundary"),
        "structure_as_run": losses.structure_loss(logits, target, weighting="none"),
        "inpaint_rec_clamped_sum3": inpaint("erased"),
        "inpaint_context_clamped_sum3": inpaint("visible"),
    }


_NETWORKS = "infnet_resnet50 infnet_res2net50 infnet_vgg16 unet_multi unet_multi_improved".split()
_PAIRS = {
    **dict.fromkeys(_NETWORKS, _network_outputs),
    "coach": _coach_outputs,
    "losses": _loss_outputs,
}


def _row(pair: str, name: str, stored: np.ndarray, ours: dict[str, jax.Array]) -> Row:
    if name not in ours:
        return Row(pair, name, None, "missing: our network has no such output")
    value = np.asarray(ours[name], np.float64)
    if value.shape != stored.shape:
        return Row(pair, name, None, f"shape {value.shape}, stored {stored.shape}")
    return Row(pair, name, float(np.max(np.abs(value - stored))))


def compare(directory: Path) -> list[Row]:
    """Compares every pair in `directory`; one row per stored output, one per skipped pair.

    Raises:
      FileNotFoundError: if the folder holds no pair, or a .json without its .npz.
      ValueError: if a stored state dict does not convert.
    """
    specs = sorted(directory.glob("*.json"))
    if not specs:
        raise FileNotFoundError(f"no reference pairs (*.json + *.npz) in {directory}")
    rows: list[Row] = []
    for path in specs:
        pair, arrays = path.stem, path.with_suffix(".npz")
        if not arrays.is_file():
            raise FileNotFoundError(f"{path} has no {arrays.name} beside it")
        if pair not in _PAIRS:
            rows.append(Row(pair, "-", None, "skipped: not built yet"))
            continue
        with np.load(arrays) as stored:
            ours = _PAIRS[pair](json.loads(path.read_text()), stored.files)
            rows += [_row(pair, name, stored[name], ours) for name in stored.files]
    return rows
