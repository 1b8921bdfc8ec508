"""Configuration of the bird classifier."""

from transformers import PreTrainedConfig


class KenyaBirdsConfig(PreTrainedConfig):
    """What is needed to build a `KenyaBirdsForAudioClassification`.

    Labels are eBird codes (`id2label`, `label2id`); `problem_type` is `"single_label_classification"` or
    `"multi_label_classification"`.

    Args:
        backbone (`str`, defaults to `"convnext_tiny.in12k_ft_in1k"`): Name of a timm image model.
        drop_rate (`float`, defaults to 0.0): Dropout in front of the classifier.
        drop_path_rate (`float`, defaults to 0.0): Stochastic depth, where the backbone has it.
        species (`dict`, *optional*): Scientific and common name by eBird code:
            `{"combul2": {"scientific_name": "Pycnonotus barbatus", "common_name": "Common Bulbul"}}`.
        logit_scale (`float` or `list[float]`, *optional*): Calibration: in evaluation mode the model's logits are
            `logit_scale * logits + logit_offset`. One number for all classes (1 / temperature), or one for each.
        logit_offset (`list[float]`, *optional*): One number for each class.
    """

    model_type = "kenya_birds"

    backbone: str = "convnext_tiny.in12k_ft_in1k"
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    species: dict[str, dict[str, str]] | None = None
    logit_scale: float | list[float] | None = None
    logit_offset: list[float] | None = None


KenyaBirdsConfig.register_for_auto_class()
