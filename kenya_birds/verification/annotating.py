"""`kenya-birds verify annotate`: the answers of a checked sample become annotations of an archive, to train on."""

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import pandas as pd
from fsspec.core import split_protocol

from kenya_birds.data.archive import (
    ABSENT,
    ANNOTATION_COLUMNS,
    PRESENT,
    SPECIES_COLUMNS,
    UNKNOWN_SPECIES,
    UNSURE,
    VERIFIED_COLUMNS,
    read_archive,
)
from kenya_birds.data.csv_table import read_csv, read_table
from kenya_birds.data.recording_places import (
    JOINED_COLUMNS,
    PLACE_COLUMNS,
    KeptHeader,
    Place,
    RecordingPlaces,
    write_places,
)
from kenya_birds.data.same_recording import recording_key, sound_fingerprints
from kenya_birds.errors import UserError
from kenya_birds.files import (
    ANNOTATIONS_FILE,
    RECORDINGS_FOLDER,
    RECORDINGS_TABLE,
    SPECIES_FILE,
    check_layout,
    write_table,
)
from kenya_birds.folders import check_can_make, is_new_or_empty, users_folder
from kenya_birds.inference.recordings_reader import read_recordings
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.locks import locked
from kenya_birds.verification import check_folder
from kenya_birds.verification.check_folder import Answer, Sample, detection_id, read_answers, read_rows
from kenya_birds.verification.moved_recordings import SAME_LENGTH_S, find_recordings

FILENAME, START, END, CODE = ANNOTATION_COLUMNS
VERIFIED, MODEL = VERIFIED_COLUMNS
# Who answered, and the detection that the answer is about (see `detection_id`).
ANNOTATOR, DETECTION = "Annotator", "Detection"
COLUMNS = [*ANNOTATION_COLUMNS, ANNOTATOR, VERIFIED, DETECTION, MODEL]


@dataclass
class AnnotatedArchive:
    """Result of `annotate_archive`.

    Attributes:
        path: The archive.
        answers: Number of answers that were taken, by answer (`right`, `wrong`, `other`, `unsure`).
        recordings: Number of their recordings.
        new: Number of detections that had no answer in the archive.
        changed: Number of detections whose earlier answer is replaced.
        kept: Number of checked detections in the archive that this sample has no answer to.
        annotated: Recordings that are annotated in the archive already, with the number of answers that are not taken.
        species: Codes of the species that were added to the archive.
    """

    path: Path
    answers: Counter[str] = field(default_factory=Counter)
    recordings: int = 0
    new: int = 0
    changed: int = 0
    kept: int = 0
    annotated: dict[str, int] = field(default_factory=dict)
    species: list[str] = field(default_factory=list)

    def format(self) -> str:
        """A summary for the terminal."""
        counts = ", ".join(f"{self.answers[answer]} {answer}" for answer in check_folder.ANSWERS)
        lines = [
            f"{self.path}: {self.answers.total()} checked detections ({counts}) in {self.recordings} recordings; "
            f"{self.new} are new, {self.changed} have another answer than before, {self.kept} others are kept"
        ]
        if self.species:
            lines.append(f"  new species: {', '.join(self.species)}")
        if self.annotated:
            lines.append(f"  {self.not_taken()}")
        return "\n".join(lines)

    def not_taken(self) -> str:
        """Says which answers are not taken, and why."""
        return (
            f"{sum(self.annotated.values())} answers are not taken: their {len(self.annotated)} recordings, such as "
            f"{min(self.annotated)}, are annotated in {self.path} already"
        )


def annotate_archive(
    check: str | Path, archive: str | Path, *, recordings: str | Path | None = None
) -> AnnotatedArchive:
    """Turns the answers of a sample into annotations of a new or existing archive.

    A right detection becomes an annotation with its start and end. A wrong one says that the species is not there; if
    another species is named, that one is annotated. Unsure ones are kept as unknown. Everything else in these
    recordings is unknown, and they are for training alone (see `Archive.verified`). Recordings stay where they are.

    A later run with more answers adds them. Answers that have changed replace the earlier ones. Other annotations of
    the archive are not changed, and recordings that have such get no answers.

    Args:
        check: Folder of `kenya-birds verify sample`, with answers in `verify.csv`.
        archive: A new or empty folder, or an archive.
        recordings: Folder with recordings that were moved after the detection.

    Raises:
        UserError: If the sample, an answer or the archive cannot be read, or a recording is not found.
    """
    check, archive = Path(check), Path(archive)
    sample, rows = Sample.read(check), read_rows(check)
    names = check_folder.read_species_table(check)
    answers = {name: one for name, one in read_answers(check, rows, names).items() if one.answer}
    if not answers:
        raise UserError(f"{check} has no answer: write the answers into the column answer of verify.csv")
    rows = rows.loc[list(answers)]
    check_folder.add_detected_species(names, rows)
    files = _find_files(sample, rows, recordings)
    result = AnnotatedArchive(archive)
    if is_new_or_empty(archive):
        check_can_make(archive)
        old = _Old(archive)
        table = _annotate(old, rows, answers, names, files, _model(sample), result)
        with users_folder(archive, f"the archive {archive}") as partial:
            _write_tables(old, table, partial)
        return result
    check_layout(archive)
    with locked(archive):
        old = _Old.read(archive)
        _write_tables(old, _annotate(old, rows, answers, names, files, _model(sample), result), archive)
    return result


