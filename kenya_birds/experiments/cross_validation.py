"""Cross-validation over recordings, and the final fit on all of them."""

import contextlib
import dataclasses
import gc
import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kenya_birds.console import user_errors
from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.dataset import make_folds
from kenya_birds.data.same_recording import check_undivided, with_names_of
from kenya_birds.data.silent_recordings import without_clips
from kenya_birds.data.splits import read_folds, splits_of_fold
from kenya_birds.errors import UserError
from kenya_birds.evaluation.calibration import Calibration
from kenya_birds.experiments.novelty_fit import refit_reference, save_reference
from kenya_birds.experiments.results import Fold, Scored, train_and_evaluate, write_out_of_fold
from kenya_birds.files import read_json, whole_file, write_json, write_table
from kenya_birds.locks import check_not_locked, locked
from kenya_birds.training.arguments import DEFAULT_FOLDS
from kenya_birds.training.run_folder import (
    CROSS_VALIDATION_FILE,
    FOLDS_FILE,
    RECORDINGS_FILE,
    SPLITS_FILE,
    SUMMARY_FILE,
    RunRecord,
    check_folds_start,
    clear_results,
    delete_checkpoints,
    forget_start,
    last_whole_checkpoint,
    writing_results,
    writing_run,
)
from kenya_birds.training.settings import Settings, differences, train_counts
from kenya_birds.training.split_windows import check_no_call
from kenya_birds.training.training_arguments import training_team
from kenya_birds.training.training_run import Run
from kenya_birds.training.unlabelled import Unlabelled
from kenya_birds.values import Folds, Kind

logger = logging.getLogger(__name__)

# The last file of a fold: if it exists, the fold is complete.
LOGITS_FILE = "logits.npz"


