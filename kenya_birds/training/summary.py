"""What a run leaves beside its model, for the model card and for whoever repeats it: JSON and CSV files."""

from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import datasets
import pandas as pd
import torch
from transformers import TrainingArguments

from kenya_birds.data.builders import KenyaBirds
from kenya_birds.training.augmentation import AugmentationArguments
from kenya_birds.training.inherited_arguments import defaults
from kenya_birds.training.settings import DECIDING_ARGUMENTS

# Arguments that the model card tells in any case, and others that decide only where they are set.
TOLD_ARGUMENTS = (
    "seed",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "lr_scheduler_type",
    "warmup_steps",
    "loss_weight_power",
    "sampler_weight_power",
    "label_smoothing_factor",
    "bf16",
    "fp16",
)
TOLD_VERSIONS = ("kenya_birds", "torch", "timm", "transformers", "datasets", "noisereduce")


def training_summary(
    builder: KenyaBirds,
    splits: pd.DataFrame,
    clips: datasets.DatasetDict,
    args: TrainingArguments,
    augmentation: AugmentationArguments,
    starting_point: str,
) -> dict[str, Any]:
    """Describes data and settings of a run; no path of this machine is in it.

    Args:
        builder: The builder of the clips.
        splits: `recording` and `split`.
        clips: The clips by split.
        args: The training arguments.
        augmentation: What chance changed in training clips.
        starting_point: Where the weights came from, as `starting_points.initialize` returns it.
    """
    archive, classes = builder.archive, builder.classes
    counts = archive.annotations["species"].value_counts()
    per_split = {split: Counter(clips[split]["label"]) for split in clips}
    return {
        "archive": {
            "name": archive.data_dir.name,
            "recordings": len(archive.headers),
            # By their names: a copy of Zenodo record 10943500 may lie in a folder of any name.
            "is_kenyan": all(name.startswith("KEN_") for name in archive.headers),
            "hours": sum(header.duration_s for header in archive.headers.values()) / 3600,
            "annotations": len(archive.annotations) + len(archive.set_aside),
            "annotations_set_aside": Counter(archive.set_aside["reason"]),
            "species": len(counts),
            "min_annotations": builder.config.min_annotations,
            "dropped_species": {code: int(n) for code, n in sorted(counts.items()) if code not in classes},
        },
        "recordings_per_split": splits["split"].value_counts().to_dict(),
        "clips_per_split": {split: len(clips[split]) for split in clips},
        "clips_per_species": {
            code: {split: per_split[split][label] for split in clips} for label, code in enumerate(classes)
        },
        "starting_point": starting_point,
        "arguments": _arguments(args),
        "augmentation": asdict(augmentation),
        "processes": args.world_size,
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type,
        "versions": {name: version(name) for name in TOLD_VERSIONS},
    }


def _arguments(args: TrainingArguments) -> dict[str, Any]:
    values, usual = args.to_dict(), defaults(type(args))
    set_too = [name for name in DECIDING_ARGUMENTS if values[name] not in (None, usual[name])]
    # transformers derives it from the metric.
    return {name: values[name] for name in (*TOLD_ARGUMENTS, *set_too) if name != "greater_is_better"}
