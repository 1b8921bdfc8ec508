"""Scores a table of detections, of any system, against the annotations of an archive."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kenya_birds.data.archive import Archive, read_archive
from kenya_birds.data.csv_table import parse_any_table
from kenya_birds.data.event_tables import EventTable, read_events
from kenya_birds.data.recording_matching import RecordingFinder, names_elsewhere
from kenya_birds.data.same_recording import recording_key
from kenya_birds.errors import UserError
from kenya_birds.evaluation.event_metrics import METRICS, WINDOW_S, EventScores, event_intervals
from kenya_birds.evaluation.event_windows import Truth
from kenya_birds.files import read_json, read_text, write_json, write_table
from kenya_birds.folders import is_new_or_empty
from kenya_birds.inference.table_formats import RUN_FILE
from kenya_birds.saved_models import find_model
from kenya_birds.training.run_folder import SPLITS_FILE
from kenya_birds.training.training_recordings import overlap_of
from kenya_birds.values import counted

logger = logging.getLogger(__name__)

FindRecording = Callable[[str], str | None]

# Detection lists the analysed recordings in this file, in the folder of its tables.
ANALYSED_FILE = "recordings.csv"
DESCRIPTIONS = {
    "f1": "F1 of events",
    "precision": "precision of events",
    "recall": "recall of events",
    "macro_f1": "mean F1 over species",
    "false_per_h": "false detections per hour",
    "named_empty_windows": "empty windows with a detection",
    "best_f1": "best F1 with one threshold for all species",
    "recall_at_1_false_per_h": "recall at 1 false detection per hour",
    "recall_at_10_false_per_h": "recall at 10 false detections per hour",
    "cmap": "mean average precision over windows",
    "auroc": "mean AUROC over windows",
}


@dataclass(frozen=True)
class ScoreSettings:
    """How detections are scored.

    Attributes:
        min_score: Detections with a lower score are dropped.
        tolerance_s: A detection also matches an annotated point that lies up to this many seconds outside it.
        window_s: Length in seconds of the windows for cmAP, AUROC and empty windows.
        recordings: Recordings to score; by default those in the tables and in `recordings.csv` next to each table.
        seed: Seed of the bootstrap.
    """

    min_score: float = 0.0
    tolerance_s: float = 0.0
    window_s: float = WINDOW_S
    recordings: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `UserError` if a value is out of range."""
        for name, holds, expected in (
            ("min_score", np.isfinite(self.min_score), "a number"),
            ("tolerance_s", 0 <= self.tolerance_s < np.inf, "0 or more seconds"),
            ("window_s", 0 < self.window_s < np.inf, "more than 0 seconds"),
        ):
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)}: expected {expected}")


def score_tables(
    table: str | Path,
    data_dir: str | Path,
    *,
    beside: str | Path | None = None,
    output_dir: str | Path | None = None,
    settings: ScoreSettings | None = None,
) -> dict[str, Any]:
    """Scores a table of detections, or two tables on the same recordings.

    Args:
        table: Detections in any format of `read_events`.
        data_dir: The archive with the annotations.
        beside: Detections of another system.
        output_dir: New or empty folder for `metrics.json`, and for each table `TABLE_species.csv`,
            `TABLE_recordings.csv`, `TABLE_detections.csv` (each detection: correct or not) and `TABLE_calls.csv` (each
            call: found or not); by default nothing is written.
        settings: How detections are scored.

    Returns:
        `recordings`, `hours`, `calls`, `species` (with a call in these recordings), and for `table`, `beside` and
        `difference` the value and the 95% interval of each metric (see `event_intervals`), with the numbers of
        detections that were not scored.

    Raises:
        UserError: If a table or the archive cannot be read, a score is negative, if they have no recording or no
            species in common, or if the table is from a model of this package that was trained on the recordings.
    """
    settings = settings or ScoreSettings()
    if output_dir is not None and not is_new_or_empty(Path(output_dir)):
        raise UserError(f"{output_dir} exists and is not an empty folder: give another --output")
    names = {"table": Path(table)} if beside is None else {"table": Path(table), "beside": Path(beside)}
    tables = {name: _read_scored(path) for name, path in names.items()}
    archive = read_archive(data_dir)
    archive = _completely_annotated(archive)
    analysed = {name: _analysed_beside(path) for name, path in names.items()}
    finders = {
        name: _recording_finder(archive, tables[name].recordings | analysed[name], path)
        for name, path in names.items()
    }
    recordings = _scored_recordings(names, tables, analysed, archive, finders, settings)
    for path in names.values():
        _check_not_trained_on(path, archive, recordings)
    truth = _truth(archive, recordings)
    if truth.calls.empty:
        raise UserError(
            f"the {len(recordings)} scored recordings have no annotated call: give recordings with annotated calls"
        )
    find_species = _species_finder(archive)
    systems: list[EventScores] = []
    left_out = []
    for name, path in names.items():
        detections, dropped = _detections(tables[name], path, truth, finders[name], find_species, settings)
        systems.append(EventScores(detections, truth, tolerance_s=settings.tolerance_s, window_s=settings.window_s))
        left_out.append(dropped)
    results = event_intervals(systems, np.random.default_rng(settings.seed))
    content: dict[str, Any] = {
        "recordings": len(truth.durations_s),
        "hours": sum(truth.durations_s.values()) / 3600,
        "calls": len(truth.calls),
        "species": truth.calls["species"].nunique(),
        "unknown_birds": len(truth.unknown),
        "settings": {key: value for key, value in vars(settings).items() if key != "recordings"},
    }
    for name, metrics, dropped in zip(names, results, left_out, strict=False):
        content[name] = {"file": str(names[name]), **dropped, "metrics": metrics}
    if beside is not None:
        content["difference"] = {"metrics": results[2]}
    if output_dir is not None:
        _write(Path(output_dir), dict(zip(names, systems, strict=True)), content)
    return content


