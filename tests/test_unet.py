"""The U-Nets and FCN8s: widths, sizes, and what each head trains."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from infnet_jax import models
from infnet_jax.models.vgg import doubling


def make(trunk: str = "plain", **options: Any) -> Any:
    fields = {"classes": 3, "channels": 6, "dtype": "float32", **options}
    return models.make("fcn8s" if trunk == "vgg16" else "unet", trunk, **fields)


def shapes(model: Any, channels: int = 6) -> Any:
    init = functools.partial(model.init, train=False)
    image = np.zeros((1, 32, 32, channels), np.float32)
    return jax.eval_shape(init, jax.random.key(0), image)


def test_on_lite0_the_decoder_ends_at_stride_2():
    model, image = make("efficientnet_lite0", width=8), np.zeros((1, 64, 96, 3), np.float32)
    apply = functools.partial(model.apply, train=False, capture_intermediates=True)
    _, state = jax.eval_shape(apply, shapes(model, 3), image)
    (last,) = state["intermediates"]["decoder"]["__call__"]
    assert last.shape == (1, 32, 48, 8)


@pytest.mark.parametrize("trunk", ["plain", "vgg16"])
def test_width_scales_every_layer(trunk):
    narrow = flatten_dict(shapes(make(trunk, width=16))["params"])
    for path, leaf in flatten_dict(shapes(make(trunk))["params"]).items():
        if path[0] != "out_seg":
            assert narrow[path].shape[-1] * 4 == leaf.shape[-1], path


@pytest.mark.parametrize("improved", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (37, 50), (31, 95)])
def test_any_size_comes_back(improved, size):
    model = make(channels=2, width=4, improved=improved, inpaint_head="linear_replace")
    variables, image = shapes(model, 2), np.zeros((3, *size, 2), np.float32)
    for head, name, channels in (("segment", "logits", 3), ("inpaint", "recon", 2)):
        apply = functools.partial(model.apply, train=False, head=head)
        out = jax.eval_shape(apply, variables, image)
        assert {k: v.shape for k, v in out.items()} == {name: (3, *size, channels)}


@pytest.mark.parametrize(("improved", "decoder"), [(False, "decoder"), (True, "decoder_inpaint")])
def test_the_improved_variant_pretrains_the_encoder_only_of_what_segments(improved, decoder):
    model = make(width=2, improved=improved, inpaint_head="tanh_parallel")
    variables, image = shapes(model), np.zeros((1, 16, 16, 6), np.float32)
    capture = {"capture_intermediates": True, "mutable": "intermediates"}
    last = {"segment": ("decoder", "out_seg"), "inpaint": (decoder, "out_inpaint")}
    for head, called in last.items():
        apply = functools.partial(model.apply, train=False, head=head, **capture)
        _, captured = jax.eval_shape(apply, variables, image)
        assert set(captured["intermediates"]) == {"__call__", "trunk", *called}


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
    init = functools.partial(model.init_with_output, train=False)
    out, _ = jax.eval_shape(init, jax.random.key(0), np.zeros((2, 64, 96, 3), np.float32))
    assert out["logits"].shape == (2, 64, 96, 2) and out["logits"].dtype == jnp.float32


def test_an_impulse_at_row_r_reaches_rows_2r_minus_1_to_2r_plus_1():
    impulse = jnp.zeros((1, 3, 3, 1)).at[0, 1, 2, 0].set(1.0)
    variables = {"params": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}}
    out = doubling(1, jnp.float32).apply(variables, impulse)[0, :, :, 0]
    expected = np.zeros((6, 6))
    expected[1:4, 3:6] = 1.0
    np.testing.assert_array_equal(out, expected)
