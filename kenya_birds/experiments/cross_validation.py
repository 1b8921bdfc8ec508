"""Grouped cross-validation: every recording is tested once, by a model that has not heard it."""

import gc
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState

from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.same_recording import check_undivided, with_names_of
from kenya_birds.data.splits import read_folds, seed_folds, splits_of_fold
from kenya_birds.errors import UserError
from kenya_birds.experiments.results import Fold, Scored, write_out_of_fold
from kenya_birds.experiments.single_run import train_and_evaluate
from kenya_birds.json_files import read_json, write_json
from kenya_birds.output_files import is_new_or_empty, whole_file, write_table
from kenya_birds.training.arguments import DEFAULT_FOLDS, last_whole_checkpoint
from kenya_birds.training.run import Run
from kenya_birds.training.settings import Settings, differences
from kenya_birds.training.settings_record import SETTINGS_FILE, read_settings
from kenya_birds.training.summary import SUMMARY_FILE
from kenya_birds.values import Folds, Kind

logger = logging.getLogger(__name__)

FOLDS_FILE = "folds.csv"
RESULTS_FILE = "cross_validation.json"
# The last file of a fold: where it is, the fold is done.
LOGITS_FILE = "logits.npz"


class CrossValidation:
    """A cross-validation that is checked and planned; nothing is written yet.

    Fold `k` is tested by a model that validated on fold `k + 1` (after the last comes the first) and trained on the
    others. Runs are in `output_dir/fold-k`, each with all that a run leaves except checkpoints.

    Args:
        settings: The settings; `resume_from_checkpoint="true"` goes on with the one in `output_dir`, at the checkpoint
            of the fold that was running.

    Attributes:
        settings: The settings.
        table: `recording` and `fold`.

    Raises:
        UserError: If an argument or the archive cannot be used, or `output_dir` holds something else.
    """

    def __init__(self, settings: Settings) -> None:
        data, training = settings.data, settings.training
        self.settings = settings
        self.output_dir = Path(training.output_dir)
        if training.eval_strategy == "no" or not training.load_best_model_at_end:
            raise UserError(
                "a cross-validation keeps the best epoch on validation: leave out --eval_strategy no and "
                "--load_best_model_at_end False"
            )
        plan = Run(settings.changed(output_dir=str(self.output_dir / "plan"), resume_from_checkpoint=None))
        self.classes = plan.builder.classes
        self._common_names = plan.common_names
        self.table = find_folds(plan.builder, data.splits_file, data.folds, data.split_seed)
        self.folds = self.table["fold"].nunique()
        plan.check_starting_model(self.table["recording"])  # each of them tests in one fold
        self._description: dict[str, Any] = {"classes": self.classes, "folds": self.folds}
        self._check_output()
        self._done = [(self.folder(fold) / LOGITS_FILE).is_file() for fold in range(self.folds)]
        # No process writes before every one has looked.
        self.state().wait_for_everyone()

    def run(self) -> dict[str, Any]:
        """Runs the folds that are not done, and writes what they tell together.

        Left in `output_dir`: `folds.csv`, `cross_validation.json` (each fold's figures and best epoch, their mean and
        standard deviation), and what `write_report` writes of the out-of-fold predictions. `thresholds.json` is chosen
        on the validation scores of all folds; no figure of the report depends on it: in each fold its own thresholds
        decide what is reported.

        Returns:
            The content of `cross_validation.json`.

        Raises:
            UserError: If the clips cannot be cut or trained on.
        """
        is_first = self.state().is_main_process
        if is_first:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            write_table(self.table, self.output_dir / FOLDS_FILE)
            if not (self.output_dir / RESULTS_FILE).is_file():
                write_json({"settings": self.settings.record()}, self.output_dir / SETTINGS_FILE)
                write_json(self._description, self.output_dir / RESULTS_FILE)
        for fold in range(self.folds):
            if self._done[fold]:
                logger.info("Fold %d of %d is done already", fold + 1, self.folds)
                continue
            logger.info("Fold %d of %d", fold + 1, self.folds)
            _, scored = train_and_evaluate(self.one_run(fold, self.folder(fold)))
            if is_first:
                _write_logits(scored, self.folder(fold) / LOGITS_FILE)
                for checkpoint in self.folder(fold).glob("checkpoint-*"):
                    shutil.rmtree(checkpoint)
            del scored
            gc.collect()  # a trainer and its model hold each other
            torch.cuda.empty_cache()
        if is_first:
            self._write_results()
        self.state().wait_for_everyone()
        return read_json(self.output_dir / RESULTS_FILE)

    def one_run(self, fold: int, folder: Path, **changes: Any) -> Run:
        """A run with the splits of a fold, that goes on with what a run before left in the folder.

        Args:
            fold: Which fold is the test split.
            folder: Its output folder; what is in it is deleted where there is no whole checkpoint to go on from.
            **changes: Other settings.
        """
        state = self.state()
        checkpoint = last_whole_checkpoint(folder)
        state.wait_for_everyone()
        if checkpoint is None and folder.exists() and state.is_main_process:
            shutil.rmtree(folder)
        state.wait_for_everyone()
        settings = self.settings.changed(
            output_dir=str(folder),
            resume_from_checkpoint=checkpoint,
            splits_file=None,
            folds=None,
            final_fit=False,
            **changes,
        )
        return Run(settings, splits_of_fold(self.table, fold))

    def folder(self, fold: int) -> Path:
        """Where a fold runs."""
        return self.output_dir / f"fold-{fold}"

    def state(self) -> PartialState:
        """The processes of this run; asking for the device has transformers set it up."""
        assert self.settings.training.device is not None
        return PartialState()

    def _check_output(self) -> None:
        resume, output_dir = self.settings.training.resume_from_checkpoint, self.output_dir
        if resume and resume.lower() != "true":
            raise UserError(
                f"resume_from_checkpoint is {resume}: a cross-validation goes on with --resume_from_checkpoint true, "
                "each fold with its own last checkpoint"
            )
        if resume and not (output_dir / RESULTS_FILE).is_file():
            raise UserError(f"no cross-validation to go on with in {output_dir}: leave --resume_from_checkpoint out")
        if not resume:
            if not is_new_or_empty(output_dir):
                raise UserError(
                    f"--output_dir {output_dir} exists and is not an empty folder: choose another, or go on with the "
                    "cross-validation in it with --resume_from_checkpoint true"
                )
            return
        then = read_settings(output_dir)
        if not then:
            raise UserError(
                f"{output_dir} has no {SETTINGS_FILE}: an older version of this package began its cross-validation, "
                "which cannot be resumed: choose another --output_dir"
            )
        before = read_json(output_dir / RESULTS_FILE)
        changes = differences(then, self.settings.deciding())
        changes += differences({"folds": before.get("folds")}, {"folds": self.folds})
        if before.get("classes") != self.classes:
            changes.append("the species of the archive are others")
        if not changes and not read_folds(output_dir / FOLDS_FILE).equals(self.table):
            changes.append("the folds of the recordings are others")
        if changes:
            raise UserError(
                f"the cross-validation in {output_dir} was begun with other settings: {'; '.join(changes)}. Give the "
                "settings that it was begun with, or another --output_dir"
            )

    def _write_results(self) -> None:
        summaries = [read_json(self.folder(fold) / SUMMARY_FILE) for fold in range(self.folds)]
        folds = [
            Fold(
                self.folder(fold),
                _read_logits(self.folder(fold) / LOGITS_FILE),
                [summary["clips_per_species"][code].get("train", 0) for code in self.classes],
            )
            for fold, summary in enumerate(summaries)
        ]
        told, calibration = write_out_of_fold(
            self.output_dir, folds, common_names=self._common_names, seed=self.settings.training.seed
        )
        runs = [summary["result"] for summary in summaries]
        results = {
            **self._description,
            "each": [
                {**fold, "best_epoch": run["best_epoch"], "train_runtime_s": run["train_runtime_s"]}
                for fold, run in zip(told["each"], runs, strict=True)
            ],
            "mean": told["mean"],
            "sd": told["sd"],
            "median_best_epoch": float(np.median([run["best_epoch"] for run in runs])),
            "calibration": {"scale": calibration.scale, "offset": calibration.offset},
        }
        write_json(results, self.output_dir / RESULTS_FILE, allow_nan=False)


