"""Rows of an import: their recordings, times, frequencies and species."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kenya_birds.data.archive import IS_WEAK, VERIFIED
from kenya_birds.data.csv_table import read_table
from kenya_birds.data.event_tables import DECIMALS, NO_NAME, NO_NUMBER
from kenya_birds.data.import_report import CHANGED, NOT_TAKEN, NOTE, Findings
from kenya_birds.data.recording_matching import Match, RecordingFinder, names_elsewhere
from kenya_birds.data.recording_places import PLACE_COLUMNS, KeptHeader, is_inside
from kenya_birds.data.sound_files import count_skipped, find_sound
from kenya_birds.data.species_names import NameMap, SpeciesOfNames, plain_name, species_of_names
from kenya_birds.data.table_cells import SPECIES, TableCells
from kenya_birds.errors import UserError
from kenya_birds.files import RECORDINGS_TABLE

# Times of programs are rounded: an end that is this far past the end of a recording is the end.
ROUNDING_S = 0.05
RECORDING_IS_LOST = "its recording is not there"


@dataclass(frozen=True)
class FolderRecordings:
    """The recordings of the folder.

    Attributes:
        root: The folder.
        every: Their paths below the folder, with `/`.
        finder: Finds them.
    """

    root: Path
    every: list[str]
    finder: RecordingFinder


def find_recordings(
    tables: Sequence[TableCells], files: Sequence[str], root: Path, findings: Findings
) -> FolderRecordings:
    """Searches the folder of the recordings.

    Args:
        tables: The tables.
        files: Their paths below the source.
        root: The folder.
        findings: Files that cannot be used are added.
    """
    search = find_sound(root)
    every = []
    # A cell of a table is read without the spaces round it.
    for file in search.found:
        name = Path(os.path.relpath(file.path, root)).as_posix()
        if not os.path.exists(file.path):
            findings.add(NOT_TAKEN, "a link to a recording that does not exist", recording=name)
        elif name.isprintable() and name == name.strip() and is_inside(name):
            every.append(name)
        else:
            detail = name.encode("unicode_escape", "replace").decode()
            findings.add(NOT_TAKEN, "the name of a recording cannot be written in a table", detail=detail)
    for skip, (number, first) in count_skipped(search.skipped).items():
        findings.add(NOTE, f"{skip.value}", detail=f"{number}, such as {first}")
    own = [_own_name(file, table) for file, table in zip(files, tables, strict=True) if table.recording is not None]
    return FolderRecordings(root, every, RecordingFinder(every, own))


def with_marks(events: pd.DataFrame) -> pd.DataFrame:
    """Returns rows of archives as weak labels and checked detections, as they were.

    Args:
        events: See `events_of`.

    Returns:
        The rows; `weak` is `yes` or empty, and `verified` one of `VERIFIED`. Rows with other values have a `problem`.
    """
    weak, verified = (
        events[name].str.lower().mask(events[name].str.lower().isin(NO_NUMBER), "") for name in ("weak", "verified")
    )
    problem = events["problem"]
    for column, expected, wrong in (
        ("Weak", "yes or no", ~weak.isin(IS_WEAK)),
        ("Verified", f"{', '.join(filter(None, VERIFIED))} or nothing", ~verified.isin(VERIFIED)),
    ):
        told = f"'{column}' is '" + events[column.lower()] + f"', expected {expected}"
        problem = problem.mask(wrong & (problem == ""), told)
    weak = pd.Series(np.where(weak.map(IS_WEAK).eq(True), "yes", ""), index=events.index, dtype=object)
    return events.assign(weak=weak, verified=verified, problem=problem)


def with_recordings(
    events: pd.DataFrame,
    tables: Sequence[TableCells],
    files: Sequence[str],
    recordings: FolderRecordings,
    findings: Findings,
) -> tuple[pd.DataFrame, set[str], set[str]]:
    """Finds the recording of each row.

    Args:
        events: See `events_of`; with `file`.
        tables: The tables.
        files: Their paths below the source.
        recordings: The recordings of the folder.
        findings: What is found is added.

    Returns:
        The rows whose recording is there and that can be read; the recordings that are known to have no call: their
        table has no rows, or a row has neither times nor a species; and the recordings to which other rows belong, or
        may belong.
    """
    own = np.array([_own_name(file, table) for file, table in zip(files, tables, strict=True)], dtype=object)
    is_own = np.array([table.recording is not None for table in tables], dtype=bool)
    number = events["table"].to_numpy()
    named = np.where(is_own[number], own[number], events["recording"])
    folders = np.array([file.rpartition("/")[0] for file in files], dtype=object)
    keys = list(zip(named.tolist(), folders[number].tolist(), is_own[number].tolist(), strict=True))
    own_keys = {files[row]: (own[row], folders[row], True) for row in np.flatnonzero(is_own).tolist()}
    matches = {
        key: recordings.finder.find(key[0], key[1], is_of_table=key[2]) for key in sorted({*keys, *own_keys.values()})
    }
    events = events.assign(recording=[matches[key].recording or "" for key in keys])
    is_lost = (events["recording"] == "").to_numpy(dtype=bool)
    details = [_why_lost(matches[keys[row]]) for row in np.flatnonzero(is_lost).tolist()]
    findings.add_rows(NOT_TAKEN, RECORDING_IS_LOST, events[is_lost].assign(recording=named[is_lost]), details)
    elsewhere = _elsewhere(number, named, events["recording"], recordings.root)
    is_elsewhere = elsewhere != ""
    rows = events[is_elsewhere].assign(recording=named[is_elsewhere])
    findings.add_rows(NOT_TAKEN, "its recording is in another folder", rows, elsewhere[is_elsewhere])
    for (name, *_), match in matches.items():
        if match.is_renamed and match.recording is not None:
            findings.add(NOTE, "has another suffix than the table says", recording=match.recording, detail=name)
    of_tables = {file: matches[key] for file, key in own_keys.items()}
    silent = _silent(tables, files, of_tables, findings)
    unsure = {keys[row] for row in np.flatnonzero(is_lost & ~events["is_blank"].to_numpy()).tolist()}
    # Nothing is known of a recording that other rows may be of.
    is_kept = ~is_lost & ~is_elsewhere
    maybe = set(events.loc[is_elsewhere, "recording"])
    events = events[is_kept]
    is_blank = events["is_blank"]
    annotated = maybe.union(events.loc[~is_blank, "recording"]).union(*(matches[key].others for key in unsure))
    silent |= set(events.loc[is_blank, "recording"])
    wrong = events[(events["problem"] != "") & ~is_blank]
    findings.add_rows(NOT_TAKEN, "a row cannot be read", wrong, wrong["problem"])
    calls = events[(events["problem"] == "") & ~is_blank]
    unclear = calls[calls["frequency_problem"] != ""]
    findings.add_rows(CHANGED, "a frequency cannot be read, and was left out", unclear, unclear["frequency_problem"])
    return calls, silent - set(wrong["recording"]) - annotated, annotated


def _elsewhere(table: np.ndarray, named: np.ndarray, recording: pd.Series, root: Path) -> np.ndarray:
    """Returns why the recording of each row is another one (see `names_elsewhere`), or an empty text."""
    rows = pd.DataFrame({"table": table, "named": named, "recording": recording.to_numpy()})
    names_of = rows[rows["recording"] != ""].drop_duplicates()
    folder = root.absolute()
    why: dict[tuple[Any, str], str] = {}
    for number, names in names_of[names_of["table"].duplicated(keep=False)].groupby("table"):
        found = dict(zip(names["named"], names["recording"], strict=True))
        paths = {path: (folder / path).as_posix() for path in found.values()}
        for name, reason in names_elsewhere(found, paths).items():
            why[number, name] = reason
    return np.array([why.get(key, "") for key in zip(table.tolist(), named.tolist(), strict=True)], dtype=object)


def _silent(
    tables: Sequence[TableCells], files: Sequence[str], matches: Mapping[str, Match], findings: Findings
) -> set[str]:
    """Returns the recordings of empty tables; notes recordings with several tables."""
    users: dict[str, list[str]] = defaultdict(list)
    silent = set()
    for file, table in zip(files, tables, strict=True):
        match = matches.get(file)
        if match is None:
            continue
        if match.recording is not None:
            users[match.recording].append(file)
            if not table.lines:
                silent.add(match.recording)
        elif not table.lines:
            finding = "the recording of an empty table is not there"
            findings.add(NOT_TAKEN, finding, file=file, detail=_why_lost(match))
    for recording, names in users.items():
        if len(names) > 1:
            findings.add(NOTE, "has several tables, all were read", recording=recording, detail=", ".join(names))
    return silent


def listed_recordings(folder: Path, recordings: FolderRecordings, findings: Findings) -> set[str]:
    """Returns the recordings of the `recordings.csv` of an archive beside the tables.

    Args:
        folder: Folder of the tables.
        recordings: The recordings of the folder.
        findings: Recordings that are not there are added.
    """
    path = folder / RECORDINGS_TABLE
    if not path.is_file():
        return set()
    try:
        names = read_table(path, PLACE_COLUMNS)["recording"]
    except UserError:
        return set()  # another table of this name, such as that of detect
    matches = {name: recordings.finder.find(name) for name in names}
    for name, match in matches.items():
        if match.recording is None:
            finding = f"a recording of {RECORDINGS_TABLE} is not there"
            findings.add(NOT_TAKEN, finding, file=RECORDINGS_TABLE, recording=name, detail=_why_lost(match))
    return {match.recording for match in matches.values() if match.recording is not None}


def _own_name(file: str, table: TableCells) -> str:
    """Returns the path, without suffix, of the recording of a table by the table's path."""
    folder, slash, _ = file.rpartition("/")
    return f"{folder}{slash}{table.recording or ''}"


