"""Recordings for training alone: with weak annotations (only their species is known), or with checked detections."""

import logging
from collections.abc import Collection, Sequence

import pandas as pd

from kenya_birds.data.archive import Archive
from kenya_birds.data.same_recording import recording_key
from kenya_birds.errors import UserError

logger = logging.getLogger(__name__)

WEAK_LABELS = ("train", "every_split", "leave_out")


def divided_clips(
    clips: pd.DataFrame, archive: Archive, *, weak_in_train: bool = True, is_train: bool = False
) -> tuple[pd.DataFrame, frozenset[str]]:
    """Returns the clips whose recordings may be in any split, and the recordings that are for training alone.

    Args:
        clips: `recording` and `weak` (see `plan_clips`).
        archive: The archive. Its recordings with checked detections are always for training alone.
        weak_in_train: Whether recordings with weak annotations are for training alone, too.
        is_train: Whether all recordings are for training; then there may be no others.

    Raises:
        UserError: If all recordings are for training alone.
    """
    weak = frozenset(clips.loc[clips["weak"], "recording"]) if weak_in_train else frozenset()
    only_train = weak | archive.verified.keys()
    divided = clips[~clips["recording"].isin(only_train)]
    if only_train and divided.empty and not is_train:
        if archive.verified:
            raise UserError(
                f"all {len(only_train)} recordings of {archive.data_dir} are for training only, "
                f"{len(archive.verified)} of them because models chose the detections that were checked there: add an "
                "archive whose calls are annotated"
            )
        raise UserError(
            f"all {len(weak)} recordings of {archive.data_dir} have weak labels, which are for training only: add an "
            "archive whose calls are annotated, or divide these recordings too with weak_labels every_split"
        )
    return divided, only_train


def check_weak_splits(table: pd.DataFrame, only_train: Collection[str], verified: Collection[str]) -> pd.DataFrame:
    """Returns a table of splits without the recordings for training alone, which are in the train split anyway.

    Args:
        table: `recording` and `split`.
        only_train: Those recordings.
        verified: Those of them with checked detections.

    Raises:
        UserError: If one of them is in another split.
    """
    keys, checked = set(map(recording_key, only_train)), set(map(recording_key, verified))
    is_weak = table["recording"].map(recording_key).isin(keys)
    for row in table[is_weak & (table["split"] != "train")].itertuples():
        if recording_key(str(row.recording)) in checked:
            raise UserError(
                f"{row.recording} has checked detections and is in the {row.split} split: expected it in train, as a "
                "model chose what was checked"
            )
        raise UserError(
            f"{row.recording} has weak labels and is in the {row.split} split: expected it in train, or give "
            "weak_labels every_split"
        )
    return table[~is_weak]


def with_only_train(
    table: pd.DataFrame, only_train: Collection[str], same_sound: Sequence[Sequence[str]] = ()
) -> pd.DataFrame:
    """Adds the recordings for training alone to the train split, but for copies of sound in other splits.

    Args:
        table: `recording` and `split` of the other recordings.
        only_train: Those recordings.
        same_sound: Groups of recordings with the same sound (see `Archive.same_sound`).

    Returns:
        The table with these recordings, sorted by recording.
    """
    if not only_train:
        return table
    part_of = dict(zip(table["recording"], table["split"], strict=True))
    heard = {
        name
        for group in same_sound
        if any(part_of.get(other, "train") != "train" for other in group)
        for name in group
    }
    if copies := sorted(heard & set(only_train)):
        logger.warning(
            "%d recordings with weak labels or checked detections are left out, because the validation or test split "
            "has their sound: %s",
            len(copies),
            ", ".join(copies[:3]),
        )
    rows = pd.DataFrame({"recording": sorted(set(only_train) - heard), "split": "train"})
    return pd.concat([table, rows]).sort_values("recording").reset_index(drop=True)


def warn_of_tested_groups(table: pd.DataFrame, only_train: Collection[str], groups: Sequence[Sequence[str]]) -> None:
    """Logs the recordings for training alone that are in a group with recordings of another split.

    Args:
        table: `recording`, and `split` or `fold` (each fold is tested once).
        only_train: Those recordings.
        groups: Recordings that stay together, such as those of a site.
    """
    is_tested = table["split"] != "train" if "split" in table else pd.Series(True, index=table.index)
    tested = set(table.loc[is_tested, "recording"])
    near = {name for group in groups if not tested.isdisjoint(group) for name in group}
    if found := sorted(near.intersection(only_train).difference(table["recording"])):
        logger.warning(
            "%d recordings with weak labels or checked detections are of sites or nights that are tested. Training "
            "learns from them, so metrics may be too good: take them out of the archive (first: %s)",
            len(found),
            found[0],
        )
