"""Assigns whole recordings to train, validation and test: the nested, grouped and stratified strategy of the seed."""

import logging
import math
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from kenya_birds.data.csv_table import read_csv, read_table
from kenya_birds.data.same_recording import joined, separated
from kenya_birds.errors import UserError
from kenya_birds.files import check_output, write_table
from kenya_birds.values import Seed, SplitSize, checked

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


@checked
def seed_split(
    annotations: pd.DataFrame,
    *,
    test_size: SplitSize = 0.2,
    validation_size: SplitSize = 0.2,
    fold: int = 0,
    seed: Seed = 42,
    same_sound: Sequence[Sequence[str]] = (),
) -> pd.DataFrame:
    """Splits recordings as the project's first classifier did.

    The test fold is one of `ceil(1 / test_size)`; the validation fold is one of as many as give `validation_size` of
    the whole from what is left. Classes that occur in too few recordings to reach every fold of both are
    "problematic", and so is a recording that holds one. Problematic recordings are divided by nested GroupKFold, the
    others by nested StratifiedGroupKFold, and the two parts are joined. A part with too few recordings for the folds
    joins the other, and where all recordings are too few the folds become fewer; both are logged.

    Args:
        annotations: `recording` and `species` of every annotation, rare classes already dropped.
        test_size: Share of the test split, between 0 and 0.5.
        validation_size: Share of the validation split, between 0 and 0.5.
        fold: Which of the outer folds is the test split, from 0; all of them together test every recording once.
        seed: Seed of the folds' shuffling; StratifiedGroupKFold shuffles only recordings that have like species.
        same_sound: Groups of recordings that stay together (see `Archive.same_sound`).

    Returns:
        `recording` and `split` ("train", "validation" or "test"), one row per recording, sorted by recording.

    Raises:
        UserError: If there are fewer than three recordings, or an argument is out of range.
    """
    every, annotations = annotations, joined(annotations, same_sound)
    check_can_split(annotations, test_size, validation_size)
    outer = math.ceil(round(1 / test_size, 9))
    inner = max(2, math.ceil(round((1 - test_size) / validation_size, 9)))
    recordings = annotations["recording"].nunique()
    if not _fits(recordings, outer, inner):
        asked = outer, inner
        # One of two folds of three recordings would leave a single one for training and validation.
        outer = 3 if recordings == 3 else min(outer, recordings)
        inner = min(inner, recordings - math.ceil(recordings / outer))
        logger.warning(
            "Only %d recordings for %d test and %d validation folds: using %d and %d folds, so the splits differ from "
            "the shares asked for and will not be stratified well",
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


def seed_folds(
    annotations: pd.DataFrame, folds: int, *, seed: int = 42, same_sound: Sequence[Sequence[str]] = ()
) -> pd.DataFrame:
    """Divides recordings into folds for cross-validation, by the rules that `seed_split` finds its test folds by.

    Args:
        annotations: `recording` and `species` of every annotation, rare classes already dropped.
        folds: Number of folds.
        seed: Seed of the folds' shuffling.
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
        for fold in range(folds):
            _, chosen = _fold(part, name == "stratifiable", folds, fold, seed, least_rest=1)
            tables.append(pd.DataFrame({"recording": chosen["recording"].unique(), "fold": fold}))
    table = pd.concat(tables).sort_values("recording").reset_index(drop=True)
    return separated(table, every, same_sound)


def check_can_split(annotations: pd.DataFrame, test_size: float, validation_size: float) -> None:
    """Raises `UserError` unless the shares are above 0 and at most 0.5, and there are three recordings or more."""
    recordings = annotations["recording"].nunique()
    if recordings < 3:
        raise UserError(
            f"{recordings} recordings cannot be split into train, validation and test: a recording stays whole, so at "
            "least 3 are needed"
        )


def check_can_fold(annotations: pd.DataFrame, folds: int) -> None:
    """Raises `UserError` unless there are two folds or more, and a recording for each."""
    recordings = annotations["recording"].nunique()
    if recordings < 2:
        raise UserError(f"{recordings} recordings cannot be divided into folds: expected 2 or more")
    if not 2 <= folds <= recordings:
        raise UserError(
            f"folds is {folds}: expected 2 to {recordings}, as there are {recordings} recordings and each stays whole"
        )


def problematic_classes(annotations: pd.DataFrame, outer: int, inner: int) -> list[str]:
    """Classes in too few recordings to reach each of `outer` folds, or each of `inner` folds of what is left.

    A test fold takes at least one of a class's recordings, so `inner + 1` recordings are needed for the second.
    """
    recordings_per_class = annotations.groupby("species")["recording"].nunique()
    return sorted(recordings_per_class[recordings_per_class < max(outer, inner + 1)].index)


def log_uncovered_classes(annotations: pd.DataFrame, table: pd.DataFrame) -> None:
    """Warns of the classes that a split has no annotation of, and says what comes of it."""
    split_of = table.set_index("recording")["split"]
    present = annotations.assign(split=annotations["recording"].map(split_of)).groupby("split")["species"].unique()
    every = set(annotations["species"])
    for split, consequence in (
        ("train", "cannot be learned"),
        ("validation", "do not count in choosing the best checkpoint"),
        ("test", "cannot be scored"),
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
        fold: Which fold of a table of folds is the test split, from 0; the one after it is the validation split (after
            the last comes the first), the others are the train split.

    Returns:
        `recording` and `split`.

    Raises:
        UserError: If the file cannot be read, a column is missing, there is a `split` and a `fold`, the folds are not
            0, 1, 2 and so on, three or more, or there is no such fold.
    """
    table, kind = _read_table(path)
    if kind == "split":
        if fold:
            raise UserError(f"{path} is a table of splits, without folds: leave out fold, which is {fold}")
        return table
    return splits_of_fold(table, fold)


def read_folds(path: str | Path) -> pd.DataFrame:
    """Reads a table of folds; one row per recording.

    Args:
        path: The CSV: `recording` and `fold`.

    Returns:
        `recording` and `fold` (from 0).

    Raises:
        UserError: If the file cannot be read, is no such table, or its folds are not 0, 1, 2 and so on, three or more.
    """
    table, kind = _read_table(path)
    if kind != "fold":
        raise UserError(f"{path} is a table of splits: expected one of folds, as kenya-birds split --folds writes it")
    return table


def has_folds(path: str | Path) -> bool:
    """Whether a table is one of folds and not of splits.

    Raises:
        UserError: If the file cannot be read, or is neither.
    """
    return _read_table(path)[1] == "fold"


def splits_of_fold(table: pd.DataFrame, fold: int) -> pd.DataFrame:
    """The splits in which one fold is the test split, the one after it validates and the others are trained on.

    Args:
        table: `recording` and `fold`, from 0.
        fold: Which is the test split; after the last comes the first.

    Returns:
        `recording` and `split`.

    Raises:
        UserError: If there is no such fold.
    """
    folds = table["fold"].nunique()
    if not 0 <= fold < folds:
        raise UserError(f"fold is {fold}: expected 0 to {folds - 1}, as there are {folds} folds")
    split_of = {fold: "test", (fold + 1) % folds: "validation"}
    return pd.DataFrame(
        {"recording": table["recording"], "split": [split_of.get(number, "train") for number in table["fold"]]}
    )


def _read_table(path: str | Path) -> tuple[pd.DataFrame, str]:
    """The table, and whether it says of recordings the `split` or the `fold`, which is then a number."""
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
        raise UserError(f"{path} has {folds} folds: expected 3 or more, as one is for validation and one is the test")
    return table.astype({"fold": int}), "fold"


def write_splits(table: pd.DataFrame, path: str | Path, *, overwrite: bool = False) -> None:
    """Writes a table of splits or folds as CSV, whole or not at all.

    Raises:
        UserError: If there is a file already and `overwrite` is not set, or it cannot be written.
    """
    check_output(path, overwrite)
    write_table(table, path)


def check_splits(table: pd.DataFrame, recordings: set[str]) -> None:
    """Checks a split table against the recordings that have clips.

    Raises:
        UserError: If a split or recording is unknown, a recording stands in the table twice or not at all, or a split
            is empty.
    """
    problems = {
        f"has splits other than {', '.join(SPLITS)}": sorted(set(table["split"]) - set(SPLITS)),
        "has recordings that the archive has no clips of": sorted(set(table["recording"]) - recordings),
        "lacks recordings of the archive": sorted(recordings - set(table["recording"])),
        "has recordings twice": sorted(set(table.loc[table["recording"].duplicated(), "recording"])),
        "has no recording in": [split for split in SPLITS if split not in set(table["split"])],
    }
    for problem, found in problems.items():
        if found:
            raise UserError(f"the split table {problem}: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}")


def _parts(annotations: pd.DataFrame, outer: int, inner: int) -> dict[str, pd.DataFrame]:
    """What is divided apart: the annotations of "problematic" and of "stratifiable" recordings, or all as one."""
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
    """Whether each of `outer` folds gets a recording and leaves enough of them for `inner` folds."""
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
    """(the other folds, fold number `fold`) of the annotations, recordings kept whole, `least_rest` in the first."""
    groups = annotations["recording"].to_numpy()
    target = annotations["species"].to_numpy()
    folders = [GroupKFold(folds, shuffle=True, random_state=seed)]
    if stratify and np.unique(target, return_counts=True)[1].max() >= folds:
        folders.insert(0, StratifiedGroupKFold(folds, shuffle=True, random_state=seed))
    for folder in folders:
        with warnings.catch_warnings():
            # What comes of a class with fewer annotations than folds is told by `log_uncovered_classes`.
            warnings.filterwarnings("ignore", message="The least populated class")
            pairs = list(folder.split(target, target, groups))
        # StratifiedGroupKFold may leave a fold empty, or nearly everything in one, where recordings are few. All folds
        # are looked at, so that those of one cross-validation are made alike.
        if all(len(chosen) and len(np.unique(groups[rest])) >= least_rest for rest, chosen in pairs):
            break
        logger.warning("%d stratified folds would be too unequal: using folds that are grouped only", folds)
    rest, chosen = pairs[fold]
    return annotations.iloc[rest], annotations.iloc[chosen]
