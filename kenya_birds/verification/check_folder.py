"""Folder of a sample that a person checks: `sample.json`, the drawn detections, and the answers in `verify.csv`."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from kenya_birds.data.archive import SPECIES_COLUMNS, UNKNOWN_SPECIES
from kenya_birds.data.csv_table import TextTable, parse_any_table, read_table
from kenya_birds.data.species_names import plain_name
from kenya_birds.errors import UserError
from kenya_birds.files import SPECIES_FILE, as_utf8, read_json, read_text, users_file, write_json, write_table
from kenya_birds.formulas import safe_path, safe_text, unguarded_text
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.inference.table_formats import csv_writer
from kenya_birds.verification.strata import Stratum

SAMPLE_FILE, ROWS_FILE, ANSWERS_FILE = "sample.json", "sample.parquet", "verify.csv"
FORMAT = 1
RIGHT, WRONG, OTHER, UNSURE = ANSWERS = ("right", "wrong", "other", "unsure")
ANSWER_COLUMNS = ("answer", "other_species", "note", "verified_by", "verified_at")
# Columns of verify.csv before the answers; those of `sample.parquet`, too.
ROW_COLUMNS = (
    *("id", "species", "common_name", "scientific_name", "score", "recording", "start_s", "end_s", "local_time"),
    *("site", "night", "stratum", "stratum_detections", "weight", "clip", "clip_start_s", "picture"),
)
DECIMALS = {"score": 6, "start_s": 6, "end_s": 6, "weight": 4, "clip_start_s": 6}


# Ways of `verify sample --choose` that draw at random, so that the answers stand for all detections.
AT_RANDOM = ("score", "random")


@dataclass(frozen=True)
class Answer:
    """Answer of a person about one detection.

    Attributes:
        answer: `right`, `wrong`, `other` (another species) or `unsure`; empty: not answered yet.
        other_species: eBird code of the other species; empty if it is not known. With `right`: a species that is in
            the clip too.
        note: Any text.
        verified_by: Who answered.
        verified_at: When, in ISO 8601.
    """

    answer: str = ""
    other_species: str = ""
    note: str = ""
    verified_by: str = ""
    verified_at: str = ""


@dataclass(frozen=True)
class Sample:
    """A sample of detections.

    Attributes:
        table: Path of the table of detections.
        table_sha256: SHA-256 of that file.
        model: Name of the model.
        model_sha256: Fingerprint of the model (see `hash_model`).
        run_settings: Settings of the detection run.
        settings: Settings of the sample.
        strata: Strata with their sizes.
    """

    table: str
    table_sha256: str
    model: str
    model_sha256: str
    run_settings: dict[str, Any]
    settings: dict[str, Any]
    strata: tuple[Stratum, ...]

    def write(self, folder: Path) -> None:
        """Writes `sample.json`."""
        content = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in ("table", "table_sha256", "model", "model_sha256")},
            "run_settings": self.run_settings,
            "settings": self.settings,
            "strata": [stratum.to_json() for stratum in self.strata],
        }
        write_json(content, folder / SAMPLE_FILE, allow_nan=False)

    @classmethod
    def read(cls, folder: Path) -> "Sample":
        """Reads `sample.json`.

        Raises:
            UserError: If the folder is not one of `kenya-birds verify sample`.
        """
        path = folder / SAMPLE_FILE
        if not path.is_file():
            raise UserError(f"{folder} has no {SAMPLE_FILE}: expected a folder of kenya-birds verify sample")
        content = read_json(path)
        try:
            if content.pop("format") != FORMAT:
                raise ValueError("another format")
            strata = tuple(map(Stratum.of_json, content.pop("strata")))
            return cls(**content, strata=strata)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is not a file of this version of kenya-birds verify sample ({error}): draw the sample again"
            ) from None


def detection_id(recording: str, start_s: float, end_s: float, species: str) -> str:
    """A name of a detection for files and tables: 12 letters, which no spreadsheet reads as a number."""
    key = f"{recording}\n{start_s:.6f}\n{end_s:.6f}\n{species}"
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return "".join(chr(ord("a") + byte % 26) for byte in digest[:12])


def read_rows(folder: Path) -> pd.DataFrame:
    """Reads the drawn detections, with the columns `ROW_COLUMNS`; the index is `id`.

    Raises:
        UserError: If the file cannot be read.
    """
    path = folder / ROWS_FILE
    try:
        return pd.read_parquet(path)[list(ROW_COLUMNS)].set_index("id", drop=False)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}): draw the sample again; {ANSWERS_FILE} is kept"
        ) from None


def write_species(folder: Path, species: Mapping[str, SpeciesNames]) -> None:
    """Writes `species.csv`, in the format of an archive, if there is none; a person may add species to it."""
    if not (folder / SPECIES_FILE).is_file():
        rows = [
            tuple(map(safe_text, (names.scientific_name, code, names.common_name))) for code, names in species.items()
        ]
        write_table(pd.DataFrame(rows, columns=list(SPECIES_COLUMNS)), folder / SPECIES_FILE)


def read_species_table(folder: Path) -> dict[str, SpeciesNames]:
    """Reads `species.csv`: names of the species that `other_species` may name, by code.

    Raises:
        UserError: If the file cannot be read.
    """
    table = read_table(folder / SPECIES_FILE, SPECIES_COLUMNS)
    columns = (map(unguarded_text, table[name]) for name in ("species", "common_name", "scientific_name"))
    rows = zip(*columns, strict=True)
    return {UNKNOWN_SPECIES: SpeciesNames("", ""), **{code: SpeciesNames(*names) for code, *names in rows}}


def add_detected_species(names: dict[str, SpeciesNames], rows: pd.DataFrame) -> None:
    """Adds the detected species that `species.csv` lacks: a person may have deleted rows of it.

    Args:
        names: Result of `read_species_table`.
        rows: `species`, `common_name` and `scientific_name` of the detections.
    """
    for row in rows.drop_duplicates("species").itertuples():
        names.setdefault(str(row.species), SpeciesNames(str(row.common_name), str(row.scientific_name)))


def read_answers(path: str | Path, rows: pd.DataFrame, species: Mapping[str, SpeciesNames]) -> dict[str, Answer]:
    """Reads the answers in `verify.csv`, also after a spreadsheet has saved it.

    Only the columns `id`, `answer`, `other_species`, `note`, `verified_by` and `verified_at` are read. Rows may be in
    any order; other columns may be added, changed or deleted. The table may have commas, semicolons or tabs, and any
    usual encoding.

    Args:
        path: Folder of the sample, or a copy of its `verify.csv`.
        rows: See `read_rows`.
        species: Names of known species by code, for `other_species`.

    Returns:
        Answers by id; rows without answer, note or other species are not included.

    Raises:
        UserError: If the table cannot be read, or a row has an unknown id, answer or species; with file and line.
    """
    path = Path(path)
    if path.is_dir():
        path = path / ANSWERS_FILE
    table, place = _read_cells(path)
    codes = _codes(species)
    found: dict[str, Answer] = {}
    for line, cells in zip(table.lines, table.rows, strict=True):
        name, *texts = (cells[place[column]] if column in place else "" for column in ("id", *ANSWER_COLUMNS))
        if not any(texts):
            continue
        where = f"{path} line {line}"
        answer = _checked(Answer(*map(unguarded_text, texts)), codes, where)
        if name not in rows.index:
            if answer == Answer():
                continue
            raise UserError(f"{where} has the id '{name}', which is not in the sample: restore the id of this row")
        if answer == Answer():
            continue
        if answer.answer == OTHER and answer.other_species == rows.at[name, "species"]:
            raise UserError(
                f"{where} has the other_species '{answer.other_species}', which is the detected one: expected another "
                "species, or the answer right"
            )
        if found.setdefault(name, answer) != answer:
            raise UserError(f"{where} has another answer for {name} than an earlier line: keep one of both")
    return found


def read_ids(folder: Path) -> set[str]:
    """Ids in `verify.csv`, also of rows without an answer; none if there is no such file.

    Raises:
        UserError: If the table cannot be read.
    """
    if not (folder / ANSWERS_FILE).is_file():
        return set()
    table, place = _read_cells(folder / ANSWERS_FILE)
    return {cells[place["id"]] for cells in table.rows}


def write_answers(folder: Path, rows: pd.DataFrame, answers: Mapping[str, Answer]) -> None:
    """Writes `verify.csv`, atomically: all rows of the sample, with their answers.

    Columns that a person has added to an existing table are kept, also those without a heading. Call `read_answers`
    before, and give all answers of the existing table, so that none is lost.

    Args:
        folder: Folder of the sample.
        rows: See `read_rows`.
        answers: Answers by id.

    Raises:
        UserError: If the file cannot be written.
    """
    path = folder / ANSWERS_FILE
    added: dict[str, list[str]] = {}
    names: list[str] = []
    if path.is_file():
        table, place = _read_cells(path)
        more = [
            at
            for at, name in enumerate(table.header)
            if (name or any(cells[at] for cells in table.rows)) and name.lower() not in (*ROW_COLUMNS, *ANSWER_COLUMNS)
        ]
        names = [table.header[at] for at in more]
        added = {cells[place["id"]]: [cells[at] for at in more] for cells in table.rows}
    text = io.StringIO()
    writer = csv_writer(text)
    writer.writerow((*ROW_COLUMNS, *ANSWER_COLUMNS, *names))
    blank = [""] * len(ANSWER_COLUMNS)
    columns = [_texts(column, rows[column].to_list()) for column in ROW_COLUMNS]
    for name, *cells in zip(map(str, rows["id"]), *columns, strict=True):
        answer, extra = answers.get(name), added.get(name, [""] * len(names))
        given = blank if answer is None else [_printable(getattr(answer, column)) for column in ANSWER_COLUMNS]
        # Other columns stay as the person has written them.
        writer.writerow((*cells, *map(safe_text, given), *extra))
    with users_file(path) as partial:
        partial.write_text(as_utf8(text.getvalue()), encoding="utf-8", newline="")


def _texts(column: str, values: Sequence[Any]) -> list[str]:
    """The cells of one of `ROW_COLUMNS`."""
    if column in DECIMALS:
        return [f"{value:.{DECIMALS[column]}f}" for value in values]
    return [safe_path(value) if column == "recording" else safe_text(str(value)) for value in values]


def _read_cells(path: Path) -> tuple[TextTable, dict[str, int]]:
    """Reads `verify.csv` as text, with the place of each column that is read."""
    try:
        text, _ = read_text(path)
    except FileNotFoundError:
        raise UserError(f"there is no {path}: restore it, or draw the sample again in a new folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table: {error}; save it as CSV (UTF-8)") from None
    table = _parsed(text, path)
    header = [name.strip().strip('"').lower() for name in table.header]
    place: dict[str, int] = {}
    for at, name in enumerate(header):
        if name in ("id", *ANSWER_COLUMNS) and place.setdefault(name, at) != at:
            raise UserError(f"{path} has the column {name} twice: remove one")
    if missing := [name for name in ("id", "answer") if name not in place]:
        raise UserError(f"{path} has no column {', '.join(missing)}: found {', '.join(filter(None, header))}")
    return table, place


# The page reads the table before each question and answer: a table with the same text is parsed once.
_parsed = lru_cache(maxsize=1)(parse_any_table)


def _printable(text: str) -> str:
    """A text without control characters, with which no program could read the table again."""
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    return text.strip()


def _codes(species: Mapping[str, SpeciesNames]) -> dict[str, list[str]]:
    """Codes by every name of a species, in lower case: several, if species share a name. A code means its species."""
    codes: dict[str, list[str]] = {}
    for code, names in species.items():
        for name in {*map(plain_name, names)} - {""}:
            codes.setdefault(name, []).append(code)
    return codes | {plain_name(code): [code] for code in species}


def _checked(answer: Answer, codes: Mapping[str, Sequence[str]], where: str) -> Answer:
    """The answer with its words in the usual form; raises `UserError` if they are unknown."""
    word = answer.answer.casefold()
    if word not in ("", *ANSWERS):
        raise UserError(f"{where} has the answer '{answer.answer}': expected {', '.join(ANSWERS)} or nothing")
    if not answer.other_species:
        return replace(answer, answer=word)
    found = codes.get(plain_name(answer.other_species), ())
    if len(found) > 1:
        raise UserError(
            f"{where} has the other_species '{answer.other_species}', which is the name of {' and '.join(found)} in "
            f"{SPECIES_FILE}: give the code"
        )
    if not found:
        raise UserError(
            f"{where} has the other_species '{answer.other_species}', which is unknown: give the code or name of a "
            "species in species.csv in this folder, or add the species there"
        )
    if word not in (OTHER, RIGHT):
        raise UserError(
            f"{where} has an other_species with the answer '{word}': expected other, or right if both call"
        )
    return replace(answer, answer=word, other_species=found[0])


def check_at_random(folder: Path, sample: Sample) -> None:
    """Raises `UserError` if the clips of a sample were not drawn at random."""
    choose = sample.settings["choose"]
    if choose not in AT_RANDOM:
        raise UserError(
            f"{folder} was drawn with --choose {choose}: these clips were not drawn at random, so they give no "
            "precision, call density or thresholds; train on them with kenya-birds verify annotate"
        )


def check_same_strata(samples: Sequence[tuple[Path, Sample]]) -> None:
    """Raises `UserError` if samples cannot be read together: of other tables, models or strata."""
    (first_folder, first), *others = samples
    for folder, sample in others:
        pair = f"{first_folder} and {folder}"
        if sample.model_sha256 != first.model_sha256:
            raise UserError(f"{pair} are samples of detections of different models: read them one by one")
        if sample.table_sha256 != first.table_sha256:
            raise UserError(f"{pair} are samples of different tables of detections: read them one by one")
        if sample.strata != first.strata:
            raise UserError(
                f"{pair} were drawn with different strata: read them one by one, or draw both with the same "
                "--per_species, --by and --choose, and different --seed"
            )
