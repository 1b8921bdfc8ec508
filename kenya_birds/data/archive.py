"""Annotated archives of soundscape recordings, in the format of Zenodo record 10943500: reading and validation."""

import hashlib
import logging
import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from kenya_birds.data.audio import AudioHeader
from kenya_birds.data.csv_table import read_table
from kenya_birds.data.recording_places import RecordingPlaces
from kenya_birds.data.same_recording import same_sound, sound_fingerprints
from kenya_birds.errors import UserError
from kenya_birds.files import ANNOTATIONS_FILE, RECORDINGS_FOLDER, RECORDINGS_TABLE, SPECIES_FILE, check_layout
from kenya_birds.folders import is_system_file
from kenya_birds.values import FALSE, TRUE

logger = logging.getLogger(__name__)

UNKNOWN_SPECIES = "????"
# Annotations without a species code count as unknown birds.
NO_CODE = ""
SHOWN_LINES = 10

ANNOTATION_COLUMNS = {
    "Filename": "recording",
    "Start Time (s)": "start_s",
    "End Time (s)": "end_s",
    "Species eBird Code": "species",
}
# Columns that an archive may lack.
BOX_COLUMNS = {"Low Freq (Hz)": "low_hz", "High Freq (Hz)": "high_hz"}
# Of annotations that say what is in the recording, and not where: `yes`; empty in others.
WEAK_COLUMN = {"Weak": "weak"}
# Of detections that people have checked (see `annotate_archive`): whether the species is there, and the model that
# found the detection. Empty in others.
VERIFIED_COLUMNS = {"Verified": "verified", "Model": "model"}
PRESENT, ABSENT, UNSURE = "present", "absent", "unsure"
VERIFIED = ("", PRESENT, ABSENT, UNSURE)
IS_WEAK = {**dict.fromkeys(TRUE, True), **dict.fromkeys((*FALSE, ""), False)}
ABSENT_COLUMNS = ["recording", "start_s", "end_s", "species"]
# Columns of the tables of predictions, which have a column for each class, too.
RESERVED_CODES = frozenset(
    {"recording", "start_s", "end_s", "center_s", "label", "labels", "present", "unknown"}  # of clips and of windows
)
SPECIES_COLUMNS = {
    "Scientific Name": "scientific_name",
    "Species eBird Code": "species",
    "Common Name": "common_name",
}


