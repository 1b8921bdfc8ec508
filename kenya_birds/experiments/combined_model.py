"""Several trained models as one: a model that computes the mean of their logits."""

import copy
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kenya_birds.data.splits import read_splits
from kenya_birds.errors import UserError
from kenya_birds.experiments.results import save_results, score_splits
from kenya_birds.files import read_json
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import find_model
from kenya_birds.training.arguments import AugmentationArguments, DataArguments, FeatureArguments, ModelArguments
from kenya_birds.training.member_models import check_members
from kenya_birds.training.run_checks import hash_annotations
from kenya_birds.training.run_folder import SPLITS_FILE, SUMMARY_FILE, RunRecord
from kenya_birds.training.settings import FRONT_END_FILE, Settings, read_settings
from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments
from kenya_birds.training.training_recordings import TrainingRecordings
from kenya_birds.training.training_run import Run

logger = logging.getLogger(__name__)

# Of the summary of a model that is combined with others.
MEMBER = ("starting_point", "arguments", "processes", "device", "result", "first_stage", "self_training")


def combine(
    folders: Sequence[Path],
    data_dir: Path,
    output_dir: Path,
    *,
    cache_dir: Path | None = None,
    num_proc: int | None = None,
    use_cpu: bool = False,
) -> None:
    """Makes one model of several, and evaluates it as training does.

    The logits of the new model are the mean of theirs, before calibration. So its probabilities are the normalised
    geometric mean of theirs, a logarithmic opinion pool (Genest and Zidek 1986, Combining probability distributions,
    Statistical Science 1). Calibration and thresholds are chosen on the validation split, and metrics computed on the
    test split, as for a trained model.

    Args:
        folders: Output folders of training, with the same splits, classes, features and network.
        data_dir: Their archive.
        output_dir: A new or empty folder. It gets what training writes, except for the card.
        cache_dir: Folder of the cache.
        num_proc: Number of processes that cut clips.
        use_cpu: Do not use a GPU.

    Raises:
        UserError: If the models do not fit each other or the archive.
    """
    check_members(folders)
    settings = _settings(
        folders[0], data_dir=data_dir, output_dir=output_dir, cache_dir=cache_dir, num_proc=num_proc, use_cpu=use_cpu
    )
    run = Run(settings, read_splits(folders[0] / SPLITS_FILE))
    run.model, run.record = combined(folders), RunRecord.read(folders[0])
    classes = [run.model.config.id2label[label] for label in range(run.model.config.num_labels)]
    if run.builder.classes != classes:
        raise UserError(
            f"{data_dir} has {len(run.builder.classes)} species with enough annotations, and the models have "
            f"{len(classes)}, or others: give the archive that they were trained on"
        )
    for folder in folders:
        if hash_annotations(data_dir) != RunRecord.read(folder).annotations:
            logger.warning("The annotations of %s have changed since %s was trained", data_dir, folder)
    run.earlier = dataclasses.replace(run.earlier, recordings=_learned_from(folders))
    with run:
        clips = run.cut_clips()
        run.validation_no_call()
        trainer = run.make_trainer(clips)
        scores = score_splits(run, trainer, clips)
        save_results(run, trainer, clips, combined_summary(folders), scores)


def combined(folders: Sequence[Path]) -> KenyaBirdsForAudioClassification:
    """A model whose logits are the mean of those of several models, before calibration.

    Args:
        folders: Folders of the models.

    Raises:
        UserError: If one of them cannot be loaded.
    """
    members = [load_classifier(find_model(folder))[0] for folder in folders]
    config = copy.deepcopy(members[0].config)
    config.backbone_members = len(members)
    config.logit_scale = config.logit_offset = None
    model = KenyaBirdsForAudioClassification(config)
    for backbone, member in zip(model.backbone.members, members, strict=True):
        backbone.load_state_dict(member.backbone.state_dict())
    with torch.no_grad():
        weights = [member.classifier.weight / len(members) for member in members]
        model.classifier.weight.copy_(torch.cat(weights, dim=1))
        model.classifier.bias.copy_(torch.stack([member.classifier.bias for member in members]).mean(dim=0))
    return model.eval()


def _learned_from(folders: Sequence[Path]) -> TrainingRecordings:
    """The recordings without annotations, and those of starting models, that models were trained on."""
    tables = [known.table for folder in folders if (known := TrainingRecordings.read(folder)) is not None]
    annotated = set(read_splits(folders[0] / SPLITS_FILE)["recording"])
    table = pd.concat(tables, ignore_index=True).drop_duplicates()
    return TrainingRecordings(table[(table["model"] != "") | ~table["recording"].isin(annotated)])


def combined_summary(folders: Sequence[Path]) -> dict[str, Any]:
    """The training summary of a combined model: that of the first model, and `members` with what may differ.

    Args:
        folders: Folders of the models.
    """
    summaries = [read_json(folder / SUMMARY_FILE) for folder in folders]
    members = [{name: each[name] for name in MEMBER if name in each} for each in summaries]
    return {**summaries[0], "members": members}


def _settings(folder: Path, **now: Any) -> Settings:
    """The settings of a run that evaluates: in float32, with random initial weights, which are replaced."""
    now = {name: str(value) if isinstance(value, Path) else value for name, value in now.items()}
    record = {
        **read_settings(folder),
        **now,
        "init_from": "scratch",
        "report_to": "none",
        "auto_mixed_precision": False,
        "bf16": False,
        "fp16": False,
        "tf32": None,
    }

    # What the networks were trained with, whatever the defaults of today are.
    record |= read_json(folder / FRONT_END_FILE)

    def group(kind: type) -> Any:
        names = {field.name for field in dataclasses.fields(kind) if field.init} & record.keys()
        return kind(**{name: record[name] for name in names})

    kinds = (DataArguments, ModelArguments, FeatureArguments, AugmentationArguments, KenyaBirdsTrainingArguments)
    return Settings(*(group(kind) for kind in kinds))
