"""Weights of ConvNeXt and EfficientNet under the names of other libraries, and under those of timm."""

import functools
import re
from collections.abc import Mapping

import timm
import torch

Weights = Mapping[str, torch.Tensor]

# Names of modules of ConvNextModel and ConvNextV2Model (transformers), and of timm.
_CONVNEXT = (
    (r"embeddings\.patch_embeddings\.", "stem.0."),
    (r"embeddings\.layernorm\.", "stem.1."),
    (r"encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layernorm\.", r"stages.\1.blocks.\2.norm."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.pwconv([12])\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.grn\.", r"stages.\1.blocks.\2.mlp.grn."),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer_scale_parameter$", r"stages.\1.blocks.\2.gamma"),
    (r"layernorm\.", "head.norm."),
)
# Names of modules of EfficientNetModel (transformers), and of a block as it is called here.
_EFFICIENTNET = (
    (r"embeddings\.convolution\.", "conv_stem."),
    (r"embeddings\.batchnorm\.", "bn1."),
    (r"encoder\.blocks\.(\d+)\.expansion\.expand_conv\.", r"\1.expand."),
    (r"encoder\.blocks\.(\d+)\.expansion\.expand_bn\.", r"\1.expand_bn."),
    (r"encoder\.blocks\.(\d+)\.depthwise_conv\.depthwise_conv\.", r"\1.depthwise."),
    (r"encoder\.blocks\.(\d+)\.depthwise_conv\.depthwise_norm\.", r"\1.depthwise_bn."),
    (r"encoder\.blocks\.(\d+)\.squeeze_excite\.(reduce|expand)\.", r"\1.se.conv_\2."),
    (r"encoder\.blocks\.(\d+)\.projection\.project_conv\.", r"\1.project."),
    (r"encoder\.blocks\.(\d+)\.projection\.project_bn\.", r"\1.project_bn."),
    (r"encoder\.top_conv\.", "conv_head."),
    (r"encoder\.top_bn\.", "bn2."),
)
# Names of modules of Perch 2 in PyTorch, after those of its own program in Flax.
_PERCH = (
    (r"stem_conv\.", "conv_stem."),
    (r"stem_bn\.", "bn1."),
    (r"blocks\.(\d+)\.expand_conv\.", r"\1.expand."),
    (r"blocks\.(\d+)\.expand_bn\.", r"\1.expand_bn."),
    (r"blocks\.(\d+)\.depthwise_conv\.", r"\1.depthwise."),
    (r"blocks\.(\d+)\.depthwise_bn\.", r"\1.depthwise_bn."),
    (r"blocks\.(\d+)\.se\.(reduce|expand)\.", r"\1.se.conv_\2."),
    (r"blocks\.(\d+)\.project_conv\.", r"\1.project."),
    (r"blocks\.(\d+)\.project_bn\.", r"\1.project_bn."),
    (r"head_conv\.", "conv_head."),
    (r"head_bn\.", "bn2."),
)
# A block with an expansion, and one without, in timm.
_WITH_EXPANSION = {
    **{"expand": "conv_pw", "expand_bn": "bn1", "depthwise": "conv_dw", "depthwise_bn": "bn2"},
    **{"project": "conv_pwl", "project_bn": "bn3"},
}
_WITHOUT_EXPANSION = {"depthwise": "conv_dw", "depthwise_bn": "bn1", "project": "conv_pw", "project_bn": "bn2"}
# The first convolution of ConvNeXt and of EfficientNet.
_FIRST_LAYERS = ("stem.0.weight", "conv_stem.weight")
# Prefixes of the whole network, and what is no part of it: a classifier, and the front end of a model of waveforms.
_PREFIXES = ("model.", "module.", "convnext.", "convnextv2.", "efficientnet.", "backbone.")
_OTHERS = ("classifier.", "frontend.", "spectrogram.")


def strip_prefixes(weights: Weights) -> dict[str, torch.Tensor]:
    """Weights of the network, named from its first module; without a classifier and a front end.

    Args:
        weights: Weights of a model that contains the network, such as `backbone.stem_conv.weight`.
    """
    kept = dict(weights)
    while True:
        kept = {name: value for name, value in kept.items() if not name.startswith(_OTHERS)}
        prefix = next((prefix for prefix in _PREFIXES if kept and all(name.startswith(prefix) for name in kept)), None)
        if prefix is None:
            return kept
        kept = {name.removeprefix(prefix): value for name, value in kept.items()}


