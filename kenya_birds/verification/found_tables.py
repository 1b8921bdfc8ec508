"""Tables of a detection run, read in parts: species, scores, sites and nights of many detections in little memory."""

import csv
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kenya_birds.data.recording_time import NIGHT_START
from kenya_birds.errors import UserError
from kenya_birds.files import read_json
from kenya_birds.formulas import FORMULA
from kenya_birds.inference.detections import SCORE_DIGITS
from kenya_birds.inference.output_tables import STEM
from kenya_birds.inference.run_report import RunFiles
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.inference.table_formats import RUN_FILE
from kenya_birds.inference.table_reader import csv_encoding, csv_separator

logger = logging.getLogger(__name__)

By = Literal["site", "night"]
ROWS_AT_ONCE = 1 << 16
TIMES = ("local_time", "utc_time")
NAMES = ("common_name", "scientific_name")
COLUMNS = ("recording", "start_s", "end_s", "code", *NAMES, "score", *TIMES, "site")


@dataclass(frozen=True)
class Column:
    """Texts of many rows, each text stored once.

    Attributes:
        texts: The texts.
        of_row: Index of each row's text, int32 of shape `(rows,)`.
    """

    texts: list[str]
    of_row: np.ndarray


@dataclass(frozen=True)
class Scores:
    """What the draw of a sample needs to know of every detection.

    Attributes:
        score: Scores, rounded to 6 digits, shape `(detections,)`.
        species: eBird codes.
        group: Sites or nights; empty texts where they are unknown, and without `by`.
    """

    score: np.ndarray
    species: Column
    group: Column


def table_in(folder: Path) -> Path:
    """Returns the table in the output folder of `kenya-birds detect`: the Parquet table if there is one, else the CSV.

    A CSV that was edited and is not read is logged.

    Raises:
        UserError: If the folder has no table or no `run.json`.
    """
    found = [path for suffix in ("parquet", "csv") if (path := folder / f"{STEM}.{suffix}").is_file()]
    if not found:
        raise UserError(
            f"{folder} has no {STEM}.parquet or {STEM}.csv: expected the output folder of kenya-birds detect "
            "--formats csv,parquet"
        )
    if not (folder / RUN_FILE).is_file():
        raise UserError(f"{folder} has no {RUN_FILE}: expected the output folder of kenya-birds detect")
    if len(found) > 1 and RunFiles(folder).is_edited(found[1].name):
        logger.warning(
            "%s was edited after the run, and %s is read instead: to use the edited table, move %s away",
            found[1],
            found[0],
            found[0].name,
        )
    return found[0]