def format_scores(content: Mapping[str, Any]) -> str:
    """The result of `score_tables` as a text table."""
    columns = [name for name in ("table", "beside", "difference") if name in content]
    lines = [
        f"{counted(content['recordings'], 'recording')}, {content['hours']:.2f} h, "
        f"{counted(content['calls'], 'annotated call')} of {content['species']} species"
    ]
    for name in ("table", "beside"):
        if name in content:
            lines.append(f"{name}: {content[name]['file']}, {content[name]['judged']} scored detections")
    header = f"{'':42}" + "".join(f"{name:>26}" for name in columns)
    lines += ["", header]
    for metric in METRICS:
        cells = [_cell(content[name]["metrics"][metric]) for name in columns]
        lines.append(f"{DESCRIPTIONS[metric]:42}" + "".join(f"{cell:>26}" for cell in cells))
    lines.append("In brackets: 95% interval from a bootstrap over recordings.")
    if "difference" in content:
        lines.append("difference: table minus beside, on the same resampled recordings.")
    return "\n".join(lines)


def _read_scored(path: Path) -> EventTable:
    """Reads a table; raises `UserError` if a score is negative: a window without a detection has the score 0."""
    table = read_events(path)
    negative = table.events[table.events["score"] < 0]
    if len(negative):
        first = negative.iloc[0]
        raise UserError(
            f"{path}: {first.row} has the score {first.score:g}: expected scores of 0 or more; convert logits to "
            "probabilities with a sigmoid"
        )
    return table


def _cell(metric: Mapping[str, Any]) -> str:
    value, interval = metric["value"], metric["interval"]
    if value is None:
        return "-"
    digits = 1 if abs(value) >= 10 else 3
    text = f"{value:.{digits}f}"
    return text if interval is None else f"{text} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def _recording_finder(archive: Archive, named: Collection[str] = (), table: Path = Path()) -> FindRecording:
    """Finds the archive's recording for a name in a table (see `RecordingFinder` and `names_elsewhere`).

    Args:
        archive: The archive.
        named: All names in the table.
        table: The table, for messages.
    """
    finder = RecordingFinder(archive.headers)
    matches = ((name, finder.find(name).recording) for name in named)
    found = {name: recording for name, recording in matches if recording is not None}
    paths = {recording: archive.recording_path(recording).absolute().as_posix() for recording in found.values()}
    elsewhere = names_elsewhere(found, paths, is_each_alone=True)
    if elsewhere:
        logger.warning(
            "%s: %d recordings are in other folders than those of the archive with the same file names, and are "
            "skipped (first: %s)",
            table,
            len(elsewhere),
            min(elsewhere),
        )

    def find(name: str) -> str | None:
        match = finder.find(name)
        if match.recording is None and len(match.others) > 1:
            raise UserError(
                f"'{name}' may be {match.others[0]} or {match.others[1]} of the archive: give the name with its "
                "suffix and folder"
            )
        return None if name in elsewhere else match.recording

    return find


