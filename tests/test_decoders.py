"""The decoders: widths, sizes, and which layers each head calls, trains and leaves alone."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from infnet_jax import models
from infnet_jax.models.vgg import doubling

BLOCKS = ["edge_branch", "partial_decoder"] + [f"reverse_attention{s}" for s in (8, 16, 32)]
SEG, INPAINT = ({f"{block}/out_{kind}" for block in BLOCKS} for kind in ("seg", "inpaint"))
UNUSED = {"reverse_attention8/out_seg", "edge_branch/out_seg"}  # those that carry nothing


def make(trunk: str = "plain", **options: Any) -> Any:
    fields = {"classes": 3, "channels": 6, "dtype": "float32", **options}
    return models.make("fcn8s" if trunk == "vgg16" else "unet", trunk, **fields)


def infnet(**options: Any) -> Any:
    return models.make("infnet", "resnet18", classes=1, channels=3, dtype="float32", **options)


def shapes(model: Any, channels: int = 6, **call: Any) -> Any:
    image = np.zeros((1, 32, 32, channels), np.float32)
    return jax.eval_shape(partial(model.init, train=False, **call), jax.random.key(0), image)


@pytest.mark.slow
def test_on_lite0_the_decoder_ends_at_stride_2():
    model, image = make("efficientnet_lite0", width=8), np.zeros((1, 64, 96, 3), np.float32)
    apply = partial(model.apply, train=False, capture_intermediates=True)
    _, state = jax.eval_shape(apply, shapes(model, 3), image)
    (last,) = state["intermediates"]["decoder"]["__call__"]
    assert last.shape == (1, 32, 48, 8)


@pytest.mark.parametrize("trunk", ["plain", "vgg16"])
def test_width_scales_every_layer(trunk):
    narrow = flatten_dict(shapes(make(trunk, width=16))["params"])
    for path, leaf in flatten_dict(shapes(make(trunk))["params"]).items():
        if path[0] != "out_seg":
            assert narrow[path].shape[-1] * 4 == leaf.shape[-1], path


@pytest.mark.slow
@pytest.mark.parametrize("improved", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (37, 50), (31, 95)])
def test_any_size_comes_back(improved, size):
    model = make(channels=2, width=4, improved=improved, inpaint_head="linear_replace")
    variables, image = shapes(model, 2), np.zeros((3, *size, 2), np.float32)
    for head, name, channels in (("segment", "logits", 3), ("inpaint", "recon", 2)):
        out = jax.eval_shape(partial(model.apply, train=False, head=head), variables, image)
        assert {k: v.shape for k, v in out.items()} == {name: (3, *size, channels)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "options"),
    [
        ("infnet", {"inpaint_head": "tanh_parallel"}),
        ("infnet", {"inpaint_head": "linear_replace"}),
        ("unet", {"width": 4, "inpaint_head": "tanh_parallel"}),
        ("unet", {"width": 4, "inpaint_head": "tanh_parallel", "improved": True}),
    ],
)
def test_init_makes_both_heads_whichever_is_called(net, options):
    model = infnet(**options) if net == "infnet" else make(channels=3, **options)
    trees = [flatten_dict(shapes(model, 3, head=head)) for head in ("segment", "inpaint")]
    first, second = ({path: leaf.shape for path, leaf in tree.items()} for tree in trees)
    assert first == second
    last = {path[1:] for path in first if path[0] == "params" and models.is_output_layer(path)}
    depth = 2 if net == "infnet" else 1
    blocks = SEG | INPAINT if net == "infnet" else {"out_seg", "out_inpaint"}
    assert {"/".join(path[:depth]) for path in last} == blocks


@pytest.mark.parametrize(("improved", "decoder"), [(False, "decoder"), (True, "decoder_inpaint")])
def test_the_improved_variant_pretrains_the_encoder_only_of_what_segments(improved, decoder):
    model = make(width=2, improved=improved, inpaint_head="tanh_parallel")
    variables, image = shapes(model), np.zeros((1, 16, 16, 6), np.float32)
    capture = {"capture_intermediates": True, "mutable": "intermediates"}
    last = {"segment": ("decoder", "out_seg"), "inpaint": (decoder, "out_inpaint")}
    for head, called in last.items():
        apply = partial(model.apply, train=False, head=head, **capture)
        _, captured = jax.eval_shape(apply, variables, image)
        assert set(captured["intermediates"]) == {"__call__", "trunk", *called}


@pytest.mark.slow
def test_inpainting_is_bounded_with_tanh_and_linear_without():
    image = 9.0 * jax.random.normal(jax.random.key(1), (1, 16, 16, 6))

    def run(image: jax.Array) -> list[jax.Array]:
        nets = [make(width=2, inpaint_head=kind) for kind in ("tanh_parallel", "linear_replace")]
        variables = nets[0].init(jax.random.key(0, impl="rbg"), image, train=False)
        return [n.apply(variables, image, train=False, head="inpaint")["recon"] for n in nets]

    bounded, linear = jax.jit(run)(image)
    assert float(jnp.abs(linear).max()) > 1.0
    np.testing.assert_allclose(bounded, jnp.tanh(linear), atol=1e-6)


def test_fcn8s_keeps_the_size():
    model = make("vgg16", classes=2, width=4, dtype="bfloat16")
    init = partial(model.init_with_output, train=False)
    out, _ = jax.eval_shape(init, jax.random.key(0), np.zeros((2, 64, 96, 3), np.float32))
    assert out["logits"].shape == (2, 64, 96, 2) and out["logits"].dtype == jnp.float32


def test_an_impulse_at_row_r_reaches_rows_2r_minus_1_to_2r_plus_1():
    impulse = jnp.zeros((1, 3, 3, 1)).at[0, 1, 2, 0].set(1.0)
    variables = {"params": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}}
    out = doubling(1, jnp.float32).apply(variables, impulse)[0, :, :, 0]
    expected = np.zeros((6, 6))
    expected[1:4, 3:6] = 1.0
    np.testing.assert_array_equal(out, expected)


def _train_pass(kind: str, head: str) -> tuple[Any, set[str], set[str]]:
    """A training pass of a narrow network: outputs, and which last layers it touched.

    Touched: whose kernel gets a gradient from the sum of squares of all outputs; and whose
    running statistics change. Only last layers are differentiated, which compiles quickly.
    """
    model = infnet(width=8, max_pool=False, inpaint_head=kind)
    rng, flat = np.random.default_rng(0), flatten_dict(shapes(model, 3))
    image = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
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


@pytest.mark.slow
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