@dataclass(frozen=True)
class Archive:
    """An archive whose tables and recording headers have been read.

    Attributes:
        data_dir: The archive's folder.
        annotations: One row per usable annotation: `recording` (file name, or its path in `recordings.csv`), `start_s`
            and `end_s` (seconds from the start of the recording; equal if only the middle of the call is annotated),
            `center_s` (the middle), `species` (eBird code), `low_hz` and `high_hz` (NaN if unknown), `weak` (whether
            the species is known for the recording alone, see `signal_parts`), in the order of the table.
        unknown: The same columns without `species`, of birds that the annotators could not identify (`????`, or no
            code), and of calls of which the smaller part is in the recording.
        species: Indexed by eBird code: `scientific_name`, `common_name`.
        headers: Header of each readable recording with annotations, by name; recordings without a call are among them
            if `recordings.csv` lists them.
        set_aside: Skipped annotations: `row` (line in the CSV; the header is line 1), `recording`, `reason`.
        paths: Path by recording. Names of recordings are in NFC; a file system may store them in NFD (see
            `recording_key`).
        archive_of: In a joined archive, the name of the archive that each recording comes from (see `join_archives`).
        weak: Recordings with weak annotations. Where nothing is annotated in them, it is unknown what there is.
        verified: Recordings in which people have checked detections, with the models that found them. What else is in
            these recordings is unknown. They are for training alone, as models have chosen what was checked.
        absent: Checked detections whose species is not there: `recording`, `start_s`, `end_s` and `species`.
    """

    data_dir: Path
    annotations: pd.DataFrame
    unknown: pd.DataFrame
    species: pd.DataFrame
    headers: dict[str, AudioHeader]
    set_aside: pd.DataFrame
    paths: dict[str, Path] = field(default_factory=dict)
    archive_of: dict[str, str] = field(default_factory=dict)
    weak: frozenset[str] = frozenset()
    verified: dict[str, str] = field(default_factory=dict)
    absent: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=ABSENT_COLUMNS))

    def recording_path(self, recording: str) -> Path:
        """Returns the path of a recording."""
        return self.paths.get(recording) or self.data_dir / RECORDINGS_FOLDER / recording

    @property
    def silent(self) -> list[str]:
        """Readable recordings without an annotation of any kind."""
        annotated = pd.concat([self.annotations["recording"], self.unknown["recording"], self.set_aside["recording"]])
        return sorted(set(self.headers) - set(annotated) - set(self.verified))

    @property
    def partial(self) -> frozenset[str]:
        """Recordings with weak annotations or checked detections: what else is in them is unknown."""
        return self.weak | self.verified.keys()

    @property
    def choosing_models(self) -> str:
        """The models that found the checked detections, for messages."""
        return ", ".join(sorted(set(self.verified.values())))

    def without_weak(self) -> "Archive":
        """Returns the archive without its recordings with weak annotations."""
        return self._without(self.weak)

    def without_partial(self) -> "Archive":
        """Returns the archive without its recordings with weak annotations or checked detections."""
        return self._without(self.partial)

    def _without(self, recordings: frozenset[str]) -> "Archive":
        if not recordings:
            return self
        tables = {name: getattr(self, name) for name in ("annotations", "unknown", "set_aside", "absent")}
        kept = {name: table[~table["recording"].isin(recordings)] for name, table in tables.items()}
        reset = {name: table.reset_index(drop=True) for name, table in kept.items()}
        headers = {name: header for name, header in self.headers.items() if name not in recordings}
        verified = {name: model for name, model in self.verified.items() if name not in recordings}
        return replace(self, **reset, headers=headers, weak=self.weak - recordings, verified=verified)

    def fingerprints(self, recordings: Iterable[str]) -> dict[str, str | None]:
        """Returns `sound_fingerprint` by recording."""
        recordings = list(recordings)
        return dict(zip(recordings, sound_fingerprints(map(self.recording_path, recordings)), strict=True))

    def same_sound(self) -> list[list[str]]:
        """Returns groups of annotated recordings with the same sound under several names (see `same_recording`)."""
        return same_sound(self.fingerprints(self.headers))

    def species_names(self, classes: Iterable[str]) -> dict[str, dict[str, str]]:
        """Returns scientific and common name by eBird code, for the codes in `classes`."""
        columns = ["scientific_name", "common_name"]
        return {code: {column: str(self.species.at[code, column]) for column in columns} for code in classes}

    def common_names(self, classes: Iterable[str]) -> dict[str, str]:
        """Returns the common name by eBird code, for the codes in `classes`."""
        return {code: names["common_name"] for code, names in self.species_names(classes).items()}