def find_folds(builder: KenyaBirds, splits_file: str | Path | None, folds: int | None, seed: int) -> pd.DataFrame:
    """The table of folds, in the order of recordings.

    Args:
        builder: Plans the clips whose recordings are divided.
        splits_file: A table of folds; by default they are those of `seed_folds`.
        folds: Number of folds; of a table, as many as it has.
        seed: Of `seed_folds`.

    Returns:
        `recording` and `fold`.

    Raises:
        UserError: If there are fewer than three folds, or the table has another number of them, divides recordings
            with the same sound or cannot be used.
    """
    if splits_file:
        table = with_names_of(read_folds(splits_file), builder.clips["recording"].unique())
        check_undivided(table, builder.same_sound)
        found = table["fold"].nunique()
        if folds not in (None, found):
            raise UserError(f"folds is {folds} and {splits_file} has {found}: leave --folds out")
        return table.sort_values("recording").reset_index(drop=True)
    folds = DEFAULT_FOLDS if folds is None else folds
    Kind.of(Folds).check("folds", folds)
    return seed_folds(builder.clips, folds, seed=seed, same_sound=builder.same_sound)


def _write_logits(scored: Scored, path: Path) -> None:
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **vars(scored))


def _read_logits(path: Path) -> Scored:
    with np.load(path, allow_pickle=False) as arrays:
        return Scored(**arrays)
