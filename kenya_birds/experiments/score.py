"""Judges any system's table of detections against the annotations of an archive."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from kenya_birds.data.archive import Archive, read_archive
from kenya_birds.data.event_tables import EventTable, read_events
from kenya_birds.data.same_recording import recording_key
from kenya_birds.errors import UserError
from kenya_birds.evaluation.event_metrics import METRICS, WINDOW_S, EventScores, Truth, event_intervals
from kenya_birds.files import is_new_or_empty, read_json, write_json, write_table
from kenya_birds.inference.run_report import RUN_FILE
from kenya_birds.saved_models import find_model
from kenya_birds.training.run_folder import SPLITS_FILE
from kenya_birds.training.training_recordings import overlap_of

logger = logging.getLogger(__name__)

# A run of detection lists the recordings that it analysed in this file, beside its tables.
ANALYSED_FILE = "recordings.csv"
DESCRIPTIONS = {
    "f1": "F1 of events",
    "precision": "precision of events",
    "recall": "recall of events",
    "macro_f1": "mean F1 over species",
    "false_per_h": "false detections an hour",
    "named_empty_windows": "empty windows with a detection",
    "best_f1": "best F1 at one score for all species",
    "recall_at_1_false_per_h": "recall at 1 false detection an hour",
    "recall_at_10_false_per_h": "recall at 10 false detections an hour",
    "cmap": "mean average precision over windows",
    "auroc": "mean AUROC over windows",
}


@dataclass(frozen=True)
class ScoreSettings:
    """How detections are judged.

    Attributes:
        min_score: Detections with a lower score are dropped.
        tolerance_s: How far outside a detection an annotated point may lie and still be found by it.
        window_s: Length of the windows of cmAP, AUROC and empty windows.
        recordings: Recordings to judge on; by default those that a table names, or that `recordings.csv` beside it
            lists.
        seed: Of the bootstrap.
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
    """Judges a table of detections, or two of them on the same recordings.

    Args:
        table: Detections in any form of `read_events`.
        data_dir: The archive whose annotations are the truth.
        beside: Detections of another system.
        output_dir: New or empty folder for `metrics.json`, and for each table `TABLE_species.csv`,
            `TABLE_recordings.csv`, `TABLE_detections.csv` (each detection: right or not) and `TABLE_calls.csv` (each
            call: found or not); by default nothing is written.
        settings: How detections are judged.

    Returns:
        `recordings`, `hours`, `calls`, `species`, and for `table`, `beside` and `difference` the value and the 95%
        interval of each metric (see `event_intervals`), with what of the table was not judged.

    Raises:
        UserError: If a table or the archive cannot be read, they have no recording or no species in common, or a model
            of this package that made the table was trained on the recordings.
    """
    settings = settings or ScoreSettings()
    if output_dir is not None and not is_new_or_empty(Path(output_dir)):
        raise UserError(f"{output_dir} exists and is not an empty folder: give another --output")
    names = {"table": Path(table)} if beside is None else {"table": Path(table), "beside": Path(beside)}
    tables = {name: read_events(path) for name, path in names.items()}
    archive = read_archive(data_dir)
    find_recording = _recording_finder(archive)
    recordings = _recordings_judged(names, tables, archive, find_recording, settings)
    for path in names.values():
        _check_unheard(path, archive, recordings)
    truth = _truth(archive, recordings)
    if truth.calls.empty:
        raise UserError(
            f"the {len(recordings)} recordings that are judged have no annotated call: judge on recordings that have"
        )
    find_species = _species_finder(archive)
    systems: list[EventScores] = []
    left_out = []
    for name, path in names.items():
        detections, dropped = _detections(tables[name], path, truth, find_recording, find_species, settings)
        systems.append(EventScores(detections, truth, tolerance_s=settings.tolerance_s, window_s=settings.window_s))
        left_out.append(dropped)
    results = event_intervals(systems, np.random.default_rng(settings.seed))
    content: dict[str, Any] = {
        "recordings": len(truth.durations_s),
        "hours": sum(truth.durations_s.values()) / 3600,
        "calls": len(truth.calls),
        "species": len(truth.classes),
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
        f"{content['recordings']} recordings, {content['hours']:.2f} h, {content['calls']} annotated calls of "
        f"{content['species']} species"
    ]
    for name in ("table", "beside"):
        if name in content:
            lines.append(f"{name}: {content[name]['file']}, {content[name]['judged']} detections")
    header = f"{'':42}" + "".join(f"{name:>26}" for name in columns)
    lines += ["", header]
    for metric in METRICS:
        cells = [_cell(content[name]["metrics"][metric]) for name in columns]
        lines.append(f"{DESCRIPTIONS[metric]:42}" + "".join(f"{cell:>26}" for cell in cells))
    lines.append("Brackets: 95% interval from a bootstrap over recordings.")
    if "difference" in content:
        lines.append("difference: table minus beside, on the same resampled recordings.")
    return "\n".join(lines)


