"""Check of a whole archive: every recording to its last frame, every row of every table."""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from kenya_birds.data.archive import (
    ANNOTATION_COLUMNS,
    IS_WEAK,
    NO_CODE,
    RESERVED_CODES,
    SPECIES_COLUMNS,
    UNKNOWN_SPECIES,
    VERIFIED,
    VERIFIED_COLUMNS,
    WEAK_COLUMN,
)
from kenya_birds.data.csv_table import read_table
from kenya_birds.data.recording_check import RecordingCheck, check_recording
from kenya_birds.data.recording_places import RecordingPlaces, is_inside
from kenya_birds.data.same_recording import same_sound, sound_fingerprints
from kenya_birds.data.sound_files import Skip, find_sound, is_hidden, is_named_as_sound
from kenya_birds.files import (
    ANNOTATIONS_FILE,
    SPECIES_FILE,
    as_utf8,
    check_layout,
    check_output,
    write_table,
)
from kenya_birds.formulas import guard_columns
from kenya_birds.values import Channel, Count, checked, counted

# Effect of a finding on training.
NOTHING, SET_ASIDE, STOPS = "", "skipped", "stops training"
# An annotation is skipped if damage is this near to it: half of a clip of the usual length.
REACH_S = 1.5
CLIPPED_SHARE = 0.001
LONG_SILENCE_S = 1.0
DC_OFFSET = 0.01
# Windows can wait for at most 61 processes.
MAX_PROCESSES = 61

FINDING_COLUMNS = ["kind", "recording", "line", "species", "start_s", "end_s", "finding", "effect", "detail"]


@dataclass(frozen=True)
class ArchiveCheck:
    """Result of `check_archive`.

    Attributes:
        data_dir: The archive's folder.
        recordings: Every recording in `soundscape_data/` or `recordings.csv`, by name.
        findings: One row per finding: `kind` (`sound`, `annotation`, `species`), `recording`, `line` of its table,
            `species`, `start_s` and `end_s` in the recording, `finding`, `effect` (`skipped`, `stops training`, or
            empty if training uses it), `detail`.
        annotations: Number of annotations.
        unknown_birds: Number of annotations of birds that the annotators could not identify.
        not_points: Number of annotations that have a duration.
    """

    data_dir: Path
    recordings: list[RecordingCheck]
    findings: pd.DataFrame
    annotations: int
    unknown_birds: int
    not_points: int

    @property
    def is_usable(self) -> bool:
        """True if training can use everything: nothing is skipped, and nothing stops training."""
        return not self.findings["effect"].any()


@checked
def check_archive(data_dir: str | Path, *, num_proc: Count = 1, channel: Channel | None = None) -> ArchiveCheck:
    """Reads every recording to its last frame and every row of the tables, and lists all problems.

    Args:
        data_dir: Folder with `annotations.csv`, `species.csv`, and `soundscape_data/` or `recordings.csv`.
        num_proc: Number of processes. Each reads its own recordings, in blocks.
        channel: See `RecordingReader`.

    Raises:
        UserError: If a table, a column or the folder of recordings is missing, or `num_proc` is below 1.
    """
    data_dir = Path(data_dir)
    check_layout(data_dir)
    annotations = read_table(data_dir / ANNOTATIONS_FILE, ANNOTATION_COLUMNS, {**WEAK_COLUMN, **VERIFIED_COLUMNS})
    species = read_table(data_dir / SPECIES_FILE, SPECIES_COLUMNS)
    for column in ("start_s", "end_s"):
        seconds = pd.to_numeric(annotations[column], errors="coerce")
        annotations[column.removesuffix("_s")] = annotations[column]  # the original text
        annotations[column] = seconds.where(np.isfinite(seconds)).astype(float)
    places = RecordingPlaces.of(data_dir)
    files = places.find(annotations["recording"].unique())
    annotations["recording"] = [files.get(name, name) for name in annotations["recording"]]

    annotated = set(annotations["recording"])
    paths, others = _listed(places) if places.is_table else _find_recordings(places.source, annotated)
    recordings = list(_check_recordings(paths, num_proc, channel))
    rows = [
        *others,
        *(row for recording in recordings for row in _recording_findings(recording, annotated, channel)),
        *_same_sound_findings(paths),
        *_annotation_findings(annotations, recordings, set(species["species"]), places),
        *_species_findings(species, set(annotations["species"])),
    ]
    if annotations.empty:
        rows.append(_finding("annotation", "the table has no annotations", STOPS))
    return ArchiveCheck(
        data_dir,
        recordings,
        pd.DataFrame(rows, columns=FINDING_COLUMNS).astype({"line": "Int64"}),
        annotations=len(annotations),
        unknown_birds=int(annotations["species"].isin([UNKNOWN_SPECIES, NO_CODE]).sum()),
        not_points=int((annotations["end_s"] > annotations["start_s"]).sum()),
    )


