"""Evaluates a saved model on an archive: the files that training ends with, again, or of other recordings."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.dataset import build_clips, clips_builder
from kenya_birds.data.splits import SPLITS, read_splits, recordings_in
from kenya_birds.errors import UserError
from kenya_birds.evaluation.calibration import Calibration
from kenya_birds.evaluation.evaluation_report import WHOLE_RECORDINGS, EvaluationContext, write_evaluation
from kenya_birds.evaluation.predictions import clip_references, score_clips
from kenya_birds.evaluation.thresholds import Thresholds, choose_window_thresholds
from kenya_birds.evaluation.window_scoring import plan_windows
from kenya_birds.evaluation.window_targets import DEFAULT_EDGE_MARGIN_S
from kenya_birds.experiments.whole_recordings import ScoredWindows
from kenya_birds.files import read_json, write_json
from kenya_birds.folders import is_new_or_empty, users_folder
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import MULTI_LABEL, KenyaBirdsForAudioClassification
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import THRESHOLDS_FILE, SavedModel, find_model
from kenya_birds.training.arguments import WeakLabels
from kenya_birds.training.run_folder import SPLITS_FILE, SUMMARY_FILE
from kenya_birds.training.settings import clip_settings, read_settings, train_counts
from kenya_birds.training.training_recordings import overlap_of
from kenya_birds.values import Count, Kind, Seconds, Seed, SignedSeconds, Whole, checked

logger = logging.getLogger(__name__)

# Every recording of an archive, without a split.
ALL = "all"


@checked
def evaluate_model(
    model_name: str | Path,
    data_dir: str | Path,
    output_dir: str | Path,
    *,
    split: str = "test",
    splits_file: str | Path | None = None,
    fold: Whole = 0,
    common_classes: bool = False,
    choose_thresholds: bool = False,
    min_annotations: Count | None = None,
    context_s: Seconds | None = None,
    edge_tolerance_s: SignedSeconds | None = None,
    weak_labels: WeakLabels | None = None,
    time_shifts: Count = 1,
    batch_size: Count = 64,
    cache_dir: str | Path | None = None,
    num_proc: Count | None = None,
    seed: Seed | None = None,
) -> dict[str, Any]:
    """Evaluates a model of this package on clips and on whole recordings.

    It writes what `write_evaluation` and `write_recordings` write.

    Args:
        model_name: The model's folder, or `owner/name` or `owner/name@revision` on the Hub; its code is not run.
        data_dir: The archive.
        output_dir: A new or empty folder.
        split: `train`, `validation`, `test`, or `all` recordings of the archive, which needs no splits. A model is
            evaluated on its training recordings only with `train`, and on the recordings with which its epoch,
            calibration and thresholds were chosen only with `validation` (or `train`). `training_overlap` in
            `metrics.json` says so.
        splits_file: See `read_splits`; by default the model's own `splits.csv`, or else a new split.
        fold: The fold to evaluate, if `splits_file` is a table of folds.
        common_classes: If the model and the archive have different classes, evaluate the classes that both have. In
            single-label models the most probable of them is predicted, and clips of other species are skipped.
        choose_thresholds: Also write `thresholds.json` with decision thresholds that are chosen on all windows of the
            evaluated recordings (see `choose_window_thresholds`), for `detect`. The metrics are at the model's own.
        min_annotations: Skip the archive's species with fewer annotations; by default as in the model's training.
        context_s: See `ClipsConfig`; by default as in the model's training.
        edge_tolerance_s: See `ClipsConfig`; by default as in the model's training.
        weak_labels: See `ClipsConfig`; by default as in the model's training. Recordings with weak labels are never
            evaluated as whole recordings.
        time_shifts: See `score_clips`.
        batch_size: Clips per batch.
        cache_dir: Folder of the clips' cache.
        num_proc: Number of processes that cut clips.
        seed: Seed of the bootstrap; by default that of the model's training, so that intervals are repeated too.

    Returns:
        See `write_report`; and `whole_recordings`, see `write_recordings`.

    Raises:
        UserError: If the model, the archive or the splits cannot be used, if the model was trained on these
            recordings, if classes differ and `common_classes` is not set, or if thresholds cannot be chosen because
            no recording is annotated completely or no window contains a class.
    """
    output_dir = Path(output_dir)
    if not is_new_or_empty(output_dir):
        raise UserError(f"{output_dir} exists and is not an empty folder: give another --output")
    if split not in (*SPLITS, ALL):
        raise UserError(f"no split {split!r}: expected one of {', '.join((*SPLITS, ALL))}")
    if split == ALL and splits_file is not None:
        raise UserError(f"{splits_file} is not needed to evaluate all recordings: omit --splits_file or --split")
    saved = find_model(model_name)
    model, extractor = load_classifier(saved)
    summary = read_json(saved.folder / SUMMARY_FILE) if (saved.folder / SUMMARY_FILE).is_file() else {}
    splits_file, one_split = _find_splits(saved, summary, split, splits_file)
    cut = clip_settings(
        saved.folder, context_s=context_s, edge_tolerance_s=edge_tolerance_s, min_annotations=min_annotations
    )
    cut["weak_labels"] = weak_labels or cut["weak_labels"]
    try:
        builder = clips_builder(
            data_dir,
            splits=read_splits(splits_file, fold) if splits_file else None,
            one_split=one_split,
            cache_dir=cache_dir,
            **cut,
        )
    except UserError as error:
        if splits_file is None or Path(splits_file).parent != saved.folder:
            raise
        raise UserError(
            f"{error} (the splits are the model's own: for another archive than it was trained on, pass --split all "
            "or --splits_file)"
        ) from None
    if builder.archive.verified:
        logger.warning(
            "%d recordings with checked detections are not evaluated, because %s chose what was checked there",
            len(builder.archive.verified),
            builder.archive.choosing_models,
        )
    overlap = _check_overlap(saved, builder, split)
    trained = [model.config.id2label[label] for label in range(model.config.num_labels)]
    classes = _classes(trained, builder.classes, common_classes)
    context = EvaluationContext(
        builder.archive.common_names(classes),
        _train_counts(classes, summary, builder),
        split=split,
        overlap=overlap,
        seed=_training_seed(saved.folder) if seed is None else seed,
        archive_of=builder.archive.archive_of,
    )
    calibration = Calibration.of(model.config)
    Calibration().store(model.config)  # raw logits are needed, to show the effect of the calibration
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    columns = [trained.index(code) for code in classes]
    evaluation = _Evaluation(
        saved, model, extractor, builder, one_split or split, classes, columns, calibration.of_classes(columns)
    )
    if choose_thresholds:
        evaluation.check_can_choose(context.split)
    return evaluation.write(
        output_dir,
        context,
        batch_size=batch_size,
        time_shifts=time_shifts,
        num_proc=num_proc,
        choose_thresholds=choose_thresholds,
    )


def _training_seed(folder: Path) -> int:
    """The seed of a model's training; 0 if it is not recorded."""
    seed = read_settings(folder).get("seed", 0)
    Kind.of(Seed).check(f"{folder} has a seed that", seed)
    return int(seed)


