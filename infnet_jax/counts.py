"""Sums of segmentation metrics that can be added up inside jit: batches, hosts, halves of a set.

``empty`` -> ``update`` per batch -> ``merge`` of partial results -> ``compute`` on the host. The
metrics and their two readings are those of ``metrics``; they are taken at the batch's (network)
size, so figures differ a little from an evaluation of maps at the truth's own size. S-measure,
E-measure and weighted F are only there.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from infnet_jax import metrics

_LEVELS = metrics.LEVELS
_SLACK = metrics.SINGLE_SLACK
# Histogram counts are kept in two int32 limbs, exact up to 2^51 pixels.
_LIMB_BITS = 20


@struct.dataclass
class Counts:
    """Sums over slices; axes: reading (toolbox, empty_aware), ratio (``metrics.RATIOS``).

    Attributes:
      images: int32 [], valid slices seen.
      empty_truths: int32 [], those whose truth has no lesion pixel.
      curve_sums: float32 [2, 5, 256], sum of defined scores of the min-max normalised map.
      curve_defined: int32 [2, 5, 256], how many were defined.
      fixed_sums: float32 [2 (minmax, none), 2, 5], the same at the fixed threshold.
      fixed_defined: int32 [2, 2, 5].
      absolute_error: float32 [], sum of the slices' mean |truth - normalised map|.
      histogram_low: int32 [2 (lesion, other), 256], raw probability in steps of 1/255, low 20 bits.
      histogram_high: int32 [2, 256], the bits above.
    """

    images: jax.Array
    empty_truths: jax.Array
    curve_sums: jax.Array
    curve_defined: jax.Array
    fixed_sums: jax.Array
    fixed_defined: jax.Array
    absolute_error: jax.Array
    histogram_low: jax.Array
    histogram_high: jax.Array


def empty() -> Counts:
    """Counts of no slice at all: the neutral element of ``merge``."""
    ratios = len(metrics.RATIOS)
    return Counts(
        images=jnp.zeros((), jnp.int32),
        empty_truths=jnp.zeros((), jnp.int32),
        curve_sums=jnp.zeros((2, ratios, _LEVELS), jnp.float32),
        curve_defined=jnp.zeros((2, ratios, _LEVELS), jnp.int32),
        fixed_sums=jnp.zeros((2, 2, ratios), jnp.float32),
        fixed_defined=jnp.zeros((2, 2, ratios), jnp.int32),
        absolute_error=jnp.zeros((), jnp.float32),
        histogram_low=jnp.zeros((2, _LEVELS), jnp.int32),
        histogram_high=jnp.zeros((2, _LEVELS), jnp.int32),
    )


def _ratios(tp: jax.Array, fp: jax.Array, fn: jax.Array, tn: jax.Array) -> jax.Array:
    """Scores [..., 2 (reading), 5] of counts [...]; NaN where undefined (see ``metrics``)."""
    lost = (tp + fp == 0) & (fn > 0)
    plain = jnp.stack(
        [
            2 * tp / (2 * tp + fp + fn),
            tp / (tp + fp + fn),
            tp / (tp + fn),
            tn / (tn + fp),
            jnp.where(lost, 0.0, tp / (tp + fp)),
        ],
        -1,
    )
    return jnp.stack([jnp.where(tp[..., None] == 0, 0.0, plain), plain], -2)


def _histogram(bins: jax.Array, truth: jax.Array) -> jax.Array:
    """Pixels per slice, class (lesion, other) and bin, int32 [B, 2, 256], of bins [B, N]."""
    batch = bins.shape[0]
    cell = (jnp.arange(batch)[:, None] * 2 + jnp.where(truth, 0, 1)) * _LEVELS + bins
    flat = jnp.zeros(batch * 2 * _LEVELS, jnp.int32).at[cell.ravel()].add(1)
    return flat.reshape(batch, 2, _LEVELS)


def _total(values: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum and number of the defined values [B, ...] of valid slices."""
    keep = valid.reshape((-1,) + (1,) * (values.ndim - 1)) & ~jnp.isnan(values)
    return jnp.where(keep, values, 0.0).sum(0), keep.sum(0, dtype=jnp.int32)


def _minmax(raw: jax.Array) -> jax.Array:
    low, high = raw.min(1, keepdims=True), raw.max(1, keepdims=True)
    return jnp.where(high > low, (raw - low) / jnp.where(high > low, high - low, 1.0), raw)