def read_archive(data_dir: str | Path) -> Archive:
    """Reads `annotations.csv`, `species.csv` and the header of every annotated recording.

    An annotation is skipped if its centre is outside the recording, it ends before it starts, its species is unknown
    (`????`) or has no code, or its recording cannot be read. Skipped annotations are counted and logged. If a part of
    a box is in the recording and its centre is not, it is an unknown bird: less than half of the call is there.
    Recordings are also found under another spelling of their name (see `recording_key`).

    Args:
        data_dir: Folder with `annotations.csv`, `species.csv`, and `soundscape_data/` or `recordings.csv` (see
            `RecordingPlaces`).

    Raises:
        UserError: If a file, column or recording is missing, a cell is not a number, a species is not in
            `species.csv` or is listed twice, or no annotation is usable and no detection was checked.
    """
    data_dir = Path(data_dir)
    check_layout(data_dir)
    optional = {**BOX_COLUMNS, **WEAK_COLUMN, **VERIFIED_COLUMNS}
    annotations = read_table(data_dir / ANNOTATIONS_FILE, ANNOTATION_COLUMNS, optional)
    species = read_table(data_dir / SPECIES_FILE, SPECIES_COLUMNS)
    if annotations.empty:
        raise UserError(f"{data_dir / ANNOTATIONS_FILE} has no annotations: expected at least one row")
    for column in ("start_s", "end_s"):
        annotations[column] = as_seconds(annotations, column, data_dir / ANNOTATIONS_FILE)
    for column in BOX_COLUMNS.values():
        # Frequencies are for pictures and reports alone.
        annotations[column] = pd.to_numeric(annotations[column], errors="coerce").astype(float)
    annotations["weak"] = _is_weak(annotations, data_dir / ANNOTATIONS_FILE)
    annotations["verified"] = _verified(annotations, data_dir / ANNOTATIONS_FILE)
    species = _index_species(species, data_dir / SPECIES_FILE)

    unlisted = annotations[~annotations["species"].isin([*species.index, UNKNOWN_SPECIES, NO_CODE])]
    if not unlisted.empty:
        first = unlisted.iloc[0]
        other = next((code for code in species.index if code.lower() == first.species.lower()), None)
        hint = f"add it there, or mark the bird unknown as {UNKNOWN_SPECIES}" if other is None else f"write '{other}'"
        raise UserError(
            f"{data_dir / ANNOTATIONS_FILE} line {first.row}: species code '{first.species}' is not in {SPECIES_FILE} "
            f"({len(unlisted)} such rows): {hint}"
        )
    places = RecordingPlaces.of(data_dir)
    names, files = _find_files(data_dir, annotations, places)
    annotations["recording"] = annotations["recording"].map(names)
    headers = _read_headers(places, files)
    usable, unknown, set_aside = _set_aside(annotations[~annotations["verified"].isin([ABSENT, UNSURE])], headers)
    of_answers = annotations[annotations["verified"] != ""]
    of_answers = of_answers[of_answers["recording"].isin(headers)]
    absent = of_answers.loc[of_answers["verified"] == ABSENT, ABSENT_COLUMNS].reset_index(drop=True)
    if usable.empty and of_answers.empty:
        raise UserError(f"{data_dir / ANNOTATIONS_FILE}: none of its {len(set_aside)} annotations can be used")
    paths = {name: places.path(file) for name, file in files.items()}
    origins = {name: places.archive_of[file] for name, file in files.items() if file in places.archive_of}
    weak = frozenset(annotations.loc[annotations["weak"], "recording"])
    models = of_answers.groupby("recording")["model"].unique()
    verified = {str(name): ", ".join(sorted(filter(None, its))) for name, its in models.items()}
    return Archive(
        data_dir, usable, unknown, species, headers, set_aside, paths, origins, weak, verified=verified, absent=absent
    )


def select_classes(annotations: pd.DataFrame, min_annotations: int) -> list[str]:
    """Returns the archive's classes: sorted codes with at least `min_annotations` annotations; the index is the id.

    Classes are selected from the whole table, not from one split, so that an id means the same species everywhere.

    Args:
        annotations: Table with the column `species`.
        min_annotations: Smallest number of annotations of a class.

    Raises:
        UserError: If no class remains, or a code is the name of a column of predictions.
    """
    counts = annotations["species"].value_counts()
    classes = sorted(counts[counts >= min_annotations].index)
    if counts.empty:
        raise UserError("the archive has no call to learn: none of its checked detections is right; add annotations")
    if not classes:
        raise UserError(
            f"none of the {len(counts)} species has at least {min_annotations} annotations: lower min_annotations or "
            "use a larger archive"
        )
    if taken := sorted(RESERVED_CODES.intersection(classes)):
        raise UserError(
            f"{', '.join(taken)} cannot be eBird codes of classes, because tables of predictions have columns of these"
            f" names: write other codes into {ANNOTATIONS_FILE} and {SPECIES_FILE}, or {UNKNOWN_SPECIES} for unknown "
            "birds"
        )
    dropped = counts[counts < min_annotations]
    if len(dropped):
        logger.warning(
            "Dropped %d of %d species with fewer than %d annotations (%d annotations): %s",
            len(dropped),
            len(counts),
            min_annotations,
            dropped.sum(),
            ", ".join(f"{code} ({count})" for code, count in sorted(dropped.items())),
        )
    return classes


