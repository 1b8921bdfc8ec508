"""Learning rates that differ from layer to layer."""

from typing import Any

from timm.optim import param_groups_layer_decay

from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification


def parameter_groups(
    model: KenyaBirdsForAudioClassification,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float,
    head_factor: float,
) -> list[dict[str, Any]]:
    """Groups for an optimiser: the backbone's last layer learns at the full rate, each one below at a share of it.

    Args:
        model: The classifier.
        learning_rate: Rate of the backbone's last layer.
        weight_decay: Of weights; vectors (biases, norms, scales) have none.
        layer_decay: Rate of each layer, as timm counts them, over that of the next (H. Bao et al., "BEiT", ICLR 2022).
        head_factor: Rate of the classifier over that of the backbone's last layer.
    """
    groups: list[dict[str, Any]] = [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr": learning_rate * group["lr_scale"]}
        for group in param_groups_layer_decay(model.backbone, weight_decay=weight_decay, layer_decay=layer_decay)
    ]
    rate = learning_rate * head_factor
    head = model.classifier
    return [
        *groups,
        {"params": [head.weight], "weight_decay": weight_decay, "lr": rate},
        {"params": [head.bias], "weight_decay": 0.0, "lr": rate},
    ]
