"""From slices to what a network sees: augmentation on the device, and grey scales."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from infnet_jax.models import layers as ops

IMAGE = "image"
MAX_CUTOUT_ASPECT = 2.0
DENSE_RADIUS = (0.03, 0.16)  # of a dense lesion's longer half axis, in heights of the image

Fields = Mapping[str, Array]
Pair = tuple[float, float]


class Norm(NamedTuple):
    """Per-channel constants on the 0..1 grey scale.

    The network sees `(x - mean) / input_sd`; the inpainting target is `clip((x - mean) / (3 * sd),
    -1, 1)` (as in the public code), so an erased pixel, zero in the input, is the mean grey.
    """

    mean: tuple[float, ...]
    sd: tuple[float, ...]
    input_sd: tuple[float, ...]


def network_input(image: Array, norm: Norm, prior: Array | None = None) -> Array:
    """What a network sees: the slice, or slice and prior, normalised alike as in the public code.

    `image` [B, H, W, 1] grey in 0..1 and `prior` [B, H, W, 1], an 8-bit probability -> float32
    [B, H, W, c], c the channels of `norm`, or [B, H, W, 2c]: the slice's, then the prior's.
    """
    x = (image - jnp.asarray(norm.mean)) / jnp.asarray(norm.input_sd)
    if prior is None:
        return x
    return jnp.concatenate([x, network_input(prior.astype(jnp.float32) / 255.0, norm)], -1)


def blank_input(norm: Norm, size: int, prior: bool) -> Array:
    """Zeros shaped like `network_input` of one slice, with or without its prior."""
    return jnp.zeros((1, size, size, len(norm.mean) * (2 if prior else 1)))


def augment(
    key: Array,
    fields: Fields,
    *,
    flip_h: float = 0.5,
    flip_v: float = 0.5,
    quarter_turns: bool = True,
    rotate_degrees: float = 0.0,
    scale: Pair = (1.0, 1.0),
    shift: float = 0.0,
    crop: Pair | None = None,
    cutout: float = 0.0,
    cutout_mode: str = "area",
    cutout_prob: float = 1.0,
    gamma: float = 0.0,
    contrast: float = 0.0,
    brightness: float = 0.0,
    noise: float = 0.0,
    dense: float = 0.0,
) -> dict[str, Array]:
    """Augments every example of a batch by its own draw of `key`. All settings are static.

    `fields`: `image` float [B, H, W, C] grey in 0..1, and masks and the like [B, H, W, C] of any
    dtype, which move with it; others pass through. Order: flips and quarter turn (exact), affine
    (one map, sampled once), dense, grey levels (clipped to 0..1), cutout. Returns the same shapes
    and dtypes: the image bilinear, others nearest, 0 from outside. ValueError for no image, an
    integer image, sizes that differ or a setting out of range.

    Args:
      flip_h, flip_v: probability of a left-right and of a top-bottom mirror image.
      quarter_turns: turn by 0, 90, 180 or 270 degrees, equally likely; needs H = W.
      rotate_degrees, shift: uniform in +- this, about the centre or as a fraction of each side.
      scale: range of the zoom, log-uniform; above 1 enlarges.
      crop: (probability, fraction): a random square of fraction * min(H, W), resized back.
      cutout, cutout_prob: size and probability of a rectangle of one random grey, 0 for none.
      cutout_mode: `area`: that share of the image (the paper's reading), relative sides within
        2:1; `max_side`: each side uniform in {0..int(min(H, W) * cutout)} (the public code's).
      gamma, contrast, brightness: u uniform in +- this, in turn for grey ** exp(u), for the
        distance from the mean grey times 1 + u, and for grey + u.
      noise: Gaussian noise per pixel, of standard deviation uniform in 0..this.
      dense: probability of each of two dense lesions, ragged ellipses in `mask` on its rim.
    """
    _check(fields, quarter_turns, scale, crop or (0.0, 1.0), cutout, cutout_mode)
    k_exact, k_affine, k_grey, k_cutout = jax.random.split(key, 4)
    out = _flip_and_turn(k_exact, fields, flip_h, flip_v, quarter_turns)
    if rotate_degrees or shift or crop is not None or tuple(scale) != (1.0, 1.0):
        rows, columns = _affine(k_affine, fields[IMAGE].shape, rotate_degrees, scale, shift, crop)
        out = {n: _sample(x, rows, columns, smooth=n == IMAGE) for n, x in out.items()}
    image = out[IMAGE]
    for k_ellipse in jax.random.split(jax.random.fold_in(key, 4), 2) if dense else ():
        image = _paint_dense(k_ellipse, image, out["mask"], dense)
    image = _change_grey(k_grey, image, gamma, contrast, brightness, noise)
    if cutout:
        image = _cut_out(k_cutout, image, cutout, cutout_mode, cutout_prob)
    return {**fields, **out, IMAGE: image.astype(fields[IMAGE].dtype)}


def prepare(key: Array | None, fields: Fields, settings: Mapping[str, Any]) -> dict:
    """A batch with its uint8 image as grey in 0..1; with a key, augmented by `settings`."""
    grey = {**fields, IMAGE: fields[IMAGE].astype(jnp.float32) / 255.0}
    return grey if key is None else augment(key, grey, **settings)


def _check(fields: Fields, turns: bool, scale: Pair, crop: Pair, cutout: float, mode: str) -> None:
    image = fields.get(IMAGE)
    if image is None or image.ndim != 4 or not jnp.issubdtype(image.dtype, jnp.floating):
        found = "missing" if image is None else f"{image.dtype} {image.shape}"
        raise ValueError(f"{IMAGE} is {found}; augment needs float [B, H, W, C] in 0..1")
    for name, x in fields.items():
        if x.ndim == 4 and x.shape[:3] != image.shape[:3]:
            raise ValueError(f"{name} is {x.shape[:3]} but {IMAGE} is {image.shape[:3]}")
    square = image.shape[1] == image.shape[2]
    for right, message in (
        (square or not turns, f"quarter_turns needs square images, not {image.shape[1:3]}"),
        (0 < scale[0] <= scale[1], f"scale is {scale}; give (low, high) with 0 < low <= high"),
        (0 < crop[1] <= 1, f"crop is {crop}; give (probability, share in (0, 1])"),
        (0 <= cutout <= 1, f"cutout is {cutout}; give a fraction in 0..1"),
        (mode in ("area", "max_side"), f"cutout_mode is {mode!r}; choose 'area' or 'max_side'"),
    ):
        if not right:
            raise ValueError(message)


def _draw(key: Array, batch: int, low: float, high: float) -> Array:
    return jax.random.uniform(key, (batch,), minval=low, maxval=high)


def _per_example(values: Array) -> Array:
    return values[:, None, None, None]


def _flip_and_turn(key: Array, fields: Fields, flip_h: float, flip_v: float, turns: bool) -> dict:
    batch, out = fields[IMAGE].shape[0], {}
    k_h, k_v, k_turn = jax.random.split(key, 3)
    mirror = jax.random.bernoulli(k_h, flip_h, (batch,))
    upset = jax.random.bernoulli(k_v, flip_v, (batch,))
    quarter = jax.random.randint(k_turn, (batch,), 0, 4)
    if turns:  # A quarter turn is a transposition and a flip, a half turn two flips.
        transpose = quarter % 2 == 1
        mirror = mirror ^ ((quarter == 2) | (quarter == 3))
        upset = upset ^ ((quarter == 2) | (quarter == 1))
    for name, x in fields.items():
        if x.ndim == 4:
            if turns:
                x = jnp.where(_per_example(transpose), x.swapaxes(1, 2), x)
            x = jnp.where(_per_example(mirror), x[:, :, ::-1], x)
            out[name] = jnp.where(_per_example(upset), x[:, ::-1], x)
    return out


def _affine(
    key: Array, shape: tuple[int, ...], degrees: float, scale: Pair, shift: float, crop: Pair | None
) -> tuple[Array, Array]:
    """Row and column, float32 [B, H, W] each, of the input under every output pixel."""
    batch, height, width = shape[:3]
    keys = jax.random.split(key, 7)
    angle = jnp.deg2rad(_draw(keys[0], batch, -degrees, degrees))
    zoom = jnp.exp(_draw(keys[1], batch, float(np.log(scale[0])), float(np.log(scale[1]))))
    row_shift = height * _draw(keys[2], batch, -shift, shift)[:, None]
    column_shift = width * _draw(keys[3], batch, -shift, shift)[:, None]
    # Pixel i covers i..i+1, so a crop of side s maps i to start + (i + .5) s / H - .5.
    rows = jnp.broadcast_to(jnp.arange(height, dtype=jnp.float32), (batch, height))
    columns = jnp.broadcast_to(jnp.arange(width, dtype=jnp.float32), (batch, width))
    if crop is not None:
        side = crop[1] * min(height, width)
        cropped = jax.random.bernoulli(keys[4], crop[0], (batch, 1))
        top = _draw(keys[5], batch, 0.0, height - side)[:, None]
        left = _draw(keys[6], batch, 0.0, width - side)[:, None]
        rows = jnp.where(cropped, top + (rows + 0.5) * (side / height) - 0.5, rows)
        columns = jnp.where(cropped, left + (columns + 0.5) * (side / width) - 0.5, columns)
    row, column = (height - 1) / 2, (width - 1) / 2
    y = (rows - row - row_shift)[:, :, None]
    x = (columns - column - column_shift)[:, None, :]
    cosine, sine = (f(angle)[:, None, None] / zoom[:, None, None] for f in (jnp.cos, jnp.sin))
    return row + cosine * y + sine * x, column - sine * y + cosine * x


def _sample(x: Array, rows: Array, columns: Array, *, smooth: bool) -> Array:
    """x at (rows, columns), bilinear where `smooth`, else of the nearest pixel; 0 outside."""
    batch, height, width, channels = x.shape
    # One pixel of 0 all round: every clipped coordinate then has its neighbours in bounds.
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    pixels = padded.reshape(batch, -1, channels)

    def pick(row: Array, column: Array) -> Array:
        at = ((row + 1) * (width + 2) + column + 1).astype(jnp.int32)
        # vmap, not one flat index: each device then gathers within its share of the batch.
        return jax.vmap(lambda p, i: p.at[i].get(mode="promise_in_bounds"))(pixels, at)

    rows, columns = jnp.clip(rows, -1, height), jnp.clip(columns, -1, width)
    if not smooth:
        return pick(jnp.floor(rows + 0.5), jnp.floor(columns + 0.5))
    row = jnp.clip(jnp.floor(rows), max=height - 1)
    column = jnp.clip(jnp.floor(columns), max=width - 1)
    down, right = (rows - row)[..., None], (columns - column)[..., None]
    upper = pick(row, column) * (1 - right) + pick(row, column + 1) * right
    lower = pick(row + 1, column) * (1 - right) + pick(row + 1, column + 1) * right
    return upper * (1 - down) + lower * down


def _change_grey(
    key: Array, image: Array, gamma: float, contrast: float, brightness: float, noise: float
) -> Array:
    if not (gamma or contrast or brightness or noise):
        return image
    keys = jax.random.split(key, 5)
    ends = ((-gamma, gamma), (-contrast, contrast), (-brightness, brightness), (0.0, noise))
    drawn = [_per_example(_draw(k, len(image), *e)) for k, e in zip(keys[:4], ends, strict=True)]
    if gamma:
        image = jnp.clip(image, 0.0, 1.0) ** jnp.exp(drawn[0])
    if contrast:
        mean = image.mean((1, 2, 3), keepdims=True)
        image = mean + (image - mean) * (1 + drawn[1])
    if brightness:
        image = image + drawn[2]
    if noise:
        image = image + drawn[3] * jax.random.normal(keys[4], (*image.shape[:3], 1))
    return jnp.clip(image, 0.0, 1.0)


def _paint_dense(key: Array, image: Array, mask: Array, odds: float) -> Array:
    batch, height, width = image.shape[:3]
    keys = jax.random.split(key, 7)
    inside = (mask > 0).astype(jnp.float32)
    rim = (inside > 0) & (ops.box_filter(inside, 3) < 0.99)
    # The largest of independent draws: a pixel of the rim, all equally likely.
    draws = jnp.where(rim, jax.random.uniform(keys[0], rim.shape), -1.0).reshape(batch, -1)
    row, column = jnp.divmod(draws.argmax(1), width)
    y = (jnp.arange(height) - row[:, None])[:, :, None]
    x = (jnp.arange(width) - column[:, None])[:, None, :]
    angle = _draw(keys[1], batch, 0.0, np.pi)[:, None, None]
    long = (height * _draw(keys[2], batch, *DENSE_RADIUS))[:, None, None]
    short = long * _draw(keys[3], batch, 0.4, 1.0)[:, None, None]
    along = (jnp.cos(angle) * y + jnp.sin(angle) * x) / long
    across = (jnp.cos(angle) * x - jnp.sin(angle) * y) / short
    ragged = jax.random.normal(keys[4], (batch, 12, 12, 1))
    ragged = 0.3 * ops.resize_bilinear(ragged, (height, width), align_corners=True)[..., 0]
    chosen = jax.random.bernoulli(keys[5], odds, (batch, 1, 1))
    painted = (along**2 + across**2 + ragged < 1) & chosen
    grey = jnp.quantile(image, 0.9, axis=(1, 2, 3), keepdims=True)
    lowest = jnp.array([[0.85], [0.8]])
    share, level = map(_per_example, jax.random.uniform(keys[6], (2, batch), minval=lowest))
    lesion = share * level * grey + (1 - share) * image
    return jnp.where(painted[..., None] & (mask > 0), lesion, image)


def _cut_out(key: Array, image: Array, size: float, mode: str, odds: float) -> Array:
    batch, height, width = image.shape[:3]
    k_size, k_top, k_left, k_chosen, k_grey = jax.random.split(key, 5)
    if mode == "area":
        # Sides a H and (size / a) W fit inside for every aspect a^2 / size up to 1 / size.
        limit = float(np.log(min(MAX_CUTOUT_ASPECT, 1.0 / size)))
        share = jnp.sqrt(size * jnp.exp(_draw(k_size, batch, -limit, limit)))
        rows = jnp.clip(jnp.round(share * height), 1, height)
        columns = jnp.clip(jnp.round(size * height * width / rows), 1, width)
    else:
        longest = int(min(height, width) * size)
        rows, columns = jax.random.randint(k_size, (2, batch), 0, longest + 1).astype(jnp.float32)
    top = jnp.floor(_draw(k_top, batch, 0.0, 1.0) * (height - rows + 1))[:, None]
    left = jnp.floor(_draw(k_left, batch, 0.0, 1.0) * (width - columns + 1))[:, None]
    y, x = jnp.arange(height), jnp.arange(width)
    chosen = jax.random.bernoulli(k_chosen, odds, (batch, 1))
    in_rows = (y >= top) & (y < top + rows[:, None]) & chosen
    in_columns = (x >= left) & (x < left + columns[:, None])
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[..., None]
    return jnp.where(inside, _per_example(_draw(k_grey, batch, 0.0, 1.0)), image)
