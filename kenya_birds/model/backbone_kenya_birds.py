"""The backbone: a timm image model with one input channel, or a variant of it whose weights were published."""

import difflib
from typing import Any

import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

from .configuration_kenya_birds import KenyaBirdsConfig

VARIANTS = ("timm", "transformers", "perch-2")
# Of Flax, in which Perch 2 was trained; timm's networks from TensorFlow have 1e-3.
PERCH_BN_EPS = 1e-5


class FixedPadConv2d(nn.Conv2d):
    """A convolution that pads by the same numbers of zeros whatever the size of its input.

    Args:
        conv: A convolution, whose weights are taken over.
        before: Zeros before the first row and the first column.
        after: Zeros after the last ones.
    """

    def __init__(self, conv: nn.Conv2d, before: int, after: int) -> None:
        kernel_size, stride = conv.kernel_size[0], conv.stride[0]
        super().__init__(conv.in_channels, conv.out_channels, kernel_size, stride, groups=conv.groups, bias=False)
        self.weight = conv.weight
        self.before = before
        self.after = after

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Convolves `(batch, channels, height, width)`."""
        return super().forward(nn.functional.pad(values, (self.before, self.after, self.before, self.after)))


class Members(nn.Module):
    """Several backbones with different weights, side by side.

    A linear classifier on the joined embeddings can compute the mean of the logits of several models: its weights are
    theirs, divided by their number.

    Args:
        members: Backbones of the same kind.
    """

    def __init__(self, members: list[Any]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.num_features = sum(getattr(member, "head_hidden_size", member.num_features) for member in members)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Joined embeddings `(batch, num_features)` of `(batch, 1, bands, frames)`."""
        return torch.cat([member(features) for member in self.members], dim=1)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As timm's models."""
        member: Any
        for member in self.members:
            member.set_grad_checkpointing(enable)


def build_backbone(config: KenyaBirdsConfig, **kwargs: Any) -> Any:
    """Builds the timm model `config.backbone` with one input channel, without classifier, with pooled output.

    Networks are padded in different ways. timm's EfficientNets of TensorFlow (`tf_...`) pad before each convolution
    with stride 2 so that its output has half of the size. `config.backbone_variant` builds another network of the same
    weights:

    - `"transformers"`: these convolutions pad as for an image of the size that the network was designed for, whatever
      the size of the input. This is the EfficientNet of transformers and Keras. Other networks do not differ.
    - `"perch-2"`: the first convolution does not pad, and batch normalisation has Flax's epsilon. This is Perch 2
      (https://github.com/google-research/perch, chirp/models/efficientnet.py).

    With `config.backbone_members`, there are several of them (see `Members`).

    Args:
        config: The configuration.
        **kwargs: Further arguments of `timm.create_model`, such as `pretrained=True`.

    Raises:
        ValueError: If timm does not have the model, the model accepts images of one size only, or there is no such
            variant of it.
    """
    if config.backbone_members > 1:
        return Members([_build_one(config, **kwargs) for _ in range(config.backbone_members)])
    return _build_one(config, **kwargs)


def _build_one(config: KenyaBirdsConfig, **kwargs: Any) -> Any:
    variant = config.backbone_variant
    if variant not in VARIANTS:
        raise ValueError(f"backbone_variant is {variant!r}, expected one of {VARIANTS}")
    name = config.backbone.split(".")[0]
    if not timm.is_model(name):
        similar = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(similar)}?" if similar else "timm.list_models() lists all models"
        raise ValueError(f"timm {timm.__version__} has no model '{config.backbone}': {hint}")
    tagged = timm.list_pretrained(f"{name}.*")
    if "." in config.backbone and config.backbone not in tagged:
        raise ValueError(
            f"timm {timm.__version__} has no weights '{config.backbone}': available are {', '.join(tagged) or 'none'}"
        )
    pretrained_cfg = timm.get_pretrained_cfg(config.backbone)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        raise ValueError(
            f"backbone '{config.backbone}' takes images of one size only, which spectrograms do not have: choose a "
            "convolutional backbone, such as a ConvNeXt or an EfficientNet"
        )
    if config.drop_path_rate:
        kwargs["drop_path_rate"] = config.drop_path_rate
    if variant == "perch-2":
        if not name.startswith("tf_efficientnet_b"):
            raise ValueError(f"backbone '{config.backbone}' has no variant 'perch-2': Perch 2 is a tf_efficientnet_b3")
        kwargs["bn_eps"] = PERCH_BN_EPS
    try:
        backbone = timm.create_model(config.backbone, in_chans=1, num_classes=0, **{"pretrained": False, **kwargs})
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise ValueError(f"backbone '{config.backbone}' has no stochastic depth: drop_path_rate must be 0") from None
    if variant == "transformers" and pretrained_cfg is not None:
        _fix_padding(backbone, pretrained_cfg.input_size[-1])
    elif variant == "perch-2":
        backbone.conv_stem = FixedPadConv2d(backbone.conv_stem, 0, 0)
    return backbone


def _fix_padding(backbone: nn.Module, side: int) -> None:
    """Makes convolutions that pad by the size of their input pad as for a square image."""
    convolutions = [(name, module) for name, module in backbone.named_modules() if isinstance(module, Conv2dSame)]
    for name, conv in convolutions:
        stride, half = conv.stride[0], -(-side // conv.stride[0])
        surplus = max((half - 1) * stride + conv.kernel_size[0] - side, 0)
        parent, _, own = name.rpartition(".")
        setattr(backbone.get_submodule(parent), own, FixedPadConv2d(conv, surplus // 2, surplus - surplus // 2))
        side = half


def has_gradient_checkpointing(backbone: Any) -> bool:
    """Whether a timm model can compute activations again instead of keeping them."""
    try:
        backbone.set_grad_checkpointing(True)
        backbone.set_grad_checkpointing(False)
    except (AttributeError, AssertionError):
        # timm asserts where a model does not support it.
        return False
    return True
