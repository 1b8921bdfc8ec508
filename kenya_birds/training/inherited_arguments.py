"""Arguments of transformers' `TrainingArguments` that would do harm here, or nothing: they are refused.

Light: parsers import it before torch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kenya_birds.errors import UserError

_RESUME = "a resumed run would not be what it is without a stop"
_EVALUATION = "the metrics need the scores and labels of all clips, and here nothing else is to be had"
_LANGUAGE = "it is for language models"
_ONE_DEVICE = "these models fit on one device: start several processes with accelerate launch or torchrun instead"
# Why an argument has to keep its default.
KEPT = {
    "auto_find_batch_size": "it changes the clips of a step, and with them what comes out: give a smaller "
    "--per_device_train_batch_size and more --gradient_accumulation_steps",
    "train_sampling_strategy": "clips are drawn evenly, or as --sampler_weight_power says",
    "ignore_data_skip": _RESUME,
    "restore_callback_states_from_checkpoint": _RESUME,
    "fp16_full_eval": "the saved model would have half precision: --fp16 and --bf16 speed evaluation up without that",
    "bf16_full_eval": "the saved model would have half precision: --fp16 and --bf16 speed evaluation up without that",
    **dict.fromkeys(("prediction_loss_only", "label_names", "include_for_metrics", "batch_eval_metrics"), _EVALUATION),
    **dict.fromkeys(("eval_do_concat_batches", "eval_use_gather_object"), _EVALUATION),
    **dict.fromkeys(("neftune_noise_alpha", "use_liger_kernel"), _LANGUAGE),
    **dict.fromkeys(("fsdp", "deepspeed", "parallelism_config"), _ONE_DEVICE),
}
HUB_PREFIXES = ("push_to_hub", "hub_")


# What an evaluation during training gives, and so what the best epoch can be chosen by.
METRICS = ("macro_f1", "weighted_f1", "accuracy", "loss")


def check_inherited(values: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Refuses what transformers would accept and do silently, or leave undone silently.

    Args:
        values: Training arguments by name; those that are missing have their defaults.
        usual: The defaults.

    Raises:
        UserError: If an argument is set that has to keep its default, or the best checkpoint would not be the one with
            the best metric.
    """
    for name in usual.keys() & values.keys():
        value = values[name]
        if not (value or usual[name]) or getattr(value, "value", value) == usual[name]:
            continue
        if name.startswith(HUB_PREFIXES):
            raise UserError(
                f"{name} cannot be used, since training uploads nothing: publish the model with push_model.py when it "
                "is trained, which searches it for secrets first and leaves out pickled files"
            )
        if name in KEPT:
            raise UserError(f"{name} has to keep its default, {usual[name]}: {KEPT[name]}")
    given = values.get("metric_for_best_model", usual["metric_for_best_model"])
    metric = (given or METRICS[0]).removeprefix("eval_")
    if metric not in METRICS:
        raise UserError(f"metric_for_best_model is {given!r}: expected one of {', '.join(METRICS)}")
    greater = values.get("greater_is_better")
    if given and greater is (metric == "loss"):
        raise UserError(
            f"greater_is_better is {greater} and metric_for_best_model {metric}, so that the worst epoch would be "
            "kept as the best: leave --greater_is_better out"
        )


def defaults(group: Any) -> dict[str, Any]:
    """The defaults of a group's fields, as JSON holds them; those without a default are left out."""
    found = {}
    for field in dataclasses.fields(group):
        factory = field.default_factory
        value = field.default if factory is dataclasses.MISSING else factory()
        if value is not dataclasses.MISSING:
            found[field.name] = getattr(value, "value", value)
    return found
