"""Tuning: a study of Optuna whose objective is the mean macro F1 over grouped folds.

The recordings of the test split take no part: they are neither trained on nor looked at. The others are divided into
folds, of which each validates once while the rest train.
"""

import gc
import hashlib
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import optuna
import pandas as pd
import torch
from optuna.exceptions import ExperimentalWarning, OptunaError, TrialPruned
from optuna.study import MaxTrialsCallback, Study
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from kenya_birds.console import user_errors
from kenya_birds.data.archive import archive_fingerprint
from kenya_birds.data.splits import stratified_folds
from kenya_birds.errors import UserError
from kenya_birds.files import is_new_or_empty, read_json, write_json
from kenya_birds.training.flags import tuning_flags
from kenya_birds.training.search_space import SearchSpace, SeededTPESampler
from kenya_birds.training.settings import Settings
from kenya_birds.training.training_run import Run
from kenya_birds.training.tuning_report import FOLD_EPOCHS, FOLD_SCORES, write_tuning
from kenya_birds.values import Count, Duration, Range, checked

logger = logging.getLogger(__name__)

STUDY_FILE = "study.json"
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# A trial is pruned after a fold if it is worse than the median there, once so many have been completed.
TRIALS_BEFORE_PRUNING = 5
# A trial whose process has not been heard of for so long was killed: its parameters are tried again, so often at most.
HEARTBEAT_S, GRACE_S = 10, 60
RETRIES = 2


