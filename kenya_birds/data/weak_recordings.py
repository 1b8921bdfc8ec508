"""Recordings with weak annotations: their species is known for the whole recording, so they are for training alone."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from kenya_birds.data.same_recording import recording_key
from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

WEAK_LABELS = ("train", "every_split", "leave_out")


def divided_clips(
    clips: pd.DataFrame, data_dir: Path, *, is_train: bool = False
) -> tuple[pd.DataFrame, frozenset[str]]:
    """Returns the clips whose recordings may be in any split, and the other recordings, which have weak annotations.

    Args:
        clips: `recording` and `weak` (see `plan_clips`).
        data_dir: The archive, for messages.
        is_train: Whether all recordings are for training; then there may be weak annotations alone.

    Raises:
        UserError: If all recordings have weak annotations.
    """
    weak = frozenset(clips.loc[clips["weak"], "recording"])
    divided = clips[~clips["recording"].isin(weak)]
    if weak and divided.empty and not is_train:
        raise UserError(
            f"all {len(weak)} recordings of {data_dir} have weak labels, which are for training only: add an archive "
            "whose calls are annotated, or divide these recordings too with weak_labels every_split"
        )
    return divided, weak


def check_weak_splits(table: pd.DataFrame, weak: Collection[str]) -> pd.DataFrame:
    """Returns a table of splits without recordings with weak annotations, which are in the train split anyway.

    Args:
        table: `recording` and `split`.
        weak: Those recordings.

    Raises:
        UserError: If one of them is in another split.
    """
    keys = set(map(recording_key, weak))
    is_weak = table["recording"].map(recording_key).isin(keys)
    for row in table[is_weak & (table["split"] != "train")].itertuples():
        raise UserError(
            f"{row.recording} has weak labels and is in the {row.split} split: expected it in train, or give "
            "weak_labels every_split"
        )
    return table[~is_weak]


def with_weak(table: pd.DataFrame, weak: Collection[str], same_sound: Sequence[Sequence[str]] = ()) -> pd.DataFrame:
    """Adds recordings with weak annotations to the train split, but for copies of sound in other splits.

    Args:
        table: `recording` and `split` of the other recordings.
        weak: Those recordings.
        same_sound: Groups of recordings with the same sound (see `Archive.same_sound`).

    Returns:
        The table with these recordings, sorted by recording.
    """
    if not weak:
        return table
    part_of = dict(zip(table["recording"], table["split"], strict=True))
    heard = {
        name
        for group in same_sound
        if any(part_of.get(other, "train") != "train" for other in group)
        for name in group
    }
    if copies := sorted(heard & set(weak)):
        logger.warning(
            "%d recordings with weak labels are left out, because the validation or test split has their sound: %s",
            len(copies),
            ", ".join(copies[:3]),
        )
    rows = pd.DataFrame({"recording": sorted(set(weak) - heard), "split": "train"})
    return pd.concat([table, rows]).sort_values("recording").reset_index(drop=True)
