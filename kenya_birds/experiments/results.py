"""Trains, evaluates, and writes the results of a run or of a cross-validation."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers.trainer_utils import PredictionOutput

from kenya_birds.data.archive import Archive
from kenya_birds.evaluation.calibration import Calibration, CalibrationChoice, choose_calibration
from kenya_birds.evaluation.evaluation_report import (
    METRICS_FILE,
    PREDICTIONS_FILE,
    THRESHOLDS_FILE,
    WHOLE_RECORDINGS,
    EvaluationContext,
    format_metrics,
    format_recordings,
    plain_metrics,
    write_evaluation,
    write_report,
)
from kenya_birds.evaluation.metrics import class_targets, probabilities
from kenya_birds.evaluation.predictions import Predictions, read_predictions
from kenya_birds.evaluation.thresholds import Thresholds, choose_checked_thresholds, choose_window_thresholds
from kenya_birds.evaluation.unknown_species import UNKNOWN_SPECIES, format_unknown, pooled_figures
from kenya_birds.experiments.novelty_fit import FittedNovelty, fit_novelty, save_reference
from kenya_birds.experiments.whole_recordings import ScoredWindows, pool_folds, write_recordings
from kenya_birds.files import read_json, write_json
from kenya_birds.training.callbacks import write_results
from kenya_birds.training.run_folder import SUMMARY_FILE, writing_results
from kenya_birds.training.settings import train_counts
from kenya_birds.training.trainer import KenyaBirdsTrainer
from kenya_birds.training.training_run import Run

logger = logging.getLogger(__name__)

# Training on recordings gives probabilities already. Fewer validation recordings than these do not tell better ones: a
# calibration on four recordings was worse on other recordings than none.
CALIBRATION_RECORDINGS = 10
# Name of the pooled predictions in metrics.json: each clip is scored by the model of the fold that it was tested in.
OUT_OF_FOLD = "out_of_fold"


@dataclass(frozen=True)
class Scored:
    """Logits of a model on the validation and test splits, before calibration.

    Attributes:
        validation_logits: Shape `(clips, classes)`.
        validation_references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
        validation_recordings: Name of each clip's recording, shape `(clips,)`.
        test_logits: Shape `(clips, classes)`.
        no_call_logits: Of windows of validation recordings in which nothing is annotated, `(windows, classes)`.
        no_call_weights: How many windows each of them stands for, shape `(windows,)`.
        no_call_recordings: Name of each window's recording, shape `(windows,)`.
        window_logits: Of all windows of the validation recordings, shape `(windows, classes)`; empty unless the model
            was trained on recordings. They replace clips in the choice of calibration and thresholds.
        window_targets: 1, 0 or -100, same shape.
        window_recordings: Name of each window's recording, shape `(windows,)`.
        window_overlap_s: Overlap of neighbouring windows in seconds, shape `()`.
    """

    validation_logits: np.ndarray
    validation_references: np.ndarray
    validation_recordings: np.ndarray
    test_logits: np.ndarray
    no_call_logits: np.ndarray
    no_call_weights: np.ndarray
    no_call_recordings: np.ndarray
    window_logits: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    window_targets: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    window_recordings: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=str))
    window_overlap_s: np.ndarray = field(default_factory=lambda: np.zeros(()))

    @classmethod
    def pooled(cls, folds: Sequence["Scored"]) -> "Scored":
        """The logits of several folds, one after the other."""
        names = [each.name for each in fields(cls) if each.name != "window_overlap_s"]
        arrays = {name: np.concatenate([getattr(fold, name) for fold in folds]) for name in names}
        return cls(**arrays, window_overlap_s=folds[0].window_overlap_s)

    def calibration(self) -> CalibrationChoice:
        """The calibration that is best on validation recordings that it was not fitted on, or none."""
        if len(self.window_logits):
            choice = choose_calibration(
                self.window_logits,
                self.window_targets,
                self.window_recordings,
                least_recordings=CALIBRATION_RECORDINGS,
            )
        else:
            choice = choose_calibration(self.validation_logits, self.validation_references, self.validation_recordings)
        logger.info("%s", choice.reason())
        return choice

    def thresholds(self, calibration: Calibration, classes: Sequence[str]) -> Thresholds:
        """Those with the best F1 on all windows of validation recordings, or on clips and windows without a call.

        Those of clips are checked on validation recordings that they were not chosen on (see
        `choose_checked_thresholds`), because clips do not show how often a call is in a window.
        """
        if len(self.window_logits):
            scores = probabilities(calibration.apply(self.window_logits), multi_label=True)
            thresholds = choose_window_thresholds(
                scores, self.window_targets, classes, overlap_s=float(self.window_overlap_s)
            )
            logger.info("%s", thresholds.reason())
            return thresholds
        logits = np.concatenate([self.validation_logits, self.no_call_logits])
        targets = class_targets(self.validation_references, len(classes))
        absent = np.zeros((len(self.no_call_logits), len(classes)), dtype=targets.dtype)
        thresholds = choose_checked_thresholds(
            probabilities(calibration.apply(logits), multi_label=self.validation_references.ndim == 2),
            np.concatenate([targets, absent]),
            classes,
            np.concatenate([self.validation_recordings, self.no_call_recordings]),
            weights=np.concatenate([np.ones(len(targets)), self.no_call_weights]),
        )
        logger.info("%s", thresholds.reason())
        return thresholds


def write_test(
    folder: Path,
    scored: Scored,
    test: Dataset,
    references: np.ndarray,
    *,
    calibration: CalibrationChoice,
    classes: Sequence[str],
    context: EvaluationContext,
    windows: ScoredWindows | None = None,
) -> dict[str, Any]:
    """Evaluates on test, with thresholds chosen on validation, and writes what `write_evaluation` writes.

    Args:
        folder: Output folder.
        scored: The model's logits.
        test: The test clips.
        references: Of the test clips, as in `Scored`.
        calibration: Chosen on validation.
        classes: eBird codes by class id.
        context: Names, counts, and what else the report says.
        windows: All windows of the test recordings, for the evaluation on whole recordings.

    Returns:
        The metrics on test (see `write_report`).
    """
    multi_label = scored.validation_references.ndim == 2
    scores = probabilities(calibration.calibration.apply(scored.validation_logits), multi_label=multi_label)
    thresholds = scored.thresholds(calibration.calibration, classes)
    validation: dict[str, Any] = {
        **plain_metrics(scores, scored.validation_references),
        "no_call_windows": len(scored.no_call_logits),
        "calibration": calibration.to_json(),
        "thresholds": thresholds.reason(),
    }
    if windows is not None:
        whole = windows.write_report(folder, calibration.calibration, thresholds, context)
        # Listed before the metrics of clips.
        more = {"test": {WHOLE_RECORDINGS: whole, **context.more.get("test", {})}}
        context = replace(context, more={**context.more, **more})
    metrics = write_evaluation(
        folder,
        scored.test_logits,
        references,
        test,
        classes,
        calibration=None if calibration.calibration == Calibration() else calibration.calibration,
        thresholds=thresholds,
        context=context.with_more("validation", validation),
    )
    if windows is not None:
        logger.info("test, %s", format_recordings(whole))
    # Scores of a short training may all be below it, while the thresholds fit.
    predicted = " (species with a score above 0.5 are predicted)" if multi_label else ""
    f1, accuracy = validation["macro_f1"], validation["accuracy"]
    logger.info("validation clips%s: macro F1 %.4f, accuracy %.4f", predicted, f1, accuracy)
    logger.info("test clips%s: %s", predicted, format_metrics(metrics))
    return metrics


@dataclass(frozen=True)
class Fold:
    """Results of one fold.

    Attributes:
        folder: Output folder of `write_test`.
        scored: The logits of its model.
        train_counts: Training clips by class id.
    """

    folder: Path
    scored: Scored
    train_counts: Sequence[int]


def write_out_of_fold(
    folder: Path, folds: Sequence[Fold], *, archive: Archive, common_names: Mapping[str, str], seed: int
) -> tuple[dict[str, Any], CalibrationChoice]:
    """Writes what `write_report` writes, of all folds' predictions: no clip is scored by a model trained on it.

    `thresholds.json` is chosen on the validation scores of all folds; no metric of the report depends on it, because
    in each fold its own thresholds decide what is reported.

    Args:
        folder: Output folder.
        folds: The folds.
        archive: The archive of the recordings.
        common_names: By eBird code.
        seed: Seed of the bootstrap.

    Returns:
        `out_of_fold` (see `write_report`), `each` fold's metrics on test, and by metric their `mean` and `sd`; and the
        calibration that is chosen on the validation logits of all folds.
    """
    tested = [read_predictions(fold.folder / PREDICTIONS_FILE) for fold in folds]
    metrics = [read_json(fold.folder / METRICS_FILE)["test"] for fold in folds]
    classes = tested[0].classes
    pooled = Predictions.pooled(tested)
    uncalibrated = [probabilities(fold.scored.test_logits, multi_label=pooled.multi_label) for fold in folds]
    any_calibrated = any(fold["ece_before_calibration"] is not None for fold in metrics)
    reported = [
        predictions.scores >= Thresholds.read(fold.folder / THRESHOLDS_FILE).values(classes)
        for predictions, fold in zip(tested, folds, strict=True)
    ]
    scored = Scored.pooled([fold.scored for fold in folds])
    calibration = scored.calibration()
    thresholds = scored.thresholds(calibration.calibration, classes)
    names = metrics[0]["intervals"]
    mean, sd = _mean_and_sd(metrics, names)
    context = EvaluationContext(
        common_names,
        np.mean([fold.train_counts for fold in folds], axis=0).round().astype(int).tolist(),
        split=OUT_OF_FOLD,
        more={
            "mean_of_folds": mean,
            "sd_of_folds": sd,
            "validation": {"calibration": calibration.to_json(), "thresholds": thresholds.reason()},
        },
        seed=seed,
        archive_of=archive.archive_of,
    )
    pooled_recordings = pool_folds([fold.folder for fold in folds], archive)
    if pooled_recordings is not None:
        overlap_s = metrics[0][WHOLE_RECORDINGS]["overlap_s"]
        whole = write_recordings(folder, pooled_recordings, context, overlap_s=overlap_s)
        context = context.with_more(OUT_OF_FOLD, {WHOLE_RECORDINGS: whole})
        logger.info("out of fold, %s", format_recordings(whole))
    unknown = [fold[UNKNOWN_SPECIES] for fold in metrics if UNKNOWN_SPECIES in fold]
    if unknown:
        figures = pooled_figures(unknown)
        context = context.with_more(OUT_OF_FOLD, {UNKNOWN_SPECIES: figures})
        logger.info("out of fold, unknown species: %s", format_unknown(figures))
    out_of_fold = write_report(
        folder,
        pooled,
        # If no fold was calibrated, there is nothing to compare.
        uncalibrated=np.concatenate(uncalibrated) if any_calibrated else None,
        thresholds=thresholds,
        reported=np.concatenate(reported),
        context=context,
    )
    logger.info("out of fold: %s", format_metrics(out_of_fold))
    logger.info("%s", format_folds(metrics, multi_label=pooled.multi_label))
    each = [{name: fold[name] for name in (*names, "clips", "recordings")} for fold in metrics]
    return {"out_of_fold": out_of_fold, "each": each, "mean": mean, "sd": sd}, calibration


def format_folds(metrics: Sequence[Mapping[str, Any]], *, multi_label: bool) -> str:
    """Mean and spread of the folds' metrics on clips, as text: macro F1, and if multi-label first average precision.

    Args:
        metrics: Those of each fold on test (see `write_report`).
        multi_label: Whether the scores of species are independent, so that F1 is at a score of 0.5.
    """
    titles = {"macro_f1": "macro F1"}
    if multi_label:
        titles = {"cmap": "mean average precision", "macro_f1": "macro F1 at a score of 0.5"}
    mean, sd = _mean_and_sd(metrics, titles)
    lines = []
    for name, title in titles.items():
        if mean[name] is not None:
            each = ", ".join(f"{fold[name]:.4f}" for fold in metrics if fold[name] is not None)
            spread = "" if sd[name] is None else f", standard deviation {sd[name]:.4f}"
            lines.append(f"{title} of {len(metrics)} folds: mean {mean[name]:.4f}{spread} ({each})")
    return "\n".join(lines)


def _mean_and_sd(
    metrics: Sequence[Mapping[str, Any]], names: Iterable[str]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and standard deviation of each metric over the folds in which it is defined."""
    values = {name: [fold[name] for fold in metrics if fold[name] is not None] for name in names}
    mean = {name: float(np.mean(found)) if found else None for name, found in values.items()}
    sd = {name: float(np.std(found, ddof=1)) if len(found) > 1 else None for name, found in values.items()}
    return mean, sd