def _annotate(
    old: "_Old",
    rows: pd.DataFrame,
    answers: Mapping[str, Answer],
    names: Mapping[str, SpeciesNames],
    files: Mapping[str, Path],
    model: str,
    result: AnnotatedArchive,
) -> pd.DataFrame:
    """The new table of annotations; completes the result, and the species and recordings of the archive."""
    name_of = old.add_recordings(files)
    recording = rows["recording"].map(name_of)
    is_annotated = recording.isin(old.annotated)
    result.annotated = dict(Counter(recording[is_annotated]))
    taken = rows.assign(recording=recording)[~is_annotated]
    others = (answers[name].other_species for name in taken["id"])
    codes = old.add_species({*taken["species"], *others}, names, result)
    found = [
        of_row
        for row in taken.to_dict("records")
        for of_row in _annotations(row, answers[row["id"]], old.kept[row["recording"]].header.duration_s, codes, model)
    ]
    if not found:
        raise UserError(f"the archive is not changed, because {result.not_taken()}")
    result.answers = Counter(answers[name].answer for name in taken["id"])
    result.recordings = taken["recording"].nunique()
    return old.merged(pd.DataFrame(found, columns=COLUMNS, dtype=str), result)


class _Old:
    """The archive before its update: its tables, and what is added to them.

    Attributes:
        path: The archive.
        table: `annotations.csv`.
        species: `species.csv`.
        places: Where each recording is.
        kept: Header of each recording.
        annotated: Recordings with annotations that are not of checked detections, and recordings without a call.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = pd.DataFrame(columns=COLUMNS, dtype=str)
        self.species = pd.DataFrame(columns=list(SPECIES_COLUMNS), dtype=str)
        self.places: dict[str, Place] = {}
        self.kept: dict[str, KeptHeader] = {}
        self.annotated: set[str] = set()
        self._paths: dict[str, Path] = {}

    @classmethod
    def read(cls, path: Path) -> "_Old":
        """Reads an archive."""
        known, old = read_archive(path), cls(path)
        old.table = read_csv(path / ANNOTATIONS_FILE).reset_index(drop=True)
        old.species = read_csv(path / SPECIES_FILE).reset_index(drop=True)
        places = RecordingPlaces.of(path)
        names = places.find(sorted(set(old.table[FILENAME])))
        old.table[FILENAME] = old.table[FILENAME].map(names)
        listed = sorted(places.paths) if places.is_table else sorted(set(names.values()))
        written = {}
        if places.is_table:
            rows = read_table(path / RECORDINGS_TABLE, PLACE_COLUMNS, JOINED_COLUMNS)
            written = {
                name: (Path(folder), file or name)
                for name, folder, file in rows[["recording", "folder", "file"]].to_numpy().tolist()
            }
        for name in listed:
            folder, file = written.get(name, (Path(RECORDINGS_FOLDER), name))
            old._paths[name], kept = places.path(name), places.kept.get(name)
            if kept is None or not kept.is_of(old._paths[name]):
                kept = KeptHeader.read(old._paths[name]) if _spelling(name) in known.headers else None
            old.places[name] = Place(name, folder, file, places.archive_of.get(name, ""), kept)
            if kept is not None:
                old.kept[name] = kept
        old.annotated = {name for name in listed if _spelling(name) not in known.verified}
        return old

    def add_species(
        self, wanted: set[str], names: Mapping[str, SpeciesNames], result: AnnotatedArchive
    ) -> dict[str, str]:
        """Adds species that the archive lacks; returns the archive's code of each."""
        scientific, code, common = SPECIES_COLUMNS
        by_code = {text.casefold(): text for text in self.species[code]}
        by_name = {
            " ".join(text.split()).casefold(): own
            for text, own in zip(self.species[scientific], self.species[code], strict=True)
        }
        by_name.pop("", None)
        codes, added = {}, []
        for one in sorted(wanted - {"", UNKNOWN_SPECIES}):
            known = by_code.get(one.casefold()) or by_name.get(names[one].scientific_name.casefold())
            codes[one] = known or one
            if known is None:
                added.append({scientific: names[one].scientific_name, code: one, common: names[one].common_name})
                by_code[one.casefold()] = one
                result.species.append(one)
        if added:
            self.species = pd.concat([self.species, pd.DataFrame(added)], ignore_index=True).fillna("")
        return codes

    def add_recordings(self, files: Mapping[str, Path]) -> dict[str, str]:
        """Adds recordings that the archive lacks; returns the archive's name of each.

        A recording is known by its path or by its sound.
        """
        by_path = {path.resolve(): name for name, path in self._paths.items()}
        sounds = sound_fingerprints(self._paths.values()) if files else []
        by_sound = {sound: name for name, sound in zip(self._paths, sounds, strict=True) if sound is not None}
        own = dict(zip(files, sound_fingerprints(files.values()), strict=True))
        names = {}
        for recording, path in files.items():
            sound = own[recording]
            name = by_path.get(path) or (by_sound.get(sound) if sound else None)
            if name is None:
                name = self._free_name(path)
                self.kept[name] = KeptHeader.read(path)
                self.places[name] = Place(name, path.parent, path.name, kept=self.kept[name])
                by_path[path] = name
                if sound:
                    by_sound[sound] = name
            names[recording] = name
        return names

    def _free_name(self, path: Path) -> str:
        """The file's name, with as many of its folders as make it different from the others."""
        taken = {recording_key(name).casefold() for name in self.places}
        parts = path.parts[1:]
        for number in range(1, len(parts) + 1):
            name = "/".join(parts[-number:])
            if recording_key(name).casefold() not in taken:
                return name
        raise UserError(f"the archive {self.path} has several recordings with the name of {path}: rename the file")

    def merged(self, table: pd.DataFrame, result: AnnotatedArchive) -> pd.DataFrame:
        """The annotations with those of the answers; earlier ones of the same detections are replaced."""
        old = self.table.assign(**{name: "" for name in COLUMNS if name not in self.table})
        is_checked = old[DETECTION] != ""
        before, now = _states(old[is_checked]), _states(table)
        result.new = len(set(now) - set(before))
        result.changed = sum(before[one] != state for one, state in now.items() if one in before)
        result.kept = len(set(before) - set(now))
        checked = pd.concat([old[is_checked & ~old[DETECTION].isin(now)], table])
        start_s = checked[START].astype(float)
        checked = checked.assign(_start=start_s).sort_values([FILENAME, "_start", DETECTION, VERIFIED, CODE])
        return pd.concat([old[~is_checked], checked.drop(columns="_start")], ignore_index=True).fillna("")