def write_check(check: ArchiveCheck, path: str | Path, *, overwrite: bool = False) -> None:
    """Writes one CSV: a row of measures for each recording (`kind` is `recording`), then a row for each finding.

    Args:
        check: What `check_archive` returns.
        path: The file to write.
        overwrite: Replaces an existing file.

    Raises:
        UserError: If the file exists and `overwrite` is not set, or it cannot be written.
    """
    check_output(path, overwrite)
    measures = pd.DataFrame(
        [
            {
                **asdict(recording),
                "kind": "recording",
                "duration_s": recording.duration_s,
                "losses": len(recording.losses),
            }
            for recording in check.recordings
        ],
        columns=["kind", *(field.name for field in fields(RecordingCheck)), "duration_s"],
    )
    table = pd.concat([measures, check.findings.astype(object)], ignore_index=True)
    guard_columns(table, paths=["recording"], texts=["species", "detail"])
    columns = [*FINDING_COLUMNS, *(column for column in measures if column not in FINDING_COLUMNS)]
    write_table(table[columns].replace([np.inf, -np.inf], np.nan), path, float_format="%.10g")


def format_check(check: ArchiveCheck) -> str:
    """Returns a summary for the terminal: how much was read, in which formats, and the findings by severity."""
    opened = [recording for recording in check.recordings if not recording.error]
    promised_s = sum(recording.duration_s for recording in opened)
    read_s = sum(recording.frames_read / recording.sample_rate_hz for recording in opened)
    lines = [
        f"{check.data_dir}: {counted(len(check.recordings), 'recording')}, {counted(check.annotations, 'annotation')} "
        f"({check.unknown_birds} of unknown birds, {check.not_points} with a duration)",
        f"{_clock(read_s)} of {_clock(promised_s)} read; {_clock(promised_s - read_s)} cannot be decoded",
    ]
    if opened:
        forms = pd.Series(
            [f"{r.encoding}, {r.sample_rate_hz} Hz, channels: {r.channels}, by {r.decoders or 'none'}" for r in opened]
        )
        lines += [f"  {number:>6}  {form}" for form, number in forms.value_counts().items()]
        for name in ("peak_dbfs", "rms_dbfs"):
            levels = [getattr(recording, name) for recording in opened]
            lines.append(f"  {name}: {min(levels):.1f} to {max(levels):.1f}")
    order = pd.Categorical(check.findings["effect"], [STOPS, SET_ASIDE, NOTHING], ordered=True)
    for (effect, kind, finding), rows in check.findings.assign(effect=order).groupby(
        ["effect", "kind", "finding"], observed=True
    ):
        first = rows.iloc[0]
        where = [str(first[column]) for column in ("recording", "species") if first[column]]
        if not pd.isna(first["line"]):
            where.insert(0, f"line {first['line']}")
        if not pd.isna(first["start_s"]):
            where.append(f"{first['start_s']:.3f} s")
        lines.append(f"{effect or 'note':>15}: {len(rows):>6}  {kind}: {finding} (first: {', '.join(where)})")
    lines.append(
        "Training can use everything."
        if check.is_usable
        else f"Training cannot use everything: {int((check.findings['effect'] != NOTHING).sum())} findings."
    )
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    """Escapes unprintable characters of a line, such as a line break in a file name."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _listed(places: RecordingPlaces) -> tuple[dict[str, Path], list[dict[str, Any]]]:
    """Returns the recordings of `recordings.csv`, and findings about those that do not exist."""
    there = {name: path for name, path in sorted(places.paths.items()) if path.exists()}
    lost = [name for name in places.paths if name not in there]
    return there, [
        _finding("sound", "does not exist", STOPS, recording=name, detail=str(places.path(name))) for name in lost
    ]


def _find_recordings(folder: Path, annotated: set[str]) -> tuple[dict[str, Path], list[dict[str, Any]]]:
    """Returns the recordings that training uses, and findings about other files in their folder."""
    names = {
        name
        for name in os.listdir(folder)
        if (name in annotated or (is_named_as_sound(name) and not is_hidden(name))) and os.path.exists(folder / name)
    }
    search = find_sound(folder)
    rows = []
    for file in search.found:
        if not os.path.exists(file.path):
            what = Skip.BROKEN_LINK.value
        elif Path(file.path).parent != folder:
            what = "is in a subfolder, which training does not read"
        else:
            continue
        rows.append(_finding("sound", what, NOTHING, recording=_below(file.path, folder)))
    for left in search.skipped:
        # Each name is checked, also if several names refer to one file.
        if left.skip is not Skip.REPEATED and Path(left.path).name not in names:
            detail = left.reason if left.count == 1 else f"{left.reason} ({left.count} recordings)"
            rows.append(
                _finding("sound", left.skip.value, NOTHING, recording=_below(left.path, folder), detail=detail)
            )
    return {name: folder / name for name in sorted(names)}, rows


def _below(path: str, folder: Path) -> str:
    return as_utf8(Path(path).relative_to(folder).as_posix())


def _check_recordings(paths: Mapping[str, Path], num_proc: int, channel: str | None) -> Iterator[RecordingCheck]:
    with ProcessPoolExecutor(min(num_proc, MAX_PROCESSES)) if num_proc > 1 else nullcontext() as pool:
        check_one = partial(check_recording, channel=channel)
        checks = pool.map(check_one, paths.values()) if pool else map(check_one, paths.values())
        for name, check in zip(
            paths, tqdm(checks, total=len(paths), desc="Reading recordings", unit="recording"), strict=True
        ):
            yield replace(check, recording=as_utf8(name))


def _recording_findings(
    recording: RecordingCheck, annotated: set[str], channel: str | None
) -> Iterator[dict[str, Any]]:
    name = recording.recording
    if recording.error:
        yield _finding("sound", "cannot be opened", SET_ASIDE, recording=name, detail=recording.error)
    for loss in recording.losses:
        place = {"start_s": loss.start_s, "end_s": loss.end_s, "detail": loss.reason}
        yield _finding("sound", "cannot be decoded", SET_ASIDE, recording=name, **place)
    found = [
        (name not in annotated, "has no annotations", ""),
        (recording.clipped_share > CLIPPED_SHARE, "is clipped", f"{recording.clipped_share:.2%} of the samples"),
        (recording.longest_silence_s >= LONG_SILENCE_S, "is silent", f"for {recording.longest_silence_s:.1f} s"),
        (
            channel is None and recording.lone_channel is not None,
            "has channels that cancel each other",
            f"one is inverted; only channel {recording.lone_channel} is read",
        ),
        (abs(recording.dc_offset) > DC_OFFSET, "has a DC offset", f"{recording.dc_offset:.1%} of full scale"),
    ]
    for is_so, what, detail in found:
        if is_so:
            yield _finding("sound", what, NOTHING, recording=name, detail=detail)


def _same_sound_findings(paths: Mapping[str, Path]) -> Iterator[dict[str, Any]]:
    for group in same_sound(dict(zip(paths, sound_fingerprints(paths.values()), strict=True))):
        for name in group:
            others = ", ".join(other for other in group if other != name)
            yield _finding("sound", "has the same sound as another recording", NOTHING, recording=name, detail=others)


def _annotation_findings(
    table: pd.DataFrame, recordings: list[RecordingCheck], codes: set[str], places: RecordingPlaces
) -> Iterator[dict[str, Any]]:
    opened = {recording.recording: recording for recording in recordings if not recording.error}
    unread = {recording.recording for recording in recordings} - set(opened)
    names, start_s, end_s = table["recording"], table["start_s"], table["end_s"]
    center_s = (start_s + end_s) / 2
    duration_s = names.map({name: recording.duration_s for name, recording in opened.items()}).astype(float)
    is_plain = np.array([is_inside(name) and (places.is_table or Path(name).name == name) for name in names], bool)
    is_damaged = [
        name in opened
        and any(loss.start_s < at + REACH_S and loss.end_s > at - REACH_S for loss in opened[name].losses)
        for name, at in zip(names, center_s, strict=True)
    ]
    is_past = center_s >= duration_s
    found = [
        (~table["species"].isin([*codes, UNKNOWN_SPECIES, NO_CODE]), f"its species is not in {SPECIES_FILE}", STOPS),
        (table["species"] == NO_CODE, "has no species code and counts as an unknown bird", SET_ASIDE),
        (start_s.isna() | end_s.isna(), "its start or end is not a number", STOPS),
        (~table["weak"].str.lower().isin(IS_WEAK), "Weak is neither yes nor no", STOPS),
        (~table["verified"].str.lower().isin(VERIFIED), "Verified is not present, absent, unsure or empty", STOPS),
        (~is_plain, "its recording is not a plain file name", STOPS),
        (is_plain & ~names.isin([*opened, *unread]), "its recording is missing", STOPS),
        (names.isin(unread), "its recording cannot be opened", SET_ASIDE),
        (end_s < start_s, "ends before it starts", SET_ASIDE),
        (center_s < 0, "is before the start of the recording", SET_ASIDE),
        (is_past, "is past the end of the recording", SET_ASIDE),
        (np.array(is_damaged, bool) & ~is_past, f"has damaged sound within {REACH_S} s", SET_ASIDE),
        ((start_s < 0) & (center_s >= 0), "begins before the recording", NOTHING),
        ((end_s > duration_s) & ~is_past, "ends after the recording", NOTHING),
        (table.duplicated(["recording", "start_s", "end_s", "species"]), "repeats an earlier line", NOTHING),
    ]
    for is_so, what, effect in found:
        for row in table.loc[np.asarray(is_so)].to_dict("records"):
            place = {column: row[column] for column in ("recording", "species", "start_s", "end_s")}
            detail = f"start '{row['start']}', end '{row['end']}'"
            yield _finding("annotation", what, effect, line=row["row"], detail=detail, **place)


def _species_findings(table: pd.DataFrame, annotated: set[str]) -> Iterator[dict[str, Any]]:
    codes, has_code = table["species"], table["species"] != NO_CODE
    repeats, differs_in_case = codes.duplicated(), codes.str.lower().duplicated() & ~codes.duplicated()
    found = [
        (repeats & has_code, "its code is listed twice", STOPS),
        (differs_in_case, "its code differs from another in upper and lower case only", STOPS),
        (
            codes.isin(RESERVED_CODES & annotated),
            f"its code is a column of predictions: use another, or {UNKNOWN_SPECIES} for unknown birds",
            STOPS,
        ),
        (~has_code, "has no code and is skipped", NOTHING),
        (~codes.isin(annotated) & has_code, "is never annotated", NOTHING),
    ]
    for is_so, what, effect in found:
        for row in table.loc[np.asarray(is_so)].to_dict("records"):
            yield _finding("species", what, effect, line=row["row"], species=row["species"], detail=row["common_name"])


def _finding(kind: str, finding: str, effect: str, **others: Any) -> dict[str, Any]:
    return {"recording": "", "species": "", "kind": kind, "finding": finding, "effect": effect, **others}


def _clock(seconds: float) -> str:
    """Formats seconds as hours, minutes and seconds."""
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02}:{seconds % 60:06.3f}"
