"""`kenya-birds probe`: classifiers on embeddings, compared with trained models."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pandas as pd

from kenya_birds.data.builders import DEFAULT_MIN_ANNOTATIONS, KenyaBirds
from kenya_birds.data.dataset import build_clips, clips_builder
from kenya_birds.data.splits import SPLITS, has_folds, read_folds, read_splits, splits_of_fold
from kenya_birds.errors import UserError
from kenya_birds.evaluation.evaluation_report import METRICS_FILE, PREDICTIONS_FILE
from kenya_birds.evaluation.predictions import Predictions, clip_references, read_predictions
from kenya_birds.experiments.cross_validation import FOLDS_FILE, RESULTS_FILE, find_folds
from kenya_birds.experiments.heads import class_counts, embed_clips, fit_head
from kenya_birds.experiments.results import OUT_OF_FOLD, Fold, Scored, write_out_of_fold, write_test
from kenya_birds.files import check_new_folder, read_json, write_json, write_table
from kenya_birds.inference.detect import hash_model
from kenya_birds.inference.embedding_models import load_embedder
from kenya_birds.training.arguments import ProblemType
from kenya_birds.training.run_folder import SPLITS_FILE
from kenya_birds.training.settings import read_settings
from kenya_birds.training.training_recordings import TrainingRecordings, overlap_of
from kenya_birds.values import Count, Device, Duration, Folds, NotNegative, Seed, SignedSeconds, check_fields, checked

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """What a run of train_hf.py has left.

    Attributes:
        folder: Its output folder.
        splits_file: Its `folds.csv` or `splits.csv`.
        table: `recording`, and `fold` or `split`.
        metrics: On test, or of the out-of-fold predictions.
        predictions: The same clips'.
    """

    folder: Path
    splits_file: Path
    table: pd.DataFrame
    metrics: dict[str, Any]
    predictions: Predictions

    @classmethod
    def read(cls, folder: str | Path) -> "TrainedRun":
        """Reads a run, or a cross-validation.

        Raises:
            UserError: If the folder is neither, or it is not finished.
        """
        folder = Path(folder)
        validated = (folder / RESULTS_FILE).is_file()
        needed = (FOLDS_FILE if validated else SPLITS_FILE, METRICS_FILE, PREDICTIONS_FILE)
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder} has no {', '.join(missing)}: expected the output folder of a run or a cross-validation of "
                "train_hf.py that has come to its end"
            )
        splits_file, told = folder / needed[0], OUT_OF_FOLD if validated else "test"
        metrics = read_json(folder / METRICS_FILE).get(told)
        if not isinstance(metrics, dict) or "intervals" not in metrics:
            raise UserError(f"{folder / METRICS_FILE} has no figures of '{told}': expected those of train_hf.py")
        table = read_folds(splits_file) if validated else read_splits(splits_file)
        return cls(folder, splits_file, _sorted(table), metrics, read_predictions(folder / PREDICTIONS_FILE))

    def check(self, table: pd.DataFrame, classes: list[str], *, multi_label: bool) -> None:
        """Raises `UserError` unless a probe has the run's splits or folds, classes and problem type."""
        differences = {
            "splits": not _sorted(table).equals(self.table),
            "classes": classes != self.predictions.classes,
            "problem_type": multi_label != self.predictions.multi_label,
        }
        if found := [name for name, differs in differences.items() if differs]:
            raise UserError(
                f"{self.folder} was trained with other {' and '.join(found)}, so that its figures cannot stand beside "
                "those of this probe: leave --splits_file and --folds out to take the run's, and give the "
                "--min_annotations and --problem_type that it was trained with"
            )

    def check_unheard(self, fingerprints: Mapping[str, str | None]) -> None:
        """Raises `UserError` if the run's models were trained on recordings that tested them, or started from such.

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
                overlap.refuse(str(folder), ["train", "validation"], "Compare with a run that is free of this")

    def check_clips(self, recordings: np.ndarray, center_s: np.ndarray, references: np.ndarray) -> None:
        """Raises `UserError` unless these test clips are the ones that the run was tested on."""
        told = self.predictions
        if _clips(recordings, center_s, references) != _clips(told.recordings, told.center_s, told.references):
            raise UserError(
                f"{self.folder} was tested on other clips than this probe: train again on the archive as it is, and "
                "give the --edge_tolerance_s that it was trained with"
            )


def format_comparison(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """Metrics of `write_report` side by side, with their intervals.

    Args:
        columns: Metrics by the name of what they are of.
    """
    first = next(iter(columns.values()))
    rows = [["", *columns]]
    for name in first["intervals"]:
        rows.append(
            [name, *(_told(metrics.get(name), metrics["intervals"].get(name)) for metrics in columns.values())]
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"{first['clips']} clips of {first['recordings']} recordings", *lines])


def _told(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "not defined"
    return f"{value:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values("recording").reset_index(drop=True)


def _clips(recordings: np.ndarray, center_s: np.ndarray, references: np.ndarray) -> list[tuple]:
    rows = np.asarray(references).astype(np.int64).reshape(len(recordings), -1).tolist()
    return sorted(zip(map(str, recordings), np.asarray(center_s).tolist(), map(tuple, rows), strict=True))


PROBE_FILE = "probe.json"
MULTI_LABEL = "multi_label_classification"


@dataclass(frozen=True)
class ProbeSettings:
    """How to probe. What is None is as in the run to compare with, else as in the probed model, else as in training.

    Attributes:
        method: `linear` or `knn` (see `fit_head`).
        splits_file: A table of splits, or of folds: then every fold is tested once.
        folds: Number of folds to make where there is no table.
        split_seed: Seed of splits and folds that are made.
        problem_type: As in training.
        min_annotations: Species with fewer are dropped.
        edge_tolerance_s: See `ClipsConfig`.
        loss_weight_power: Classes weigh n^-power in logistic regression.
        clip_s: Length of a clip, for a model of transformers; ours have their own.
        seed: Of the bootstrap.
    """

    method: Literal["linear", "knn"] = "linear"
    splits_file: Path | None = None
    folds: Folds | None = None
    split_seed: Seed = 42
    problem_type: ProblemType | None = None
    min_annotations: Count | None = None
    edge_tolerance_s: SignedSeconds | None = None
    loss_weight_power: NotNegative = 0.5
    clip_s: Duration | None = None
    seed: Seed = 42

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: If a value is out of range.
        """
        check_fields(self)

    def completed(self, recorded: Mapping[str, Any]) -> "ProbeSettings":
        """These settings with values for those that are None.

        Args:
            recorded: Settings of a run (see `read_settings`); what it lacks has the default of training.
        """
        usual = {
            "problem_type": "single_label_classification",
            "min_annotations": DEFAULT_MIN_ANNOTATIONS,
            "edge_tolerance_s": 0.0,
        }
        missing = {name: recorded.get(name, value) for name, value in usual.items() if getattr(self, name) is None}
        return replace(self, **missing)


