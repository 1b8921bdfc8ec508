"""Splits and folds of whole recordings: the stratified strategy, and tables of splits and folds."""

import logging
import math
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kenya_birds.data.csv_table import read_csv, read_table
from kenya_birds.data.same_recording import joined, separated
from kenya_birds.defaults import SPLIT_SEED, TEST_SIZE, VALIDATION_SIZE
from kenya_birds.errors import UserError
from kenya_birds.files import check_output, write_table
from kenya_birds.values import Seed, SplitSize, checked

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


@checked
def stratified_split(
    annotations: pd.DataFrame,
    *,
    test_size: SplitSize = TEST_SIZE,
    validation_size: SplitSize = VALIDATION_SIZE,
    fold: int = 0,
    seed: Seed = SPLIT_SEED,
    same_sound: Sequence[Sequence[str]] = (),
) -> pd.DataFrame:
    """Splits recordings with nested folds, stratified by species if possible.

    The test split is one of `ceil(1 / test_size)` outer folds. The validation split is one of the inner folds of the
    rest, whose number gives `validation_size` of the whole. A class that occurs in too few recordings for every fold
    is "problematic", and so is each recording with such a class. Nested GroupKFold divides the problematic
    recordings, nested StratifiedGroupKFold divides the others, and the two results are joined. A group with too few
    recordings for the folds is merged into the other one. If there are too few recordings in total, the number of
    folds is reduced. Both are logged. The project's first classifier was split in this way.

    Args:
        annotations: `recording` and `species` of every annotation, without rare classes.
        test_size: Share of the test split, between 0 and 0.5.
        validation_size: Share of the validation split, between 0 and 0.5.
        fold: Index of the outer fold that is the test split, from 0. Each recording is in one outer fold.
        seed: Random seed of the shuffling. StratifiedGroupKFold shuffles only recordings with the same species counts.
        same_sound: Groups of recordings that stay together (see `Archive.same_sound`).

    Returns:
        `recording` and `split` ("train", "validation" or "test"), one row per recording, sorted by recording.

    Raises:
        UserError: If there are fewer than three recordings, or an argument is out of range.
    """
    every, annotations = annotations, joined(annotations, same_sound)
    check_can_split(annotations, test_size, validation_size)
    outer, inner = _folds_of(test_size, validation_size)
    recordings = annotations["recording"].nunique()
    if not _fits(recordings, outer, inner):
        asked = outer, inner
        # With two folds of three recordings, one recording could remain for training and validation.
        outer = 3 if recordings == 3 else min(outer, recordings)
        inner = min(inner, recordings - math.ceil(recordings / outer))
        logger.warning(
            "Only %d recordings for %d test and %d validation folds: using %d and %d folds, so the splits differ from "
            "the requested shares and are not well stratified",
            recordings,
            *asked,
            outer,
            inner,
        )
    if not 0 <= fold < outer:
        raise UserError(f"fold is {fold}: expected 0 to {outer - 1}, as there are {outer} test folds")

    tables = [
        _nested_folds(part, name == "stratifiable", outer, inner, fold, seed)
        for name, part in _parts(annotations, outer, inner).items()
    ]
    table = pd.concat(tables).sort_values("recording").reset_index(drop=True)
    log_uncovered_classes(annotations, table)
    return separated(table, every, same_sound)


def stratified_folds(
    annotations: pd.DataFrame, folds: int, *, seed: int = 42, same_sound: Sequence[Sequence[str]] = ()
) -> pd.DataFrame:
    """Divides recordings into folds for cross-validation; the folds are the test splits of `stratified_split`.

    Args:
        annotations: `recording` and `species` of every annotation, without rare classes.
        folds: Number of folds.
        seed: Random seed of the shuffling.
        same_sound: Groups of recordings that stay together (see `Archive.same_sound`).

    Returns:
        `recording` and `fold` (from 0), one row per recording, sorted by recording.

    Raises:
        UserError: If `folds` is not between 2 and the number of recordings.
    """
    every, annotations = annotations, joined(annotations, same_sound)
    check_can_fold(annotations, folds)
    tables = []
    for name, part in _parts(annotations, folds, inner=1).items():
        for fold, (_, chosen) in enumerate(_folds(part, name == "stratifiable", folds, seed, least_rest=1)):
            tables.append(pd.DataFrame({"recording": part["recording"].iloc[chosen].unique(), "fold": fold}))
    table = pd.concat(tables).sort_values("recording").reset_index(drop=True)
    return separated(table, every, same_sound)