def update(
    counts: Counts, probs: jax.Array, truth: jax.Array, valid: jax.Array, threshold: float = 0.5
) -> Counts:
    """Add a batch; pure, for use inside jit.

    Args:
      counts: what was summed so far.
      probs: float [B, H, W, 1] or [B, H, W], in [0, 1] (clipped). A NaN makes the MAE NaN.
      truth: same shape, lesion where > 0 (bool, integer or float).
      valid: bool [B]; a padded slice (False) changes nothing, whatever it holds.
      threshold: fixed threshold of the ``minmax`` and ``none`` scores.

    Raises:
      ValueError: shapes that do not match (when traced).
    """
    if probs.shape != truth.shape or valid.shape != probs.shape[:1]:
        raise ValueError(
            f"probs {probs.shape}, truth {truth.shape} and valid {valid.shape} do not match"
        )
    batch = probs.shape[0]
    raw = jnp.clip(probs.reshape(batch, -1).astype(jnp.float32), 0.0, 1.0)
    lesion, values = truth.reshape(batch, -1) > 0, _minmax(raw)
    first = jnp.ceil(255 * (1 - values - _SLACK)).clip(0, _LEVELS - 1).astype(jnp.int32)
    marked = jnp.cumsum(_histogram(first, lesion), -1).astype(jnp.float32)
    sizes = jnp.stack([lesion.sum(-1), (~lesion).sum(-1)], -1).astype(jnp.float32)
    curves = _ratios(*_four(marked, sizes[..., None]))  # [B, 256, 2, 5]
    fixed = []
    for scaled in (values, raw):
        hit = scaled >= threshold - _SLACK
        pair = jnp.stack([(hit & lesion).sum(-1), (hit & ~lesion).sum(-1)], -1)
        fixed.append(_ratios(*_four(pair.astype(jnp.float32), sizes)))
    curve_sums, curve_defined = _total(jnp.moveaxis(curves, 1, -1), valid)
    fixed_sums, fixed_defined = _total(jnp.stack(fixed, 1), valid)
    bins = _histogram(jnp.rint(raw * 255).astype(jnp.int32), lesion)
    bins = jnp.where(valid[:, None, None], bins, 0).sum(0)
    errors = jnp.where(valid, jnp.abs(values - lesion).mean(-1), 0.0)
    batch_counts = Counts(
        images=valid.sum(dtype=jnp.int32),
        empty_truths=(valid & ~lesion.any(-1)).sum(dtype=jnp.int32),
        curve_sums=curve_sums,
        curve_defined=curve_defined,
        fixed_sums=fixed_sums,
        fixed_defined=fixed_defined,
        absolute_error=errors.sum(),
        histogram_low=bins & ((1 << _LIMB_BITS) - 1),
        histogram_high=bins >> _LIMB_BITS,
    )
    return merge(counts, batch_counts)


def _four(marked: jax.Array, sizes: jax.Array) -> tuple[jax.Array, ...]:
    """TP, FP, FN, TN from marked pixels [B, 2 (lesion, other), ...] and class sizes [B, 2, ...]."""
    left = sizes - marked
    return marked[:, 0], marked[:, 1], left[:, 0], left[:, 1]


def merge(one: Counts, other: Counts) -> Counts:
    """Sum of two disjoint sets of slices (of one threshold); pure and jit-able."""
    both = jax.tree.map(jnp.add, one, other)
    low = both.histogram_low
    return both.replace(
        histogram_low=low & ((1 << _LIMB_BITS) - 1),
        histogram_high=both.histogram_high + (low >> _LIMB_BITS),
    )


def compute(counts: Counts, reading: str = "toolbox") -> dict:
    """Turn sums into the summary of the slices seen; on the host, not inside jit.

    Returns:
      Like ``metrics.summarise`` (same keys and meaning, Python floats): ``reading``, ``images``,
      ``empty_truths``; ``mean``, ``max``, ``minmax`` and ``none``, dicts of the five ratios;
      ``undefined`` per ratio for ``minmax`` and ``none``; ``mae``, ``roc_auc``. NaN where no slice
      defines the value.

    Raises:
      ValueError: no valid slice was counted, or an unknown reading.
    """
    if reading not in metrics.READINGS:
        known = ", ".join(metrics.READINGS)
        raise ValueError(f"reading {reading!r} is unknown: choose one of {known}")
    host = jax.tree.map(np.asarray, counts)
    images, which = int(host.images), metrics.READINGS.index(reading)
    if images == 0:
        raise ValueError("no valid slice was counted: update with at least one first")
    with np.errstate(invalid="ignore"):
        curves = host.curve_sums[which].astype(np.float64) / host.curve_defined[which]
        fixed = host.fixed_sums[:, which].astype(np.float64) / host.fixed_defined[:, which]
    out: dict = {
        "reading": reading,
        "images": images,
        "empty_truths": int(host.empty_truths),
        "mean": {}, "max": {}, "minmax": {}, "none": {},
        "undefined": {"minmax": {}, "none": {}},
        "mae": float(host.absolute_error) / images,
    }  # fmt: skip
    for i, name in enumerate(metrics.RATIOS):
        defined = curves[i][~np.isnan(curves[i])]
        out["mean"][name] = float(defined.mean()) if defined.size else float("nan")
        out["max"][name] = float(defined.max()) if defined.size else float("nan")
        for k, kind in enumerate(("minmax", "none")):
            out[kind][name] = float(fixed[k, i])
            out["undefined"][kind][name] = images - int(host.fixed_defined[k, which, i])
    high = host.histogram_high.astype(np.int64) << _LIMB_BITS
    out["roc_auc"] = metrics.roc_from_histograms(*(high + host.histogram_low))[2]
    return out