def _why_lost(match: Match) -> str:
    others = match.others
    if not others:
        return ""
    if len(others) == 1:
        return f"a recording of this name is at {others[0]}: its folder differs"
    return f"it may be {others[0]} or {others[1]}: write its folder into the table"


def with_checked_times(calls: pd.DataFrame, headers: Mapping[str, KeptHeader], findings: Findings) -> pd.DataFrame:
    """Returns the calls within their recordings, with frequencies that the recordings have.

    Args:
        calls: `recording`, `start_s`, `end_s`, `low_hz`, `high_hz`, `file` and `line`.
        headers: Header by recording; calls of other recordings are dropped.
        findings: Calls that are not taken or are changed are added.
    """
    calls = calls[calls["recording"].isin(headers)]
    lengths_s = {name: kept.header.duration_s for name, kept in headers.items()}
    halves_hz = {name: kept.header.sample_rate_hz / 2 for name, kept in headers.items()}
    duration_s = calls["recording"].map(lengths_s).astype(float)
    start_s, end_s = calls["start_s"], calls["end_s"]
    is_point = start_s == end_s
    is_past = (start_s >= duration_s) & ~(is_point & (start_s <= duration_s + ROUNDING_S))
    is_before = (end_s < 0) | ((end_s == 0) & ~is_point)
    for is_so, finding in ((is_past, "is past the end of its recording"), (is_before, "is before its recording")):
        details = [
            f"{a:g} to {b:g} s, the recording has {c:g} s"
            for a, b, c in zip(start_s[is_so], end_s[is_so], duration_s[is_so], strict=True)
        ]
        findings.add_rows(NOT_TAKEN, finding, calls[is_so], details)
    is_in = ~is_past & ~is_before
    calls, duration_s = calls[is_in], duration_s[is_in]
    start_s, end_s = calls["start_s"], calls["end_s"]
    cut = (end_s > duration_s + ROUNDING_S) | (start_s < -ROUNDING_S)
    details = [f"{a:g} to {b:g} s" for a, b in zip(start_s[cut], end_s[cut], strict=True)]
    findings.add_rows(CHANGED, "was cut at the start or end of its recording", calls[cut], details)
    last_s = np.floor(duration_s * 10**DECIMALS) / 10**DECIMALS
    # A point at the end would be outside.
    is_at_end = is_point[is_in] & (last_s >= duration_s)
    last_s = last_s.where(~is_at_end, last_s - 10**-DECIMALS)
    calls = calls.assign(start_s=start_s.clip(0, last_s).round(DECIMALS), end_s=end_s.clip(0, last_s).round(DECIMALS))
    return _with_checked_frequencies(calls, calls["recording"].map(halves_hz).astype(float), findings)


