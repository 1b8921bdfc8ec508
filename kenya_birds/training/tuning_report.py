"""Results of a tuning study: the best flags, a table of trials and two figures."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from kenya_birds.files import write_json, write_table
from kenya_birds.plot_style import styled
from kenya_birds.training.callbacks import SHOWN
from kenya_birds.training.flags import PARAMS_KEY
from kenya_birds.training.search_space import SearchSpace
from kenya_birds.training.training_recordings import RECORDINGS_KEY

logger = logging.getLogger(__name__)

BEST_FILE = "best.json"
HISTORY_FILE = "history.csv"
HISTORY_PICTURE = "history.png"
IMPORTANCE_PICTURE = "importance.png"
FOLD_EPOCHS = "fold_best_epoch"
LEAST_TRIALS_FOR_IMPORTANCE = 4


def write_tuning(
    study: Study, folder: Path, space: SearchSpace, recordings: Mapping[str, str | None] | None = None
) -> None:
    """Writes the results of a study so far.

    - `best.json`: flags of `train_hf.py` by name (with those that were not searched and do not have their default),
      the mean of the metric (see `tuning`), the trial, its folds and the search space.
    - `history.csv`, `history.png`: all trials.
    - `importance.png`: importance of each parameter (PED-ANOVA), if four or more trials are completed.

    Args:
        study: The study.
        folder: Output folder; existing files are replaced.
        space: The search space of the study.
        recordings: `sound_fingerprint` by name of the recordings on which trials were scored; `train_hf.py` warns if
            these are test recordings.
    """
    trials = study.get_trials(deepcopy=False)
    metric = space.metric
    write_table(history(study, metric), folder / HISTORY_FILE)
    _draw_history(trials, folder / HISTORY_PICTURE, SHOWN[metric])
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        logger.warning("No trial is completed: %s is not written", BEST_FILE)
        return
    best = study.best_trial
    write_json(
        {
            PARAMS_KEY: {**space.fixed(), **space.flags(best.params)},
            f"mean_{metric}": best.value,
            "trial": best.number,
            f"fold_{metric}": best.user_attrs[f"fold_{metric}"],
            FOLD_EPOCHS: best.user_attrs[FOLD_EPOCHS],
            "study_name": study.study_name,
            "space": space.describe(),
            RECORDINGS_KEY: dict(recordings or {}),
        },
        folder / BEST_FILE,
    )
    if len(complete) < LEAST_TRIALS_FOR_IMPORTANCE:
        logger.info(
            "%d trials are completed: %s is not written, because it needs %d",
            len(complete),
            IMPORTANCE_PICTURE,
            LEAST_TRIALS_FOR_IMPORTANCE,
        )
    elif len({trial.value for trial in complete}) == 1:
        logger.info("All trials have the same %s: %s is not written", SHOWN[metric], IMPORTANCE_PICTURE)
    else:
        _draw_importance(
            get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()), folder / IMPORTANCE_PICTURE
        )


def history(study: Study, metric: str = "macro_f1") -> pd.DataFrame:
    """The trials of a study.

    Args:
        study: The study.
        metric: Name of the metric that the trials maximise.

    Returns:
        One row per trial: `trial`, `state`, `mean_METRIC` (so far, if it was pruned), folds, parameters, time.
    """
    names = sorted({name for trial in study.get_trials(deepcopy=False) for name in trial.params})
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            f"mean_{metric}": _mean(trial),
            f"fold_{metric}": " ".join(f"{score:.4f}" for score in trial.user_attrs.get(f"fold_{metric}", [])),
            FOLD_EPOCHS: " ".join(f"{epoch:g}" for epoch in trial.user_attrs.get(FOLD_EPOCHS, [])),
            **{name: trial.params.get(name) for name in names},
            "started": trial.datetime_start,
            "duration_s": None if trial.duration is None else round(trial.duration.total_seconds(), 1),
        }
        for trial in study.get_trials(deepcopy=False)
    ]
    return pd.DataFrame(rows)


def _mean(trial: FrozenTrial) -> float:
    """The mean over the completed folds; NaN if there is none."""
    return trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else math.nan


@styled()
def _draw_history(trials: list[FrozenTrial], path: Path, metric: str) -> None:
    """Draws the mean metric of each trial, and the best of the completed trials so far."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    figure = Figure(figsize=(7.5, 4.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    numbers = [trial.number for trial in complete]
    values = [_mean(trial) for trial in complete]
    if complete:
        axes.step(numbers, np.maximum.accumulate(values), where="post", color="#c8661b", label="best so far")
    axes.plot(numbers, values, "o", color="#1f4e8c", label="completed: mean over folds")
    if pruned:
        axes.plot(
            [trial.number for trial in pruned],
            [_mean(trial) for trial in pruned],
            "x",
            color="#8fa3bf",
            label="pruned: mean over the folds trained",
        )
    axes.set_xlabel("trial")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(f"{metric} on validation")
    axes.legend(fontsize=9)
    figure.savefig(path, format="png")


@styled()
def _draw_importance(importances: dict[str, float], path: Path) -> None:
    names = list(importances)[::-1]
    figure = Figure(figsize=(7.5, 0.4 * len(names) + 1.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bars = axes.barh(names, [importances[name] for name in names], color="#1f4e8c")
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.set_xlabel("importance (PED-ANOVA, sum 1)")
    axes.margins(x=0.12)
    figure.savefig(path, format="png")
