"""Checks of a run that is resumed: settings, splits, classes and annotations are those that it was started with."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from kenya_birds.data.archive import ANNOTATIONS_FILE
from kenya_birds.data.splits import read_splits
from kenya_birds.errors import UserError
from kenya_birds.files import read_json
from kenya_birds.training.run_folder import SPLITS_FILE, RunRecord
from kenya_birds.training.settings import Settings, differences


def check_settings(record: RunRecord, settings: Settings, everything_for: float | None, where: Path) -> None:
    """Raises `UserError`, with the changes, if settings that decide the result differ from those of the resumed run.

    Other settings may change: paths, output and logs, numbers of processes and workers, precision, and the division of
    a step's clips among processes and batches. `init_from` is ignored.

    Args:
        record: Record of the resumed run.
        settings: The current settings.
        everything_for: See `Run`.
        where: The checkpoint to resume from.
    """
    deciding = {name: value for name, value in settings.deciding().items() if name != "init_from"}
    changes = differences(record.settings, deciding)
    if record.everything_for != everything_for:
        changes.append(f"the epochs on all splits were {record.everything_for} and are {everything_for} now")
    if changes:
        raise UserError(
            f"the run of {where} was started with other settings: {'; '.join(changes)}. Give the settings that it was "
            "started with, or start a new run in another --output_dir"
        )


def hash_annotations(data_dir: str | Path) -> str:
    """SHA-256 of an archive's annotations.csv."""
    return hashlib.sha256((Path(data_dir) / ANNOTATIONS_FILE).read_bytes()).hexdigest()


@contextlib.contextmanager
def archive_of_run(checkpoint: Path | None) -> Iterator[None]:
    """Adds to the error of an archive that does not fit its splits that they are those of a resumed run."""
    try:
        yield
    except UserError as error:
        if checkpoint is None:
            raise
        raise UserError(
            f"{error} (the splits are those that the run of {checkpoint} was started with: resume it on the archive "
            "as it was then, or start a new run in another --output_dir)"
        ) from None


def splits_of_run(checkpoint: Path, given: pd.DataFrame | None, everything_for: float | None) -> pd.DataFrame:
    """The splits with which a run was started. A fit on all recordings has one split, and keeps the given ones."""
    own = read_splits(checkpoint / SPLITS_FILE)
    if given is None:
        return own
    now = given if everything_for is None else given.assign(split="train")
    before, after = (dict(zip(table["recording"], table["split"], strict=True)) for table in (own, now))
    others = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
    if others:
        raise UserError(
            f"the run of {checkpoint} was started with other splits: {len(others)} recordings were in another one or "
            f"in none, the first is {others[0]}. Leave out --splits_file, or start a new run in another --output_dir"
        )
    return given


def check_classes(checkpoint: Path | None, classes: list[str]) -> None:
    """Raises `UserError` unless a checkpoint was trained on these classes."""
    assert checkpoint is not None
    try:
        labels = read_json(checkpoint / "config.json")["id2label"]
        trained = [labels[str(index)] for index in range(len(labels))]
    except (KeyError, TypeError):
        raise UserError(
            f"{checkpoint} is not a checkpoint of this package: it has no config.json with classes"
        ) from None
    if trained != classes:
        apart = sorted(set(trained) ^ set(classes))
        raise UserError(
            f"{checkpoint} was trained on other species: {len(trained)} then and {len(classes)} now"
            f"{', which differ in ' + ', '.join(apart[:5]) if apart else ', in another order'}: resume it on the "
            "archive as it was then, or start a new run in another --output_dir"
        )
