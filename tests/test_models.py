"""Networks by name: every decoder on every trunk, published counts, and what is refused."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet_jax import models
from infnet_jax.models.vgg import VGG16

PAIRS = [(d, t) for d in ("infnet", "unet") for t in models.TRUNKS if (d, t) != ("infnet", "plain")]


def make(decoder: str, trunk: str, classes: int = 1, channels: int = 3, **options: Any) -> Any:
    dtype = options.pop("dtype", "float32")
    return models.make(decoder, trunk, classes=classes, channels=channels, dtype=dtype, **options)


def shapes(net: Any, channels: int = 3, size: int = 64, **call: Any) -> Any:
    """Shapes of a network's variables."""
    image = np.zeros((1, size, size, channels), np.float32)
    return jax.eval_shape(partial(net.init, train=False, **call), jax.random.key(0), image)


def check_outputs(decoder: str, trunk: str) -> Any:
    """Both heads give float32 maps of the input's size; returns the shapes of the variables."""
    net = make(decoder, trunk, channels=2, inpaint_head="linear_replace", dtype="bfloat16")
    image, variables = np.zeros((2, 64, 96, 2), np.float32), shapes(net, 2)
    names = {"coarse", "s32", "s16", "s8", "edge"} if decoder == "infnet" else None
    for head, channels, name in (("segment", 1, "logits"), ("inpaint", 2, "recon")):
        out = jax.eval_shape(partial(net.apply, train=False, head=head), variables, image)
        assert set(out) == (names or {name})
        assert {leaf.shape for leaf in out.values()} == {(2, 64, 96, channels)}
        assert {leaf.dtype for leaf in out.values()} == {jnp.dtype("float32")}
    return variables


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "trunk"), PAIRS)
def test_every_trunk_works_under_both_decoders(decoder, trunk):
    check_outputs(decoder, trunk)


@pytest.mark.slow
def test_a_new_trunk_needs_its_entry_only(monkeypatch):
    monkeypatch.setitem(models.TRUNKS, "thin", models.Trunk(partial(VGG16, 4), 16))
    for decoder in ("infnet", "unet"):
        trunk = check_outputs(decoder, "thin")["params"]["trunk"]
        assert trunk["conv5_3"]["kernel"].shape == (3, 3, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("trunk", sorted(set(models.TRUNKS) - {"plain"}))
def test_the_trunk_of_both_decoders_takes_the_same_weights(trunk):
    ours, other = (shapes(make(d, trunk))["params"]["trunk"] for d in ("infnet", "unet"))
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, other)


@pytest.mark.parametrize(
    ("trunk", "options", "sizes", "channels"),
    [
        ("resnet18", {"width": 16}, [32, 16, 8, 4, 2], [16, 16, 32, 64, 128]),
        ("resnet18", {"max_pool": False}, [32, 32, 16, 8, 4], [64, 64, 128, 256, 512]),
        ("resnet50", {}, [32, 16, 8, 4, 2], [64, 256, 512, 1024, 2048]),
        ("res2net50", {"max_pool": False}, [32, 32, 16, 8, 4], [64, 256, 512, 1024, 2048]),
        ("vgg16", {}, [64, 32, 16, 8, 4], [64, 128, 256, 512, 512]),
        ("efficientnet_lite0", {}, [32, 16, 8, 4, 2], [16, 24, 40, 112, 320]),
        ("efficientnet_lite0", {"max_pool": False}, [64, 32, 16, 8, 4], [16, 24, 40, 112, 320]),
        ("plain", {"width": 4}, [64, 32, 16, 8, 4], [4, 8, 16, 32, 32]),
        ("plain", {"width": 4, "improved": True}, [64, 32, 16, 8, 4], [4, 8, 19, 32, 35]),
    ],
)
def test_five_maps_of_a_trunk(trunk, options, sizes, channels):
    module, image = models.TRUNKS[trunk].module(**options), np.zeros((1, 64, 64, 3), np.float32)
    init = partial(module.init_with_output, train=False)
    taps, _ = jax.eval_shape(init, jax.random.key(0), image)
    assert [tap.shape[1:] for tap in taps] == list(zip(sizes, sizes, channels, strict=True))


