"""Tuning: a study of Optuna whose objective is a mean metric over folds of recordings.

The metric is the one that chooses the epoch: macro F1 on clips or, with `--train_on recordings`, the mean average
precision on windows of the validation recordings. The recordings of the test split are not used. The others are
divided into folds. Each fold is the validation split once, with training on the others.
"""

import gc
import hashlib
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.exceptions import ExperimentalWarning, OptunaError, TrialPruned
from optuna.study import MaxTrialsCallback, Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from kenya_birds.console import enough_memory, user_errors
from kenya_birds.data.archive import archive_fingerprint
from kenya_birds.data.dataset import make_folds
from kenya_birds.data.splits import recordings_in
from kenya_birds.errors import DeviceMemoryError, DivergedError, UserError
from kenya_birds.files import read_json, write_json
from kenya_birds.folders import is_new_or_empty
from kenya_birds.locks import shared_lock
from kenya_birds.training.callbacks import SHOWN
from kenya_birds.training.flags import SMALLER_BATCHES, tuning_flags
from kenya_birds.training.search_space import SearchSpace, SeededTPESampler
from kenya_birds.training.settings import Settings
from kenya_birds.training.training_run import Run
from kenya_birds.training.tuning_report import FOLD_EPOCHS, HISTORY_FILE, write_tuning
from kenya_birds.training.tuning_settings import TuningSettings

logger = logging.getLogger(__name__)

STUDY_FILE = "study.json"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# After this many completed trials, a trial is pruned after a fold if it is worse than the median.
TRIALS_BEFORE_PRUNING = 5
# A trial without heartbeat for GRACE_S counts as killed. Its parameters are tried again, up to this many times.
HEARTBEAT_S, GRACE_S = 10, 60
RETRIES = 2
# What to do if the database is not that of an output folder.
SAME_STUDY = (
    "a relative --storage is in the working directory, so run the command where it was first run, put the database "
    "back, or choose another --output"
)


def tune(data_dir: str | Path, output: str | Path, tuning: TuningSettings, flags: Sequence[str] = ()) -> Study:
    """Searches for the settings with the best mean metric over folds, or resumes such a study.

    Trials run in `output/trial-N/fold-K`; a trial's folder is deleted at its end. See `write_tuning` for the results.
    Several processes may work on one study at the same time. With one process, the same seed (`--seed` among the
    flags) gives the same trials.

    Args:
        data_dir: The archive.
        output: Output folder: new, empty, or of this study.
        tuning: Settings of the study.
        flags: Flags of `train_hf.py`; settings that are given here are not searched.

    Returns:
        The study.

    Raises:
        UserError: If an argument or the archive cannot be used, or the study exists with other settings.
    """
    output = Path(output)
    settings, given = _parse(data_dir, output, flags)
    space = SearchSpace(settings, tuning.backbones, given)
    # User errors are found before anything is written.
    runs = [Run(settings.changed(output_dir=str(output / "plan"), backbone=name)) for name in space.backbones]
    table = tuning_folds(runs[0], tuning.folds)
    scored_on = table.loc[table["fold"] >= 0, "recording"]  # each is a validation recording in one fold
    runs[0].earlier.check(scored_on)
    fingerprints = runs[0].builder.archive.fingerprints(scored_on)
    del runs
    description = _describe(data_dir, settings, space, table)
    study = _begin(tuning, settings.training.seed, description, output)
    _remove_ended(study, output)
    if space.kept:
        logger.info("Not searched, because they are given: %s", ", ".join(space.kept))
    _log_progress(study, tuning)
    try:
        if len(study.get_trials(deepcopy=False, states=FINISHED)) < tuning.trials:
            _optimize(study, _objective(settings, space, table, output), tuning, output)
    finally:
        write_tuning(study, output, space, fingerprints)
    return study


