"""Trains a bird classifier: `accelerate launch train_hf.py --data_dir ARCHIVE --output_dir OUT`.

`kenya-birds train` is the same command, and `accelerate launch -m kenya_birds train` starts it in several processes.
"""

import logging
import os
import sys
from functools import partial
from pathlib import Path

from kenya_birds.console import one_line_errors, show_log
from kenya_birds.files import shipped_file
from kenya_birds.process import print_anything, use_utf8
from kenya_birds.training.flags import TrainFlags, after_stop, parse_train_flags
from kenya_birds.training.run_folder import CARD_FILE, writing_results

logger = logging.getLogger("kenya_birds.train")

TEMPLATE_FILE = "model_card.md"


def main(arguments: list[str] | None = None, program: str = "train_hf.py") -> None:
    """Runs the command.

    Args:
        arguments: Command line; by default the process's own.
        program: Name of the command in the help and in errors.

    Raises:
        UserError: If an argument or the archive cannot be used.
    """
    flags = parse_train_flags(sys.argv[1:] if arguments is None else arguments, program)
    try:
        train(flags)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(after_stop(flags.training["output_dir"])) from None


def train(flags: TrainFlags) -> None:
    """From the archive to a model folder with its card.

    Args:
        flags: The command line.

    Raises:
        UserError: If an argument or the archive cannot be used.
    """
    show_log(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    logger.info("Reading the archive %s ...", flags.data.data_dir)
    # torch and transformers take seconds to import: a mistyped flag has ended the program before.
    from kenya_birds.experiments.cross_validation import CrossValidation, fit_on_everything
    from kenya_birds.experiments.results import train_and_evaluate
    from kenya_birds.training.training_run import Run

    settings = flags.settings()
    show_log(logging.INFO if settings.training.should_log else logging.ERROR)

    output_dir = Path(settings.training.output_dir)
    # Everything that the user may have got wrong comes to light before anything is written.
    if settings.data.folds is None and not settings.data.final_fit:
        with Run(settings) as run:
            splits = run.builder.splits
            run.warn_of_tuning(flags.params, splits.loc[splits["split"] == "test", "recording"])
            train_and_evaluate(run)
            run.team.first_does(partial(_write_card, output_dir))
        return
    with CrossValidation(settings, flags.params) as validated:
        results = validated.run()
        if not settings.data.final_fit:
            logger.info("Metrics, tables, predictions and pictures are in %s", output_dir)
            return
        fit_on_everything(validated, results)
        validated.team.first_does(partial(_write_card, output_dir))


def _write_card(output_dir: Path) -> None:
    from kenya_birds.publishing.model_card import render_model_card

    with writing_results(output_dir):
        card = render_model_card(output_dir, str(output_dir), shipped_file(TEMPLATE_FILE))
        (output_dir / CARD_FILE).write_text(card, encoding="utf-8")
    logger.info("Model, card (README.md), metrics, tables and pictures are in %s", output_dir)


def command(arguments: list[str] | None = None, program: str = "train_hf.py") -> None:
    """Runs the command as a process of its own: errors in one line, exit codes, UTF-8.

    Args:
        arguments: Command line; by default the process's own.
        program: Name of the command in the help and in errors.
    """
    use_utf8()
    print_anything()
    with one_line_errors(program):
        main(arguments, program)
        from accelerate import PartialState

        # A thread of gloo's that drops a tensor while Python comes to its end would abort the process.
        PartialState().destroy_process_group()


if __name__ == "__main__":
    command()
