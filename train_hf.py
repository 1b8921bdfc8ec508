"""Trains a bird classifier: `accelerate launch train_hf.py --data_dir ARCHIVE --output_dir OUT`.

`kenya-birds train` is the same command, and `accelerate launch -m kenya_birds train` starts it in several processes.
"""

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kenya_birds.console import enough_memory, one_line_errors, show_log
from kenya_birds.errors import DeviceMemoryError, LostProcessError, UserError, WriteError
from kenya_birds.process import keep_freed_memory, print_anything, use_utf8
from kenya_birds.training.flags import SMALLER_BATCHES, TrainFlags, after_stop, parse_train_flags

if TYPE_CHECKING:
    from kenya_birds.training.settings import Settings

logger = logging.getLogger("kenya_birds.train")


def main(arguments: list[str] | None = None, program: str = "train_hf.py") -> None:
    """From an annotated archive to a model folder with its card.

    Args:
        arguments: Command line; by default the process's own.
        program: Name of the command in the help and in errors.

    Raises:
        UserError: If an argument or the archive cannot be used.
    """
    flags = parse_train_flags(sys.argv[1:] if arguments is None else arguments, program)
    try:
        with enough_memory(SMALLER_BATCHES):
            train(flags)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(after_stop(flags.training["output_dir"])) from None
    except (WriteError, LostProcessError, DeviceMemoryError) as error:
        raise UserError(f"{error}; {after_stop(flags.training['output_dir'])}") from None


def train(flags: TrainFlags) -> None:
    """Trains one model on the archive's splits; with --folds or --final_fit, cross-validates.

    Args:
        flags: The command line.

    Raises:
        UserError: If an argument or the archive cannot be used.
    """
    show_log(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    logger.info("Reading the archive %s ...", flags.data.data_dir)
    # torch and transformers take seconds to import: mistakes in the flags have been reported before.
    from kenya_birds.data.splits import recordings_in
    from kenya_birds.experiments.results import save_results, score_splits
    from kenya_birds.publishing.model_card import write_card
    from kenya_birds.training.training_run import Run

    settings = flags.settings()
    show_log(logging.INFO if settings.training.should_log else logging.ERROR)
    if settings.data.folds is not None or settings.data.final_fit:
        cross_validate(flags, settings)
        return

    # The plan: archive, splits, feature extractor and model. Its mistakes are found before anything is written.
    with Run(settings) as run:
        run.earlier.warn_of_tuning(flags.params, recordings_in(run.splits, "test"))
        clips = run.cut_clips()  # train, validation and test
        # Windows without a call, for the decision thresholds: cut now, so that their faults are found before training.
        run.validation_no_call()
        trainer = run.make_trainer(clips)
        summary = run.fit(trainer, clips)
        scores = score_splits(run, trainer, clips)
        # Calibration, decision thresholds, evaluation on the test split; the model with its metrics and pictures.
        save_results(run, trainer, clips, summary, scores)
        run.team.first_does(partial(write_card, Path(settings.training.output_dir)))


def cross_validate(flags: TrainFlags, settings: "Settings") -> None:
    """Trains one model for each fold; with --final_fit, then one on all recordings, which gets the card.

    Args:
        flags: The command line.
        settings: The settings of the flags.

    Raises:
        UserError: If an argument or the archive cannot be used.
    """
    from kenya_birds.experiments.cross_validation import CrossValidation, fit_on_everything
    from kenya_birds.publishing.model_card import write_card

    output_dir = Path(settings.training.output_dir)
    with CrossValidation(settings, flags.params) as validated:
        results = validated.run()
        if not settings.data.final_fit:
            logger.info("Metrics, tables, predictions and pictures are in %s", output_dir)
            return
        fit_on_everything(validated, results)
        validated.team.first_does(partial(write_card, output_dir))


def command(arguments: list[str] | None = None, program: str = "train_hf.py") -> None:
    """Runs the command as a process of its own: errors in one line, exit codes, UTF-8.

    Args:
        arguments: Command line; by default the process's own.
        program: Name of the command in the help and in errors.
    """
    use_utf8()
    print_anything()
    keep_freed_memory()
    with one_line_errors(program):
        main(arguments, program)
        from accelerate import PartialState

        # A thread of gloo's that drops a tensor while Python comes to its end would abort the process.
        PartialState().destroy_process_group()


if __name__ == "__main__":
    command()
