"""Labels of published networks: species in the order of the network's scores, from BirdNET's and Perch's files."""

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kenya_birds.data.csv_table import parse_any_table
from kenya_birds.errors import UserError
from kenya_birds.files import read_text
from kenya_birds.inference.species import read_species, species_names

logger = logging.getLogger(__name__)

# Names of columns, in lower case with spaces.
CODE_COLUMNS = ("code", "species ebird code", "ebird code", "ebird2021", "species code")
SCIENTIFIC_COLUMNS = ("scientific name", "sci name")
COMMON_COLUMNS = ("common name", "com name")
PLACE_COLUMNS = ("idx", "index", "class index")
# Header of the column in Perch's file.
PERCH_COLUMN = "inat2024_fsd50k"
SHOWN_NAMES = 5


class NetworkLabel(NamedTuple):
    """A class of a published network.

    Attributes:
        code: Code of the species: eBird's where it is known, otherwise the scientific name or the label.
        scientific_name: Scientific name; empty if unknown.
        common_name: Common name; empty if unknown.
    """

    code: str
    scientific_name: str
    common_name: str


def read_labels(path: str | Path) -> list[NetworkLabel]:
    """Reads the labels of a network.

    A text file has one label per line: `Scientific name_Common Name` as for BirdNET, or one name. A CSV file has a
    header, and columns for code, scientific and common name, or a single column with the labels as for Perch. Perch's
    classes of sound, such as `Female_singing`, are one name.

    Args:
        path: The file (see `read_text` for its encoding). It is a CSV file if its name ends in `.csv` (see
            `parse_any_table` for its separators).

    Returns:
        The labels in the order of the file.

    Raises:
        UserError: If the file cannot be read, has no labels or no known column, its rows are not in the order of a
            column `idx` or `index`, or two labels have the same code.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        rows = _rows(path)
        _check_order(rows, path)
        header = list(rows[0]) if rows else []
        if len(header) == 1 and header[0] not in (*CODE_COLUMNS, *SCIENTIFIC_COLUMNS):
            labels = _of_lines([row[header[0]] for row in rows], header[0] == _known_header(PERCH_COLUMN))
        else:
            labels = [_of_row(row, path) for row in rows]
    else:
        lines = [line.strip() for line in _text(path).splitlines() if line.strip()]
        is_perch = lines[:1] == [PERCH_COLUMN]
        labels = _of_lines(lines[is_perch:], is_perch)
    if not labels:
        raise UserError(f"{path} has no labels: expected one per line")
    first: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        if not label.code:
            raise UserError(f"label {number} of {path} is empty: expected a name for each score of the network")
        if label.code in first:
            raise UserError(f"labels {first[label.code]} and {number} of {path} are both '{label.code}'")
        first[label.code] = number
    return labels


def restrict_labels(labels: Sequence[NetworkLabel], path: str | Path) -> dict[int, NetworkLabel]:
    """Restricts the labels of a network to the species of a list.

    Args:
        labels: The network's labels.
        path: A text file (see `read_species`), or a CSV file with codes and scientific names, such as an archive's
            species.csv: its codes replace those of the network. Species of a CSV file that the network does not know
            are skipped and logged.

    Returns:
        Labels by their index in the network.

    Raises:
        UserError: If the file cannot be read, or the network knows none of its species or not one of a text file.
    """
    path = Path(path)
    if path.suffix.lower() != ".csv":
        known = species_names([label.code for label in labels], as_species(labels))
        chosen = set(read_species(path, known))
        return {index: label for index, label in enumerate(labels) if label.code in chosen}
    wanted = [_of_row(row, path) for row in _rows(path)]
    found: dict[int, NetworkLabel] = {}
    unknown = []
    index_of = {_plain(name): index for index, label in enumerate(labels) for name in _names(label)}
    for species in wanted:
        index = index_of.get(_plain(species.scientific_name or species.code), index_of.get(_plain(species.code)))
        if index is None:
            unknown.append(species.scientific_name or species.code)
        elif index in found:
            raise UserError(f"{path} has two rows for '{labels[index].code}': {found[index].code} and {species.code}")
        else:
            found[index] = species._replace(common_name=species.common_name or labels[index].common_name)
    if not found:
        raise UserError(f"the network knows none of the {len(wanted)} species of {path}, such as {unknown[:1]}")
    if unknown:
        more = " ..." if len(unknown) > SHOWN_NAMES else ""
        logger.warning(
            "The network does not know %d of the %d species of %s, which are skipped: %s%s",
            len(unknown),
            len(wanted),
            path,
            ", ".join(unknown[:SHOWN_NAMES]),
            more,
        )
    return dict(sorted(found.items()))


def as_species(labels: Sequence[NetworkLabel]) -> dict[str, dict[str, str]]:
    """Names by code, as `KenyaBirdsConfig` has them."""
    return {
        label.code: {"scientific_name": label.scientific_name, "common_name": label.common_name or label.code}
        for label in labels
    }


def _of_lines(lines: Sequence[str], is_perch: bool) -> list[NetworkLabel]:
    """Labels of which each is one text.

    One word before `_` is a scientific name, such as BirdNET's `Dog_Dog`, but not in Perch's file, and not if several
    lines begin with it.
    """
    if is_perch:
        return [_of_text(line) for line in lines]
    words = Counter(line.partition("_")[0] for line in lines)
    return [_of_text(line, one_word_is_name=words[line.partition("_")[0]] == 1) for line in lines]


def _of_text(text: str, *, one_word_is_name: bool = False) -> NetworkLabel:
    """A label of one text: scientific and common name with `_` between them, or one name.

    Args:
        text: The label.
        one_word_is_name: Whether one word before `_` is a scientific name.
    """
    scientific, underscore, common = text.partition("_")
    if underscore and scientific and common and (one_word_is_name or " " in scientific or scientific == common):
        return NetworkLabel(scientific, scientific, common)
    return NetworkLabel(text, text if re.fullmatch(r"[A-Z][a-z]+ [a-z-]+( [a-z-]+)?", text) else "", "")


def _of_row(row: Mapping[str, str], path: Path) -> NetworkLabel:
    def value(columns: Sequence[str]) -> str:
        return next((row[name] for name in columns if row.get(name)), "")

    code, scientific, common = value(CODE_COLUMNS), value(SCIENTIFIC_COLUMNS), value(COMMON_COLUMNS)
    if code or scientific:
        return NetworkLabel(code or scientific, scientific, common)
    raise UserError(
        f"{path} has a row without a code and a scientific name: expected columns such as "
        f"{', '.join((CODE_COLUMNS[0], SCIENTIFIC_COLUMNS[0], COMMON_COLUMNS[0]))}, or a single column; found "
        f"{', '.join(row)}"
    )


def _check_order(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Raises `UserError` if a column numbers the scores of the network, and the rows are not in this order."""
    for name in PLACE_COLUMNS:
        places = [row.get(name, "") for row in rows]
        if not all(re.fullmatch(r"[0-9]+", place) for place in places):
            continue
        numbers = list(map(int, places))
        if numbers != sorted(numbers):
            raise UserError(f"the rows of {path} are not in the order of its column '{name}': sort them by it")


def _known_header(name: str) -> str:
    return name.casefold().replace("_", " ")


def _rows(path: Path) -> list[dict[str, str]]:
    table = parse_any_table(_text(path), path)
    header = [_known_header(name) for name in table.header]
    return [dict(zip(header, row, strict=True)) for row in table.rows]


def _text(path: Path) -> str:
    try:
        return read_text(path)[0]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as labels: {error}") from None


def _names(label: NetworkLabel) -> tuple[str, ...]:
    return tuple(name for name in (label.code, label.scientific_name) if name)


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