def _with_checked_frequencies(calls: pd.DataFrame, nyquist_hz: pd.Series, findings: Findings) -> pd.DataFrame:
    # Raven's boxes have frequencies, also where nobody has measured any.
    is_whole = (calls["low_hz"] <= 0) & (calls["high_hz"] == nyquist_hz)
    low_hz, high_hz = calls["low_hz"].where(~is_whole), calls["high_hz"].where(~is_whole)
    is_wrong = (low_hz > high_hz) | (low_hz < 0) | (low_hz >= nyquist_hz)
    is_high = (high_hz > nyquist_hz) & ~is_wrong
    for is_so, finding in (
        (is_wrong, "has frequencies that cannot be, which were left out"),
        (is_high, "has an upper frequency above half the sampling rate, which was lowered to it"),
    ):
        details = [
            f"{a:g} to {b:g} Hz, half the sampling rate is {c:g} Hz"
            for a, b, c in zip(low_hz[is_so], high_hz[is_so], nyquist_hz[is_so], strict=True)
        ]
        findings.add_rows(CHANGED, finding, calls[is_so], details)
    high_hz = high_hz.where(~is_high, nyquist_hz)
    return calls.assign(low_hz=low_hz.where(~is_wrong), high_hz=high_hz.where(~is_wrong))