# Of the test split, in TensorBoard.
FIGURES = ("macro_f1", "weighted_f1", "top1_accuracy", "cmap", "auroc", "ece")


@dataclass(frozen=True)
class RunScores:
    """What the model of a run predicts, before calibration.

    Attributes:
        scored: Logits of validation and test clips, and of windows of the validation recordings.
        predicted: What the trainer returned for `validation` and `test`.
        windows: The windows of the whole test recordings; None except in the first process, and if all of them have
            weak labels.
        novelty: What was found out about unknown sounds; None except in the first process.
    """

    scored: Scored
    predicted: Mapping[str, PredictionOutput]
    windows: ScoredWindows | None
    novelty: FittedNovelty | None


def train_and_evaluate(run: Run) -> tuple[dict[str, Any], Scored]:
    """Trains a run, scores its splits and saves the results, as the steps of `train_hf.py` do.

    Args:
        run: The run.

    Returns:
        The run's summary, and the model's logits.

    Raises:
        UserError: If the clips cannot be cut or trained on, or a file would be replaced that training has not written.
    """
    with run:
        clips = run.cut_clips()
        run.validation_no_call()  # cut before training, so that faults of these windows are found now
        trainer = run.make_trainer(clips)
        summary = run.fit(trainer, clips)
        scores = score_splits(run, trainer, clips)
        save_results(run, trainer, clips, summary, scores)
        return summary, scores.scored