def tuning_folds(run: Run, folds: int) -> pd.DataFrame:
    """Divides the recordings that are not in a run's test split into folds.

    Args:
        run: The run with the test split.
        folds: Number of folds.

    Returns:
        `recording` and `fold`: 0, 1 and so on, and -1 for the recordings of the test split, which are not used.

    Raises:
        UserError: If there are fewer recordings than folds.
    """
    test = recordings_in(run.builder.splits, "test")
    others = set(run.builder.splits["recording"]) - set(test)
    table = make_folds(run.builder, folds, run.settings.data.split_seed, others)
    left_out = pd.DataFrame({"recording": test, "fold": -1})
    return pd.concat([table, left_out]).sort_values("recording").reset_index(drop=True)


def fold_splits(table: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Splits with a fold of `tuning_folds` as validation, the other folds as train, and unused recordings as test."""
    split_of = {fold: "validation", -1: "test"}
    return pd.DataFrame(
        {"recording": table["recording"], "split": [split_of.get(number, "train") for number in table["fold"]]}
    )


def _parse(data_dir: str | Path, output: Path, flags: Sequence[str]) -> tuple[Settings, tuple[str, ...]]:
    """The settings of the flags, and the names of the flags."""
    parsed = tuning_flags(data_dir, output, flags)
    settings = parsed.settings()
    training = settings.training
    if training.world_size > 1:
        raise UserError(
            f"{training.world_size} processes share one run: start kenya-birds tune once per process, on one storage"
        )
    metric = "cmap" if settings.data.train_on == "recordings" else "macro_f1"
    if training.eval_strategy == "no" or training.metric_for_best_model != metric:
        raise UserError(
            f"eval_strategy is {training.eval_strategy} and metric_for_best_model {training.metric_for_best_model}: "
            f"tuning uses the {SHOWN[metric]} on validation, so omit both flags"
        )
    own = {"report_to": "none", "resume_from_checkpoint": None, "save_total_limit": 1, "save_only_model": True}
    return settings.changed(**own), parsed.stated


def _describe(data_dir: str | Path, settings: Settings, space: SearchSpace, table: pd.DataFrame) -> dict[str, Any]:
    """What decides the trials of a study: search space, archive, folds and settings that are not searched."""
    searched = space.describe()
    deciding = settings.changed(backbone=space.backbones[0]).deciding()
    recordings = hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()[:16]
    return {
        "space": searched,
        "archive": {"fingerprint": archive_fingerprint(data_dir)},
        "folds": {"number": int(table["fold"].max()) + 1, "recordings": recordings},
        "settings": {name: value for name, value in deciding.items() if name not in searched},
    }


def _log_progress(study: Study, tuning: TuningSettings) -> None:
    done = len(study.get_trials(deepcopy=False, states=FINISHED))
    logger.info("Study %s: %d of %d trials are finished", tuning.study_name, done, tuning.trials)
    running = [trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
    if running:
        logger.info(
            "Trials that run in other processes or were interrupted: %s. Trials without a heartbeat for %d s are "
            "tried again",
            ", ".join(map(str, running)),
            GRACE_S,
        )


def _begin(tuning: TuningSettings, seed: int, description: dict[str, Any], output: Path) -> Study:
    """Opens the study and its output folder, one process after the other."""
    with user_errors(SQLAlchemyError):
        owner = {"study_name": tuning.study_name, "storage": _shown(tuning.storage), **description}
    database = _database(tuning.storage)
    _check_output(output, owner, database)
    with ExitStack() as stack, user_errors(OSError):
        # Several processes would create the same tables. Without a folder, SQLite says that there is none.
        if database is not None and database.parent.is_dir():
            lock_file = database.with_name(f"{database.name}.lock")
            stack.enter_context(shared_lock(lock_file, f"the study in {database}"))
        study = _open_study(tuning, seed, description)
        _check_history(output, study)
        output.mkdir(parents=True, exist_ok=True)
        write_json(owner, output / STUDY_FILE)
    return study


def _shown(storage: str) -> str:
    """The address of a database without its password, which may also be in the query."""
    return make_url(storage).set(query={}).render_as_string(hide_password=True)


def _database(storage: str) -> Path | None:
    """The file of a SQLite database; None for other databases."""
    url = make_url(storage)
    if url.get_backend_name() != "sqlite" or not url.database or url.database.startswith((":", "file:")):
        return None
    return Path(url.database).absolute()


def _check_output(output: Path, description: dict[str, Any], database: Path | None) -> None:
    """Raises `UserError` unless the folder is new, empty or of this study, because trials' folders are deleted."""
    if is_new_or_empty(output):
        return
    if not (output / STUDY_FILE).is_file():
        raise UserError(f"--output {output} exists and has no study: choose a new or empty folder")
    found = read_json(output / STUDY_FILE)
    with suppress(SQLAlchemyError, KeyError):
        found["storage"] = _shown(found["storage"])  # earlier versions wrote the query
    searched = [name for name in found.get("space", {}) if name not in description["space"]]
    others = {name: value for name, value in description["settings"].items() if name not in searched}
    if searched and found.get("settings") == others:
        options = ", ".join(f"--{name}" for name in searched)
        raise UserError(
            f"--output {output} has a study that searches {options}: leave out these options, or choose another folder"
        )
    if found != description:
        raise UserError(f"--output {output} has another study (see its {STUDY_FILE}): choose another folder")
    if database is not None and not database.is_file():
        raise UserError(f"--output {output} has a study, but its database {database} does not exist: {SAME_STUDY}")


def _check_history(output: Path, study: Study) -> None:
    """Raises `UserError` if the folder has results of more trials than the study, which would be lost."""
    path = output / HISTORY_FILE
    if not path.is_file():
        return
    before = len(path.read_text(encoding="utf-8").splitlines()) - 1
    now = len(study.get_trials(deepcopy=False))
    if before > now:
        raise UserError(f"{path} has {before} trials, but study {study.study_name} has {now}: {SAME_STUDY}")


def _open_study(tuning: TuningSettings, seed: int, description: dict[str, Any]) -> Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings(), user_errors(SQLAlchemyError, OptunaError, ImportError, RuntimeError):
        warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(
                tuning.storage,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=_retry,
                # SQLite lets one worker write at a time.
                engine_kwargs={"connect_args": {"timeout": 60}} if tuning.storage.startswith("sqlite") else None,
            ),
            study_name=tuning.study_name,
            load_if_exists=True,
            direction="maximize",
            sampler=SeededTPESampler(seed),
            pruner=optuna.pruners.NopPruner(),  # see `_is_worse`
        )
    for part, values in description.items():
        there = study.user_attrs.get(part)
        if there is None and not study.get_trials(deepcopy=False):
            study.set_user_attr(part, values)
        elif there != values:
            there = there or {}
            names = [key for key in {**there, **values} if there.get(key) != values.get(key)]
            changes = "; ".join(f"{key} is {there.get(key)} there and {values.get(key)} here" for key in names)
            raise UserError(
                f"study {tuning.study_name} has another {part}: {changes}: give the arguments of its first run, or "
                "another --study_name and --output"
            )
    return study


