"""Evaluates a saved model on an archive: the files that training ends with, again, or of other recordings."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kenya_birds.data.builders import KenyaBirds
from kenya_birds.data.dataset import build_clips, clips_builder
from kenya_birds.data.splits import SPLITS, read_splits
from kenya_birds.errors import UserError
from kenya_birds.evaluation.calibration import Calibration
from kenya_birds.evaluation.evaluation_report import WHOLE_RECORDINGS, write_evaluation
from kenya_birds.evaluation.metrics import probabilities
from kenya_birds.evaluation.predictions import clip_references, score_clips
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.evaluation.window_scoring import plan_windows
from kenya_birds.evaluation.window_targets import DEFAULT_EDGE_MARGIN_S
from kenya_birds.experiments.whole_recordings import evaluate_recordings, truth_of, write_recordings
from kenya_birds.files import is_new_or_empty, read_json
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.model_loading import load_classifier
from kenya_birds.saved_models import THRESHOLDS_FILE, SavedModel, find_model
from kenya_birds.training.run_folder import SPLITS_FILE, SUMMARY_FILE
from kenya_birds.training.settings import clip_settings, read_settings
from kenya_birds.training.training_recordings import overlap_of

logger = logging.getLogger(__name__)

# Every recording of an archive, without a split.
ALL = "all"


def evaluate_model(
    model_name: str,
    data_dir: str | Path,
    output_dir: str | Path,
    *,
    split: str = "test",
    splits_file: str | Path | None = None,
    fold: int = 0,
    common_classes: bool = False,
    min_annotations: int | None = None,
    context_s: float | None = None,
    edge_tolerance_s: float | None = None,
    time_shifts: int = 1,
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluates a model of this package and writes what `write_evaluation` writes.

    Args:
        model_name: The model's folder, or `owner/name` or `owner/name@revision` on the Hub; its code is not run.
        data_dir: The archive.
        output_dir: A folder that is new or empty.
        split: `train`, `validation`, `test`, or `all` recordings of the archive, which need no split. The model is not
            evaluated on recordings that it was trained on, but for `train`; nor on those that its epoch, calibration
            and thresholds were chosen with, but for `train` and `validation`. `training_overlap` in `metrics.json`
            says so.
        splits_file: See `read_splits`; by default the model's own `splits.csv`, or else a new split.
        fold: Of a table of folds.
        common_classes: Whether to go on where model and archive have other classes, with those that both have: the
            likeliest is chosen among them, and clips of other species are left out where single-label.
        min_annotations: The archive's species with fewer are left out; by default as in the model's training.
        context_s: See `ClipsConfig`; by default as in the model's training.
        edge_tolerance_s: See `ClipsConfig`; by default as in the model's training.
        time_shifts: See `score_clips`.
        batch_size: Clips at a time.
        cache_dir: Where clips are kept.
        num_proc: Processes that cut clips.
        seed: Of the bootstrap.

    Returns:
        See `write_report`.

    Raises:
        UserError: If the model, the archive or the splits cannot be used, the model was trained on recordings that
            would judge it, or classes differ and `common_classes` is not set.
    """
    output_dir = Path(output_dir)
    if not is_new_or_empty(output_dir):
        raise UserError(f"{output_dir} exists and is not an empty folder: give another --output")
    if split not in (*SPLITS, ALL):
        raise UserError(f"no split {split!r}: expected one of {', '.join((*SPLITS, ALL))}")
    if split == ALL and splits_file is not None:
        raise UserError(f"{splits_file} is not needed to evaluate all recordings: leave out --splits_file or --split")
    saved = find_model(model_name)
    model, extractor = load_classifier(saved)
    summary = read_json(saved.folder / SUMMARY_FILE) if (saved.folder / SUMMARY_FILE).is_file() else {}
    splits_file, one_split = _find_splits(saved, summary, split, splits_file)
    cut = clip_settings(
        saved.folder, context_s=context_s, edge_tolerance_s=edge_tolerance_s, min_annotations=min_annotations
    )
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
    overlap = _check_overlap(saved, builder, split)
    trained = [model.config.id2label[label] for label in range(model.config.num_labels)]
    classes = _classes(trained, builder.classes, common_classes)
    columns = [trained.index(code) for code in classes]
    multi_label = model.config.problem_type == "multi_label_classification"

    clips = build_clips(builder, num_proc)[one_split or split]
    references = clip_references(clips, {code: label for label, code in enumerate(classes)}, multi_label=multi_label)
    if not multi_label:
        kept = np.flatnonzero(references >= 0)
        clips, references = clips.select(kept), references[kept]
    if not (references == 1).any() if multi_label else len(references) == 0:
        raise UserError(f"no clip of the {split} split holds one of the {len(classes)} classes: choose other splits")
    calibration = Calibration.of(model.config)
    is_calibrated = calibration != Calibration()
    Calibration().store(model.config)  # the raw logits are wanted, to show what calibration does
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    logits = score_clips(model, extractor, clips, batch_size=batch_size, time_shifts=time_shifts)
    thresholds = saved.folder / THRESHOLDS_FILE
    whole = _evaluate_recordings(
        output_dir,
        builder,
        one_split or split,
        saved,
        _Judged(model, extractor, classes, columns, calibration.of_classes(columns)),
        batch_size=batch_size,
        num_proc=num_proc,
        seed=seed,
    )
    return write_evaluation(
        output_dir,
        logits[:, columns],
        references,
        classes=classes,
        recordings=clips["recording"],
        start_s=clips["start_s"],
        center_s=clips["center_s"],
        common_names={code: names["common_name"] for code, names in builder.archive.species_names(classes).items()},
        train_counts=_train_counts(classes, summary, builder),
        calibration=calibration.of_classes(columns) if is_calibrated else None,
        thresholds=Thresholds.read(thresholds) if thresholds.is_file() else None,
        split=split,
        overlap=overlap,
        more={} if whole is None else {split: {WHOLE_RECORDINGS: whole}},
        seed=seed,
    ) | ({} if whole is None else {WHOLE_RECORDINGS: whole})