def least_recordings(test_size: float, validation_size: float) -> int:
    """Returns the number of recordings from which on `stratified_split` has all its folds.

    Args:
        test_size: Share of the test split.
        validation_size: Share of the validation split.
    """
    return sum(_folds_of(test_size, validation_size))


def check_can_split(annotations: pd.DataFrame, test_size: float, validation_size: float) -> None:
    """Raises `UserError` if there are fewer than three recordings."""
    recordings = annotations["recording"].nunique()
    if recordings < 3:
        raise UserError(
            f"{recordings} recordings cannot be split into train, validation and test: expected 3 or more, because "
            "recordings are not cut"
        )


def check_can_fold(annotations: pd.DataFrame, folds: int) -> None:
    """Checks that there are at least two folds, and a recording for each.

    Args:
        annotations: Table with the column `recording`.
        folds: Number of folds.

    Raises:
        UserError: If there are too few recordings or folds.
    """
    recordings = annotations["recording"].nunique()
    if recordings < 2:
        raise UserError(f"{recordings} recordings cannot be divided into folds: expected 2 or more")
    if not 2 <= folds <= recordings:
        raise UserError(
            f"folds is {folds}: expected 2 to {recordings}, because there are {recordings} recordings and none is cut"
        )


def problematic_classes(annotations: pd.DataFrame, outer: int, inner: int) -> list[str]:
    """Returns the classes that occur in too few recordings for all outer and inner folds.

    A test fold takes at least one recording of a class, so the inner folds need `inner + 1` recordings.

    Args:
        annotations: Table with the columns `recording` and `species`.
        outer: Number of outer (test) folds.
        inner: Number of inner (validation) folds.
    """
    recordings_per_class = annotations.groupby("species")["recording"].nunique()
    return sorted(recordings_per_class[recordings_per_class < max(outer, inner + 1)].index)


def log_uncovered_classes(annotations: pd.DataFrame, table: pd.DataFrame) -> None:
    """Logs a warning for each split that lacks classes, with the consequence.

    Args:
        annotations: Table with the columns `recording` and `species`.
        table: Table with the columns `recording` and `split`.
    """
    split_of = table.set_index("recording")["split"]
    present = annotations.assign(split=annotations["recording"].map(split_of)).groupby("split")["species"].unique()
    every = set(annotations["species"])
    for split, consequence in (
        ("train", "cannot be learned"),
        ("validation", "do not count in the choice of the best checkpoint"),
        ("test", "cannot be evaluated"),
    ):
        absent = sorted(every - set(present.get(split, [])))
        if absent:
            logger.warning(
                "%d of %d classes have no clip in %s and %s: %s",
                len(absent),
                len(every),
                split,
                consequence,
                ", ".join(absent),
            )


def read_splits(path: str | Path, fold: int = 0) -> pd.DataFrame:
    """Reads a table of splits, `recording` and `split`, or of folds, `recording` and `fold`; one row per recording.

    Args:
        path: The CSV.
        fold: For a table of folds, the index of the test fold, from 0. The next fold is the validation split (the
            first fold follows the last); the others are the train split.

    Returns:
        `recording` and `split`.

    Raises:
        UserError: If the file cannot be read, a column is missing, both `split` and `fold` exist, the folds are not
            numbered from 0, there are fewer than three folds, or `fold` does not exist.
    """
    table, kind = _read_table(path)
    if kind == "split":
        if fold:
            raise UserError(f"{path} is a table of splits, without folds: expected no fold, but fold is {fold}")
        return table
    return splits_of_fold(table, fold)