def check_several(classes: list[str], min_annotations: int) -> None:
    """Checks that clips around calls can be learned: from clips of one species, nothing can be told apart.

    Args:
        classes: Result of `select_classes`.
        min_annotations: Smallest number of annotations of a class.

    Raises:
        UserError: If there is one class.
    """
    if len(classes) == 1:
        raise UserError(
            f"{classes[0]} is the only species with at least {min_annotations} annotations, and clips can only be "
            "learned with two species or more: train with --train_on recordings, which also learns sound without a "
            "call, or lower --min_annotations"
        )


def archive_fingerprint(data_dir: str | Path) -> str:
    """Returns a hash of the tables' bytes and of every recording's name, size and modification time.

    The hash changes with the archive, so that clips are cut again. The hidden files that Finder and Explorer make in
    `soundscape_data/` do not change it.

    Raises:
        UserError: If a table or the folder of recordings is missing.
    """
    data_dir = Path(data_dir)
    check_layout(data_dir)
    digest = hashlib.sha256()
    for table in (ANNOTATIONS_FILE, SPECIES_FILE):
        digest.update((data_dir / table).read_bytes())
    places = RecordingPlaces.of(data_dir)
    if places.is_table:
        digest.update((data_dir / RECORDINGS_TABLE).read_bytes())
    for name, path in sorted(places.paths.items()):
        if not places.is_table and (is_system_file(name) or name.startswith("._")):
            continue
        if not path.is_file():  # a folder, or a link to nothing
            continue
        status = path.stat()
        # Names may be invalid Unicode.
        digest.update(b"%b\0%d\0%d\0" % (os.fsencode(name), status.st_size, status.st_mtime_ns))
    return digest.hexdigest()[:16]


def as_seconds(annotations: pd.DataFrame, column: str, path: Path) -> pd.Series:
    """Returns a column of times as numbers.

    Args:
        annotations: Rows of the table, with `row` and `recording`.
        column: Name of the column.
        path: The table.

    Raises:
        UserError: If a cell is not a number.
    """
    seconds = pd.to_numeric(annotations[column], errors="coerce")
    bad = annotations[seconds.isna() | seconds.isin([float("inf"), float("-inf")])]
    if not bad.empty:
        first = bad.iloc[0]
        raise UserError(
            f"{path} line {first.row}, {first.recording}: {column} is '{first[column]}', expected seconds"
            f"{' with a decimal point' if ',' in first[column] else ''} ({len(bad)} such rows): correct it"
        )
    return seconds.astype(float)


def _is_weak(annotations: pd.DataFrame, path: Path) -> pd.Series:
    weak = annotations["weak"].str.lower().map(IS_WEAK)
    for row in annotations[weak.isna()].itertuples():
        raise UserError(f"{path} line {row.row}: Weak is '{row.weak}': expected yes or no")
    return weak.astype(bool)


def _verified(annotations: pd.DataFrame, path: Path) -> pd.Series:
    verified = annotations["verified"].str.lower()
    for row in annotations[~verified.isin(VERIFIED)].itertuples():
        raise UserError(
            f"{path} line {row.row}: Verified is '{row.verified}': expected {PRESENT}, {ABSENT}, {UNSURE} or nothing"
        )
    return verified


def _index_species(species: pd.DataFrame, path: Path) -> pd.DataFrame:
    without = species[species["species"] == NO_CODE]
    if not without.empty:
        logger.warning(
            "%s has %d rows without a species code, which are skipped: %s",
            SPECIES_FILE,
            len(without),
            _lines(without["row"]),
        )
    for wanted in (UNKNOWN_SPECIES, NO_CODE):
        species = species[species["species"] != wanted]
    for codes, wrong in ((species["species"], "is listed twice"), (species["species"].str.lower(), "")):
        repeated = species[codes.duplicated()]
        if not repeated.empty:
            first = repeated.iloc[0]
            if not wrong:
                other = species.loc[codes == first.species.lower(), "species"].iloc[0]
                wrong = f"differs from '{other}' in upper and lower case only"
            raise UserError(f"{path} line {first.row}: species code '{first.species}' {wrong}: remove one")
    return species.drop(columns="row").set_index("species")


