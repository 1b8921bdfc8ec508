"""Trains a bird classifier: `accelerate launch train_hf.py --data_dir ARCHIVE --output_dir OUT`."""

import logging
import sys
from pathlib import Path

import numpy as np
from transformers import HfArgumentParser

from kenya_birds.console import one_line_errors, show_log
from kenya_birds.evaluation.figures import save_confusion_matrix
from kenya_birds.publishing.model_card import CONFUSION_MATRIX_FILE, render_model_card
from kenya_birds.training.arguments import (
    DataArguments,
    FeatureArguments,
    KenyaBirdsTrainingArguments,
    ModelArguments,
)
from kenya_birds.training.augmentation import AugmentationArguments
from kenya_birds.training.run import Run, Settings
from kenya_birds.training.summary import METRICS_FILE, SUMMARY_FILE, write_json

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
    settings = Settings(*HfArgumentParser(groups).parse_args_into_dataclasses(arguments))
    show_log(logging.INFO if settings.training.should_log else logging.ERROR)

    # Everything that the user may have got wrong comes to light before anything is written.
    run = Run(settings)
    trainer, clips, summary = run.train()

    predicted = {split: trainer.predict(clips[split], metric_key_prefix=split) for split in ("validation", "test")}
    if trainer.is_world_process_zero():
        output_dir = Path(settings.training.output_dir)
        trainer.model.save_pretrained(output_dir)
        run.extractor.save_pretrained(output_dir)
        write_json(summary, output_dir / SUMMARY_FILE)
        metrics = {
            split: {name.removeprefix(f"{split}_"): value for name, value in prediction.metrics.items()}
            for split, prediction in predicted.items()
        }
        write_json(metrics, output_dir / METRICS_FILE)
        save_confusion_matrix(
            np.asarray(clips["test"]["label"]),
            predicted["test"].predictions.argmax(axis=-1),
            run.builder.classes,
            output_dir / CONFUSION_MATRIX_FILE,
        )
        card = render_model_card(output_dir, str(output_dir), TEMPLATE)
        (output_dir / "README.md").write_text(card, encoding="utf-8")
        for split, values in metrics.items():
            logger.info("%s: macro F1 %.4f, accuracy %.4f", split, values["macro_f1"], values["accuracy"])
        logger.info("Model, card (README.md), metrics and splits are in %s", output_dir)


if __name__ == "__main__":
    with one_line_errors(Path(sys.argv[0]).name):
        main()
