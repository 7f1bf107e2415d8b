"""Inf-Net: which last layers each head makes, trains and leaves alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from infnet_jax import models

BLOCKS = ["edge_branch", "partial_decoder"] + [f"reverse_attention{s}" for s in (8, 16, 32)]
SEG, INPAINT = ({f"{block}/out_{kind}" for block in BLOCKS} for kind in ("seg", "inpaint"))


def make(trunk: str = "resnet18", **options: Any) -> Any:
    return models.make("infnet", trunk, classes=1, channels=3, dtype="float32", **options)


def shapes(model: Any, size: int = 64, **call: Any) -> dict[tuple[str, ...], Any]:
    init = functools.partial(model.init, train=False, **call)
    image = np.zeros((1, size, size, 3), np.float32)
    return flatten_dict(jax.eval_shape(init, jax.random.key(0), image))


@pytest.mark.parametrize("kind", ["tanh_parallel", "linear_replace"])
def test_init_makes_both_heads_whichever_is_called(kind):
    segment, inpaint = (shapes(make(inpaint_head=kind), head=h) for h in ("segment", "inpaint"))
    assert {p: v.shape for p, v in segment.items()} == {p: v.shape for p, v in inpaint.items()}
    last = {"/".join(p[1:3]) for p in segment if p[0] == "params" and models.is_output_layer(p)}
    assert last == SEG | INPAINT


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({}, 48, "Inf-Net on ResNet needs .* divisible by 32, got 48 x 48"),
        ({"max_pool": False}, 40, "divisible by 16, got 40 x 40"),
        ({"trunk": "vgg16"}, 24, "divisible by 16"),
    ],
)
def test_a_size_that_does_not_fit_is_named(options, size, message):
    with pytest.raises(ValueError, match=message):
        shapes(make(**options), size)


def test_a_head_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="inpaint_head other than 'none'"):
        shapes(make(), head="inpaint")
    with pytest.raises(ValueError, match="head must be segment or inpaint, got 'depth'"):
        shapes(make(), head="depth")


@functools.cache
def _train_pass(kind: str, head: str) -> tuple[Any, set[str], set[str]]:
    """A training pass of a narrow network: outputs, and which last layers it touched.

    Touched: whose kernel gets a gradient from the sum of squares of all outputs; and whose
    running statistics change. Only last layers are differentiated, which compiles quickly.
    """
    model, rng = make(width=8, max_pool=False, inpaint_head=kind), np.random.default_rng(0)
    flat = shapes(model, 32)
    for path, leaf in flat.items():
        fan_in = np.prod(leaf.shape[:-1]) if path[-1] == "kernel" else None
        value = rng.standard_normal(leaf.shape) * np.sqrt(2 / fan_in) if fan_in else None
        default = np.full(leaf.shape, float(path[-1] in ("scale", "var")))
        flat[path] = jnp.asarray(default if value is None else value, jnp.float32)
    last = {p: v for p, v in flat.items() if p[0] == "params" and models.is_output_layer(p)}

    @jax.jit
    def run(last: Any, flat: Any, image: jax.Array) -> Any:
        def loss(last: Any) -> Any:
            variables = unflatten_dict({**flat, **last})
            out, new = model.apply(variables, image, train=True, head=head, mutable="batch_stats")
            return sum(jnp.sum((v - 1) ** 2) for v in out.values()), (out, new)

        return jax.grad(loss, has_aux=True)(last)

    image = jnp.asarray(rng.standard_normal((2, 32, 32, 3)), jnp.float32)
    gradient, (out, new) = run(last, flat, image)
    trained = {"/".join(p[1:3]) for p, v in gradient.items() if bool(jnp.any(v != 0))}
    stats = flatten_dict(new)
    moved = {"/".join(p[1:3]) for p, v in stats.items() if not np.array_equal(v, flat[p])}
    return out, trained, moved & (SEG | INPAINT)


def test_segmentation_trains_no_inpainting_layer():
    _, trained, moved = _train_pass("tanh_parallel", "segment")
    assert trained == SEG
    assert moved == SEG - {"partial_decoder/out_seg"}  # which has no batch normalisation


def test_parallel_inpainting_trains_the_segmentation_layers_that_carry():
    out, trained, moved = _train_pass("tanh_parallel", "inpaint")
    unused = {"reverse_attention8/out_seg", "edge_branch/out_seg"}
    assert trained == (SEG | INPAINT) - unused
    assert not moved & unused  # running statistics stay as they are too
    assert all(float(jnp.abs(v).max()) <= 1.0 for v in out.values())


def test_replaced_inpainting_trains_no_segmentation_layer_and_is_unbounded():
    out, trained, moved = _train_pass("linear_replace", "inpaint")
    assert trained == INPAINT
    assert not moved
    assert max(float(jnp.abs(v).max()) for v in out.values()) > 1.0
