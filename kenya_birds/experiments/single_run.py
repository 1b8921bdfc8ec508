"""One run to its end: trained, calibrated on validation, evaluated on test, saved."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from kenya_birds.console import transformers_bars_hidden
from kenya_birds.evaluation.scoring import score_clips
from kenya_birds.experiments.results import Scored, write_test
from kenya_birds.json_files import write_json
from kenya_birds.training.progress import write_results
from kenya_birds.training.run import Run
from kenya_birds.training.run_folder import SUMMARY_FILE, writing_results

logger = logging.getLogger(__name__)

# Of the test split, in TensorBoard.
FIGURES = ("macro_f1", "weighted_f1", "top1_accuracy", "cmap", "auroc", "ece")


def train_and_evaluate(run: Run) -> tuple[dict[str, Any], Scored]:
    """Trains, and leaves model, summary, metrics, tables and pictures in the run's output folder, `metrics.json` last.

    Where several processes train, the first one writes, and all of them wait for it.

    Args:
        run: The run.

    Returns:
        The run's summary, and what the model said.

    Raises:
        UserError: If the clips cannot be cut or trained on, or a file would be replaced that training has not written.
    """
    with run:
        return _train_and_evaluate(run)


def _train_and_evaluate(run: Run) -> tuple[dict[str, Any], Scored]:
    no_call, weights = run.validation_no_call()  # before training: what is wrong with it shall come to light first
    trainer, clips, summary = run.train()
    logger.info("Evaluating on the validation and test splits ...")
    predicted = {split: trainer.predict(clips[split], metric_key_prefix=split) for split in ("validation", "test")}
    logits, references = predicted["validation"].predictions, predicted["validation"].label_ids.astype(int)
    no_call_logits = np.zeros((0, logits.shape[1]), dtype=np.float32)
    if run.team.is_first and no_call is not None:
        no_call_logits = score_clips(trainer.model, run.extractor, no_call)
    scored = Scored(
        logits,
        references,
        np.asarray(clips["validation"]["recording"][:]),
        predicted["test"].predictions,
        no_call_logits,
        weights,
        np.asarray([] if no_call is None else no_call["recording"][:], dtype=str),
    )

    def write() -> None:
        output_dir = Path(run.settings.training.output_dir)
        with writing_results(output_dir):
            calibration = scored.calibration()
            calibration.calibration.store(trainer.model.config)
            with transformers_bars_hidden():
                trainer.model.save_pretrained(output_dir)
            run.extractor.save_pretrained(output_dir)
            write_json(summary, output_dir / SUMMARY_FILE)
            told = write_test(
                output_dir,
                scored,
                clips["test"],
                predicted["test"].label_ids,
                calibration=calibration,
                classes=run.builder.classes,
                common_names=run.common_names,
                train_counts=trainer.class_counts.tolist(),
                more={split: {"loss": each.metrics[f"{split}_loss"]} for split, each in predicted.items()},
                seed=run.settings.training.seed,
            )
        if "tensorboard" in run.settings.training.report_to:
            write_results(output_dir, trainer.state.global_step, {name: told.get(name) for name in FIGURES})

    run.team.first_does(write)
    return summary, scored