def _states(table: pd.DataFrame) -> dict[str, frozenset[tuple[str, str]]]:
    """What is known of each detection: species and whether they are there."""
    states: dict[str, set[tuple[str, str]]] = {}
    for detection, code, state in table[[DETECTION, CODE, VERIFIED]].itertuples(index=False):
        states.setdefault(detection, set()).add((code, state))
    return {detection: frozenset(found) for detection, found in states.items()}


def _find_files(sample: Sample, rows: pd.DataFrame, folder: str | Path | None) -> dict[str, Path]:
    """The file of each recording, which must have the length that it had when it was analysed."""
    remote = [name for name in rows["recording"] if split_protocol(name)[0] is not None]
    if remote:
        raise UserError(f"{remote[0]} is not a file on this machine: download it, and detect and sample the files")
    run = read_recordings(Path(sample.table), rows["recording"].unique())
    lengths_s = {} if run is None else run.duration_s
    found = find_recordings(rows["recording"], None if folder is None else Path(folder), lengths_s)
    files = {str(name): Path(path).resolve() for name, path in found.items()}
    for name, path in files.items():
        length_s = KeptHeader.read(path).header.duration_s
        if name in lengths_s and abs(length_s - lengths_s[name]) > SAME_LENGTH_S:
            raise UserError(
                f"{path} has {length_s:.2f} s, and had {lengths_s[name]:.2f} s when it was analysed: put back the "
                "file, or give the folder that it is in now with --recordings"
            )
    return files


def _annotations(
    row: Mapping[Any, Any], answer: Answer, length_s: float, codes: Mapping[str, str], model: str
) -> list[tuple[str, ...]]:
    """Rows of `annotations.csv` for an answer."""
    name, code, start_s, end_s = row["recording"], codes[row["species"]], float(row["start_s"]), float(row["end_s"])
    detection = detection_id(name, start_s, end_s, code)
    end_s = min(end_s, length_s)
    states = {check_folder.RIGHT: PRESENT, check_folder.UNSURE: UNSURE}
    found = {code: states.get(answer.answer, ABSENT)}
    if answer.other_species not in ("", UNKNOWN_SPECIES, row["species"]):
        found[codes[answer.other_species]] = PRESENT
    return [
        (name, f"{start_s:.6f}", f"{end_s:.6f}", its, answer.verified_by, state, detection, model)
        for its, state in found.items()
    ]


def _model(sample: Sample) -> str:
    """The model that found the detections. Local paths are private, so only the folder's name is written."""
    path = PurePath(sample.model)
    name = path.name if path.is_absolute() or Path(sample.model).exists() else sample.model
    return f"{name} {sample.model_sha256[:16]}"


def _spelling(name: str) -> str:
    """The name of a recording as `read_archive` gives it."""
    return unicodedata.normalize("NFC", name)


def _write_tables(old: _Old, table: pd.DataFrame, folder: Path) -> None:
    """Writes the tables, each completely, and the annotations last, so that the archive can always be read."""
    write_table(old.species, folder / SPECIES_FILE)
    used = set(table[FILENAME])
    places = [place for name, place in old.places.items() if name in used or name in old.annotated]
    write_places(places, folder / RECORDINGS_TABLE)
    write_table(table, folder / ANNOTATIONS_FILE)
