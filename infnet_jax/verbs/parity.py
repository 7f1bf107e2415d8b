"""`infnet-jax parity`: our outputs beside stored ones of the public PyTorch networks.

A reference is a pair NAME.json + NAME.npz: tensor names and shapes of a state dict, rules that
fill them and the input, and the outputs in float64. No torch is needed.
"""

import argparse
import json
import zlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infnet_jax.models.coach import Coach, visible_from_score
from infnet_jax.verbs import existing
from infnet_jax.weights import convert, make_network

TOLERANCE = 1e-4
_OUTPUTS = {"coarse": "map5", "s32": "map4", "s16": "map3", "s8": "map2"}  # ours -> public
_RANGES = {"norm_weight": (0.4, 0.9), "running_var": (0.5, 1.5)}


class Row(NamedTuple):
    """One stored output, and the largest absolute difference of ours from it."""

    pair: str
    output: str
    error: float | None  # None is explained by the note
    note: str = ""  # "skipped: ..." for a pair left out on purpose, else what went wrong

    @property
    def ok(self) -> bool:
        """Whether the row passes: within TOLERANCE, or skipped."""
        return self.note.startswith("skipped") if self.error is None else self.error <= TOLERANCE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("directory", type=existing, metavar="DIR", help="recorded outputs")


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
    """Returns the float32 value of a state-dict tensor by the references' rule for its kind."""
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
    state = {name: rule_tensor(name, tuple(shape), kind) for name, shape, kind in spec["params"]}
    rng = np.random.default_rng(spec["input"]["seed"])
    return state, rng.standard_normal(spec["input"]["shape"]).astype(np.float32)


def _network_outputs(spec: dict[str, Any], names: list[str]) -> dict[str, jax.Array]:
    """Maps of an Inf-Net or a U-Net, [B, H / stride, W / stride, C], by the names stored."""
    state, image = _rule_case(spec)
    variables, report = convert(state)
    model = make_network(report["network"], report["inpaint_head"])
    stride, ours = spec["stride"], {}
    for block, head in (("forward", "segment"), ("forward_inpainting", "inpaint")):
        lacks = head == "inpaint" and report["inpaint_head"] == "none"
        if lacks or not any(name.startswith(f"{block}/") for name in names):
            continue
        apply = jax.jit(partial(model.apply, train=False, head=head))
        for name, value in apply(variables, image).items():
            ours[f"{block}/{_OUTPUTS.get(name, name)}"] = value[:, ::stride, ::stride]
    return ours


def _coach_outputs(spec: dict[str, Any], names: list[str]) -> dict[str, jax.Array]:
    """Outputs [B, h, w, C] of the coach, and masks [B, h, w, 1] made of its scores."""
    state, image = _rule_case(spec)
    ours = jax.jit(partial(Coach().apply, train=False))(convert(state)[0], image)
    mask = partial(visible_from_score, ours["score"], keep_ratio=0.75)
    soft = mask(alpha=1.0, hard=False)
    return {**ours, "mask_eval": mask(alpha=100.0, hard=True), "mask_soft_alpha1": soft}


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
    rec = partial(inpaint_losses.reconstruction, heads, image, visible)
    return {
        "structure_weighted": losses.structure_loss(logits, target, weighting="boundary"),
        "structure_as_run": losses.structure_loss(logits, target, weighting="none"),
        "inpaint_rec_clamped_sum3": rec(region="erased")[0],
        "inpaint_context_clamped_sum3": rec(region="visible")[0],
    }


_PAIRS = {"coach": _coach_outputs, "losses": _loss_outputs}
_PAIRS |= dict.fromkeys(("infnet_resnet50", "infnet_res2net50", "infnet_vgg16"), _network_outputs)
_PAIRS |= dict.fromkeys(("unet_multi", "unet_multi_improved"), _network_outputs)


def _row(pair: str, name: str, stored: np.ndarray, ours: dict[str, jax.Array]) -> Row:
    if name not in ours:
        return Row(pair, name, None, "missing: our network has no such output")
    value = np.asarray(ours[name], np.float64)
    if value.shape != stored.shape:
        return Row(pair, name, None, f"shape {value.shape}, stored {stored.shape}")
    return Row(pair, name, float(np.max(np.abs(value - stored))))


def compare(directory: Path) -> list[Row]:
    """Compares every pair in `directory`; one row per stored output, one per skipped pair.

    FileNotFoundError: no pair, or half of one; ValueError: a state dict that does not convert.
    """
    rows: list[Row] = []
    for path in sorted(directory.glob("*.json")):
        pair, arrays = path.stem, path.with_suffix(".npz")
        if not arrays.is_file():
            raise FileNotFoundError(f"{path} has no {arrays.name} beside it")
        if pair not in _PAIRS:
            rows.append(Row(pair, "-", None, "skipped: not built yet"))
            continue
        with np.load(arrays) as stored:
            ours = _PAIRS[pair](json.loads(path.read_text()), stored.files)
            rows += [_row(pair, name, stored[name], ours) for name in stored.files]
    if not rows:
        raise FileNotFoundError(f"no reference pairs (*.json + *.npz) in {directory}")
    return rows