class CrossValidation:
    """A cross-validation over recordings.

    The settings are checked at construction. Nothing is written before the `with` statement: `with
    CrossValidation(settings) as validated: validated.run()`. Within it, the output folder is locked for other runs.

    Fold `k` is tested with a model that is validated on fold `k + 1` (or the first, if `k` is the last) and trained on
    the others. Each fold has a folder `output_dir/fold-k` with all files of a training run except checkpoints.

    Args:
        settings: The settings; `resume_from_checkpoint="true"` resumes the cross-validation in `output_dir`, at the
            last checkpoint of the fold that was interrupted.
        params: The best.json of `kenya-birds tune` if the settings are from one.

    Attributes:
        settings: The settings.
        team: The processes of a distributed run.
        table: `recording` and `fold`.

    Raises:
        UserError: If an argument or the archive cannot be used, or `output_dir` has other content.
    """

    def __init__(self, settings: Settings, params: Path | None = None) -> None:
        data, training = settings.data, settings.training
        self.settings = settings
        self.output_dir = Path(training.output_dir)
        if training.eval_strategy == "no" or not training.load_best_model_at_end:
            raise UserError(
                "a cross-validation keeps the best epoch on validation: leave out --eval_strategy no and "
                "--load_best_model_at_end False"
            )
        self.team = training_team(training)
        self.team.first_does(partial(check_not_locked, self.output_dir))
        self.team.first_does(self._check_output)
        if training.resume_from_checkpoint:
            self._refuse(differences(RunRecord.read(self.output_dir).settings, settings.deciding()))
        plan = Run(settings.changed(output_dir=str(self.output_dir / "plan"), resume_from_checkpoint=None))
        self.classes = plan.builder.classes
        self._common_names, self._record = plan.common_names, plan.record
        self._archive = plan.builder.archive
        self.table = find_folds(plan.builder, data.splits_file, data.folds, data.split_seed)
        self.folds = self.table["fold"].nunique()
        for fold in range(self.folds):
            try:
                check_no_call(settings, self._archive, splits_of_fold(self.table, fold), plan.extractor)
            except UserError as error:
                raise UserError(f"fold {fold}: {error}") from None
        plan.earlier.check(self.table["recording"])  # each is a test recording in one fold
        if settings.teacher.unlabelled:
            Unlabelled.find(settings.teacher.unlabelled).without_archive(
                self._archive, self.table["recording"].to_list()
            )
        plan.earlier.warn_of_tuning(params, self.table["recording"])
        self._description: dict[str, Any] = {"classes": self.classes, "folds": self.folds}
        if training.resume_from_checkpoint:
            self._check_unchanged()
        self._stack, self._is_new = contextlib.ExitStack(), False

    def __enter__(self) -> "CrossValidation":
        """Locks the output folder; writes the settings and the folds of a new cross-validation.

        Raises:
            UserError: If another process uses the folder, or has used it since the settings were checked.
        """
        self.team.first_does(self._take_folder)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Unlocks the output folder; deletes the files of a new cross-validation that failed before training."""
        if kind is not None and self._is_new:
            with contextlib.suppress(OSError):
                forget_start(self.output_dir, FOLDS_FILE, CROSS_VALIDATION_FILE)
        self._stack.close()

    def run(self) -> dict[str, Any]:
        """Runs the folds that are not complete, and writes their common results.

        Files in `output_dir`: `folds.csv`, `cross_validation.json` (metrics and best epoch of each fold, their mean
        and standard deviation), and the report of the out-of-fold predictions (see `write_report`). `thresholds.json`
        is chosen on the validation scores of all folds. The report does not use it: each fold uses its own thresholds.

        Returns:
            The content of `cross_validation.json`.

        Raises:
            UserError: If the clips cannot be cut or trained on, or a file that training has not written would be
                replaced.
        """
        for fold in range(self.folds):
            folder = self.folder(fold)
            if self.team.first_does((folder / LOGITS_FILE).is_file):
                logger.info("Fold %d of %d is complete already", fold + 1, self.folds)
                self.team.first_does(partial(delete_checkpoints, folder))  # if it was killed before it did this
                continue
            logger.info("Fold %d of %d", fold + 1, self.folds)
            with self.one_run(fold, folder) as run:
                _, scored = train_and_evaluate(run)
                if self.team.is_first:
                    _write_logits(scored, folder / LOGITS_FILE)
                    delete_checkpoints(folder)
            del scored, run
            gc.collect()  # a trainer and its model hold each other
            torch.cuda.empty_cache()
        self.team.first_does(self._write_results)
        return read_json(self.output_dir / CROSS_VALIDATION_FILE)

    def one_run(self, fold: int, folder: Path, *, everything_for: float | None = None, **changes: Any) -> Run:
        """A run with the splits of a fold; it resumes an interrupted run in the folder.

        Args:
            fold: Which fold is the test split.
            folder: Its output folder; without a complete checkpoint, training starts from the beginning.
            everything_for: See `Run`.
            **changes: Other settings.
        """

        def find_checkpoint() -> Path | None:
            checkpoint = last_whole_checkpoint(folder)
            if checkpoint is None and folder.is_dir():
                clear_results(folder)
            return checkpoint

        checkpoint = self.team.first_does(find_checkpoint)
        settings = self.settings.changed(
            output_dir=str(folder),
            resume_from_checkpoint=None if checkpoint is None else str(checkpoint),
            splits_file=None,
            folds=None,
            final_fit=False,
            **changes,
        )
        return Run(settings, splits_of_fold(self.table, fold), everything_for=everything_for)

    def folder(self, fold: int) -> Path:
        """Output folder of a fold."""
        return self.output_dir / f"fold-{fold}"

    def _check_output(self) -> None:
        """Raises `UserError` unless the output folder is new or has a cross-validation to resume."""
        check_folds_start(self.output_dir, self.settings.training.resume_from_checkpoint)

    def _check_unchanged(self) -> None:
        """Raises `UserError` if a cross-validation that is resumed was started with other folds or data."""
        output_dir = self.output_dir
        record, before = RunRecord.read(output_dir), read_json(output_dir / CROSS_VALIDATION_FILE)
        changes = differences({"folds": before.get("folds")}, {"folds": self.folds})
        if record.annotations != self._record.annotations:
            # Complete folds were tested with the earlier annotations.
            changes.append("annotations.csv has changed since then")
        elif before.get("classes") != self.classes:
            changes.append("the archive has different species now")
        elif not changes and not read_folds(output_dir / FOLDS_FILE).equals(self.table):
            changes.append("the recordings are in different folds now")
        self._refuse(changes)

    def _refuse(self, changes: list[str]) -> None:
        if changes:
            raise UserError(
                f"the cross-validation in {self.output_dir} was started with other settings or data: "
                f"{'; '.join(changes)}. Give the same settings and data, or another --output_dir"
            )

    def _take_folder(self) -> None:
        output_dir = self.output_dir
        with contextlib.ExitStack() as stack, user_errors(OSError):
            output_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(output_dir))
            self._check_output()  # another run may have come and gone since this one was planned
            if not (output_dir / CROSS_VALIDATION_FILE).is_file():
                self._is_new = True
                self._record.write(output_dir)
                write_table(self.table, output_dir / FOLDS_FILE)
                write_json(self._description, output_dir / CROSS_VALIDATION_FILE)
            self._stack = stack.pop_all()

    def _write_results(self) -> None:
        summaries = [read_json(self.folder(fold) / SUMMARY_FILE) for fold in range(self.folds)]
        folds = [
            Fold(
                self.folder(fold),
                _read_logits(self.folder(fold) / LOGITS_FILE),
                train_counts(summary, self.classes),
            )
            for fold, summary in enumerate(summaries)
        ]
        with writing_results(self.output_dir):
            metrics, calibration = write_out_of_fold(
                self.output_dir,
                folds,
                archive=self._archive,
                common_names=self._common_names,
                seed=self.settings.training.seed,
            )
        runs = [summary["result"] for summary in summaries]
        results = {
            **self._description,
            "each": [
                {**fold, **{name: run[name] for name in FOLD_RESULTS if name in run}}
                for fold, run in zip(metrics["each"], runs, strict=True)
            ],
            "mean": metrics["mean"],
            "sd": metrics["sd"],
            "median_best_epoch": float(np.median([_last_needed(run) for run in runs])),
            "calibration": dataclasses.asdict(calibration.calibration),
        }
        with writing_run(self.output_dir):
            write_json(results, self.output_dir / CROSS_VALIDATION_FILE, allow_nan=False)


# Of a fold's training summary.
FOLD_RESULTS = ("best_epoch", "averaged_epochs", "train_runtime_s")


def _last_needed(result: Mapping[str, Any]) -> float:
    """The best epoch of a run; if the weights of several were averaged, the last of them."""
    return float(max(result.get("averaged_epochs", [result["best_epoch"]])))


def find_folds(builder: KenyaBirds, splits_file: str | Path | None, folds: int | None, seed: int) -> pd.DataFrame:
    """The table of folds, in the order of recordings.

    Args:
        builder: Plans the clips whose recordings are divided.
        splits_file: A table of folds; by default `stratified_folds` makes them.
        folds: Number of folds; by default that of the table.
        seed: Seed of `stratified_folds`.

    Returns:
        `recording` and `fold`.

    Raises:
        UserError: If there are fewer than three folds, if the table has another number of folds or puts recordings
            with the same sound into different folds, or if it cannot be used.
    """
    if splits_file:
        divided = builder.divided["recording"]
        known = {*divided, *without_clips(builder.archive, divided)}
        table = with_names_of(read_folds(splits_file), {*builder.clips["recording"], *known})
        if weak := sorted(set(table["recording"]) - known):
            raise UserError(
                f"{splits_file} has {len(weak)} recordings with weak labels, checked detections or no usable "
                f"annotation, such as {weak[0]}: "
                "leave them out, as weak labels are only learned from; or give --weak_labels every_split"
            )
        check_undivided(table, builder.same_sound)
        found = table["fold"].nunique()
        if folds not in (None, found):
            raise UserError(f"folds is {folds}, but {splits_file} has {found} folds: omit --folds")
        return table.sort_values("recording").reset_index(drop=True)
    folds = DEFAULT_FOLDS if folds is None else folds
    Kind.of(Folds).check("folds", folds)
    return make_folds(builder, folds, seed)


def _write_logits(scored: Scored, path: Path) -> None:
    with writing_run(path.parent), whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **vars(scored))


def _read_logits(path: Path) -> Scored:
    with np.load(path, allow_pickle=False) as arrays:
        return Scored(**arrays)


FOLDER = "final-fit"


def fit_on_everything(validated: CrossValidation, results: dict[str, Any]) -> None:
    """Trains on all recordings, and saves the model in the cross-validation's folder.

    The learning rate has the same schedule as in the folds. Training stops after the median of the folds' best epochs,
    because no recordings are left to choose an epoch on. With `average_epochs`, it stops after the median of the last
    averaged epochs of the folds, and averages as many of its own last epochs as the median fold has averaged.
    Calibration, `thresholds.json` and the distances of known calls come from the validation recordings of all folds,
    whose models were trained on fewer recordings. Checkpoints are in `output_dir/final-fit`; an interrupted run
    resumes from them.

    Args:
        validated: A completed cross-validation.
        results: The return value of its `run`.

    Raises:
        UserError: If the clips cannot be cut or trained on.
    """
    output_dir, epochs = validated.output_dir, results["median_best_epoch"]
    if (output_dir / SUMMARY_FILE).is_file():
        logger.info("The final fit is complete already")
        return
    logger.info("Final fit on all recordings: %g epochs", epochs)
    folder = output_dir / FOLDER
    changes = {
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "metric_for_best_model": None,
        "average_epochs": max(1, int(np.median([len(fold.get("averaged_epochs", [])) for fold in results["each"]]))),
    }
    with validated.one_run(0, folder, everything_for=epochs, save_total_limit=2, **changes) as run:
        trainer, clips, summary = run.train()
        summary["cross_validation"] = {
            "folds": validated.folds,
            "best_epochs": [_last_needed(fold) for fold in results["each"]],
            "train_runtime_s": round(sum(fold["train_runtime_s"] for fold in results["each"]), 1),
        }

        def write() -> None:
            with writing_results(output_dir):
                Calibration(**results["calibration"]).store(trainer.model.config)
                run.save_model(output_dir)
                folds = [validated.folder(fold) for fold in range(validated.folds)]
                save_reference(refit_reference(run, clips["train"], folds), output_dir)
                for name in (SPLITS_FILE, RECORDINGS_FILE):
                    shutil.copyfile(folder / name, output_dir / name)
                write_json(summary, output_dir / SUMMARY_FILE)

        run.team.first_does(write)
