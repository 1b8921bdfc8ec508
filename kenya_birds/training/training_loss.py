"""The loss of training: of one label, of several, or of a softmax with "no call"; weighted by class."""

import torch

from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.modeling_kenya_birds import (
    MULTI_LABEL,
    classification_loss,
    log_softmax_with_no_call,
    softmax_loss,
)
from kenya_birds.training.window_training import focal_weights, log_softmax_of_log_odds


class TrainingLoss:
    """Weighted losses of clips or windows, not reduced.

    Args:
        config: The model's configuration, which says which loss it is.
        class_weights: Weight of each class, shape `(classes,)`.
        focal_gamma: Exponent of the focal weights of binary losses; 0: none.
        prior_shift: What is added to the logits in training, because windows are not drawn as often as they occur.
    """

    def __init__(
        self,
        config: KenyaBirdsConfig,
        class_weights: torch.Tensor,
        focal_gamma: float,
        prior_shift: torch.Tensor | float = 0.0,
    ) -> None:
        self._config = config
        self._class_weights = class_weights
        self._focal_gamma = focal_gamma
        self._prior_shift = prior_shift

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0, in_training: bool = False
    ) -> torch.Tensor:
        """Computes the losses.

        Args:
            logits: Of the model in training or in evaluation mode, shape `(batch, classes)`.
            labels: Class ids `(batch,)`; or 1, 0 or -100, shape `(batch, classes)`.
            label_smoothing: Share of each single-label target that is spread evenly over all classes.
            in_training: Whether the model is in training mode.

        Returns:
            Shape `(batch,)`, or `(batch, classes)` if multi-label.
        """
        is_multi_label = self._config.problem_type == MULTI_LABEL
        weights = self._class_weights.to(logits.device)
        if in_training:
            logits = logits + self._prior_shift
        if self._config.no_call_class:
            shares = log_softmax_with_no_call(logits) if in_training else log_softmax_of_log_odds(logits)
            return softmax_loss(shares, labels, weights)
        losses = classification_loss(logits, labels, self._config.problem_type, label_smoothing)
        if is_multi_label and self._focal_gamma:
            losses = losses * focal_weights(logits, labels, self._focal_gamma)
        return losses * (weights if is_multi_label else weights[labels])