RESNET50 = {"": 30_911_401, "trunk": 23_508_032, "rfb8": 178_112, "rfb16": 260_032}
RESNET50 |= {"rfb32": 423_872, "partial_decoder": 277_473, "edge_branch": 91_074}
RESNET50 |= {"reverse_attention32": 5_851_394, "reverse_attention16": 177_090}
RESNET50 |= {"reverse_attention8": 144_322}
TANH = {"inpaint_head": "tanh_parallel"}
BOTH = {"inpaint_head": "tanh_parallel", "improved": True}
IMPROVED = {"trunk": 9_440_256, "decoder": 7_950_102, "decoder_inpaint": 7_950_102}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("net", "options", "counts"),
    [
        (("infnet", "resnet18"), {}, {"trunk": 11_176_512}),
        (("infnet", "resnet50"), {}, RESNET50),
        (("infnet", "resnet50"), TANH, {"": 30_917_668}),
        (("infnet", "res2net50"), {}, {"trunk": 23_669_352, "": 33_121_721 - 2_049_000}),
        (("infnet", "vgg16"), {}, {"": 21_298_857}),
        (("infnet", "efficientnet_lite0"), {}, {"trunk": 2_958_848}),
        (("unet", "plain", 3, 6), TANH, {"": 17_269_641, "trunk": 9_412_608, "decoder": 7_856_448}),
        (("unet", "plain", 3, 6), {}, {"": 17_269_251}),
        (("unet", "plain", 3, 6), BOTH, {"": 25_341_045, **IMPROVED}),
        (("unet", "plain", 3, 6), {"improved": True}, {"": 17_390_553}),
        (("fcn8s", "vgg16", 3, 3), {}, {"": 18_643_779}),
        (("fcn8s", "vgg16", 3, 6), {}, {"": 18_645_507}),
    ],
)
def test_trainable_parameters_are_the_published_counts(net, options, counts):
    params = shapes(make(*net, **options), net[-1] if len(net) > 2 else 3)["params"]
    found = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}
    found[""] = sum(found.values())
    assert {name: found[name] for name in counts} == counts


@pytest.mark.parametrize(
    ("net", "options", "call", "size", "message"),
    [
        (("infnet", "resnet18"), {}, {}, 48, "Inf-Net on ResNet needs .* divisible by 32, got 48 "),
        (("infnet", "resnet18"), {"max_pool": False}, {}, 40, "divisible by 16, got 40 x 40"),
        (("infnet", "vgg16"), {}, {}, 24, "divisible by 16"),
        (("infnet", "resnet18"), {}, {"head": "inpaint"}, 64, "inpaint_head other than 'none'"),
        (("infnet", "resnet18"), {}, {"head": "depth"}, 64, "head must be segment or inpaint, got"),
        (("unet", "plain"), {}, {"head": "inpaint"}, 32, "inpaint_head other than 'none'"),
        (("unet", "plain"), {}, {"head": "depth"}, 32, "segment or inpaint, got 'depth'"),
        (("unet", "plain"), {}, {}, 15, r"at least 16 x 16 pixels, got \(15, 15\)"),
        (("unet", "efficientnet_lite0"), {}, {}, 48, "U-Net on EfficientNetLite0 needs .* by 32, "),
        (("fcn8s", "vgg16"), {}, {}, 48, "FCN8s needs .* divisible by 32, got 48 x 48"),
    ],
)
def test_a_head_or_size_that_cannot_work_is_named(net, options, call, size, message):
    with pytest.raises(ValueError, match=message):
        shapes(make(*net, width=8, **options), size=size, **call)


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (("x", "plain"), {}, "decoder='x': choose fcn8s, infnet or unet"),
        (("unet", "y"), {}, "trunk='y': choose efficientnet_lite0, plain, res2net50, .*vgg16"),
        (("infnet", "resnet34"), {}, "trunk='resnet34': choose .*resnet18, resnet50 or vgg16"),
        (("infnet", "plain"), {}, "trunk='plain': choose efficientnet_lite0, res2net50, "),
        (("fcn8s", "resnet18"), {}, "trunk='resnet18': choose vgg16 for decoder fcn8s"),
        (("infnet", "resnet18", 3), {}, "decoder='infnet' has one class, not 3"),
        (("unet", "plain"), {"max_pool": True}, "max_pool=True: decoder unet has no such"),
        (("fcn8s", "vgg16"), TANH, "inpaint_head='tanh_parallel': decoder fcn8s has no"),
        (("fcn8s", "vgg16"), {"improved": True}, "improved=True: decoder fcn8s has no such"),
        (("infnet", "resnet18"), {"improved": True}, "improved=True: decoder infnet has no"),
        (("unet", "vgg16"), {"improved": True}, "improved=True: trunk vgg16 has no such"),
        (("unet", "plain"), {"depth": 3}, "depth=3: decoder unet has no such option"),
        (("infnet", "vgg16"), {"max_pool": False}, "max_pool=False: trunk vgg16 has no stem"),
        (("unet", "plain"), {"inpaint_head": "tanh"}, "'tanh': choose none, tanh_parallel or lin"),
    ],
)
def test_names_and_options_that_do_not_go_together_are_refused_in_a_line(net, options, message):
    with pytest.raises(ValueError, match=message) as error:
        make(*net, **options)
    assert "\n" not in str(error.value) and str(error.value).startswith("model.")


@pytest.mark.parametrize("decoder", sorted(models.DECODERS))
def test_one_section_of_neutral_options_fits_every_decoder(decoder):
    trunk = "vgg16" if decoder == "fcn8s" else "resnet18"
    neutral = {"max_pool": False, "improved": False, "inpaint_head": "none"}
    assert make(decoder, trunk, width=8, **neutral).width == 8


def test_the_final_map_and_the_last_layers_are_told_by_name():
    maps = {"s16": jnp.zeros(1), "s8": jnp.ones(1)}
    assert models.final_map(maps) is maps["s8"]
    assert models.final_map({"recon": maps["s16"]}) is maps["s16"]
    assert models.is_output_layer(("params", "edge_branch", "out_seg", "conv", "kernel"))
    assert not models.is_output_layer(("params", "trunk", "conv1", "kernel"))