def read_folds(path: str | Path) -> pd.DataFrame:
    """Reads a table of folds; one row per recording.

    Args:
        path: The CSV: `recording` and `fold`.

    Returns:
        `recording` and `fold` (from 0).

    Raises:
        UserError: If the file cannot be read, is not a table of folds, its folds are not numbered from 0, or there are
            fewer than three.
    """
    table, kind = _read_table(path)
    if kind != "fold":
        raise UserError(f"{path} is a table of splits: expected a table of folds, as kenya-birds split --folds writes")
    return table


def has_folds(path: str | Path) -> bool:
    """Returns True for a table of folds, False for a table of splits.

    Raises:
        UserError: If the file cannot be read, or is neither.
    """
    return _read_table(path)[1] == "fold"


def recordings_in(splits: pd.DataFrame, split: str) -> list[str]:
    """Names of the recordings of a split.

    Args:
        splits: `recording` and `split`.
        split: `train`, `validation` or `test`.
    """
    names: list[str] = splits.loc[splits["split"] == split, "recording"].to_list()
    return names


def splits_of_fold(table: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Makes splits from folds: one fold is the test split, the next one the validation split, the others train.

    Args:
        table: `recording` and `fold`, from 0.
        fold: Index of the test fold. The first fold follows the last.

    Returns:
        `recording` and `split`.

    Raises:
        UserError: If there is no such fold.
    """
    folds = table["fold"].nunique()
    if not 0 <= fold < folds:
        raise UserError(f"fold is {fold}: expected 0 to {folds - 1}, because there are {folds} folds")
    split_of = {fold: "test", (fold + 1) % folds: "validation"}
    return pd.DataFrame(
        {"recording": table["recording"], "split": [split_of.get(number, "train") for number in table["fold"]]}
    )


def _read_table(path: str | Path) -> tuple[pd.DataFrame, str]:
    """Returns the table and the name of its second column, `split` or `fold`; folds are integers."""
    table = read_csv(path)
    kinds = [column for column in ("split", "fold") if column in table.columns]
    if "recording" not in table.columns or len(kinds) != 1:
        raise UserError(
            f"{path} has the columns {', '.join(table.columns)}: expected recording and split, or recording and fold"
        )
    table = read_table(path, {name: name for name in ("recording", *kinds)}).drop(columns="row")
    table["recording"] = [unicodedata.normalize("NFC", name) for name in table["recording"]]
    if kinds == ["split"]:
        return table, "split"
    folds = table["fold"].nunique()
    wrong = sorted(set(table["fold"]) - set(map(str, range(folds))))
    if wrong:
        raise UserError(f"{path} has the fold {wrong[0]!r} among {folds} folds: expected 0 to {folds - 1}")
    if folds < 3:
        raise UserError(f"{path} has {folds} folds: expected 3 or more, one each for validation and test")
    return table.astype({"fold": int}), "fold"


def write_splits(table: pd.DataFrame, path: str | Path, *, overwrite: bool = False) -> None:
    """Writes a table of splits or folds as CSV; an interrupted write leaves no file.

    Args:
        table: `recording` and `split`, or `recording` and `fold`.
        path: CSV to write.
        overwrite: Replaces an existing file.

    Raises:
        UserError: If the file exists and `overwrite` is not set, or it cannot be written.
    """
    check_output(path, overwrite)
    write_table(table, path)


def check_splits(table: pd.DataFrame, recordings: set[str]) -> None:
    """Checks a split table against the recordings that have clips.

    Args:
        table: `recording` and `split`.
        recordings: Recordings with clips.

    Raises:
        UserError: If a split or recording is unknown, a recording is in the table twice or not at all, or a split is
            empty.
    """
    problems = {
        f"has splits other than {', '.join(SPLITS)}": sorted(set(table["split"]) - set(SPLITS)),
        "has recordings without clips in the archive": sorted(set(table["recording"]) - recordings),
        "lacks recordings of the archive": sorted(recordings - set(table["recording"])),
        "has recordings twice": sorted(set(table.loc[table["recording"].duplicated(), "recording"])),
        "has no recording in": [split for split in SPLITS if split not in set(table["split"])],
    }
    for problem, found in problems.items():
        if found:
            raise UserError(f"the split table {problem}: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}")


def _folds_of(test_size: float, validation_size: float) -> tuple[int, int]:
    """Returns the numbers of outer and inner folds."""
    return math.ceil(round(1 / test_size, 9)), max(2, math.ceil(round((1 - test_size) / validation_size, 9)))


def _parts(annotations: pd.DataFrame, outer: int, inner: int) -> dict[str, pd.DataFrame]:
    """Returns the annotations of "problematic" and "stratifiable" recordings, or all annotations as one of the two."""
    problematic = problematic_classes(annotations, outer, inner)
    is_problematic = annotations["recording"].isin(
        annotations.loc[annotations["species"].isin(problematic), "recording"]
    )
    parts = {
        "problematic": annotations[is_problematic],
        "stratifiable": annotations[~is_problematic],
    }
    sizes = {name: part["recording"].nunique() for name, part in parts.items()}
    too_small = [name for name, size in sizes.items() if size and not _fits(size, outer, inner)]
    if too_small:
        strategy = "stratifiable" if sizes["stratifiable"] >= sizes["problematic"] else "problematic"
        logger.warning(
            "%d problematic and %d stratifiable recordings: too few of the %s ones for %d and %d folds, so all are "
            "divided as %s",
            sizes["problematic"],
            sizes["stratifiable"],
            " and ".join(too_small),
            outer,
            inner,
            strategy,
        )
        parts = {strategy: annotations}
    return {name: part for name, part in parts.items() if not part.empty}


def _fits(recordings: int, outer: int, inner: int) -> bool:
    """Returns True if there are enough recordings for `outer` folds and for `inner` folds of the rest."""
    return recordings >= outer and recordings - math.ceil(recordings / outer) >= inner


def _nested_folds(
    annotations: pd.DataFrame, stratify: bool, outer: int, inner: int, fold: int, seed: int
) -> pd.DataFrame:
    rest, test = _fold(annotations, stratify, outer, fold, seed, least_rest=inner)
    train, validation = _fold(rest, stratify, inner, fold % inner, seed, least_rest=1)
    parts = {"train": train, "validation": validation, "test": test}
    return pd.concat(
        pd.DataFrame({"recording": part["recording"].unique(), "split": split}) for split, part in parts.items()
    )


def _fold(
    annotations: pd.DataFrame, stratify: bool, folds: int, fold: int, seed: int, least_rest: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the annotations of the other folds (at least `least_rest` recordings), and those of fold `fold`."""
    rest, chosen = _folds(annotations, stratify, folds, seed, least_rest)[fold]
    return annotations.iloc[rest], annotations.iloc[chosen]


def _folds(
    annotations: pd.DataFrame, stratify: bool, folds: int, seed: int, least_rest: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the rows of the other folds (at least `least_rest` recordings) and those of each fold."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    groups = annotations["recording"].to_numpy()
    target = annotations["species"].to_numpy()
    folders = [GroupKFold(folds, shuffle=True, random_state=seed)]
    if stratify and np.unique(target, return_counts=True)[1].max() >= folds:
        folders.insert(0, StratifiedGroupKFold(folds, shuffle=True, random_state=seed))
    for folder in folders:
        with warnings.catch_warnings():
            # `log_uncovered_classes` reports classes with fewer annotations than folds.
            warnings.filterwarnings("ignore", message="The least populated class")
            pairs = list(folder.split(target, target, groups))
        # With few recordings, StratifiedGroupKFold may make an empty fold or a very large one. All folds are checked,
        # so that every fold of one cross-validation is made in the same way.
        if all(len(chosen) and len(np.unique(groups[rest])) >= least_rest for rest, chosen in pairs):
            break
        logger.warning("%d stratified folds would be too unequal: using folds without stratification", folds)
    return pairs
