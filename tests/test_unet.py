"""The multi-class networks: published counts, sizes, what each head trains."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from infnet_jax.models.fcn8s import FCN8s, doubling
from infnet_jax.models.infnet import InfNet, is_output_layer
from infnet_jax.models.unet import UNet

LITE = "efficientnet_lite0"


def _shapes(model: Any, channels: int = 6, size: int = 32, **kwargs: Any) -> Any:
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return jax.eval_shape(
        lambda key, x: model.init(key, x, train=False, **kwargs), jax.random.key(0), image
    )


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_plain_unet_has_the_published_counts():
    params = _shapes(UNet(inpaint_head="tanh_parallel"))["params"]
    assert _count(params["trunk"]) == 9_412_608
    assert _count(params["decoder"]) == 7_856_448
    assert _count(params) == 17_269_641
    assert _count(_shapes(UNet())["params"]) == 17_269_251


def test_the_improved_unet_has_the_published_counts():
    params = _shapes(UNet(improved=True, inpaint_head="tanh_parallel"))["params"]
    assert _count(params["trunk"]) == 9_440_256
    assert _count(params["decoder"]) == _count(params["decoder_inpaint"]) == 7_950_102
    assert _count(params) == 25_341_045
    assert _count(_shapes(UNet(improved=True))["params"]) == 17_390_553


def test_the_unet_on_lite0_has_inf_nets_trunk_and_ends_at_stride_2():
    model = UNet(classes=1, width=8, backbone=LITE)
    variables = _shapes(model, 3)
    trunk = _shapes(InfNet(backbone=LITE), 3)["params"]["trunk"]  # so the same weights fit
    assert jax.tree.map(jnp.shape, variables["params"]["trunk"]) == jax.tree.map(jnp.shape, trunk)
    image = jnp.zeros((1, 64, 96, 3))
    logits = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, image)
    assert logits["logits"].shape == (1, 64, 96, 1)
    _, state = jax.eval_shape(
        lambda v, x: model.apply(v, x, train=False, capture_intermediates=True), variables, image
    )
    (last,) = state["intermediates"]["decoder"]["__call__"]
    assert last.shape == (1, 32, 48, 8)


@pytest.mark.parametrize(("channels", "count"), [(3, 18_643_779), (6, 18_645_507)])
def test_fcn8s_has_the_published_counts(channels, count):
    assert _count(_shapes(FCN8s(), channels)["params"]) == count


def test_width_scales_every_layer():
    for model, full in ((UNet(width=16), UNet()), (FCN8s(width=16), FCN8s())):
        narrow = flatten_dict(_shapes(model)["params"])
        for path, leaf in flatten_dict(_shapes(full)["params"]).items():
            if path[0] != "out_seg":
                assert narrow[path].shape[-1] * 4 == leaf.shape[-1], path


@pytest.mark.parametrize("improved", [False, True])
def test_any_size_comes_back_and_outputs_are_float32(improved):
    model = UNet(
        classes=1,
        width=4,
        improved=improved,
        inpaint_head="linear_replace",
        image_channels=2,
        dtype=jnp.bfloat16,
    )
    variables = _shapes(model, channels=2)
    for height, width in ((16, 16), (37, 50), (31, 95)):
        image = jax.ShapeDtypeStruct((3, height, width, 2), jnp.float32)
        for head, name, channels in (("segment", "logits", 1), ("inpaint", "recon", 2)):
            out = jax.eval_shape(
                lambda v, x, head=head: model.apply(v, x, train=False, head=head), variables, image
            )
            assert {k: v.shape for k, v in out.items()} == {name: (3, height, width, channels)}
            assert out[name].dtype == jnp.float32


@pytest.mark.parametrize("improved", [False, True])
def test_init_makes_both_heads_whichever_is_called(improved):
    model = UNet(width=4, improved=improved, inpaint_head="tanh_parallel")
    trees = [flatten_dict(_shapes(model, head=head)) for head in ("segment", "inpaint")]
    assert set(trees[0]) == set(trees[1])
    last = {path[1] for path in trees[0] if is_output_layer(path)}
    assert last == {"out_seg", "out_inpaint"}


def _called(model: UNet, head: str) -> set[str]:
    """The top modules that a call with `head` runs, found without running it."""
    image = jax.ShapeDtypeStruct((1, 16, 16, 6), jnp.float32)

    def run(variables: Any, image: jax.Array) -> Any:
        return model.apply(
            variables,
            image,
            train=False,
            head=head,
            capture_intermediates=True,
            mutable="intermediates",
        )

    _, captured = jax.eval_shape(run, _shapes(model), image)
    return set(captured["intermediates"]) - {"__call__"}


def test_the_improved_variant_pretrains_the_encoder_only_of_what_segments():
    model = UNet(width=2, improved=True, inpaint_head="tanh_parallel")
    assert _called(model, "inpaint") == {"trunk", "decoder_inpaint", "out_inpaint"}
    assert _called(model, "segment") == {"trunk", "decoder", "out_seg"}


def test_the_plain_variant_pretrains_its_only_decoder():
    model = UNet(width=2, inpaint_head="tanh_parallel")
    assert _called(model, "inpaint") == {"trunk", "decoder", "out_inpaint"}
    assert _called(model, "segment") == {"trunk", "decoder", "out_seg"}


def test_inpainting_is_bounded_with_tanh_and_linear_without():
    image = 9.0 * jax.random.normal(jax.random.key(1), (1, 16, 16, 6))

    def run(image: jax.Array) -> list[jax.Array]:
        models = [UNet(width=2, inpaint_head=kind) for kind in ("tanh_parallel", "linear_replace")]
        variables = models[0].init(jax.random.key(0, impl="rbg"), image, train=False)
        return [m.apply(variables, image, train=False, head="inpaint")["recon"] for m in models]

    bounded, linear = jax.jit(run)(image)
    assert float(jnp.abs(linear).max()) > 1.0
    np.testing.assert_allclose(bounded, jnp.tanh(linear), atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "call", "size", "message"),
    [
        ({"inpaint_head": "tanh"}, {}, 32, "inpaint_head must be one of .*'tanh'"),
        ({}, {"head": "inpaint"}, 32, "inpaint_head other than 'none'"),
        ({}, {"head": "depth"}, 32, "head must be one of .*'depth'"),
        ({}, {}, 15, r"at least 16 x 16 pixels, got \(15, 15\)"),
        ({"backbone": "vgg16"}, {}, 32, "backbone must be one of .*'vgg16'"),
        ({"backbone": LITE, "improved": True}, {}, 32, "improved only the first"),
        ({"backbone": LITE}, {}, 48, "divisible by 32, got 48 x 48"),
    ],
)
def test_a_field_head_or_size_that_cannot_work_is_named(fields, call, size, message):
    with pytest.raises(ValueError, match=message):
        _shapes(UNet(width=2, **fields), size=size, **call)


def test_fcn8s_keeps_the_size_and_refuses_what_does_not_divide():
    model = FCN8s(classes=2, width=4, dtype=jnp.bfloat16)
    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    out, _ = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), image
    )
    assert out["logits"].shape == (2, 64, 96, 2) and out["logits"].dtype == jnp.float32
    with pytest.raises(ValueError, match="FCN8s needs .* divisible by 32, got 48 x 48"):
        _shapes(model, 3, size=48)


def test_an_impulse_at_row_r_reaches_rows_2r_minus_1_to_2r_plus_1():
    impulse = jnp.zeros((1, 3, 3, 1)).at[0, 1, 2, 0].set(1.0)
    variables = {"params": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}}
    out = doubling(1, jnp.float32).apply(variables, impulse)[0, :, :, 0]
    expected = np.zeros((6, 6))
    expected[1:4, 3:6] = 1.0
    np.testing.assert_array_equal(out, expected)