class FoundTable:
    """Detections in the output folder of `kenya-birds detect`.

    Args:
        folder: The folder.

    Attributes:
        path: The Parquet table if there is one, otherwise the CSV.
        run: Content of `run.json`.

    Raises:
        UserError: If the folder has no table or no `run.json`, or the detections are merged.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.path = table_in(folder)
        self.run: dict[str, Any] = read_json(folder / RUN_FILE)
        if not isinstance(self.run.get("model_sha256"), str):
            raise UserError(f"{folder / RUN_FILE} does not say which model it is of: run kenya-birds detect again")
        if self.run.get("settings", {}).get("merge"):
            raise UserError(
                f"the detections in {folder} are merged, and a sample needs rows of single windows: run kenya-birds "
                "detect with --threshold 0.01, or with --no_merge, in another folder"
            )

    def scores(self, by: By | None) -> Scores:
        """Reads score, species and group of all detections.

        Args:
            by: Group: site, or night (from noon to noon, by the date of its evening).

        Raises:
            UserError: If the table cannot be read or has no detection.
        """
        columns = ["code", "score", *({"site": ["site"], "night": list(TIMES)}[by] if by else [])]
        scores, species, groups = [], _Texts(), _Texts()
        for part in self._parts(columns):
            scores.append(part["score"].to_numpy(dtype=np.float64).round(SCORE_DIGITS))
            species.add(part["code"])
            if by is not None:
                groups.add(part["site"] if by == "site" else night(part["local_time"], part["utc_time"]))
        if not sum(map(len, scores)):
            raise UserError(f"{self.path} has no detections: run kenya-birds detect with a lower --threshold")
        score = np.concatenate(scores)
        group = groups.column() if by else Column([""], np.zeros(len(score), dtype=np.int32))
        return Scores(score, species.column(), group)

    def rows(self, numbers: np.ndarray) -> pd.DataFrame:
        """Reads some detections.

        Args:
            numbers: Numbers of the rows, from 0, ascending.

        Returns:
            The columns `COLUMNS` and `night`; the index is the number of the row.
        """
        chosen, first = [], 0
        for part in self._parts(list(COLUMNS)):
            inside = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, first + len(part))]
            some = part.iloc[inside - first].copy()
            some.index = pd.Index(inside)
            some["night"] = night(some["local_time"], some["utc_time"])
            first += len(part)
            if len(some):
                chosen.append(some)
        return pd.concat(chosen)

    def names(self) -> dict[str, SpeciesNames]:
        """Names of all species in the table, by code."""
        found: dict[str, SpeciesNames] = {}
        for part in self._parts(["code", *NAMES]):
            for code, *names in part.drop_duplicates("code").itertuples(index=False):
                found.setdefault(code, SpeciesNames(*names))
        return dict(sorted(found.items()))

    def _parts(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        """Yields parts of the table with some columns; texts and numbers are those of `COLUMNS`."""
        read = self._parquet if self.path.suffix == ".parquet" else self._csv
        try:
            for part in read(columns):
                yield part[list(columns)]
        except (OSError, ValueError, KeyError, csv.Error, pa.ArrowException) as error:
            raise UserError(
                f"{self.path} cannot be read as a table of detections ({type(error).__name__}: {error}): run "
                "kenya-birds detect again"
            ) from None

    def _parquet(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(columns)):
                part = batch.to_pandas()
                for name in {*TIMES} & {*part}:
                    part[name] = _wall_time(part[name])
                for name in {"recording", "code", *NAMES, "site"} & {*part}:
                    part[name] = part[name].astype(object).where(part[name].notna(), "")
                yield part

    def _csv(self, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
        options: dict[str, Any] = {
            "sep": csv_separator(self.path),
            "dtype": str,
            "keep_default_na": False,
            "encoding": csv_encoding(self.path),
        }
        for part in pd.read_csv(self.path, usecols=list(columns), chunksize=ROWS_AT_ONCE, **options):
            for name in {"start_s", "end_s", "score"} & {*part}:
                part[name] = part[name].str.replace(",", ".").astype("float64")
            for name in {*TIMES} & {*part}:
                part[name] = _wall_time(pd.to_datetime(part[name], format="ISO8601", utc=name == "utc_time"))
            for name in {"code", *NAMES, "site"} & {*part}:
                guarded = part[name].str.startswith("'") & part[name].str[1:].str.match(FORMULA)
                part[name] = part[name].str[1:].where(guarded, part[name])
            yield part


class _Texts:
    """Texts of many rows that arrive in parts."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.parts: list[np.ndarray] = []

    def add(self, texts: pd.Series) -> None:
        codes, values = pd.factorize(texts)
        numbers = [self._numbers.setdefault(str(value), len(self._numbers)) for value in values]
        self.parts.append(np.array(numbers, dtype=np.int32)[codes])

    def column(self) -> Column:
        return Column(list(self._numbers), np.concatenate(self.parts))


def _wall_time(times: pd.Series) -> pd.Series:
    """Times without a time zone, as a clock shows them."""
    return times.dt.tz_localize(None) if getattr(times.dt, "tz", None) is not None else times


def night(local: pd.Series, utc: pd.Series) -> pd.Series:
    """The night of each time: the date of its evening, from noon to noon; empty if the time is unknown.

    Args:
        local: Local times.
        utc: Times in UTC, which are used where the local time is unknown.
    """
    time = pd.to_datetime(local).where(local.notna(), utc)
    evening = pd.to_datetime(time) - NIGHT_START
    return evening.dt.strftime("%Y-%m-%d").where(evening.notna(), "").astype(object)