def _evaluate_recordings(
    output_dir: Path,
    builder: KenyaBirds,
    split: str,
    saved: SavedModel,
    judged: "_Judged",
    *,
    batch_size: int,
    num_proc: int | None,
    seed: int,
) -> dict[str, Any] | None:
    """Evaluates on the whole recordings of a split; None where the model has no thresholds."""
    path = saved.folder / THRESHOLDS_FILE
    if not path.is_file():
        logger.warning("'%s' has no %s: it is not evaluated on whole recordings", saved.name, THRESHOLDS_FILE)
        return None
    settings, extractor, archive = read_settings(saved.folder), judged.extractor, builder.archive
    names = builder.splits.loc[builder.splits["split"] == split, "recording"].to_list()
    overlap_s = float(settings.get("overlap_s", 0.0))
    grid, annotated = plan_windows(
        archive,
        names,
        judged.classes,
        extractor,
        cache_dir=builder._cache_dir_root,
        overlap_s=overlap_s,
        margin_s=float(settings.get("edge_margin_s", DEFAULT_EDGE_MARGIN_S)),
        threads=num_proc or 1,
    )
    logits = grid.logits(judged.model, extractor, batch_size=batch_size)[:, judged.columns]
    multi_label = judged.model.config.problem_type == "multi_label_classification"
    scores = evaluate_recordings(
        grid,
        probabilities(judged.calibration.apply(logits), multi_label=multi_label),
        grid.targets(annotated),
        truth_of(archive, grid.decoded, judged.classes),
        thresholds=Thresholds.read(path).values(judged.classes),
    )
    names_of = {code: row["common_name"] for code, row in archive.species_names(judged.classes).items()}
    return write_recordings(output_dir, scores, overlap_s=overlap_s, names=names_of, seed=seed, split=split)


@dataclass(frozen=True)
class _Judged:
    """The model that is evaluated, which gives logits that are not calibrated."""

    model: KenyaBirdsForAudioClassification
    extractor: KenyaBirdsFeatureExtractor
    classes: list[str]
    columns: list[int]
    calibration: Calibration


def _find_splits(
    saved: SavedModel, summary: dict[str, Any], split: str, splits_file: str | Path | None
) -> tuple[str | Path | None, str | None]:
    """The table of splits, or the split that all recordings are put into; neither where a split has to be made."""
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
    """What the model has to do with the recordings of the split; raises `UserError` if they must not judge it."""
    splits = builder.splits
    judged = splits["recording"] if split == ALL else splits.loc[splits["split"] == split, "recording"]
    overlap = overlap_of(saved, builder.archive.fingerprints(judged))
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
    """Clips that the model was trained on, by the summary of its run, or by the splits where it has none."""
    if "clips_per_species" in summary:
        counted = {code: splits.get("train", 0) for code, splits in summary["clips_per_species"].items()}
    else:
        train = builder.splits.loc[builder.splits["split"] == "train", "recording"]
        counted = builder.clips.loc[builder.clips["recording"].isin(train), "species"].value_counts().to_dict()
    return [int(counted.get(code, 0)) for code in classes]
