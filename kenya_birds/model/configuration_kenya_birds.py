"""Configuration of the bird classifier."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)


class KenyaBirdsConfig(PreTrainedConfig):
    """Configuration of a `KenyaBirdsForAudioClassification`.

    Labels are eBird codes (`id2label`, `label2id`); `problem_type` is `"single_label_classification"` or
    `"multi_label_classification"`.

    Args:
        backbone (`str`, defaults to `"convnext_tiny.in12k_ft_in1k"`): Name of a timm image model.
        backbone_variant (`str`, defaults to `"timm"`): How the network differs from timm's of that name:
            `"transformers"` or `"perch-2"` (see `build_backbone`). For these two, features are not padded either.
        backbone_members (`int`, defaults to 1): Number of backbones with different weights, whose embeddings are
            joined (see `Members`).
        drop_rate (`float`, defaults to 0.0): Dropout before the classifier.
        drop_path_rate (`float`, defaults to 0.0): Stochastic depth, if the backbone supports it.
        species (`dict`, *optional*): Scientific and common name by eBird code:
            `{"combul2": {"scientific_name": "Pycnonotus barbatus", "common_name": "Common Bulbul"}}`.
        no_call_class (`bool`, defaults to `False`): The classes of a multi-label model and "no call" share a softmax.
            No call is no label: its logit is always 0, and a class's score is its share of the softmax.
        logit_scale (`float` or `list[float]`, *optional*): Calibration: in evaluation mode the model's logits are
            `logit_scale * logits + logit_offset`. One number for all classes (1 / temperature), or one per class.
        logit_offset (`list[float]`, *optional*): One number per class.
        graph (`dict`, *optional*): A published network, in place of the backbone; without
            `head`, also in place of the classifier:
            `file` (a name in the model's folder, or a path), `sha256`, the names of its tensors `input`, `scores` and
            `embedding` (None: it has none), `outputs` (number of scores), `samples` (length of a window; None: any),
            `embedding_size`, `activation` (what turns its scores into probabilities: `"sigmoid"`, `"softmax"`, or
            `"none"` if they are probabilities), `peak` (each window is centred and scaled to this peak; None: it is
            not), `spectrogram` (bins and frames of the spectrograms that it takes; None: it takes the waveform), and
            `name`, `license` and `source` for the model card.
        audio_model (`dict`, *optional*): An audio model of transformers in place of the backbone: `config` and
            `extractor` (its configuration, and the settings of its feature extractor), `embedding_size`, and `name`
            for the model card.
        head (`dict`, *optional*): The classifier is an `EmbeddingHead`, trained on embeddings of a frozen backbone:
            `hidden_size` (size of its hidden layer; None: it is linear) and `network_scores` (whether the scores of
            the published network are an input of the head).
    """

    model_type = "kenya_birds"

    backbone: str = "convnext_tiny.in12k_ft_in1k"
    backbone_variant: str = "timm"
    backbone_members: int = 1
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    species: dict[str, dict[str, str]] | None = None
    no_call_class: bool = False
    logit_scale: float | list[float] | None = None
    logit_offset: list[float] | None = None
    graph: dict[str, Any] | None = None
    audio_model: dict[str, Any] | None = None
    head: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Builds a configuration from a dictionary, as in transformers.

        If `num_labels` or `id2label` replaces the labels of the dictionary, the classifier is a new one: the
        calibration and the names of species that are not among the new labels are dropped. `label2id` follows
        `id2label` if it is not given.

        Args:
            config_dict: The content of a config.json.
            **kwargs: Values that replace those of the dictionary, and `return_unused_kwargs`.

        Returns:
            The configuration; with `return_unused_kwargs` also a dictionary of the values without a field.
        """
        saved = config_dict.get("id2label")
        before = None if saved is None else [saved[index] for index in sorted(saved, key=int)]
        built = super().from_dict(config_dict, **kwargs)
        config = built[0] if isinstance(built, tuple) else built
        config.id2label = {int(index): label for index, label in config.id2label.items()}  # JSON has texts
        labels = [config.id2label[index] for index in sorted(config.id2label)]
        if before is not None and labels != before:
            if config.logit_scale is not None or config.logit_offset is not None:
                logger.warning("The labels are new: the calibration of the saved model is not used")
            if len(labels) == len(before):
                logger.warning(
                    "There are as many new labels as old ones, so the classifier has the weights of the old ones: "
                    "train it before you use its scores"
                )
            config.logit_scale = config.logit_offset = None
            if "label2id" not in kwargs:
                config.label2id = {label: index for index, label in enumerate(labels)}
            if config.species is not None:
                config.species = {code: config.species[code] for code in labels if code in config.species} or None
        return built


KenyaBirdsConfig.register_for_auto_class()
