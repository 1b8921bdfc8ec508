"""Species of annotations: the code of each name that tables use."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kenya_birds.data.archive import UNKNOWN_SPECIES
from kenya_birds.data.csv_table import parse_any_table
from kenya_birds.data.table_cells import ALIASES
from kenya_birds.errors import UserError
from kenya_birds.files import read_text

# BirdNET's labels.
_TWO_NAMES = re.compile(r"([A-Z][a-z]+ [a-z][a-z .-]*)_(.+)")
_NAMES = ("label", "code", "scientific_name", "common_name")
_MAP_NAMES = ("name", "label", "their name", "from", "species")


def plain_name(name: str) -> str:
    """Normalises a name for comparison: case, blanks and the encoding of accents do not matter."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


@dataclass(frozen=True)
class NameMap:
    """Codes by the names that people use.

    Attributes:
        codes: Code by normalised name; an empty code: annotations of this name are left out.
        scientific_names: By code, where known.
        common_names: By code, where known.
        is_complete: Whether names that are not in it have no code.
    """

    codes: dict[str, str]
    scientific_names: dict[str, str]
    common_names: dict[str, str]
    is_complete: bool


def read_name_map(path: Path) -> NameMap:
    """Reads a table of names.

    Args:
        path: A CSV with the columns `name` and `code`, and if known `scientific_name` and `common_name`; or the
            `species.csv` of an archive, whose names all stand for its codes. An empty code leaves out the name's
            annotations.

    Raises:
        UserError: If the file cannot be read, a column is missing, a name has two codes, or codes differ in case only.
    """
    try:
        text, _ = read_text(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a table of names: {error}") from None
    table = parse_any_table(text, path)
    place = {name.lower(): index for index, name in reversed(list(enumerate(table.header)))}
    columns = {
        ours: next((place[name] for name in names if name in place), None)
        for ours, names in {
            "name": _MAP_NAMES,
            **{name: ALIASES[name] for name in ("code", "scientific_name", "common_name")},
        }.items()
    }
    if columns["code"] is None or (columns["name"] is None and columns["scientific_name"] is None):
        raise UserError(
            f"{path} has the columns {', '.join(table.header)}: expected name and code, or the columns of species.csv"
        )
    codes: dict[str, tuple[str, int]] = {}
    spelled: dict[str, tuple[str, int]] = {}
    known: dict[str, dict[str, str]] = {"scientific_name": {}, "common_name": {}}
    for line, row in zip(table.lines, table.rows, strict=True):
        cells = {ours: row[index] if index is not None else "" for ours, index in columns.items()}
        code = cells["code"]
        other, before = spelled.setdefault(code.casefold(), (code, line))
        if other != code:
            raise UserError(
                f"{path} line {line}: the code '{code}' differs from '{other}' on line {before} in upper and lower "
                "case only: write them in one way"
            )
        names = [cells["name"]] if columns["name"] is not None else [cells["scientific_name"], cells["common_name"]]
        for name in filter(None, [*names, *([code] if code and columns["name"] is None else [])]):
            other, before = codes.setdefault(plain_name(name), (code, line))
            if other != code:
                raise UserError(
                    f"{path} line {line}: '{name}' has the code '{code}', and '{other}' on line {before}: remove one"
                )
        for ours, by_code in known.items():
            if code and cells[ours]:
                by_code.setdefault(code, cells[ours])
    mapped = {name: code for name, (code, _) in codes.items()}
    return NameMap(mapped, known["scientific_name"], known["common_name"], is_complete=columns["name"] is not None)


@dataclass
class SpeciesOfNames:
    """The species of each combination of names.

    Attributes:
        codes: Code of each combination; `????` if its species is unknown or uncertain, None if it is left out.
        species: `scientific_name`, `species` (code) and `common_name` of every code.
        uncertain: Reason why the species of a combination is uncertain, by its number.
        unmapped: Numbers of the combinations that are not in the map.
        spellings: Other spellings that were taken as the same name, by code.
        apart: Species of the same common name, by the number of a combination that is not one of them.
    """

    codes: list[str | None]
    species: pd.DataFrame
    uncertain: dict[int, str] = field(default_factory=dict)
    unmapped: list[int] = field(default_factory=list)
    spellings: dict[str, list[str]] = field(default_factory=dict)
    apart: dict[int, str] = field(default_factory=dict)


def species_of_names(names: pd.DataFrame, given: NameMap | None) -> SpeciesOfNames:
    """Finds the species of all combinations of names.

    A code is used as it is. Without a code, the best name of a row decides: the scientific name, or else the common
    name, or else the label. It gets the code that the same name has elsewhere, or in the map. A scientific name may
    also get the code of its common name, if this is the common name of no other one. If no code is known, the best
    name is the code. Names that differ only in case or blanks are one name, in its most frequent spelling.

    Args:
        names: One row per combination: `code`, `scientific_name`, `common_name`, `label` (empty if unknown) and
            `count`, the number of annotations.
        given: Codes of names. If it is complete, a name that is not in it becomes an unknown bird.
    """
    rows = [_split(dict(zip(_NAMES, row, strict=True))) for row in names[list(_NAMES)].to_numpy().tolist()]
    counts = [int(count) for count in names["count"]]
    result = SpeciesOfNames([None] * len(rows), pd.DataFrame())
    others = _apply_map(rows, given, result)
    codes_of: dict[str, set[str]] = defaultdict(set)
    for known, its_code in (given.codes if given is not None else {}).items():
        codes_of[known].add(its_code)
    _name_others(rows, others, codes_of, _spelling(rows, counts), result)
    _check_scientific_names(rows, counts, result)
    result.species = _species_table(rows, counts, result.codes, given)
    for row, code in zip(rows, result.codes, strict=True):
        for name in filter(None, row.values()):
            if code not in (None, UNKNOWN_SPECIES) and name != code and plain_name(name) == plain_name(str(code)):
                result.spellings.setdefault(str(code), []).append(name)
    return result


def _apply_map(rows: Sequence[dict[str, str]], given: NameMap | None, result: SpeciesOfNames) -> list[int]:
    """Sets the codes of nameless rows and of names in the map; returns the numbers of the other rows."""
    others = []
    for number, row in enumerate(rows):
        named = [plain_name(name) for name in row.values() if name]
        found = {given.codes[name] for name in named if name in given.codes} if given is not None else set()
        if all(set(name) <= {"?"} for name in named):
            result.codes[number] = UNKNOWN_SPECIES
        elif len(found) > 1:
            result.codes[number] = UNKNOWN_SPECIES
            result.uncertain[number] = "its names have several codes in the map"
        elif found:
            result.codes[number] = found.pop() or None
        elif given is not None and given.is_complete:
            result.codes[number] = UNKNOWN_SPECIES
            result.unmapped.append(number)
        else:
            others.append(number)
    return others


def _name_others(
    rows: Sequence[dict[str, str]],
    others: Sequence[int],
    codes_of: dict[str, set[str]],
    spelling: Mapping[str, str],
    result: SpeciesOfNames,
) -> None:
    """Sets the codes of names that are not in the map. Rows with better names come first: others use their codes."""
    waiting, bridges = list(others), _common_names_of_one([rows[number] for number in others])
    kind_of: dict[str, str] = {}
    for kind in ("code", "scientific_name", "common_name", "label"):
        for number in [number for number in waiting if rows[number][kind]]:
            waiting.remove(number)
            row = {name: plain_name(text) for name, text in rows[number].items()}
            common = row["common_name"]
            # A label beside a better name, such as "song" or "Aves", may be that of many species.
            deciding = [row[kind], common] if kind == "scientific_name" and common in bridges else [row[kind]]
            known = next((codes_of[name] for name in deciding if codes_of.get(name)), set())
            if kind != "code" and len(known) > 1:
                result.codes[number] = UNKNOWN_SPECIES
                result.uncertain[number] = f"may be {' or '.join(sorted(known))}"
                continue
            code = next(iter(known)) if kind != "code" and known else spelling[row[kind]]
            result.codes[number] = code
            if kind == "scientific_name" and common and (same := codes_of.get(common, set()) - {code}):
                result.apart[number] = f"'{rows[number]['common_name']}' is {', '.join(sorted(same))}, too"
            for name in filter(None, (*(row[name] for name in _NAMES if name != "code"), plain_name(code))):
                # What rows with a better name say of a scientific or common name stands.
                if kind_of.setdefault(name, kind) == kind or name == row["label"]:
                    codes_of[name].add(code)


def _common_names_of_one(rows: Iterable[dict[str, str]]) -> set[str]:
    """Returns the common names that go with one scientific name only: they may give its code."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row["scientific_name"] and row["common_name"]:
            found[plain_name(row["common_name"])].add(plain_name(row["scientific_name"]))
    return {common for common, scientific in found.items() if len(scientific) == 1}


def _split(row: dict[str, str]) -> dict[str, str]:
    """Splits BirdNET's labels: `Turdus merula_Common Blackbird`."""
    two = _TWO_NAMES.fullmatch(row["label"])
    if two and not row["scientific_name"] and not row["common_name"]:
        return {**row, "label": "", "scientific_name": two[1], "common_name": two[2]}
    return row


def _spelling(rows: Iterable[dict[str, str]], counts: Iterable[int]) -> dict[str, str]:
    """Returns the most frequent spelling of each name, by the normalised name."""
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for row, count in zip(rows, counts, strict=True):
        for name in filter(None, row.values()):
            counted[plain_name(name)][" ".join(name.split())] += count
    return {name: counter.most_common(1)[0][0] for name, counter in counted.items()}


def _check_scientific_names(rows: list[dict[str, str]], counts: list[int], result: SpeciesOfNames) -> None:
    """A code of two species is right for the one with more annotations, and uncertain for the other."""
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for row, code, count in zip(rows, result.codes, counts, strict=True):
        if code not in (None, UNKNOWN_SPECIES) and row["code"] and row["scientific_name"]:
            counted[str(code)][plain_name(row["scientific_name"])] += count
    for number, (row, code) in enumerate(zip(rows, result.codes, strict=True)):
        if code in counted and row["code"] and row["scientific_name"]:
            first = counted[str(code)].most_common(1)[0][0]
            if plain_name(row["scientific_name"]) != first:
                result.uncertain[number] = (
                    f"its code '{code}' stands for {first} elsewhere, and here for {row['scientific_name']}"
                )
                result.codes[number] = UNKNOWN_SPECIES


def _species_table(
    rows: list[dict[str, str]], counts: list[int], codes: list[str | None], given: NameMap | None
) -> pd.DataFrame:
    kinds = ("scientific_name", "common_name", "label")
    found: dict[str, dict[str, Counter[str]]] = {}
    species_of: dict[str, set[str]] = defaultdict(set)
    for row, code, count in zip(rows, codes, counts, strict=True):
        if code not in (None, UNKNOWN_SPECIES):
            of_code = found.setdefault(str(code), {name: Counter() for name in kinds})
            for name in kinds:
                if row[name]:
                    of_code[name][" ".join(row[name].split())] += count
            species_of[plain_name(row["label"])].add(str(code))
    table = []
    for code, names in sorted(found.items()):
        # A label of several species, such as "song", names none.
        labels = [label for label, _ in names["label"].most_common() if len(species_of[plain_name(label)]) == 1]
        scientific = _most_common(names["scientific_name"], "")
        common = _most_common(names["common_name"], next(iter(labels), code))
        if given is not None:
            scientific = given.scientific_names.get(code, scientific)
            common = given.common_names.get(code, common)
        table.append((scientific, code, common))
    return pd.DataFrame(table, columns=["scientific_name", "species", "common_name"])


def _most_common(counter: Counter[str], otherwise: str) -> str:
    return counter.most_common(1)[0][0] if counter else otherwise
