"""What a run leaves beside its model, for the model card and for whoever repeats it: JSON and CSV files."""

import json
import os
from collections import Counter
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainingArguments

from kenya_birds.data.builders import KenyaBirds
from kenya_birds.errors import UserError
from kenya_birds.training.augmentation import AugmentationArguments

SUMMARY_FILE = "training_summary.json"
METRICS_FILE = "metrics.json"
SPLITS_FILE = "splits.csv"

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
TOLD_VERSIONS = ("kenya_birds", "torch", "torchaudio", "timm", "transformers", "datasets", "noisereduce")


def training_summary(
    builder: KenyaBirds,
    clips: datasets.DatasetDict,
    args: TrainingArguments,
    augmentation: AugmentationArguments,
    starting_point: str,
) -> dict[str, Any]:
    """Describes data and settings of a run; no path of this machine is in it.

    Args:
        builder: The builder of the clips.
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
            "hours": sum(header.duration_s for header in archive.headers.values()) / 3600,
            "annotations": len(archive.annotations) + len(archive.set_aside),
            "annotations_set_aside": Counter(archive.set_aside["reason"]),
            "species": len(counts),
            "min_annotations": builder.config.min_annotations,
            "dropped_species": {code: int(n) for code, n in sorted(counts.items()) if code not in classes},
        },
        "recordings_per_split": builder.splits["split"].value_counts().to_dict(),
        "clips_per_split": {split: len(clips[split]) for split in clips},
        "clips_per_species": {
            code: {split: per_split[split][label] for split in clips} for label, code in enumerate(classes)
        },
        "starting_point": starting_point,
        "arguments": {name: _plain(getattr(args, name)) for name in TOLD_ARGUMENTS},
        "augmentation": asdict(augmentation),
        "processes": args.world_size,
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type,
        "versions": {name: version(name) for name in TOLD_VERSIONS},
    }


def write_json(content: dict[str, Any], path: Path) -> None:
    """Writes JSON whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that a run left.

    Raises:
        UserError: If the file is missing or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: expected what training left there ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object: expected what training left there")
    return content


def _plain(value: Any) -> Any:
    """An enumeration's value, anything else as it is."""
    return getattr(value, "value", value)
