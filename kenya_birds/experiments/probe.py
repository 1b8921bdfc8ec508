"""Probing: classifiers on the embeddings of a frozen model, compared with a trained model."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd

from kenya_birds.data.archive import check_several
from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.dataset import build_clips, clips_builder, no_clips
from kenya_birds.data.splits import SPLITS, has_folds, read_folds, read_splits, recordings_in, splits_of_fold
from kenya_birds.data.weak_recordings import with_only_train
from kenya_birds.defaults import CLIPS_PER_BATCH
from kenya_birds.errors import UserError
from kenya_birds.evaluation.evaluation_report import METRICS_FILE, PREDICTIONS_FILE, EvaluationContext
from kenya_birds.evaluation.predictions import Predictions, clip_references, read_predictions
from kenya_birds.experiments.cross_validation import find_folds
from kenya_birds.experiments.heads import embed_clips, fit_head
from kenya_birds.experiments.probe_settings import ProbeSettings
from kenya_birds.experiments.results import OUT_OF_FOLD, Fold, Scored, write_out_of_fold, write_test
from kenya_birds.files import read_json, write_json, write_table
from kenya_birds.folders import check_new_folder
from kenya_birds.inference.detect import hash_embedder
from kenya_birds.inference.embedding_models import Embedder, load_embedder
from kenya_birds.model.modeling_kenya_birds import MULTI_LABEL
from kenya_birds.saved_models import SavedModel
from kenya_birds.training.run_folder import CROSS_VALIDATION_FILE, FOLDS_FILE, SPLITS_FILE
from kenya_birds.training.settings import read_settings
from kenya_birds.training.training_recordings import Overlap, TrainingRecordings, overlap_of
from kenya_birds.values import Count, Device, checked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """Results of a completed training run or cross-validation.

    Attributes:
        folder: Its output folder.
        splits_file: Its `folds.csv` or `splits.csv`.
        table: `recording`, and `fold` or `split`.
        metrics: Metrics on the test split, or of the out-of-fold predictions.
        predictions: Predictions for the same clips.
    """

    folder: Path
    splits_file: Path
    table: pd.DataFrame
    metrics: dict[str, Any]
    predictions: Predictions

    @classmethod
    def read(cls, folder: str | Path) -> "TrainedRun":
        """Reads the output folder of a run or a cross-validation.

        Raises:
            UserError: If the folder is neither, or the run is not complete.
        """
        folder = Path(folder)
        validated = (folder / CROSS_VALIDATION_FILE).is_file()
        needed = (FOLDS_FILE if validated else SPLITS_FILE, METRICS_FILE, PREDICTIONS_FILE)
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder} has no {', '.join(missing)}: expected the output folder of a completed training run or "
                "cross-validation"
            )
        splits_file, split = folder / needed[0], OUT_OF_FOLD if validated else "test"
        metrics = read_json(folder / METRICS_FILE).get(split)
        if not isinstance(metrics, dict) or "intervals" not in metrics:
            raise UserError(f"{folder / METRICS_FILE} has no metrics of '{split}': expected a file of train_hf.py")
        table = read_folds(splits_file) if validated else read_splits(splits_file)
        return cls(folder, splits_file, _sorted(table), metrics, read_predictions(folder / PREDICTIONS_FILE))

    def check(self, table: pd.DataFrame, classes: list[str], *, multi_label: bool) -> None:
        """Raises `UserError` unless a probe has the run's splits or folds, classes and problem type.

        Args:
            table: Splits or folds of the probe.
            classes: Its eBird codes.
            multi_label: Whether it is multi-label.
        """
        differences = {
            "splits": not _sorted(table).equals(self.table),
            "classes": classes != self.predictions.classes,
            "problem_type": multi_label != self.predictions.multi_label,
        }
        if found := [name for name, differs in differences.items() if differs]:
            raise UserError(
                f"{self.folder} was trained with other {' and '.join(found)}, so its metrics cannot be compared with "
                "those of this probe: omit --splits_file and --folds to use those of the run, and give the same "
                "--min_annotations and --problem_type as in its training"
            )

    def check_not_trained_on(self, fingerprints: Mapping[str, str | None]) -> None:
        """Raises `UserError` if the run's models, or the models they started from, were trained on test recordings.

        Args:
            fingerprints: `sound_fingerprint` by recording.
        """
        folds = sorted(self.table["fold"].unique()) if "fold" in self.table else [None]
        for fold in folds:
            folder = self.folder if fold is None else self.folder / f"fold-{fold}"
            tested = self.table[self.table["split"] == "test" if fold is None else self.table["fold"] == fold]
            known = TrainingRecordings.read(folder)
            if known is not None:
                overlap = known.overlap({name: fingerprints.get(name) for name in tested["recording"]})
                overlap.refuse(str(folder), ["train", "validation"], "Compare with another run")

    def check_clips(self, recordings: np.ndarray, center_s: np.ndarray, references: np.ndarray) -> None:
        """Raises `UserError` unless the run was tested on these clips.

        Args:
            recordings: File name of each clip's recording, shape `(clips,)`.
            center_s: Centre of each clip in seconds.
            references: Class ids `(clips,)`, or ones, zeros and -100 of shape `(clips, classes)`.
        """
        run = self.predictions
        if _clips(recordings, center_s, references) != _clips(run.recordings, run.center_s, run.references):
            raise UserError(
                f"{self.folder} was tested on other clips than this probe: give the same --edge_tolerance_s and "
                "--min_overlap_s as in its training; if the archive has changed since then, train again"
            )


def format_comparison(columns: Mapping[str, Mapping[str, Any]], *, multi_label: bool = False) -> str:
    """A text table of several results of `write_report`, with their intervals.

    Args:
        columns: Metrics by the title of their column.
        multi_label: Whether the scores of species are independent: then F1 and accuracy are at a score of 0.5, and
            mean average precision is listed first.
    """
    first = next(iter(columns.values()))
    rows = [["", *columns]]
    for name in sorted(first["intervals"], key=lambda name: multi_label and name != "cmap"):
        rows.append(
            [name, *(_format(metrics.get(name), metrics["intervals"].get(name)) for metrics in columns.values())]
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if multi_label and len(columns) > 1:
        lines.append(
            "Compare by cmap (mean average precision). macro_f1, weighted_f1 and accuracy are at a score of 0.5, "
            "which a model of recordings rarely reaches."
        )
    return "\n".join([f"{first['clips']} clips of {first['recordings']} recordings", *lines])


def _format(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "not defined"
    return f"{value:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("recording").reset_index(drop=True)


def _clips(recordings: np.ndarray, center_s: np.ndarray, references: np.ndarray) -> list[tuple]:
    rows = np.asarray(references).astype(np.int64).reshape(len(recordings), -1).tolist()
    return sorted(zip(map(str, recordings), np.asarray(center_s).tolist(), map(tuple, rows), strict=True))


PROBE_FILE = "probe.json"


@checked
def probe(
    model: str | Path,
    data_dir: str | Path,
    output_dir: str | Path,
    settings: ProbeSettings | None = None,
    *,
    beside: str | Path | None = None,
    batch_size: Count = CLIPS_PER_BATCH,
    device: Device | None = None,
    cache_dir: str | Path | None = None,
    num_proc: Count | None = None,
) -> str:
    """Probes a frozen model on an archive.

    The clips, labels, splits and folds are the same as in training with the same flags. Each clip is embedded once.
    The classifier is fitted on train; its hyperparameter, calibration and thresholds are chosen on validation; it is
    evaluated on test. The output files are those of a training run, or those of a cross-validation with a folder for
    each fold. `probe.json` is written last.

    Args:
        model: See `load_embedder`.
        data_dir: The archive.
        output_dir: A new or empty folder.
        settings: Settings of the probe.
        beside: Output folder of a training run or cross-validation to compare with. Its splits or folds are used if
            the settings have none.
        batch_size: Clips per batch of the embedding.
        device: See `find_device`.
        cache_dir: Folder for cached clips and embeddings; by default the cache of `datasets`.
        num_proc: Number of processes that cut clips.

    Returns:
        The metrics as a text table, next to those of the run if there is one.

    Raises:
        UserError: If an input cannot be used, if the run has other splits, classes or clips, or if the model was
            trained on test recordings.
    """
    settings, output_dir = settings or ProbeSettings(), Path(output_dir)
    check_new_folder(output_dir)
    trained = None if beside is None else TrainedRun.read(beside)
    embedder = load_embedder(model, clip_s=settings.clip_s, device=device)
    settings = settings.completed(
        (read_settings(trained.folder) if trained is not None else {}) or read_settings(embedder.saved.folder)
    )
    splits_file = settings.splits_file
    if trained is not None and splits_file is None and settings.folds is None:
        splits_file = trained.splits_file
    builder, table = _plan(data_dir, replace(settings, splits_file=splits_file), embedder, cache_dir)
    overlap = _check_overlap(embedder.saved, builder, table)
    multi_label = settings.problem_type == MULTI_LABEL
    if trained is not None:
        trained.check(table, builder.classes, multi_label=multi_label)
        trained.check_not_trained_on(builder.archive.fingerprints(table["recording"]))

    clips = build_clips(builder, num_proc)
    class_ids = {code: label for label, code in enumerate(builder.classes)}
    references = np.concatenate(
        [clip_references(clips[split], class_ids, multi_label=multi_label) for split in SPLITS]
    )
    rows = datasets.concatenate_datasets([clips[split].remove_columns("audio") for split in SPLITS])
    work = _Work(output_dir, settings, builder, rows, references, np.zeros((0, 0), dtype=np.float32))
    if trained is not None:
        tested = table["recording"] if "fold" in table else recordings_in(table, "test")
        found = np.flatnonzero(np.isin(work.recordings, tested))
        trained.check_clips(work.recordings[found], np.asarray(rows["center_s"][:])[found], references[found])
    work.embeddings = np.concatenate([embed_clips(clips[split], embedder, batch_size) for split in SPLITS])

    output_dir.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "model": embedder.saved.name,
        "model_sha256": hash_embedder(embedder.saved),
        "embedding": embedder.how,
        "embedding_size": embedder.size,
        "sampling_rate": embedder.sampling_rate,
        "training_overlap": overlap.describe(),
        "settings": {name: value for name, value in asdict(settings).items() if name not in ("splits_file", "folds")},
    }
    about["settings"]["clip_s"] = embedder.clip_s
    if "fold" in table:
        write_table(table, output_dir / FOLDS_FILE)
        metrics, results = work.cross_validate(table)
    else:
        write_table(table, output_dir / SPLITS_FILE)
        metrics, _, results = work.fit(table, output_dir)
    write_json({**about, **results}, output_dir / PROBE_FILE, allow_nan=False)
    columns = {f"{settings.method} probe": metrics}
    if trained is not None:
        columns[str(trained.folder)] = trained.metrics
    return format_comparison(columns, multi_label=multi_label)


def _plan(
    data_dir: str | Path, settings: ProbeSettings, embedder: Embedder, cache_dir: str | Path | None
) -> tuple[KenyaBirds, pd.DataFrame]:
    """The planned clips, and the table of splits or folds."""

    def plan(splits: pd.DataFrame | None) -> KenyaBirds:
        return clips_builder(
            data_dir,
            splits=splits,
            cache_dir=cache_dir,
            sampling_rate=embedder.sampling_rate,
            clip_s=embedder.clip_s,
            edge_tolerance_s=settings.edge_tolerance_s,
            min_overlap_s=settings.min_overlap_s,
            weak_labels=settings.weak_labels,
            channel=settings.channel,
            min_annotations=settings.min_annotations,
            split_seed=settings.split_seed,
        )

    splits_file = settings.splits_file
    builder = plan(read_splits(splits_file) if splits_file else None)
    check_several(builder.classes, builder.config.min_annotations)
    if settings.folds is not None or (splits_file is not None and has_folds(splits_file)):
        table = find_folds(builder, splits_file, settings.folds, settings.split_seed)
        return plan(splits_of_fold(table, 0)), table
    return builder, builder.splits


def _check_overlap(saved: SavedModel, builder: KenyaBirds, table: pd.DataFrame) -> Overlap:
    """The model's training recordings that are tested; raises `UserError` if it was trained on them."""
    tested = table if "fold" in table else table[table["split"] == "test"]
    overlap = overlap_of(saved, builder.archive.fingerprints(tested["recording"]))
    advice = "Probe it with its own splits (--splits_file), or on another archive"
    overlap.refuse(saved.name, ["train", "validation"], advice)
    if overlap.note():
        logger.warning("%s", overlap.note())
    return overlap