def with_species(
    calls: pd.DataFrame, given: NameMap | None, findings: Findings
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Finds the species of the calls.

    Args:
        calls: With the columns of names.
        given: Codes of names.
        findings: Names that are uncertain, or in no map, are added.

    Returns:
        The calls with `species`, without those that are left out; the table of species (see `SpeciesOfNames`); and
        `name`, `code` and `count` of the names in the tables, the most frequent first.
    """
    keys = list(SPECIES)
    no_names = [name for name in NO_NAME if given is None or plain_name(name) not in given.codes]
    calls = calls.assign(**{name: calls[name].mask(calls[name].isin(no_names), "") for name in keys})
    groups = calls.groupby(keys, sort=False)
    names = groups.size().reset_index(name="count")
    firsts = calls.loc[~calls.duplicated(keys)]
    found = species_of_names(names, given)
    shown = [
        next((row[name] for name in ("scientific_name", "common_name", "label", "code") if row[name]), "")
        for row in names.to_dict("records")
    ]
    _name_findings(found, firsts, shown, names["count"].tolist(), findings)
    codes = np.array(found.codes, dtype=object)[groups.ngroup().to_numpy()]
    calls = calls.assign(species=pd.Series(codes, index=calls.index, dtype=object))
    listed = pd.DataFrame(
        {"name": shown, "code": ["" if code is None else code for code in found.codes], "count": names["count"]}
    )
    listed = listed.groupby(["name", "code"], sort=False)["count"].sum().reset_index()
    return calls[calls["species"].notna()], found.species, listed.sort_values("count", ascending=False, kind="stable")


def _name_findings(
    found: SpeciesOfNames, firsts: pd.DataFrame, shown: Sequence[str], counts: Sequence[int], findings: Findings
) -> None:
    for number, (file, line) in enumerate(zip(firsts["file"], firsts["line"], strict=True)):
        detail = f"'{shown[number]}', {counts[number]} annotations"
        if number in found.uncertain:
            effect, finding = CHANGED, "a name is uncertain and was taken as an unknown bird"
            detail = f"{detail}: {found.uncertain[number]}"
        elif number in found.unmapped:
            effect, finding = CHANGED, "a name is not in the map and was taken as an unknown bird"
        elif found.codes[number] is None:
            effect, finding = NOT_TAKEN, "a name has no code in the map, so its annotations were left out"
        elif not shown[number]:
            effect, finding = NOTE, "annotations without a name are unknown birds"
        elif number in found.apart:
            effect, finding = NOTE, "a species has the common name of another one: correct it, or give --map"
            detail = f"{detail}: {found.apart[number]}"
        else:
            continue
        findings.add(effect, finding, file=file, line=int(line), detail=detail)
    named = found.species[found.species["scientific_name"] != ""]
    for name, codes in named.groupby("scientific_name")["species"]:
        if len(codes) > 1:
            finding = "codes have the same scientific name: correct them in the tables, or give --map"
            findings.add(NOTE, finding, detail=f"'{name}': {', '.join(codes)}")
    for code, others in found.spellings.items():
        findings.add(
            NOTE,
            "names that differ in case or blanks are one species",
            detail=f"'{code}': {', '.join(sorted(set(others)))}",
        )


def without_repetitions(calls: pd.DataFrame, findings: Findings) -> pd.DataFrame:
    """Returns the calls, each once.

    Args:
        calls: `recording`, `start_s`, `end_s`, `species`, `verified`, `file` and `line`.
        findings: Repetitions are added.
    """
    is_repeated = calls.duplicated(["recording", "start_s", "end_s", "species", "verified"])
    findings.add_rows(NOT_TAKEN, "repeats an earlier annotation", calls[is_repeated])
    return calls[~is_repeated]