def _completely_annotated(archive: Archive) -> Archive:
    """The archive without recordings that are annotated in part; raises `UserError` if there are no others."""
    if archive.weak:
        logger.warning("%d recordings with weak labels are not scored", len(archive.weak))
    if archive.verified:
        logger.warning(
            "%d recordings with checked detections are not scored, because %s chose what was checked there",
            len(archive.verified),
            archive.choosing_models,
        )
    known = archive.without_partial()
    if archive.partial and not known.headers:
        raise UserError(
            f"all recordings of {archive.data_dir} have weak labels or checked detections, which are for training "
            "only: give an archive whose calls are annotated"
        )
    return known


def _scored_recordings(
    names: Mapping[str, Path],
    tables: Mapping[str, EventTable],
    analysed: Mapping[str, frozenset[str]],
    archive: Archive,
    finders: Mapping[str, FindRecording],
    settings: ScoreSettings,
) -> list[str]:
    if settings.recordings is not None:
        find = _recording_finder(archive)
        unknown = [name for name in settings.recordings if find(name) is None]
        if unknown:
            raise UserError(
                f"{len(unknown)} of the recordings to score are not in the archive: {', '.join(unknown[:3])}"
            )
        chosen = sorted({str(find(name)) for name in settings.recordings})
        for name, path in names.items():
            _warn_of_not_analysed(chosen, path, tables[name].recordings, analysed[name], finders[name])
        return chosen
    found: set[str] = set()
    for name, path in names.items():
        named = tables[name].recordings | analysed[name]
        known = {recording: finders[name](recording) for recording in named}
        own = {recording for recording in known.values() if recording is not None}
        if not own:
            raise UserError(
                f"{path} has {len(named)} recordings, but none of the archive's {len(archive.headers)} annotated ones"
                f"{_examples(named, archive.headers)}: give a table of recordings of this archive"
            )
        absent = sorted(recording for recording, match in known.items() if match is None)
        if absent:
            logger.warning(
                "%s: %d of %d recordings are not annotated in the archive and are skipped: %s",
                path,
                len(absent),
                len(named),
                ", ".join(absent[:3]),
            )
        renamed = sum(
            match is not None and recording_key(match.rpartition("/")[2]) != recording_key(name.rpartition("/")[2])
            for name, match in known.items()
        )
        if renamed:
            logger.warning("%s: %d recordings are matched by their names without suffix", path, renamed)
        found |= own
    missing = len(archive.headers) - len(found)
    if missing:
        logger.warning(
            "The %d recordings of the tables are scored; %d other annotated recordings of the archive are skipped",
            len(found),
            missing,
        )
    return sorted(found)


def _warn_of_not_analysed(
    chosen: list[str], path: Path, named: frozenset[str], analysed: frozenset[str], find: FindRecording
) -> None:
    """Logs the recordings to score that are missing in the table, if the table's `recordings.csv` is there."""
    known = {find(recording) for recording in named | analysed}
    absent = [recording for recording in chosen if recording not in known]
    if analysed and absent:
        logger.warning(
            "%d of %d recordings to score are not in %s or its %s (%s): their calls count as missed",
            len(absent),
            len(chosen),
            path,
            ANALYSED_FILE,
            ", ".join(absent[:3]),
        )


def _analysed_beside(path: Path) -> frozenset[str]:
    """Recordings that detection lists next to its table; some may have no detections.

    Raises:
        UserError: If the list cannot be read as a table.
    """
    beside = (path if path.is_dir() else path.parent) / ANALYSED_FILE
    if not beside.is_file():
        return frozenset()
    try:
        text, _ = read_text(beside)
    except (OSError, ValueError) as error:
        raise UserError(f"{beside} cannot be read as a table ({error}): correct it, or move it away") from None
    table = parse_any_table(text, beside)
    if not {"recording", "detections"} <= set(table.header):
        logger.warning(
            "%s is skipped: expected the columns recording and detections, found %s",
            beside,
            ", ".join(table.header),
        )
        return frozenset()
    at = table.header.index("recording")
    return frozenset(row[at].replace("\\", "/") for row in table.rows)


