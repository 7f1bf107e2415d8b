"""Networks: published parameter counts, output sizes, gradients per head, mask cells."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from infnet_jax.models.coach import Coach, random_score, upsample_mask, visible_from_score
from infnet_jax.models.infnet import BACKBONES, InfNet, is_output_layer
from infnet_jax.models.resnet import ResNet

OUTPUTS = {"coarse", "s32", "s16", "s8", "edge"}


def _shapes(model: Any, size: int = 64, **kwargs: Any) -> Any:
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(
        lambda key, x: model.init(key, x, train=False, **kwargs), jax.random.key(0), image
    )


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("backbone", "trunk", "total"),
    [
        ("resnet18", 11_176_512, None),
        ("resnet50", 23_508_032, 30_911_401),
        ("res2net50", 23_669_352, 33_121_721 - 2_049_000),
        ("vgg16", None, 21_298_857),
        ("efficientnet_lite0", 2_958_848, None),
    ],
)
def test_trainable_parameters_are_the_published_counts(backbone, trunk, total):
    params = _shapes(InfNet(backbone))["params"]
    assert trunk is None or _count(params["trunk"]) == trunk
    assert total is None or _count(params) == total


def test_parameters_by_module_are_the_published_counts():
    params = _shapes(InfNet("resnet50", inpaint_head="tanh_parallel"))["params"]
    extra = {p: v for p, v in flatten_dict(params).items() if any("inpaint" in q for q in p)}
    assert _count(extra) == 6_267
    assert _count(params) == 30_917_668
    plain = _shapes(InfNet("resnet50"))["params"]
    assert {name: _count(tree) for name, tree in plain.items()} == {
        "trunk": 23_508_032,
        "rfb8": 178_112,
        "rfb16": 260_032,
        "rfb32": 423_872,
        "partial_decoder": 277_473,
        "edge_branch": 91_074,
        "reverse_attention32": 5_851_394,
        "reverse_attention16": 177_090,
        "reverse_attention8": 144_322,
    }


def test_coach_has_the_published_count():
    params = _shapes(Coach())["params"]
    assert _count(params) == 11_279_213
    assert _count(params["trunk"]) == 11_176_512


@pytest.mark.parametrize("size", [128, 352])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_five_outputs_have_the_size_of_the_input(backbone, size):
    model = InfNet(backbone, inpaint_head="linear_replace", image_channels=2, dtype="bfloat16")
    variables = _shapes(model)
    image = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    for head, channels in (("segment", 1), ("inpaint", 2)):
        out = jax.eval_shape(
            lambda v, x, head=head: model.apply(v, x, train=False, head=head), variables, image
        )
        assert set(out) == OUTPUTS
        assert {leaf.shape for leaf in out.values()} == {(2, size, size, channels)}
        assert {leaf.dtype for leaf in out.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("kind", ["tanh_parallel", "linear_replace"])
def test_init_makes_both_heads_whichever_is_called(kind):
    model = InfNet("resnet18", inpaint_head=kind)
    segment, inpaint = (flatten_dict(_shapes(model, head=head)) for head in ("segment", "inpaint"))
    assert {path: v.shape for path, v in segment.items()} == {
        path: v.shape for path, v in inpaint.items()
    }
    last = {path[1:3] for path in segment if path[0] == "params" and is_output_layer(path)}
    blocks = ["edge_branch", "partial_decoder"] + [f"reverse_attention{s}" for s in (8, 16, 32)]
    assert last == {(b, f"out_{which}") for b in blocks for which in ("seg", "inpaint")}


def test_without_the_stem_pool_every_tap_has_twice_the_resolution():
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    for pool, sizes in ((True, [16, 8, 4, 2]), (False, [32, 16, 8, 4])):
        model = ResNet(18, 16, max_pool=pool)
        taps, _ = jax.eval_shape(
            lambda x, model=model: model.init_with_output(jax.random.key(0), x, train=False), image
        )
        assert [taps[f].shape[1] for f in ("f4", "f8", "f16", "f32")] == sizes
        assert [taps[f].shape[3] for f in ("f4", "f8", "f16", "f32")] == [16, 32, 64, 128]


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({"backbone": "resnet18"}, 48, "resnet18 needs .* divisible by 32, got 48 x 48"),
        ({"backbone": "resnet18", "max_pool": False}, 40, "divisible by 16, got 40 x 40"),
        ({"backbone": "vgg16"}, 24, "divisible by 16"),
        ({"backbone": "resnet34"}, 64, "backbone must be one of .*'resnet34'"),
        ({"backbone": "resnet50", "width": 32}, 64, "width 32 is for resnet18 and"),
        ({"backbone": "vgg16", "max_pool": False}, 64, "no stem pool"),
        ({"inpaint_head": "tanh"}, 64, "inpaint_head must be one of .*'tanh'"),
    ],
)
def test_a_field_or_size_that_cannot_work_is_named(fields, size, message):
    with pytest.raises(ValueError, match=message):
        _shapes(InfNet(**fields), size)


def test_inpainting_without_inpainting_heads_is_refused():
    with pytest.raises(ValueError, match="inpaint_head other than 'none'"):
        _shapes(InfNet("resnet18"), head="inpaint")
    with pytest.raises(ValueError, match="head must be one of .*'depth'"):
        _shapes(InfNet("resnet18"), head="depth")


BLOCKS = (
    "partial_decoder",
    "reverse_attention32",
    "reverse_attention16",
    "reverse_attention8",
    "edge_branch",
)
SEG = {f"{block}/out_seg" for block in BLOCKS}
INPAINT = {f"{block}/out_inpaint" for block in BLOCKS}


@functools.cache
def _train_pass(kind: str, head: str) -> tuple[Any, set[str], set[str]]:
    """A training pass of a narrow network: outputs, and which last layers it touched.

    Touched: whose kernel gets a gradient from the sum of squares of all outputs; and whose
    running statistics change. Only last layers are differentiated, which compiles quickly.
    """
    model = InfNet("resnet18", width=8, max_pool=False, inpaint_head=kind)
    rng = np.random.default_rng(0)
    flat = flatten_dict(_shapes(model, 32))
    for path, leaf in flat.items():
        fan_in = np.prod(leaf.shape[:-1]) if path[-1] == "kernel" else None
        value = rng.standard_normal(leaf.shape) * np.sqrt(2 / fan_in) if fan_in else None
        default = np.full(leaf.shape, float(path[-1] in ("scale", "var")))
        flat[path] = jnp.asarray(default if value is None else value, jnp.float32)
    last = {path: v for path, v in flat.items() if path[0] == "params" and is_output_layer(path)}

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


@pytest.mark.parametrize(("size", "kept"), [(352, 362), (128, 47)])
def test_hard_masks_keep_one_cell_less_than_k_unless_inclusive(size, kept):
    side = size // 16
    score = random_score(jax.random.key(3), (2, side, side, 1))
    options = {"keep_ratio": 0.75, "alpha": 100.0, "hard": True}
    mask = visible_from_score(score, **options)
    assert mask.sum((1, 2, 3)).tolist() == [kept, kept]
    mask = visible_from_score(score, **options, inclusive=True)
    assert mask.sum((1, 2, 3)).tolist() == [kept + 1, kept + 1]
    assert float(score[0][mask[0] == 1].min()) > float(score[0][mask[0] == 0].max())


def test_soft_mask_is_half_at_the_threshold_and_its_gradient_reaches_it():
    score = jnp.asarray([4.0, 3.0, 2.0, 1.0]).reshape(1, 2, 2, 1)

    def weighted(score):
        mask = visible_from_score(score, keep_ratio=0.5, alpha=2.0, hard=False)
        return mask[0, 0, 0, 0], mask  # the mask at the largest score

    gradient, mask = jax.grad(weighted, has_aux=True)(score)
    sigmoid = 1 / (1 + np.exp(-2.0 * np.array([1.0, 0.0, -1.0, -2.0])))
    np.testing.assert_allclose(mask.reshape(-1), sigmoid, rtol=1e-6)
    slope = 2.0 * sigmoid[0] * (1 - sigmoid[0])
    np.testing.assert_allclose(gradient.reshape(-1), [slope, -slope, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("keep_ratio", [0.0, 0.01, 1.5])
def test_keep_ratio_outside_the_cells_is_refused(keep_ratio):
    with pytest.raises(ValueError, match="keep_ratio must keep"):
        visible_from_score(jnp.ones((1, 4, 4, 1)), keep_ratio=keep_ratio, alpha=1.0, hard=True)


def test_upsampled_mask_repeats_cells():
    mask = jnp.asarray([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 2, 1)
    big = upsample_mask(mask, (32, 32))[0, :, :, 0]
    np.testing.assert_array_equal(big, np.kron(np.eye(2), np.ones((16, 16))))


def test_coach_scores_cells_and_draws_only_with_a_key():
    coach, image = Coach(width=4), jax.random.normal(jax.random.key(0), (1, 32, 48, 3))
    variables = jax.jit(lambda x: coach.init(jax.random.key(0), x, train=False))(image)
    apply = jax.jit(lambda x, key: coach.apply(variables, x, train=False, key=key))
    still, again = apply(image, None), apply(image, None)
    assert still["score"].shape == (1, 2, 3, 1)
    assert still["mu"].shape == still["logvar"].shape == (1, 2, 3, 100)
    np.testing.assert_array_equal(still["score"], again["score"])
    one, other = (apply(image, jax.random.key(k))["score"] for k in (1, 2))
    assert not np.allclose(one, other) and not np.allclose(one, still["score"])
    with pytest.raises(ValueError, match="coach needs .* divisible by 16, got 40 x 32"):
        coach.init(jax.random.key(0), jnp.ones((1, 40, 32, 3)), train=False)
