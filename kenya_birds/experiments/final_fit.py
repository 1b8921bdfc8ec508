"""The final fit: a model trained on every recording, for as long as was best in cross-validation."""

import logging
import shutil
from typing import Any

from kenya_birds.console import transformers_bars_hidden
from kenya_birds.evaluation.calibration import Calibration
from kenya_birds.experiments.cross_validation import CrossValidation
from kenya_birds.json_files import write_json
from kenya_birds.training.run_folder import RECORDINGS_FILE, SPLITS_FILE, SUMMARY_FILE, writing_results

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
    changes = {"eval_strategy": "no", "load_best_model_at_end": False, "metric_for_best_model": None}
    with validated.one_run(0, folder, everything_for=epochs, save_total_limit=2, **changes) as run:
        trainer, _, summary = run.train()
        summary["cross_validation"] = {
            "folds": validated.folds,
            "best_epochs": [fold["best_epoch"] for fold in results["each"]],
            "train_runtime_s": round(sum(fold["train_runtime_s"] for fold in results["each"]), 1),
        }

        def write() -> None:
            with writing_results(output_dir):
                Calibration(**results["calibration"]).store(trainer.model.config)
                with transformers_bars_hidden():
                    trainer.model.save_pretrained(output_dir)
                run.extractor.save_pretrained(output_dir)
                for name in (SPLITS_FILE, RECORDINGS_FILE):
                    shutil.copyfile(folder / name, output_dir / name)
                write_json(summary, output_dir / SUMMARY_FILE)

        run.team.first_does(write)
