"""What training saves to recognise unknown sounds: embeddings of its calls, and the distances of known calls."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from kenya_birds.errors import UserError
from kenya_birds.evaluation.novelty import LEAST_KNOWN, RANK, NoveltyReference, draw_calls
from kenya_birds.evaluation.predictions import clip_references, embed_clips
from kenya_birds.evaluation.unknown_species import (
    CallEmbeddings,
    leave_one_species_out,
    separate_unlearned,
    unknown_species_figures,
)
from kenya_birds.saved_models import NOVELTY_FILE
from kenya_birds.training.training_run import Run

logger = logging.getLogger(__name__)

CALLS_PER_SPECIES, MOST_CALLS = 20, 5000
MOST_KNOWN = 2000
TESTED_PER_SPECIES = 50


@dataclass(frozen=True)
class FittedNovelty:
    """What training finds out about unknown sounds.

    Attributes:
        reference: Training calls, and distances of validation calls; None if validation has too few.
        figures: How well unknown species are separated in the test recordings (see `unknown_species_figures`); None if
            all of them have weak labels.
    """

    reference: NoveltyReference | None
    figures: dict[str, Any] | None


def fit_novelty(run: Run, clips: DatasetDict) -> FittedNovelty:
    """Embeds training calls, and measures how far the calls of validation and test recordings are from them.

    Validation and test calls are windows of whole recordings, as detection cuts them, so that shares of known calls
    are those of detection.

    Args:
        run: The run, after training.
        clips: The clips by split.
    """
    calls = training_calls(run, clips["train"])
    rank = min(RANK, len(calls.vectors))
    figures = None
    if run.windows.recordings("test"):
        windows = window_calls(run, "test", per_species=TESTED_PER_SPECIES, most=MOST_KNOWN)
        left_out = leave_one_species_out(windows, calls, run.builder.classes, rank=rank)
        figures = unknown_species_figures(left_out, separate_unlearned(windows, calls, rank=rank))
    known = np.zeros((0, run.model.embedding_size))
    if run.windows.recordings("validation"):
        try:
            windows = window_calls(run, "validation", per_species=None, most=MOST_KNOWN)
        except UserError as error:  # such as too little disk to decode them: the trained model is saved all the same
            logger.warning("The model gets no %s: %s", NOVELTY_FILE, error)
            return FittedNovelty(None, figures)
        known = windows.vectors[windows.present.any(axis=1)]
    if len(known) < LEAST_KNOWN:
        logger.warning(
            "The model gets no %s: the validation recordings have %d windows with a call, and %d are needed to "
            "measure novelty",
            NOVELTY_FILE,
            len(known),
            LEAST_KNOWN,
        )
        return FittedNovelty(None, figures)
    return FittedNovelty(NoveltyReference.of(calls.vectors, known, rank), figures)


def training_calls(run: Run, clips: Dataset) -> CallEmbeddings:
    """Embeddings of clips of a run, drawn so that no species has very many.

    Args:
        run: The run, after training.
        clips: Rows of `load_clips`.
    """
    ids = {code: label for label, code in enumerate(run.builder.classes)}
    targets = clip_references(clips, ids, multi_label=True)
    drawn = draw_calls(targets == 1, _generator(run), per_species=CALLS_PER_SPECIES, most=MOST_CALLS)
    chosen = clips.select(drawn)
    if run.frozen is None:
        vectors = embed_clips(run.model, run.extractor, chosen)
    else:
        vectors = run.frozen.clips(chosen, "training calls that novelty is measured from")
    none = np.zeros(len(drawn), dtype=bool)
    return CallEmbeddings(vectors[:, : run.model.embedding_size], targets[drawn], none)


def window_calls(run: Run, split: str, *, per_species: int | None, most: int) -> CallEmbeddings:
    """Embeddings of the windows with a call in the recordings of a split, or of some of them.

    Args:
        run: The run, after training.
        split: Of `Run.splits`.
        per_species: Number of windows that are drawn for each species, and for all species together that the model
            does not know; None: by chance alone.
        most: Largest number of all windows.
    """
    grid, annotated = run.windows.of(split)
    targets = grid.targets(annotated)
    others = annotated.has_other(grid.recording, grid.start) & (grid.end - grid.start == grid.window)
    calling = np.column_stack([targets == 1, others])
    number = len(targets) if per_species is None else per_species
    rows = draw_calls(calling, _generator(run), per_species=number, most=most)
    if run.frozen is None:
        vectors = grid.embeddings(run.model, run.extractor, rows)
    else:
        vectors = run.frozen.windows(grid, f"windows of the {split} recordings")[rows]
    return CallEmbeddings(vectors[:, : run.model.embedding_size], targets[rows], others[rows])


def refit_reference(run: Run, clips: Dataset, folds: Sequence[Path]) -> NoveltyReference | None:
    """The reference of a model that was trained on all recordings: its calls, and the distances of all folds.

    No recordings are left to measure known calls on. The distances are therefore those of the models of the folds, as
    calibration and decision thresholds are.

    Args:
        run: The run of the final fit, after training.
        clips: All clips.
        folds: Folders of the folds.

    Returns:
        The reference; None, with a warning, if a fold has none.
    """
    files = [folder / NOVELTY_FILE for folder in folds]
    if missing := [path.parent.name for path in files if not path.is_file()]:
        logger.warning("The model gets no %s, because the model of %s has none", NOVELTY_FILE, missing[0])
        return None
    known = np.concatenate([NoveltyReference.read(path).known for path in files])
    known = np.sort(_generator(run).permutation(known)[:MOST_KNOWN])
    calls = training_calls(run, clips).vectors
    return replace(NoveltyReference.of(calls, None), known=known)


def save_reference(reference: NoveltyReference | None, folder: Path) -> None:
    """Writes the reference into the folder of a model; without one, an earlier file is deleted."""
    if reference is None:
        (folder / NOVELTY_FILE).unlink(missing_ok=True)
    else:
        reference.write(folder / NOVELTY_FILE)


def _generator(run: Run) -> np.random.Generator:
    return np.random.default_rng(run.settings.training.seed)