def score_splits(run: Run, trainer: KenyaBirdsTrainer, clips: DatasetDict) -> RunScores:
    """Scores the clips of validation and test, and the windows of their recordings, in float32.

    Args:
        run: The run.
        trainer: Its trainer, after `Run.fit`. It does not train in mixed precision any more.
        clips: The clips by split.
    """
    # Calibration, thresholds and metrics have to be those of the saved model, which is used in float32.
    trainer.end_mixed_precision()
    logger.info("Evaluating on the validation and test splits ...")
    predicted = {split: trainer.predict(clips[split], metric_key_prefix=split) for split in ("validation", "test")}
    logits, references = predicted["validation"].predictions, predicted["validation"].label_ids.astype(int)
    no_call, weights = run.validation_no_call()
    no_call_logits = np.zeros((0, logits.shape[1]), dtype=np.float32)
    if run.team.is_first and no_call is not None:
        no_call_logits = run.clip_logits(no_call)
    on_recordings = run.settings.data.train_on == "recordings"
    scored = Scored(
        logits,
        references,
        np.asarray(clips["validation"]["recording"][:]),
        predicted["test"].predictions,
        no_call_logits,
        weights,
        np.asarray([] if no_call is None else no_call["recording"][:], dtype=str),
        *(_validation_windows(run) if on_recordings and run.team.is_first else ()),
    )
    if not run.team.is_first:
        return RunScores(scored, predicted, None, None)
    return RunScores(scored, predicted, _test_windows(run, trainer), fit_novelty(run, clips))