def _check_not_trained_on(path: Path, archive: Archive, recordings: list[str]) -> None:
    """Raises `UserError` if the table is from a model of this package that was trained on these recordings."""
    run = (path if path.is_dir() else path.parent) / RUN_FILE
    model = read_json(run).get("model") if run.is_file() else None
    if model is None:
        return
    if not Path(str(model)).is_dir():
        logger.warning(
            "%s: the model folder '%s' does not exist, so its training recordings are not checked", path, model
        )
        return
    overlap = overlap_of(find_model(str(model)), archive.fingerprints(recordings))
    overlap.refuse(
        str(model), ["train", "validation"], f"Score its test recordings: --splits_file {model}/{SPLITS_FILE}"
    )


def _examples(named: Iterable[str], expected: Iterable[str]) -> str:
    first, second = min(named, default=""), min(expected, default="")
    return f" (for example '{first}', not '{second}')" if first else ""


def _truth(archive: Archive, recordings: list[str]) -> Truth:
    calls = archive.annotations[archive.annotations["recording"].isin(recordings)]
    return Truth(
        {name: archive.headers[name].duration_s for name in recordings},
        sorted(archive.annotations["species"].unique()),
        calls,
        archive.unknown[archive.unknown["recording"].isin(recordings)],
    )


def _species_finder(archive: Archive) -> Callable[[pd.Series], str | None]:
    """Finds the annotated species of a row: by code, scientific or common name, ignoring case."""
    names: dict[str, set[str]] = {}
    annotated = set(archive.annotations["species"])
    for code, row in archive.species.iterrows():
        for text in (str(code), row["scientific_name"], row["common_name"]):
            if text:
                names.setdefault(text.casefold(), set()).add(str(code))

    def find(row: pd.Series) -> str | None:
        texts = [row["code"], row["scientific_name"], row["common_name"], row["label"]]
        # BirdNET's labels: "Turdus merula_Common Blackbird".
        texts += [part for text in texts for part in text.split("_", 1) if "_" in text]
        for text in texts:
            found = names.get(text.casefold(), set()) & annotated if text else set()
            if len(found) == 1:
                return next(iter(found))
        return None

    return find


def _detections(
    table: EventTable,
    path: Path,
    truth: Truth,
    find_recording: FindRecording,
    find_species: Callable[[pd.Series], str | None],
    settings: ScoreSettings,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The scored detections, and the numbers of the others."""
    events = table.events
    events = events.assign(
        recording=events["recording"].map({name: find_recording(name) for name in table.recordings})
    )
    named = ["code", "scientific_name", "common_name", "label"]
    kinds = events[named].drop_duplicates()
    species = {tuple(row[named]): find_species(row) for _, row in kinds.iterrows()}
    codes = [species[key] for key in events[named].itertuples(index=False, name=None)]
    events = events.assign(species=pd.Series(codes, index=events.index, dtype=object))
    if len(events) and events["species"].isna().all():
        first = next((text for text in events[named].iloc[0] if text), "")
        raise UserError(
            f"{path} has {len(kinds)} species, but none of the archive's {len(truth.classes)} annotated ones (for "
            f"example '{first}', not '{truth.classes[0]}'): species are matched by code, scientific or common name"
        )
    is_here = events["recording"].isin(truth.durations_s)
    is_known = events["species"].notna()
    is_high = events["score"] >= settings.min_score
    counts = {
        "other_recordings": int((~is_here).sum()),
        "other_species": int((is_here & ~is_known).sum()),
        "below_min_score": int((is_here & is_known & ~is_high).sum()),
    }
    scored = events[is_here & is_known & is_high]
    late = scored["start_s"] >= scored["recording"].map(truth.durations_s).astype(float)
    if late.any():
        first = scored[late].iloc[0]
        raise UserError(
            f"{path}: {first.row} starts at {first.start_s:g} s, but {first.recording} is "
            f"{truth.durations_s[first.recording]:g} s long: give a table of these recordings"
        )
    if counts["other_species"]:
        logger.warning(
            "%s: %d detections of species that are not annotated in the archive are skipped",
            path,
            counts["other_species"],
        )
    columns = ["recording", "species", "start_s", "end_s", "score", "row"]
    return scored[columns].reset_index(drop=True), {"judged": len(scored), "not_judged": counts}


def _write(folder: Path, systems: Mapping[str, EventScores], content: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, system in systems.items():
        write_table(system.per_species(), folder / f"{name}_species.csv", float_format="%.6g")
        write_table(system.per_recording(), folder / f"{name}_recordings.csv", float_format="%.6g")
        write_table(system.detections, folder / f"{name}_detections.csv")
        write_table(system.calls, folder / f"{name}_calls.csv")
    write_json(content, folder / "metrics.json", allow_nan=False)