@checked
def probe(
    model: str,
    data_dir: str | Path,
    output_dir: str | Path,
    settings: ProbeSettings | None = None,
    *,
    beside: str | Path | None = None,
    batch_size: Count = 64,
    device: Device | None = None,
    cache_dir: str | Path | None = None,
    num_proc: Count | None = None,
) -> str:
    """Probes a frozen model on an archive.

    The clips, their labels, splits and folds are those that training makes with the same flags; each clip is embedded
    once. The classifier is fitted on train, chosen, calibrated and given thresholds on validation, and evaluated on
    test, with the files that a run of train_hf.py leaves there; with folds, each in a folder of its own, and of all of
    them what a cross-validation leaves. `probe.json` comes last.

    Args:
        model: See `load_embedder`.
        data_dir: The archive.
        output_dir: A folder that is new or empty.
        settings: How to probe.
        beside: Output folder of a run or cross-validation of train_hf.py to compare with. Without a table and number
            of folds, its splits or folds are used.
        batch_size: Clips that are embedded at a time.
        device: Where to embed (see `find_device`).
        cache_dir: Where clips and embeddings are kept; by default the cache of `datasets`.
        num_proc: Processes that cut clips.

    Returns:
        The metrics as a table, beside those of the run where there is one.

    Raises:
        UserError: If something cannot be used, the run has other splits, classes or clips, or the model was trained
            on recordings that would test it.
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

    def plan(splits: pd.DataFrame | None) -> KenyaBirds:
        return clips_builder(
            data_dir,
            splits=splits,
            cache_dir=cache_dir,
            sampling_rate=embedder.sampling_rate,
            clip_s=embedder.clip_s,
            edge_tolerance_s=settings.edge_tolerance_s,
            min_annotations=settings.min_annotations,
            split_seed=settings.split_seed,
        )

    builder = plan(read_splits(splits_file) if splits_file else None)
    if settings.folds is not None or (splits_file is not None and has_folds(splits_file)):
        table = find_folds(builder, splits_file, settings.folds, settings.split_seed)
        builder = plan(splits_of_fold(table, 0))
    else:
        table = builder.splits
    tested = table if "fold" in table else table[table["split"] == "test"]
    overlap = overlap_of(embedder.saved, builder.archive.fingerprints(tested["recording"]))
    advice = "Probe it with its own splits (--splits_file), or on another archive"
    overlap.refuse(embedder.saved.name, ["train", "validation"], advice)
    if overlap.note():
        logger.warning("%s", overlap.note())
    multi_label = settings.problem_type == MULTI_LABEL
    if trained is not None:
        trained.check(table, builder.classes, multi_label=multi_label)
        trained.check_unheard(builder.archive.fingerprints(table["recording"]))

    clips = build_clips(builder, num_proc)
    class_ids = {code: label for label, code in enumerate(builder.classes)}
    references = np.concatenate(
        [clip_references(clips[split], class_ids, multi_label=multi_label) for split in SPLITS]
    )
    rows = datasets.concatenate_datasets([clips[split].remove_columns("audio") for split in SPLITS])
    work = _Work(output_dir, settings, builder, rows, references, np.zeros((0, 0), dtype=np.float32))
    if trained is not None:
        found = np.arange(len(rows)) if "fold" in table else work.rows_of(table, "test")
        trained.check_clips(work.recordings[found], np.asarray(rows["center_s"][:])[found], references[found])
    work.embeddings = np.concatenate([embed_clips(clips[split], embedder, batch_size) for split in SPLITS])

    output_dir.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "model": embedder.saved.name,
        "model_sha256": hash_model(embedder.saved),
        "embedding": embedder.how,
        "embedding_size": embedder.size,
        "sampling_rate": embedder.sampling_rate,
        "training_overlap": overlap.describe(),
        "settings": {name: value for name, value in asdict(settings).items() if name not in ("splits_file", "folds")},
    }
    about["settings"]["clip_s"] = embedder.clip_s
    if "fold" in table:
        write_table(table, output_dir / FOLDS_FILE)
        told, results = work.cross_validate(table)
    else:
        write_table(table, output_dir / SPLITS_FILE)
        told, _, results = work.fit(table, output_dir)
    write_json({**about, **results}, output_dir / PROBE_FILE, allow_nan=False)
    columns = {f"{settings.method} probe": told}
    if trained is not None:
        columns[str(trained.folder)] = trained.metrics
    return format_comparison(columns)


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
        codes = self.builder.classes
        self._common_names = {
            code: names["common_name"] for code, names in self.builder.archive.species_names(codes).items()
        }

    def rows_of(self, splits: pd.DataFrame, split: str) -> np.ndarray:
        """The clips of a split."""
        return np.flatnonzero(np.isin(self.recordings, splits.loc[splits["split"] == split, "recording"]))

    def fit(self, splits: pd.DataFrame, folder: Path) -> tuple[dict[str, Any], Fold, dict[str, Any]]:
        """Fits and evaluates one classifier; gives the metrics, the fold, and what was chosen."""
        codes, settings = self.builder.classes, self.settings
        of = {split: self.rows_of(splits, split) for split in SPLITS}
        for split, found in of.items():
            if not len(found):
                raise UserError(f"no clip of the {split} split can be read: fetch its recordings again, or split anew")
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
        train_counts = class_counts(known["train"][1], len(codes)).tolist()
        told = write_test(
            folder,
            scored,
            self.rows.select(of["test"]),
            known["test"][1],
            calibration=calibration,
            classes=codes,
            common_names=self._common_names,
            train_counts=train_counts,
            seed=settings.seed,
        )
        fitted = {**chosen, "calibration": asdict(calibration.calibration)}
        return told, Fold(folder, scored, train_counts), fitted

    def cross_validate(self, table: pd.DataFrame) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fits and evaluates a classifier for each fold; gives the metrics of all, and what was chosen."""
        number, folds, fitted = table["fold"].nunique(), [], []
        for fold in range(number):
            logger.info("Fold %d of %d", fold + 1, number)
            _, done, chosen = self.fit(splits_of_fold(table, fold), self.output_dir / f"fold-{fold}")
            folds.append(done)
            fitted.append(chosen)
        told, _ = write_out_of_fold(self.output_dir, folds, common_names=self._common_names, seed=self.settings.seed)
        each = [{**metrics, **chosen} for metrics, chosen in zip(told["each"], fitted, strict=True)]
        return told["out_of_fold"], {"folds": number, "each": each, "mean": told["mean"], "sd": told["sd"]}