def save_results(
    run: Run, trainer: KenyaBirdsTrainer, clips: DatasetDict, summary: dict[str, Any], scores: RunScores
) -> None:
    """Calibrates, chooses thresholds, and writes model, summary, metrics, tables and pictures; `metrics.json` last.

    Where several processes train, the first one writes, and all of them wait for it.

    Args:
        run: The run.
        trainer: Its trainer, after `Run.fit`; its model gets the calibration.
        clips: The clips by split.
        summary: What `Run.fit` returned.
        scores: What `score_splits` returned.

    Raises:
        UserError: If a file would be replaced that training has not written.
    """

    def write() -> None:
        output_dir = Path(run.settings.training.output_dir)
        with writing_results(output_dir):
            calibration = scores.scored.calibration()
            calibration.calibration.store(trainer.model.config)
            run.save_model(output_dir)
            assert scores.novelty is not None  # this is the first process
            save_reference(scores.novelty.reference, output_dir)
            write_json(summary, output_dir / SUMMARY_FILE)
            context = EvaluationContext(
                run.common_names,
                train_counts(summary, run.builder.classes),
                more={split: {"loss": each.metrics[f"{split}_loss"]} for split, each in scores.predicted.items()},
                seed=run.settings.training.seed,
                archive_of=run.builder.archive.archive_of,
            )
            if scores.novelty.figures is not None:
                context = context.with_more("test", {UNKNOWN_SPECIES: scores.novelty.figures})
                logger.info("test, unknown species: %s", format_unknown(scores.novelty.figures))
            metrics = write_test(
                output_dir,
                scores.scored,
                clips["test"],
                scores.predicted["test"].label_ids,
                calibration=calibration,
                classes=run.builder.classes,
                context=context,
                windows=scores.windows,
            )
        if "tensorboard" in run.settings.training.report_to:
            write_results(output_dir, trainer.state.global_step, {name: metrics.get(name) for name in FIGURES})

    run.team.first_does(write)


def _validation_windows(run: Run) -> tuple[np.ndarray, ...]:
    """Logits, targets and recordings of all windows of the validation recordings, and the overlap of the windows."""
    grid, annotated = run.windows.of("validation")
    return run.window_logits("validation"), grid.targets(annotated), grid.names, np.array(grid.overlap_s)


def _test_windows(run: Run, trainer: KenyaBirdsTrainer) -> ScoredWindows | None:
    if not run.windows.recordings("test"):
        logger.warning("All test recordings have weak labels: the model is not evaluated on whole recordings")
        return None
    grid, annotated = run.windows.of("test")
    logits = run.window_logits("test")
    return ScoredWindows(
        run.builder.archive, run.builder.classes, grid, annotated, logits, multi_label=trainer.multi_label
    )
