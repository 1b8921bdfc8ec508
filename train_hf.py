"""Trains a bird classifier: `accelerate launch train_hf.py --data_dir ARCHIVE --output_dir OUT`."""

import logging
import sys
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import HfArgumentParser
from transformers.trainer_utils import PredictionOutput

from kenya_birds.console import one_line_errors, show_log
from kenya_birds.evaluation.calibration import fit_calibration
from kenya_birds.evaluation.metrics import probabilities
from kenya_birds.evaluation.report import METRICS_FILE, format_metrics, plain_metrics, write_evaluation
from kenya_birds.evaluation.thresholds import choose_thresholds
from kenya_birds.json_files import write_json
from kenya_birds.publishing.model_card import render_model_card
from kenya_birds.training.arguments import (
    DataArguments,
    FeatureArguments,
    KenyaBirdsTrainingArguments,
    ModelArguments,
)
from kenya_birds.training.augmentation import AugmentationArguments
from kenya_birds.training.run import Run, Settings
from kenya_birds.training.search_space import with_params
from kenya_birds.training.summary import SUMMARY_FILE
from kenya_birds.training.trainer import KenyaBirdsTrainer

logger = logging.getLogger("kenya_birds.train")

TEMPLATE = Path(__file__).parent / "model_card.md"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Command line; by default the process's own.

    Raises:
        UserError: If an argument or the archive cannot be used.
    """
    groups = (DataArguments, ModelArguments, FeatureArguments, AugmentationArguments, KenyaBirdsTrainingArguments)
    parser = HfArgumentParser(groups)
    parser.add_argument("--params", help="best.json of kenya-birds tune: its values, where no flag says otherwise.")
    words = with_params(sys.argv[1:] if arguments is None else arguments, groups)
    settings = Settings(*parser.parse_args_into_dataclasses(words)[: len(groups)])
    show_log(logging.INFO if settings.training.should_log else logging.ERROR)

    # Everything that the user may have got wrong comes to light before anything is written.
    run = Run(settings)
    trainer, clips, summary = run.train()

    predicted = {split: trainer.predict(clips[split], metric_key_prefix=split) for split in ("validation", "test")}
    if trainer.is_world_process_zero():
        _write(run, trainer, clips, summary, predicted)


def _write(
    run: Run,
    trainer: KenyaBirdsTrainer,
    clips: DatasetDict,
    summary: dict[str, Any],
    predicted: dict[str, PredictionOutput],
) -> None:
    """Calibrates the model on validation, evaluates it on test, and saves all that is to be published."""
    output_dir, classes = Path(run.settings.training.output_dir), run.builder.classes
    logits, references = predicted["validation"].predictions, predicted["validation"].label_ids.astype(int)
    calibration = fit_calibration(logits, references)
    scores = probabilities(calibration.apply(logits), multi_label=trainer.multi_label)
    calibration.store(trainer.model.config)
    trainer.model.save_pretrained(output_dir)
    run.extractor.save_pretrained(output_dir)
    write_json(summary, output_dir / SUMMARY_FILE)
    test = write_evaluation(
        output_dir,
        predicted["test"].predictions,
        predicted["test"].label_ids,
        classes=classes,
        recordings=clips["test"]["recording"],
        start_s=clips["test"]["start_s"],
        center_s=clips["test"]["center_s"],
        common_names={code: names["common_name"] for code, names in trainer.model.config.species.items()},
        train_counts=trainer.class_counts.tolist(),
        calibration=calibration,
        thresholds=choose_thresholds(scores, references, classes),
        seed=run.settings.training.seed,
    )
    validation = plain_metrics(scores, references)
    losses = {split: {"loss": prediction.metrics[f"{split}_loss"]} for split, prediction in predicted.items()}
    write_json(
        {"validation": losses["validation"] | validation, "test": losses["test"] | test}, output_dir / METRICS_FILE
    )
    card = render_model_card(output_dir, str(output_dir), TEMPLATE)
    (output_dir / "README.md").write_text(card, encoding="utf-8")
    logger.info("validation: macro F1 %.4f, accuracy %.4f", validation["macro_f1"], validation["accuracy"])
    logger.info("test: %s", format_metrics(test))
    logger.info("Model, card (README.md), metrics, tables and pictures are in %s", output_dir)


if __name__ == "__main__":
    with one_line_errors(Path(sys.argv[0]).name):
        main()