def _find_files(
    data_dir: Path, annotations: pd.DataFrame, places: RecordingPlaces
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the recordings' names (NFC) by their names in the table, and their names in `places` by these names."""
    recordings = sorted(annotations["recording"].unique())
    if not places.is_table:
        _check_plain(data_dir, annotations, recordings)
    found = places.find(recordings)
    missing = [name for name in recordings if name not in found]
    if missing:
        raise UserError(f"{len(missing)} of {len(recordings)} annotated recordings {places.missing(missing)}")
    if places.is_table:
        found |= {name: name for name in set(places.paths) - set(found.values())}
    names = {name: unicodedata.normalize("NFC", file) for name, file in found.items()}
    files: dict[str, str] = {}
    for name, file in found.items():
        if files.setdefault(names[name], file) != file:
            raise UserError(
                f"{places.source} has two recordings whose names differ only in the encoding of their accents, "
                f"{files[names[name]]!a} and {file!a}: rename one of them, in {ANNOTATIONS_FILE} too"
            )
    return names, files


def _check_plain(data_dir: Path, annotations: pd.DataFrame, recordings: list[str]) -> None:
    """Raises `UserError` if a recording is not directly in `soundscape_data/`."""
    outside = [name for name in recordings if Path(name).name != name or "\\" in name or name in ("", ".", "..")]
    if outside:
        row = annotations.loc[annotations["recording"] == outside[0], "row"].iloc[0]
        raise UserError(
            f"{data_dir / ANNOTATIONS_FILE} line {row}: '{outside[0]}' is not a plain file name: expected recordings "
            f"directly in {RECORDINGS_FOLDER}/; recordings in other folders are read with kenya-birds import"
        )


def _read_headers(places: RecordingPlaces, files: dict[str, str]) -> dict[str, AudioHeader]:
    headers = {}
    for name in sorted(files):
        try:
            headers[name] = places.header(files[name])
        except UserError as error:
            logger.warning("%s", error)
    return headers


def _set_aside(
    annotations: pd.DataFrame, headers: dict[str, AudioHeader]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Returns usable annotations, annotations of unknown birds, and all skipped annotations with the reason."""
    center_s = (annotations["start_s"] + annotations["end_s"]) / 2
    duration_s = (
        annotations["recording"].map({name: header.duration_s for name, header in headers.items()}).astype(float)
    )
    reason = pd.Series("", index=annotations.index)
    reason[annotations["species"] == UNKNOWN_SPECIES] = "unknown bird"
    reason[annotations["species"] == NO_CODE] = "no species code"
    reason[annotations["end_s"] < annotations["start_s"]] = "ends before it starts"
    reason[center_s < 0] = "before the start of the recording"
    reason[center_s >= duration_s] = "past the end of the recording"
    center_is_outside = (center_s < 0) | (center_s >= duration_s)
    reason[duration_s.isna()] = "the recording cannot be read"

    annotations = annotations.assign(center_s=center_s, reason=reason)
    usable = annotations.loc[
        reason == "", ["recording", "start_s", "end_s", "center_s", "species", *BOX_COLUMNS.values(), "weak"]
    ]
    # The centre of these calls is outside the recording, and a part of them is inside.
    is_cut = center_is_outside & (annotations["end_s"] > 0) & (annotations["start_s"] < duration_s)
    is_unknown = reason.isin(["unknown bird", "no species code"]) | is_cut
    unknown = annotations.loc[is_unknown, ["recording", "start_s", "end_s", "center_s", *BOX_COLUMNS.values()]]
    set_aside = annotations.loc[reason != "", ["row", "recording", "reason"]]
    for why, rows in set_aside.groupby("reason"):
        logger.warning(
            "Skipped %d of %d annotations: %s (first: line %d of %s, %s)",
            len(rows),
            len(annotations),
            why,
            rows["row"].iloc[0],
            ANNOTATIONS_FILE,
            rows["recording"].iloc[0],
        )
    return usable.reset_index(drop=True), unknown.reset_index(drop=True), set_aside.reset_index(drop=True)


def _lines(rows: pd.Series) -> str:
    more = ", ..." if len(rows) > SHOWN_LINES else ""
    return f"line{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:SHOWN_LINES]))}{more}"