@dataclass(frozen=True)
class _Evaluation:
    """A model that gives uncalibrated logits, and the recordings of a split that it is evaluated on."""

    saved: SavedModel
    model: KenyaBirdsForAudioClassification
    extractor: KenyaBirdsFeatureExtractor
    builder: KenyaBirds
    split: str  # in the builder
    classes: list[str]
    columns: list[int]  # class ids of the classes in the model
    calibration: Calibration

    @property
    def multi_label(self) -> bool:
        return bool(self.model.config.problem_type == MULTI_LABEL)

    @property
    def thresholds(self) -> Thresholds | None:
        path = self.saved.folder / THRESHOLDS_FILE
        return Thresholds.read(path) if path.is_file() else None

    def write(
        self,
        output_dir: Path,
        context: EvaluationContext,
        *,
        batch_size: int,
        time_shifts: int,
        num_proc: int | None,
        choose_thresholds: bool = False,
    ) -> dict[str, Any]:
        clips, references = self._clips(context.split, num_proc)
        logits = score_clips(self.model, self.extractor, clips, batch_size=batch_size, time_shifts=time_shifts)
        windows = None
        if self._known_recordings and (self.thresholds is not None or choose_thresholds):
            windows = self._windows(batch_size, num_proc)
        chosen = self._choose(windows) if windows is not None and choose_thresholds else None
        with users_folder(output_dir, f"the evaluation {output_dir}") as partial:
            metrics = self._write_all(partial, (clips, references, logits), windows, chosen, context)
        if chosen is not None:
            logger.info(
                "Chose decision thresholds on %d recordings. No metric uses them: measured on the same recordings, "
                "it would be too good. To detect with them: kenya-birds detect --thresholds %s",
                len(self._known_recordings),
                output_dir / THRESHOLDS_FILE,
            )
        return metrics

    def _write_all(
        self,
        folder: Path,
        scored: tuple[Dataset, np.ndarray, np.ndarray],
        windows: ScoredWindows | None,
        chosen: Thresholds | None,
        context: EvaluationContext,
    ) -> dict[str, Any]:
        """Writes all files; returns the metrics. `scored`: clips, references and logits."""
        clips, references, logits = scored
        thresholds = self.thresholds
        whole: dict[str, Any] = {}
        if thresholds is None:
            logger.warning("'%s' has no %s: it is not evaluated on whole recordings", self.saved.name, THRESHOLDS_FILE)
        elif windows is None:
            logger.warning("All recordings have weak labels: the model is not evaluated on whole recordings")
        else:
            whole = {WHOLE_RECORDINGS: windows.write_report(folder, self.calibration, thresholds, context)}
        metrics = write_evaluation(
            folder,
            logits[:, self.columns],
            references,
            clips,
            self.classes,
            calibration=None if self.calibration == Calibration() else self.calibration,
            thresholds=thresholds,
            context=context.with_more(context.split, whole),
        )
        if chosen is not None:
            write_json(chosen.to_json(), folder / THRESHOLDS_FILE)
        return metrics | whole

    def check_can_choose(self, split: str) -> None:
        """Raises `UserError` if no recording can choose thresholds."""
        calls = self.builder.archive.annotations
        names = self._known_recordings
        if not (calls["recording"].isin(names) & calls["species"].isin(self.classes)).any():
            raise UserError(
                f"the {len(names)} completely annotated recordings of the {split} split have no call of a class: "
                "thresholds cannot be chosen on them; use another --split, or omit --choose_thresholds"
            )

    def _choose(self, windows: ScoredWindows) -> Thresholds:
        """Thresholds that are chosen on the windows."""
        return choose_window_thresholds(
            windows.probability(self.calibration), windows.targets, self.classes, overlap_s=windows.grid.overlap_s
        )

    def _clips(self, split: str, num_proc: int | None) -> tuple[Dataset, np.ndarray]:
        clips = build_clips(self.builder, num_proc)[self.split]
        if verified := self.builder.archive.verified:
            clips = clips.select([row for row, name in enumerate(clips["recording"]) if name not in verified])
        class_ids = {code: label for label, code in enumerate(self.classes)}
        references = clip_references(clips, class_ids, multi_label=self.multi_label)
        if not self.multi_label:
            kept = np.flatnonzero(references >= 0)
            clips, references = clips.select(kept), references[kept]
        if not (references == 1).any() if self.multi_label else len(references) == 0:
            raise UserError(
                f"no clip of the {split} split contains one of the {len(self.classes)} classes: choose other splits"
            )
        return clips, references

    @property
    def _known_recordings(self) -> list[str]:
        """The recordings of the split whose calls are annotated."""
        splits, partial = self.builder.splits, self.builder.archive.partial
        return [name for name in recordings_in(splits, self.split) if name not in partial]

    def _windows(self, batch_size: int, num_proc: int | None) -> ScoredWindows:
        settings, archive = read_settings(self.saved.folder), self.builder.archive
        grid, annotated = plan_windows(
            self.builder,
            self._known_recordings,
            self.classes,
            self.extractor,
            overlap_s=float(settings.get("overlap_s", 0.0)),
            margin_s=float(settings.get("edge_margin_s", DEFAULT_EDGE_MARGIN_S)),
            min_overlap_s=float(settings.get("min_overlap_s", 0.0)),
            threads=num_proc or 1,
        )
        logits = grid.logits(self.model, self.extractor, batch_size=batch_size)[:, self.columns]
        return ScoredWindows(archive, self.classes, grid, annotated, logits, multi_label=self.multi_label)


