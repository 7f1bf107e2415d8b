"""How the public PyTorch state dicts name what our networks hold."""

from collections.abc import Iterable

NETWORKS = (
    "infnet_resnet50",
    "infnet_res2net50",
    "infnet_vgg16",
    "coach",
    "trunk_resnet18",
    "trunk_resnet50",
    "trunk_res2net50",
    "trunk_efficientnet_lite0",
    "unet_multi",
    "unet_multi_improved",
)

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_RFB = {"rfb8": "rfb2_1", "rfb16": "rfb3_1", "rfb32": "rfb4_1"}
_ATTENTION = {
    "reverse_attention32": "ra4",
    "reverse_attention16": "ra3",
    "reverse_attention8": "ra2",
}
_DECODER = {
    **{f"up{i}": f"conv_upsample{i}" for i in range(1, 6)},
    "concat2": "conv_concat2",
    "concat3": "conv_concat3",
    "out_seg": "conv5",
    "out_inpaint": "conv5_inpainting",
}
_COACH = {"mu": "mu", "logvar": "std", "score": "pred"}


def _trunk_part(part: str, backbone: str) -> str:
    """Torch name of one level of a trunk's path."""
    if part.startswith("downsample"):
        # Res2Net's shortcut starts with a pool, which takes index 0.
        first = 1 if backbone == "res2net50" else 0
        return f"downsample.{first if part.endswith('conv') else first + 1}"
    if part.startswith("stem_"):
        if part == "stem_bn2":
            return "bn1"
        return f"conv1.{3 * int(part[-1]) + part.startswith('stem_bn')}"
    if backbone == "vgg16":
        stage = part.split("_")[0]
        return f"{stage}_1.{part}_1" if stage in ("conv4", "conv5") else f"{stage}.{part}"
    return part.replace("_", ".")


def _lite_name(parts: list[str]) -> str:
    """Torch name of a layer of the EfficientNet-lite0 trunk."""
    if parts[0].startswith("stem"):
        return "_bn0" if parts[0] == "stem_bn" else "_conv_stem"
    layer = parts[1] if parts[1].startswith("bn") else f"{parts[1]}_conv"
    return f"_blocks.{parts[0].removeprefix('block')}._{layer}"


def _head_parts(block: str, layer: str) -> str:
    """Torch name of a layer of Inf-Net outside the trunk."""
    if block in _RFB:
        inner = {"join": "conv_cat", "shortcut": "conv_res"}
        return f"{_RFB[block]}.{inner.get(layer) or layer.replace('_', '.')}"
    if block == "partial_decoder":
        return f"ParDec.{_DECODER.get(layer, layer)}"
    if block == "edge_branch":
        last = {"out_seg": "conv4", "out_inpaint": "conv4_inpainting"}
        return f"edge_{last.get(layer, layer)}"
    last = 5 if block == "reverse_attention32" else 4
    names = {"squeeze": "conv1", "out_seg": f"conv{last}", "out_inpaint": f"conv{last}_inpainting"}
    return f"{_ATTENTION[block]}_{names.get(layer) or f'conv{int(layer[-1]) + 2}'}"


def _unet_name(parts: list[str]) -> str:
    """Torch name of a layer of a multi-class U-Net."""
    if parts[0] in ("out_seg", "out_inpaint"):
        return "outc.conv" if parts[0] == "out_seg" else "out_inpainting.conv"
    part, block, layer = parts
    # Per convolution the public block holds three modules: convolution, batch norm, ReLU.
    inner = f"double_conv.{3 * (int(layer[-1]) - 1) + layer.startswith('bn')}"
    if part == "trunk":
        return f"inc.{inner}" if block == "down0" else f"{block}.maxpool_conv.1.{inner}"
    suffix = "_inpainting" if part == "decoder_inpaint" else ""
    return f"{block}{suffix}.conv.{inner}"


def torch_name(path: tuple[str, ...], network: str) -> str:
    """Name in the public state dict of the variable at `path` (without its collection)."""
    *parts, leaf = path
    kind, _, backbone = network.partition("_")
    if kind == "unet":
        name = _unet_name(parts)
    elif network == "trunk_efficientnet_lite0":
        name = _lite_name(parts[1:])
    elif parts[0] == "trunk":
        prefix = {"coach": "", "trunk": ""}.get(kind, "vgg." if backbone == "vgg16" else "resnet.")
        name = prefix + ".".join(_trunk_part(part, backbone) for part in parts[1:])
    elif kind == "coach":
        name = _COACH[parts[0]]
    else:
        name = ".".join([_head_parts(parts[0], parts[1]), *parts[2:]])
    return f"{name}.{_LEAVES[leaf]}"


def unused_reason(name: str) -> str | None:
    """Why a tensor of a public file has no place here; None if nothing explains it."""
    if name.endswith("num_batches_tracked"):
        return "batch counter, not needed with a fixed momentum"
    if name.removeprefix("resnet.") in ("fc.weight", "fc.bias") or name.startswith(
        ("_conv_head.", "_bn1.", "_fc.")
    ):
        return "ImageNet classifier, not part of the network"
    if name.startswith(("vgg.conv4_2.", "vgg.conv5_2.")):
        return "second copy of conv4 and conv5, never called in the public code"
    return None


def detect_network(names: Iterable[str]) -> str:
    """Which of NETWORKS a state dict belongs to, by its names.

    Raises:
        ValueError: if none fits.
    """
    names = list(names)
    prefix = "infnet_" if any(name.startswith("ra4_conv1.") for name in names) else "trunk_"
    if "mu.weight" in names and "pred.weight" in names:
        return "coach"
    if "inc.double_conv.0.weight" in names:
        # A decoder of its own for inpainting is what tells the improved variant by names.
        improved = any(name.startswith("up1_inpainting.") for name in names)
        return "unet_multi_improved" if improved else "unet_multi"
    if any(name.startswith("vgg.conv1.") for name in names) and prefix == "infnet_":
        return "infnet_vgg16"
    if "_conv_stem.weight" in names and "_blocks.0._depthwise_conv.weight" in names:
        return "trunk_efficientnet_lite0"
    if any(".convs.0." in name for name in names):
        return f"{prefix}res2net50"
    if any(name.endswith("layer1.0.conv3.weight") for name in names):
        return f"{prefix}resnet50"
    if "layer1.0.conv2.weight" in names and prefix == "trunk_":
        return "trunk_resnet18"
    example = next(iter(names), "no tensors")
    raise ValueError(f"not a known network (first tensor: {example}); known: {', '.join(NETWORKS)}")