def _cell(metric: Mapping[str, Any]) -> str:
    value, interval = metric["value"], metric["interval"]
    if value is None:
        return "-"
    digits = 1 if abs(value) >= 10 else 3
    text = f"{value:.{digits}f}"
    return text if interval is None else f"{text} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def _recording_finder(archive: Archive) -> Callable[[str], str | None]:
    """Finds the archive's recording that a table names: by its file name, else by that without folders and suffix."""
    by_key = {recording_key(name): name for name in archive.headers}
    by_stem: dict[str, list[str]] = {}
    for key, name in by_key.items():
        by_stem.setdefault(PurePosixPath(key).stem.lower(), []).append(name)

    def find(name: str) -> str | None:
        key = recording_key(name.rpartition("/")[2])
        if key in by_key:
            return by_key[key]
        # A table may name no suffix, and dots may belong to the name.
        alike = by_stem.get(PurePosixPath(key).stem.lower()) or by_stem.get(key.lower()) or []
        if len(alike) > 1:
            raise UserError(f"'{name}' may be {alike[0]} or {alike[1]} of the archive: name it with its suffix")
        return alike[0] if alike else None

    return find


def _recordings_judged(
    names: Mapping[str, Path],
    tables: Mapping[str, EventTable],
    archive: Archive,
    find: Callable[[str], str | None],
    settings: ScoreSettings,
) -> list[str]:
    if settings.recordings is not None:
        unknown = [name for name in settings.recordings if find(name) is None]
        if unknown:
            raise UserError(f"{len(unknown)} recordings to judge on are not in the archive: {', '.join(unknown[:3])}")
        return sorted({str(find(name)) for name in settings.recordings})
    found: set[str] = set()
    for name, path in names.items():
        named = tables[name].recordings | _analysed_beside(path)
        known = {recording: find(recording) for recording in named}
        own = {recording for recording in known.values() if recording is not None}
        if not own:
            raise UserError(
                f"{path} names {len(named)} recordings and none of the archive's {len(archive.headers)} annotated ones"
                f"{_examples(named, archive.headers)}: give the table of the same recordings"
            )
        absent = sorted(recording for recording, match in known.items() if match is None)
        if absent:
            logger.warning(
                "%s: %d of %d recordings are not annotated in the archive and do not count: %s",
                path,
                len(absent),
                len(named),
                ", ".join(absent[:3]),
            )
        renamed = sum(
            match is not None and recording_key(match) != recording_key(name.rpartition("/")[2])
            for name, match in known.items()
        )
        if renamed:
            logger.warning("%s: %d recordings are matched by their names without suffix", path, renamed)
        found |= own
    missing = len(archive.headers) - len(found)
    if missing:
        logger.warning(
            "Judged on the %d recordings that are named; %d other annotated recordings of the archive do not count",
            len(found),
            missing,
        )
    return sorted(found)


def _analysed_beside(path: Path) -> frozenset[str]:
    """Recordings that a run of detection lists beside its table: some may have no detection."""
    beside = (path if path.is_dir() else path.parent) / ANALYSED_FILE
    if not beside.is_file():
        return frozenset()
    table = pd.read_csv(beside, dtype=str, keep_default_na=False, encoding="utf-8")
    if not {"recording", "detections"} <= set(table.columns):
        return frozenset()
    return frozenset(table["recording"].str.replace("\\", "/"))


def _check_unheard(path: Path, archive: Archive, recordings: list[str]) -> None:
    """Raises `UserError` if a run of ours made the table with a model that was trained on these recordings."""
    run = (path if path.is_dir() else path.parent) / RUN_FILE
    model = read_json(run).get("model") if run.is_file() else None
    if model is None:
        return
    if not Path(str(model)).is_dir():
        logger.warning("%s: the model '%s' is not here, so its training recordings are not checked", path, model)
        return
    overlap = overlap_of(find_model(str(model)), archive.fingerprints(recordings))
    overlap.refuse(
        str(model), ["train", "validation"], f"Compare its test recordings: --splits_file {model}/{SPLITS_FILE}"
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
    """Finds the annotated species that a row names: by code, scientific or common name, in any letter case."""
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
    find_recording: Callable[[str], str | None],
    find_species: Callable[[pd.Series], str | None],
    settings: ScoreSettings,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The detections that are judged, and counts of those that are not."""
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
            f"{path} names {len(kinds)} species and none of the archive's {len(truth.classes)} annotated ones (for "
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
    judged = events[is_here & is_known & is_high]
    late = judged["start_s"] >= judged["recording"].map(truth.durations_s).astype(float)
    if late.any():
        first = judged[late].iloc[0]
        raise UserError(
            f"{path}: {first.row} begins at {first.start_s:g} s, and {first.recording} has "
            f"{truth.durations_s[first.recording]:g} s: give the table of these recordings"
        )
    if counts["other_species"]:
        logger.warning(
            "%s: %d detections of species that are not annotated in the archive do not count",
            path,
            counts["other_species"],
        )
    columns = ["recording", "species", "start_s", "end_s", "score", "row"]
    return judged[columns].reset_index(drop=True), {"judged": len(judged), "not_judged": counts}


def _write(folder: Path, systems: Mapping[str, EventScores], content: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, system in systems.items():
        write_table(system.per_species(), folder / f"{name}_species.csv", float_format="%.6g")
        write_table(system.per_recording(), folder / f"{name}_recordings.csv", float_format="%.6g")
        write_table(system.detections, folder / f"{name}_detections.csv")
        write_table(system.calls, folder / f"{name}_calls.csv")
    write_json(content, folder / "metrics.json", allow_nan=False)
