"""The final fit: a model trained on every recording, for as long as was best in cross-validation."""

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from kenya_birds.console import transformers_bars_hidden
from kenya_birds.evaluation.calibration import Calibration
from kenya_birds.experiments.cross_validation import CrossValidation
from kenya_birds.json_files import read_json, write_json
from kenya_birds.training.arguments import last_whole_checkpoint
from kenya_birds.training.summary import SPLITS_FILE, SUMMARY_FILE
from kenya_birds.training.training_recordings import TRAINING_RECORDINGS_FILE

logger = logging.getLogger(__name__)

FOLDER = "final-fit"


def fit_on_everything(validated: CrossValidation, results: dict[str, Any]) -> None:
    """Trains on all recordings and leaves the model in the cross-validation's folder, beside the figures of its folds.

    It is trained on the learning rate's schedule of the folds, and stopped where the best epoch of the median fold
    was: nothing is left to choose an epoch on. Calibration and `thresholds.json` come from the validation scores of
    all folds, which models trained on fewer recordings gave. Checkpoints are in `output_dir/final-fit`; a run that was
    stopped goes on there.

    Args:
        validated: A cross-validation that has run.
        results: What its `run` returned.

    Raises:
        UserError: If the clips cannot be cut or trained on.
    """
    output_dir, epochs = validated.output_dir, results["median_best_epoch"]
    if (output_dir / SUMMARY_FILE).is_file():
        logger.info("The final fit is done already")
        return
    logger.info("Final fit on all recordings: %g epochs", epochs)
    folder = output_dir / FOLDER
    state = validated.state()
    if state.is_main_process:
        _forget_the_end(folder, epochs)
    state.wait_for_everyone()
    run = validated.one_run(
        0, folder, eval_strategy="no", load_best_model_at_end=False, metric_for_best_model=None, save_total_limit=2
    )
    trainer, _, summary = run.train(everything_for=epochs)
    if trainer.is_world_process_zero():
        Calibration(**results["calibration"]).store(trainer.model.config)
        with transformers_bars_hidden():
            trainer.model.save_pretrained(output_dir)
        run.extractor.save_pretrained(output_dir)
        for name in (SPLITS_FILE, TRAINING_RECORDINGS_FILE):
            shutil.copyfile(folder / name, output_dir / name)
        summary["cross_validation"] = {
            "folds": validated.folds,
            "best_epochs": [fold["best_epoch"] for fold in results["each"]],
            "train_runtime_s": round(sum(fold["train_runtime_s"] for fold in results["each"]), 1),
        }
        write_json(summary, output_dir / SUMMARY_FILE)
    trainer.accelerator.wait_for_everyone()


def _forget_the_end(folder: Path, epochs: float) -> None:
    """Deletes a checkpoint from which a run that was killed just before its model was saved would train on."""
    checkpoint = last_whole_checkpoint(folder)
    if checkpoint is not None:
        state = read_json(Path(checkpoint) / TRAINER_STATE_NAME)
        if state["epoch"] >= epochs - 1e-6:
            shutil.rmtree(checkpoint)
