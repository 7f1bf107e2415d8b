"""Inf-Net: which last layers each head trains and leaves alone."""

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
UNUSED = {"reverse_attention8/out_seg", "edge_branch/out_seg"}  # those that carry nothing


def _train_pass(kind: str, head: str) -> tuple[Any, set[str], set[str]]:
    """A training pass of a narrow network: outputs, and which last layers it touched.

    Touched: whose kernel gets a gradient from the sum of squares of all outputs; and whose
    running statistics change. Only last layers are differentiated, which compiles quickly.
    """
    options = {"width": 8, "max_pool": False, "inpaint_head": kind}
    model = models.make("infnet", "resnet18", classes=1, channels=3, dtype="float32", **options)
    rng, init = np.random.default_rng(0), functools.partial(model.init, train=False)
    image = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    flat = flatten_dict(jax.eval_shape(init, jax.random.key(0), image))
    for path, leaf in flat.items():
        value = np.full(leaf.shape, float(path[-1] in ("scale", "var")))
        if path[-1] == "kernel":
            value = rng.standard_normal(leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        flat[path] = jnp.asarray(value, jnp.float32)
    last = {p: v for p, v in flat.items() if p[0] == "params" and models.is_output_layer(p)}

    @jax.jit
    def run(last: Any, flat: Any, image: jax.Array) -> Any:
        def loss(last: Any) -> Any:
            variables = unflatten_dict({**flat, **last})
            out, new = model.apply(variables, image, train=True, head=head, mutable="batch_stats")
            return sum(jnp.sum((v - 1) ** 2) for v in out.values()), (out, new)

        return jax.grad(loss, has_aux=True)(last)

    gradient, (out, new) = run(last, flat, image)
    trained = {"/".join(p[1:3]) for p, v in gradient.items() if bool(jnp.any(v != 0))}
    stats = flatten_dict(new)
    moved = {"/".join(p[1:3]) for p, v in stats.items() if not np.array_equal(v, flat[p])}
    return out, trained, moved & (SEG | INPAINT)


@pytest.mark.parametrize(
    ("kind", "head", "trains", "moves_no", "bounded"),
    [
        # The partial decoder's last layer has no batch normalisation.
        ("tanh_parallel", "segment", SEG, INPAINT | {"partial_decoder/out_seg"}, None),
        ("tanh_parallel", "inpaint", (SEG | INPAINT) - UNUSED, UNUSED, True),
        ("linear_replace", "inpaint", INPAINT, SEG | INPAINT, False),
    ],
)
def test_a_head_trains_its_last_layers_and_those_that_carry(kind, head, trains, moves_no, bounded):
    out, trained, moved = _train_pass(kind, head)
    assert trained == trains
    assert not moved & moves_no
    assert head == "inpaint" or moved == SEG - moves_no
    assert bounded in (None, max(float(jnp.abs(v).max()) for v in out.values()) <= 1.0)