@checked
def tune(
    data_dir: str | Path,
    output: str | Path,
    *,
    trials: Count,
    timeout_s: Duration | None = None,
    folds: Annotated[int, Range(2)] = 3,
    storage: str = "sqlite:///study.db",
    study_name: str = "kenya_birds",
    backbones: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> Study:
    """Searches for the settings with the best mean macro F1 over folds, or goes on with a study that does.

    Trials run in `output/trial-N/fold-K`, and a trial's folder is deleted when it ends. See `write_tuning` for what
    is left. Several processes may work on one study at once. With one, the same seed (`--seed` among the flags) gives
    the same trials.

    Args:
        data_dir: The archive.
        output: Folder to write; new, empty, or this study's.
        trials: Finished trials, pruned ones included, of the whole study.
        timeout_s: No trial starts later (s).
        folds: Number of folds.
        storage: URL of the study's data base, as SQLAlchemy takes it.
        study_name: Name of the study in it.
        backbones: Names of timm models to choose from; by default the flags' one.
        flags: Flags of `train_hf.py` for what is not searched.

    Returns:
        The study.

    Raises:
        UserError: If an argument or the archive cannot be used, or the study is there and searches otherwise.
    """
    output = Path(output)
    settings = _parse(data_dir, output, flags)
    space = SearchSpace(settings, backbones)
    # What the user may have got wrong comes to light before anything is written.
    runs = [Run(settings.changed(output_dir=str(output / "plan"), backbone=name)) for name in space.backbones]
    table = tuning_folds(runs[0], folds)
    scored_on = table.loc[table["fold"] >= 0, "recording"]  # each of them validates in one fold
    runs[0].check_starting_model(scored_on)
    fingerprints = runs[0].builder.archive.fingerprints(scored_on)
    del runs
    description = {
        "space": space.describe(),
        "archive": {"fingerprint": archive_fingerprint(data_dir)},
        "folds": {"number": folds, "recordings": hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()[:16]},
        "settings": {
            name: value
            for name, value in settings.changed(backbone=space.backbones[0]).deciding().items()
            if name not in space.describe()
        },
    }
    with user_errors(SQLAlchemyError):
        shown_storage = make_url(storage).render_as_string(hide_password=True)
    owner = {"study_name": study_name, "storage": shown_storage, **description}
    _check_output(output, owner)
    study = _open_study(storage, study_name, settings.training.seed, description)
    output.mkdir(parents=True, exist_ok=True)
    write_json(owner, output / STUDY_FILE)
    _remove_ended(study, output)

    done = len(study.get_trials(deepcopy=False, states=FINISHED))
    logger.info("Study %s: %d of %d trials are done", study_name, done, trials)
    running = [trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
    if running:
        logger.info(
            "Trials under way elsewhere, or left by a process that was killed: %s. Those that are silent for %d s are "
            "tried again",
            ", ".join(map(str, running)),
            GRACE_S,
        )
    try:
        if done < trials:
            _optimize(study, _objective(settings, space, table, output), trials, timeout_s, output)
    finally:
        write_tuning(study, output, space, fingerprints)
    return study


def tuning_folds(run: Run, folds: int) -> pd.DataFrame:
    """Divides the recordings that are not in a run's test split into folds.

    Args:
        run: Its splits say what is test.
        folds: Number of folds.

    Returns:
        `recording` and `fold`: 0, 1 and so on, and -1 for the recordings of the test split, which take no part.

    Raises:
        UserError: If there are fewer recordings than folds.
    """
    splits, clips = run.builder.splits, run.builder.clips
    test = splits.loc[splits["split"] == "test", "recording"]
    table = stratified_folds(
        clips[~clips["recording"].isin(test)],
        folds,
        seed=run.settings.data.split_seed,
        same_sound=run.builder.same_sound,
    )
    left_out = pd.DataFrame({"recording": test, "fold": -1})
    return pd.concat([table, left_out]).sort_values("recording").reset_index(drop=True)


def fold_splits(table: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Splits in which a fold of `tuning_folds` validates, the others train and the recordings left out are test."""
    split_of = {fold: "validation", -1: "test"}
    return pd.DataFrame(
        {"recording": table["recording"], "split": [split_of.get(number, "train") for number in table["fold"]]}
    )


def _parse(data_dir: str | Path, output: Path, flags: Sequence[str]) -> Settings:
    settings = tuning_flags(data_dir, output, flags).settings()
    training = settings.training
    if training.world_size > 1:
        raise UserError(
            f"{training.world_size} processes share one run: start kenya-birds tune once for each, on the same storage"
        )
    if training.eval_strategy == "no" or training.metric_for_best_model != "macro_f1":
        raise UserError(
            f"eval_strategy is {training.eval_strategy} and metric_for_best_model {training.metric_for_best_model}: "
            "tuning goes by the macro F1 on validation, so leave both flags out"
        )
    return settings.changed(report_to="none", resume_from_checkpoint=None, save_total_limit=1, save_only_model=True)


def _check_output(output: Path, description: dict[str, Any]) -> None:
    """Raises `UserError` unless the folder is new, empty or the study's own: trials' folders in it are deleted."""
    if is_new_or_empty(output):
        return
    if not (output / STUDY_FILE).is_file():
        raise UserError(f"--output {output} exists and holds no study: choose another folder, new or empty")
    if read_json(output / STUDY_FILE) != description:
        raise UserError(f"--output {output} holds another study (see its {STUDY_FILE}): choose another folder")


def _open_study(storage: str, name: str, seed: int, description: dict[str, Any]) -> Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings(), user_errors(SQLAlchemyError, OptunaError, ImportError, RuntimeError):
        warnings.simplefilter("ignore", ExperimentalWarning)  # heartbeats
        study = optuna.create_study(
            storage=optuna.storages.RDBStorage(
                storage,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=_retry,
                # SQLite lets one worker write at a time.
                engine_kwargs={"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else None,
            ),
            study_name=name,
            load_if_exists=True,
            direction="maximize",
            sampler=SeededTPESampler(seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING, n_warmup_steps=0),
        )
    for part, values in description.items():
        there = study.user_attrs.get(part)
        if there is None and not study.get_trials(deepcopy=False):
            study.set_user_attr(part, values)
        elif there != values:
            there = there or {}
            names = [key for key in {**there, **values} if there.get(key) != values.get(key)]
            told = "; ".join(f"{key} is {there.get(key)} there and {values.get(key)} here" for key in names)
            raise UserError(
                f"study {name} has another {part}: {told}: give the arguments that it was begun with, or "
                "another --study_name and --output"
            )
    return study


def _retry(study: Study, trial: FrozenTrial) -> None:
    """Has the parameters of a trial that ended without a result tried again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)(study, trial)


def _optimize(
    study: Study, objective: Callable[[Trial], float], trials: int, timeout_s: float | None, output: Path
) -> None:
    begun: list[int] = []

    def remembered(trial: Trial) -> float:
        begun.append(trial.number)
        return objective(trial)

    def after_trial(study: Study, trial: FrozenTrial) -> None:
        _remove_ended(study, output)
        done = len(study.get_trials(deepcopy=False, states=FINISHED))
        with suppress(ValueError):  # none is complete yet
            best = study.best_trial
            logger.info("%d of %d trials are done; best is trial %d: %.4f", done, trials, best.number, best.value)

    try:
        study.optimize(
            remembered, timeout=timeout_s, callbacks=[after_trial, MaxTrialsCallback(trials, states=FINISHED)]
        )
    except BaseException:
        last = study.get_trials(deepcopy=True)[begun[-1]] if begun else None
        if last is not None and last.state == TrialState.FAIL:
            _retry(study, last)
        _remove_ended(study, output)
        raise


def _objective(settings: Settings, space: SearchSpace, table: pd.DataFrame, output: Path) -> Callable[[Trial], float]:
    folds = int(table["fold"].max()) + 1

    def objective(trial: Trial) -> float:
        flags = space.suggest(trial)
        told = ", ".join(f"{name} {value:.3g}" for name, value in trial.params.items() if name != "backbone")
        logger.info("Trial %d: %s, %s", trial.number, flags["backbone"], told)
        scores: list[float] = []
        epochs: list[float] = []
        for fold in range(folds):
            folder = output / f"trial-{trial.number}" / f"fold-{fold}"
            score, epoch = _best_epoch(settings.changed(output_dir=str(folder), **flags), fold_splits(table, fold))
            scores.append(score)
            epochs.append(epoch)
            mean = float(np.mean(scores))
            trial.set_user_attr(FOLD_SCORES, scores)
            trial.set_user_attr(FOLD_EPOCHS, epochs)
            logger.info(
                "Trial %d, fold %d of %d: macro F1 %.4f, mean %.4f", trial.number, fold + 1, folds, score, mean
            )
            trial.report(mean, step=fold)
            if fold + 1 < folds and trial.should_prune():
                logger.info("Trial %d is pruned", trial.number)
                raise TrialPruned
        return mean

    return objective


def _best_epoch(settings: Settings, splits: pd.DataFrame) -> tuple[float, float]:
    """Trains; returns the best macro F1 on validation and its epoch."""
    trainer, _, _ = Run(settings, splits).train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_macro_f1" in entry]
    best = max(evaluations, key=lambda entry: entry["eval_macro_f1"])
    del trainer
    gc.collect()  # a trainer and its model hold each other
    torch.cuda.empty_cache()
    return float(best["eval_macro_f1"]), float(best["epoch"])


def _remove_ended(study: Study, output: Path) -> None:
    """Deletes the folders of trials that have ended, or of none."""
    folders = list(output.glob("trial-*"))  # first: another worker may begin a trial meanwhile
    states = {trial.number: trial.state for trial in study.get_trials(deepcopy=False)}
    for folder in folders:
        number = folder.name.removeprefix("trial-")
        if number.isdigit() and states.get(int(number)) != TrialState.RUNNING:
            shutil.rmtree(folder, ignore_errors=True)  # another worker may be deleting it too