@dataclass
class _Work:
    """Embedded clips, on which classifiers are fitted."""

    output_dir: Path
    settings: ProbeSettings
    builder: KenyaBirds
    rows: datasets.Dataset
    references: np.ndarray
    embeddings: np.ndarray

    def __post_init__(self) -> None:
        self.recordings = np.asarray(self.rows["recording"][:])
        self._common_names = self.builder.archive.common_names(self.builder.classes)

    def rows_of(self, splits: pd.DataFrame, split: str) -> np.ndarray:
        """The clips of a split."""
        return np.flatnonzero(np.isin(self.recordings, recordings_in(splits, split)))

    def fit(self, splits: pd.DataFrame, folder: Path) -> tuple[dict[str, Any], Fold, dict[str, Any]]:
        """Fits and evaluates one classifier; returns the metrics, the fold and the chosen hyperparameter."""
        codes, settings = self.builder.classes, self.settings
        of = {split: self.rows_of(splits, split) for split in SPLITS}
        for split, found in of.items():
            if not len(found):
                raise no_clips(self.builder, split, splits)
        known = {split: (self.embeddings[found], self.references[found]) for split, found in of.items()}
        head = fit_head(
            settings.method,
            known["train"],
            known["validation"],
            classes=len(codes),
            weight_power=settings.loss_weight_power,
        )
        chosen = {"C" if settings.method == "linear" else "neighbours": head.chosen}
        logger.info("%s: %s", settings.method, ", ".join(f"{name} {value:g}" for name, value in chosen.items()))
        scored = Scored(
            head.predict(known["validation"][0]),
            known["validation"][1],
            self.recordings[of["validation"]],
            head.predict(known["test"][0]),
            np.zeros((0, len(self.builder.classes)), dtype=np.float32),
            np.zeros(0),
            np.zeros(0, dtype=str),
        )
        calibration = scored.calibration()
        labels = np.asarray(self.rows["label"][:])[of["train"]]
        train_counts = np.bincount(labels, minlength=len(codes)).tolist()
        metrics = write_test(
            folder,
            scored,
            self.rows.select(of["test"]),
            known["test"][1],
            calibration=calibration,
            classes=codes,
            context=EvaluationContext(self._common_names, train_counts, seed=settings.seed),
        )
        fitted = {**chosen, "calibration": asdict(calibration.calibration)}
        return metrics, Fold(folder, scored, train_counts), fitted

    def cross_validate(self, table: pd.DataFrame) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fits and evaluates a classifier for each fold; returns all metrics and the chosen hyperparameters."""
        number, folds, fitted = table["fold"].nunique(), [], []
        for fold in range(number):
            logger.info("Fold %d of %d", fold + 1, number)
            splits = with_only_train(splits_of_fold(table, fold), self.builder.only_train, self.builder.same_sound)
            _, done, chosen = self.fit(splits, self.output_dir / f"fold-{fold}")
            folds.append(done)
            fitted.append(chosen)
        pooled, _ = write_out_of_fold(
            self.output_dir,
            folds,
            archive=self.builder.archive,
            common_names=self._common_names,
            seed=self.settings.seed,
        )
        each = [{**metrics, **chosen} for metrics, chosen in zip(pooled["each"], fitted, strict=True)]
        return pooled["out_of_fold"], {"folds": number, "each": each, "mean": pooled["mean"], "sd": pooled["sd"]}
