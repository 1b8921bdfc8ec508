"""Trains a bird classifier: `accelerate launch train_hf.py --data_dir ARCHIVE --output_dir OUT`."""

import logging
import sys
from pathlib import Path

from accelerate import PartialState
from transformers import HfArgumentParser

from kenya_birds.console import one_line_errors, show_log
from kenya_birds.experiments.cross_validation import CrossValidation
from kenya_birds.experiments.final_fit import fit_on_everything
from kenya_birds.experiments.single_run import train_and_evaluate
from kenya_birds.publishing.model_card import render_model_card
from kenya_birds.training.arguments import (
    DataArguments,
    FeatureArguments,
    KenyaBirdsTrainingArguments,
    ModelArguments,
)
from kenya_birds.training.augmentation import AugmentationArguments
from kenya_birds.training.run import Run
from kenya_birds.training.search_space import with_params
from kenya_birds.training.settings import Settings

logger = logging.getLogger("kenya_birds.train")

TEMPLATE = Path(__file__).parent / "model_card.md"
GROUPS = (DataArguments, ModelArguments, FeatureArguments, AugmentationArguments, KenyaBirdsTrainingArguments)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Command line; by default the process's own.

    Raises:
        UserError: If an argument or the archive cannot be used.
    """
    words = with_params(sys.argv[1:] if arguments is None else arguments, GROUPS)
    settings = Settings(*_parser().parse_args_into_dataclasses(words)[: len(GROUPS)])
    show_log(logging.INFO if settings.training.should_log else logging.ERROR)

    output_dir = Path(settings.training.output_dir)
    # Everything that the user may have got wrong comes to light before anything is written.
    if settings.data.folds is None and not settings.data.final_fit:
        train_and_evaluate(Run(settings))
    else:
        validated = CrossValidation(settings)
        results = validated.run()
        if not settings.data.final_fit:
            logger.info("Metrics, tables, predictions and pictures are in %s", output_dir)
            return
        fit_on_everything(validated, results)
    if settings.training.process_index == 0:
        (output_dir / "README.md").write_text(
            render_model_card(output_dir, str(output_dir), TEMPLATE), encoding="utf-8"
        )
        logger.info("Model, card (README.md), metrics, tables and pictures are in %s", output_dir)


def _parser() -> HfArgumentParser:
    parser = HfArgumentParser(GROUPS)
    parser.add_argument("--params", help="best.json of kenya-birds tune: its values, where no flag says otherwise.")
    return parser


if __name__ == "__main__":
    with one_line_errors(Path(sys.argv[0]).name):
        main()
        # A thread of gloo's that drops a tensor while Python comes to its end would abort the process.
        PartialState().destroy_process_group()