def is_perch(weights: Weights) -> bool:
    """Whether weights have the names of Perch 2 in PyTorch."""
    return "stem_conv.weight" in weights


def to_timm_names(weights: Weights) -> dict[str, torch.Tensor] | None:
    """Renames weights of a ConvNeXt or an EfficientNet for a timm model with one input channel.

    The input channels of the first layer are summed, as timm does for one channel (`adapt_input_conv`). The kernels of
    Perch 2 are transposed, because frames are the rows of its spectrograms. `fit` changes other shapes.

    Args:
        weights: Weights by the names of transformers (`ConvNextModel`, `ConvNextV2Model`, `EfficientNetModel`) or of
            Perch 2 in PyTorch.

    Returns:
        The weights; names that the network does not have are kept. None if the names are of another library.
    """
    if "embeddings.patch_embeddings.weight" in weights:
        renamed = _rename(weights, _CONVNEXT)
    elif "embeddings.convolution.weight" in weights:
        renamed = _in_stages(_rename(weights, _EFFICIENTNET))
    elif is_perch(weights):
        renamed = _in_stages(_rename(weights, _PERCH))
        renamed = {name: value.transpose(2, 3) if value.ndim == 4 else value for name, value in renamed.items()}
    else:
        return None
    return sum_input_channels(renamed)


def sum_input_channels(weights: Weights) -> dict[str, torch.Tensor]:
    """Weights by timm's names, with the input channels of the first layer summed into one."""
    return {
        name: value.sum(dim=1, keepdim=True) if name in _FIRST_LAYERS else value for name, value in weights.items()
    }


def _rename(weights: Weights, rules: tuple[tuple[str, str], ...]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in rules:
            name, found = re.subn(rf"^{pattern}", replacement, name)
            if found:
                break
        renamed[name] = value
    return renamed


def _in_stages(weights: Weights) -> dict[str, torch.Tensor]:
    """Names blocks by stage and number in it, as timm does; a stage begins where the number of channels changes."""
    channels = {
        int(match[1]): len(value)
        for name, value in weights.items()
        if (match := re.fullmatch(r"(\d+)\.project\.weight", name))
    }
    places: dict[int, str] = {}
    stage, number = -1, 0
    for block in sorted(channels):
        stage, number = (stage, number + 1) if channels[block] == channels.get(block - 1) else (stage + 1, 0)
        places[block] = f"blocks.{stage}.{number}"
    renamed = {}
    for name, value in weights.items():
        first, _, rest = name.partition(".")
        if first.isdecimal() and int(first) in places:
            names = _WITH_EXPANSION if f"{first}.expand.weight" in weights else _WITHOUT_EXPANSION
            module, _, parameter = rest.partition(".")
            name = f"{places[int(first)]}.{names.get(module, module)}.{parameter}"
        renamed[name] = value
    return renamed


def fit(weights: Weights, expected: Weights) -> dict[str, torch.Tensor] | None:
    """Reshapes weights to the shapes of a timm model.

    timm's small ConvNeXts have 1x1 convolutions instead of linear layers, and a vector for V2's normalisation;
    Perch 2 has linear layers where timm's EfficientNet has 1x1 convolutions. These are the same numbers with more or
    fewer axes of length 1.

    Args:
        weights: Weights by timm's names.
        expected: The timm model's state.

    Returns:
        The weights by name, or None if a name or a shape belongs to another network.
    """
    if weights.keys() != expected.keys():
        return None
    if any(_lengths(weights[name]) != _lengths(value) for name, value in expected.items()):
        return None
    return {name: weights[name].reshape(value.shape) for name, value in expected.items()}


def timm_backbone(weights: Weights) -> str | None:
    """Name of the ConvNeXt or EfficientNet of timm that fits these weights (see `fit`); None if there is none."""
    # timm's `test_` models are excluded: they have another activation, which weights do not show. EfficientNets
    # without `tf_` have the same weights and another padding.
    family = "convnext*" if _FIRST_LAYERS[0] in weights else "tf_efficientnet_b*"
    return next((name for name in timm.list_models(family) if fit(weights, _timm_state(name)) is not None), None)


@functools.cache
def _timm_state(name: str) -> dict[str, torch.Tensor]:
    """Names and shapes of the weights of a timm model; nothing is computed or kept in memory."""
    with torch.device("meta"):
        return timm.create_model(name, in_chans=1, num_classes=0).state_dict()


def _lengths(value: torch.Tensor) -> list[int]:
    return [length for length in value.shape if length != 1]
