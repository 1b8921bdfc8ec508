"""ConvNeXt weights in transformers' naming, for timm's ConvNeXt: the same networks under other names."""

import functools
import re
from collections.abc import Mapping

import timm
import torch

# transformers' name of a module inside ConvNextModel or ConvNextV2Model, and timm's.
_RENAMED = (
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
_FIRST_LAYER = "stem.0.weight"


def to_timm_names(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the weights of a `ConvNextModel` or `ConvNextV2Model` for a timm model with one input channel.

    The channels of the first layer are summed, which is timm's rule for one channel (`adapt_input_conv`). Shapes stay
    as transformers has them: `fit` brings them to those of a timm model.

    Args:
        weights: By transformers' names; a name that ConvNeXt does not have is kept as it is.
    """
    renamed = {}
    for name, value in weights.items():
        for pattern, replacement in _RENAMED:
            name, found = re.subn(rf"^{pattern}", replacement, name)
            if found:
                break
        renamed[name] = value.sum(dim=1, keepdim=True) if name == _FIRST_LAYER else value
    return renamed


def fit(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """Brings weights to the shapes of a timm model.

    timm's small models have 1x1 convolutions where transformers has linear layers, and V2's normalisation is a vector
    there: the same numbers with axes of length 1 more or fewer.

    Args:
        weights: By timm's names.
        expected: The timm model's state.

    Returns:
        The weights by name, or None where a name or a shape tells of another network.
    """
    if weights.keys() != expected.keys():
        return None
    if any(_lengths(weights[name]) != _lengths(value) for name, value in expected.items()):
        return None
    return {name: weights[name].reshape(value.shape) for name, value in expected.items()}


def timm_backbones(weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of timm's ConvNeXts that have these weights; `weights` as for `fit`."""
    return [name for name, state in _timm_states().items() if fit(weights, state) is not None]


@functools.cache
def _timm_states() -> dict[str, dict[str, torch.Tensor]]:
    """Names and shapes of the weights of timm's ConvNeXts; nothing is computed or kept in memory."""
    # timm's `test_` models are left out: they have another activation, which no weight tells.
    names = timm.list_models("convnext*")
    with torch.device("meta"):
        return {name: timm.create_model(name, in_chans=1, num_classes=0).state_dict() for name in names}


def _lengths(value: torch.Tensor) -> list[int]:
    return [length for length in value.shape if length != 1]