def _find_splits(
    saved: SavedModel, summary: dict[str, Any], split: str, splits_file: str | Path | None
) -> tuple[str | Path | None, str | None]:
    """The table of splits, or the split that contains all recordings; neither if new splits are needed."""
    if split == ALL:
        return None, "test"
    if splits_file is not None:
        return splits_file, None
    if "cross_validation" in summary:
        if split == "train":
            return None, "train"
        raise UserError(
            f"'{saved.name}' was trained on every recording of its archive, and its card's figures come from "
            "cross-validation: evaluate it on other recordings, with --split all or --splits_file"
        )
    return (saved.folder / SPLITS_FILE if (saved.folder / SPLITS_FILE).is_file() else None), None


def _check_overlap(saved: SavedModel, builder: KenyaBirds, split: str) -> dict[str, Any]:
    """How many recordings of the split the model was trained on; raises `UserError` if it must not evaluate them."""
    splits = builder.splits
    evaluated = splits["recording"] if split == ALL else recordings_in(splits, split)
    overlap = overlap_of(saved, builder.archive.fingerprints(evaluated))
    refused = {"train": [], "validation": ["train"]}.get(split, ["train", "validation"])
    overlap.refuse(
        saved.name,
        refused,
        "Give other recordings with --splits_file; or evaluate its own training or validation recordings with --split "
        "train or --split validation, and the figures say so. Other recordings with the same names have to be renamed",
    )
    if overlap.note():
        logger.warning("%s", overlap.note())
    return overlap.describe()


