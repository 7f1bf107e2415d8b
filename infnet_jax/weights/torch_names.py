"""How the public PyTorch state dicts name what our networks hold.

A module's path, joined by dots, becomes its public name by rules (pattern, replacement), which
apply one after the other.
"""

import re
from collections.abc import Collection

Rules = tuple[tuple[str, str], ...]

_RESNET: Rules = (
    (r"downsample_conv", "downsample.0"),
    (r"downsample_bn", "downsample.1"),
    (r"(layer\d)_", r"\1."),
)
# Of each trunk the rules below `trunk`.
TRUNKS: dict[str, Rules] = {
    "resnet18": _RESNET,
    "resnet50": _RESNET,
    "res2net50": (
        (r"stem_bn2", "bn1"),
        (r"stem_conv0", "conv1.0"),
        (r"stem_bn0", "conv1.1"),
        (r"stem_conv1", "conv1.3"),
        (r"stem_bn1", "conv1.4"),
        (r"stem_conv2", "conv1.6"),
        (r"downsample_conv", "downsample.1"),  # a pool comes first
        (r"downsample_bn", "downsample.2"),
        (r"(layer\d|convs|bns)_", r"\1."),
    ),
    "vgg16": ((r"(conv[123])(_\d)", r"\1.\1\2"), (r"(conv[45])(_\d)", r"\1_1.\1\2_1")),
    "efficientnet_lite0": (
        (r"(expand|depthwise|project)", r"\1_conv"),
        (r"block(\d+)\.", r"_blocks.\1._"),
        (r"^stem_bn", "_bn0"),
        (r"^stem", "_conv_stem"),
    ),
}
_INFNET: Rules = (
    (r"^rfb8\.", "rfb2_1."),
    (r"^rfb16\.", "rfb3_1."),
    (r"^rfb32\.", "rfb4_1."),
    (r"\.join", ".conv_cat"),
    (r"\.shortcut", ".conv_res"),
    (r"(branch\d)_", r"\1."),
    (r"^partial_decoder\.", "ParDec."),
    (r"\.(up|concat)(\d)", r".conv_\1\2"),
    (r"conv_up(\d)", r"conv_upsample\1"),
    (r"^edge_branch\.", "edge_"),
    (r"^reverse_attention32\.", "ra4_"),
    (r"^reverse_attention16\.", "ra3_"),
    (r"^reverse_attention8\.", "ra2_"),
    (r"squeeze", "conv1"),
    (r"conv_0", "conv2"),
    (r"conv_1", "conv3"),
    (r"conv_2", "conv4"),
    (r"(ParDec\.|ra4_)out", r"\1conv5"),
    (r"_out", "_conv4"),
    (r"(conv[45])_seg", r"\1"),
    (r"(conv[45])_inpaint", r"\1_inpainting"),
)
_COACH: Rules = ((r"^logvar", "std"), (r"^score", "pred"))
_UNET: Rules = (
    (r"^trunk\.down0", "inc"),
    (r"^trunk\.(down\d)", r"\1.maxpool_conv.1"),
    (r"^decoder\.(up\d)", r"\1.conv"),
    (r"^decoder_inpaint\.(up\d)", r"\1_inpainting.conv"),
    # Per convolution the public block holds three modules: convolution, batch norm, ReLU.
    (r"\.conv1$", ".double_conv.0"),
    (r"\.bn1$", ".double_conv.1"),
    (r"\.conv2$", ".double_conv.3"),
    (r"\.bn2$", ".double_conv.4"),
    (r"^out_seg", "outc.conv"),
    (r"^out_inpaint", "out_inpainting.conv"),
)
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
    """Name in the public state dict of the variable at `path` (without its collection)."""
    kind, _, trunk = network.partition("_")
    below, prefix, rules = path[:-1], "", {"coach": _COACH, "unet": _UNET}.get(kind, _INFNET)
    if path[0] == "trunk" and kind != "unet":
        below, rules = path[1:-1], TRUNKS[trunk or "resnet18"]  # the latter is the coach's
        if kind == "infnet":
            prefix = "vgg." if trunk == "vgg16" else "resnet."
    name = ".".join(below)
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return f"{prefix}{name}.{_LEAVES.get(path[-1], 'weight')}"


def unused_reason(name: str) -> str | None:
    """Why a tensor of a public file has no place here; None if nothing explains it."""
    return next((reason for rule, reason in _UNUSED.items() if re.search(rule, name)), None)


def detect_network(names: Collection[str]) -> str:
    """Which of NETWORKS a state dict belongs to, by the names of its tensors.

    Raises:
      ValueError: none fits.
    """
    for network, sign in NETWORKS.items():
        if sign in names:
            return network
    example = next(iter(names), "no tensors")
    raise ValueError(f"not a known network (first tensor: {example}); known: {', '.join(NETWORKS)}")
