"""One run to its end: trained, calibrated on validation, evaluated on test, saved."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kenya_birds.evaluation.calibration import fit_calibration
from kenya_birds.evaluation.metrics import probabilities
from kenya_birds.evaluation.report import format_metrics, plain_metrics, write_evaluation
from kenya_birds.evaluation.thresholds import choose_thresholds
from kenya_birds.json_files import write_json
from kenya_birds.training.run import Run
from kenya_birds.training.summary import SUMMARY_FILE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What the trained model said, before calibration.

    Attributes:
        validation_logits: Shape `(clips, classes)`.
        validation_references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
        test_logits: Shape `(clips, classes)`.
    """

    validation_logits: np.ndarray
    validation_references: np.ndarray
    test_logits: np.ndarray


def train_and_evaluate(run: Run) -> tuple[dict[str, Any], Scored]:
    """Trains, and leaves model, summary, metrics, tables and pictures in the run's output folder, `metrics.json` last.

    Where several processes train, the first one writes, and all of them wait for it.

    Args:
        run: The run.

    Returns:
        The run's summary, and what the model said.

    Raises:
        UserError: If the clips cannot be cut or trained on.
    """
    trainer, clips, summary = run.train()
    predicted = {split: trainer.predict(clips[split], metric_key_prefix=split) for split in ("validation", "test")}
    logits, references = predicted["validation"].predictions, predicted["validation"].label_ids.astype(int)
    scored = Scored(logits, references, predicted["test"].predictions)
    if trainer.is_world_process_zero():
        output_dir, classes = Path(run.settings.training.output_dir), run.builder.classes
        calibration = fit_calibration(logits, references)
        scores = probabilities(calibration.apply(logits), multi_label=trainer.multi_label)
        calibration.store(trainer.model.config)
        trainer.model.save_pretrained(output_dir)
        run.extractor.save_pretrained(output_dir)
        write_json(summary, output_dir / SUMMARY_FILE)
        validation = plain_metrics(scores, references)
        losses = {split: {"loss": prediction.metrics[f"{split}_loss"]} for split, prediction in predicted.items()}
        test = write_evaluation(
            output_dir,
            scored.test_logits,
            predicted["test"].label_ids,
            classes=classes,
            recordings=clips["test"]["recording"],
            start_s=clips["test"]["start_s"],
            center_s=clips["test"]["center_s"],
            common_names=run.common_names,
            train_counts=trainer.class_counts.tolist(),
            calibration=calibration,
            thresholds=choose_thresholds(scores, references, classes),
            more={"validation": losses["validation"] | validation, "test": losses["test"]},
            seed=run.settings.training.seed,
        )
        logger.info("validation: macro F1 %.4f, accuracy %.4f", validation["macro_f1"], validation["accuracy"])
        logger.info("test: %s", format_metrics(test))
    trainer.accelerator.wait_for_everyone()
    return summary, scored