def _classes(trained: list[str], found: list[str], common_classes: bool) -> list[str]:
    if set(trained) == set(found):
        return trained
    common = [code for code in trained if code in set(found)]
    apart = (
        f"the model lacks {_listed(set(found) - set(trained))} of the archive's classes, and the archive "
        f"{_listed(set(trained) - set(found))} of the model's"
    )
    if not common_classes:
        raise UserError(
            f"{apart}: evaluate on the archive and with the min_annotations that it was trained with, or pass "
            f"--common_classes to evaluate the {len(common)} that both have"
        )
    if len(common) < 2:
        raise UserError(f"{apart}: {len(common)} in common are too few to evaluate")
    logger.warning("Evaluating %d classes, among which the model chooses: %s", len(common), apart)
    return common


def _listed(codes: Iterable[str]) -> str:
    codes = sorted(codes)
    return f"{len(codes)} ({', '.join(codes)})" if codes else "none"


def _train_counts(classes: list[str], summary: dict[str, Any], builder: KenyaBirds) -> list[int]:
    """Number of training clips by class, from the summary of the model's run, or else from the splits."""
    if "clips_per_species" in summary:
        return train_counts(summary, classes)
    train = recordings_in(builder.splits, "train")
    counted = builder.clips.loc[builder.clips["recording"].isin(train), "species"].value_counts().to_dict()
    return [int(counted.get(code, 0)) for code in classes]