def _retry(study: Study, trial: FrozenTrial) -> None:
    """Repeats the parameters of a trial that ended without a result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)(study, trial)


def _optimize(study: Study, objective: Callable[[Trial], float], tuning: TuningSettings, output: Path) -> None:
    started: list[int] = []

    def remembered(trial: Trial) -> float:
        started.append(trial.number)
        return objective(trial)

    def after_trial(study: Study, trial: FrozenTrial) -> None:
        _remove_ended(study, output)
        done = len(study.get_trials(deepcopy=False, states=FINISHED))
        with suppress(ValueError):  # no trial is complete yet
            best = study.best_trial
            logger.info(
                "%d of %d trials are finished; best is trial %d: %.4f", done, tuning.trials, best.number, best.value
            )

    try:
        enough = MaxTrialsCallback(tuning.trials, states=FINISHED)
        study.optimize(remembered, timeout=tuning.timeout_s, callbacks=[after_trial, enough])
    except BaseException:
        last = study.get_trials(deepcopy=True)[started[-1]] if started else None
        if last is not None and last.state == TrialState.FAIL:
            _retry(study, last)
        _remove_ended(study, output)
        raise


def _objective(settings: Settings, space: SearchSpace, table: pd.DataFrame, output: Path) -> Callable[[Trial], float]:
    folds = int(table["fold"].max()) + 1

    def objective(trial: Trial) -> float:
        flags = space.suggest(trial)
        values = ", ".join(f"{name} {value:.3g}" for name, value in trial.params.items() if name != "backbone")
        logger.info("Trial %d: %s, %s", trial.number, flags["backbone"], values)
        scores: list[float] = []
        epochs: list[float] = []
        for fold in range(folds):
            folder = output / f"trial-{trial.number}" / f"fold-{fold}"
            try:
                with enough_memory(SMALLER_BATCHES):
                    changed = settings.changed(output_dir=str(folder), **flags)
                    score, epoch = _best_epoch(changed, fold_splits(table, fold))
            except DeviceMemoryError as error:
                if not _others_fit(trial):
                    raise
                logger.warning("Trial %d is pruned: %s", trial.number, error)
                raise TrialPruned from None
            except DivergedError:
                logger.info("Trial %d is pruned: its training diverged", trial.number)
                raise TrialPruned from None
            scores.append(score)
            epochs.append(epoch)
            mean = float(np.mean(scores))
            trial.set_user_attr(f"fold_{space.metric}", scores)
            trial.set_user_attr(FOLD_EPOCHS, epochs)
            logger.info(
                "Trial %d, fold %d of %d: %s %.4f, mean %.4f",
                trial.number,
                fold + 1,
                folds,
                SHOWN[space.metric],
                score,
                mean,
            )
            trial.report(mean, step=fold)
            if fold + 1 < folds and _is_worse(trial, fold, mean):
                logger.info("Trial %d is pruned", trial.number)
                raise TrialPruned
        return mean

    return objective


def _others_fit(trial: Trial) -> bool:
    """Whether the device has enough memory for other backbones of the study, and not for that of a trial."""
    complete = trial.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    fitting = {one.params.get("backbone") for one in complete} - {None}
    return bool(fitting) and trial.params["backbone"] not in fitting


def _is_worse(trial: Trial, fold: int, mean: float) -> bool:
    """Whether a trial's mean after a fold is below the median of the completed trials there.

    Optuna's MedianPruner compares the best mean of the trial so far, so that an easy first fold hides the others.
    """
    complete = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    means = [other.intermediate_values[fold] for other in complete if fold in other.intermediate_values]
    return len(means) >= TRIALS_BEFORE_PRUNING and mean < float(np.median(means))


def _best_epoch(settings: Settings, splits: pd.DataFrame) -> tuple[float, float]:
    """Trains; returns the metric of the trained model on validation, and its best epoch."""
    gc.collect()  # the trainer of the training before and its model hold each other
    torch.cuda.empty_cache()
    trainer, _, _ = Run(settings, splits).train()
    metric = f"eval_{settings.training.metric_for_best_model}"
    evaluations = [entry for entry in trainer.state.log_history if not math.isnan(entry.get(metric, math.nan))]
    best = max(evaluations, key=lambda entry: entry[metric])
    return trainer.best_metric, float(best["epoch"])


def _remove_ended(study: Study, output: Path) -> None:
    """Deletes the folders of ended or unknown trials."""
    folders = list(output.glob("trial-*"))  # first, because another worker may start a trial meanwhile
    states = {trial.number: trial.state for trial in study.get_trials(deepcopy=False)}
    for folder in folders:
        number = folder.name.removeprefix("trial-")
        if number.isdigit() and states.get(int(number)) != TrialState.RUNNING:
            shutil.rmtree(folder, ignore_errors=True)  # another worker may be deleting it too
