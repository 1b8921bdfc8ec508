"""The summary of a detection run: one self-contained HTML page with species, activity and clips to listen to."""

import logging
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from kenya_birds.data.audio import RecordingReader
from kenya_birds.errors import UserError
from kenya_birds.exploration.archive_report import render_page
from kenya_birds.exploration.call_examples import encode_clip
from kenya_birds.exploration.charts import to_png_uri
from kenya_birds.files import check_output, read_json, users_file
from kenya_birds.inference.activity import draw_activity, measure_activity
from kenya_birds.inference.analysed_stretches import SHORTEST_S, analysed_stretches
from kenya_birds.inference.detections import name_in
from kenya_birds.inference.plots import draw_levels, read_levels, shown_range
from kenya_birds.inference.recordings_reader import RunRecordings
from kenya_birds.inference.sources import find_sources
from kenya_birds.inference.table_formats import RUN_FILE
from kenya_birds.plot_style import styled
from kenya_birds.values import Whole, checked
from kenya_birds.verification.clips import check_length, clip_span, read_clip
from kenya_birds.verification.moved_recordings import find_recordings
from kenya_birds.verification.survey import Survey

logger = logging.getLogger(__name__)

# Sound before and after a detection; of a long (merged) detection, the first seconds are shown.
CONTEXT_S, MOST_CLIP_S = 1.0, 8.0
MOST_FAILURES = 50
# Detections of each species to listen to, as the page names them.
HIGHEST, LOWEST = "highest score", "lowest score"
SPECIES = ["code", "common_name", "scientific_name"]
CLIP_INCH, DPI = (3.4, 1.7), 110
BOX_COLOUR = "#c2185b"
# Of a path in quotation marks, as in errors of the system, and of the target of a link.
FOLDERS = re.compile(r"""(?<=')[^']*[/\\](?=[^'/\\]+')|(?<=a link to ).*[/\\](?=[^/\\]+, which)""")
# A copy of `Source.local_path`.
DOWNLOADED = re.compile(r"(?:[A-Za-z]:)?[/\\][^:'\"]*[/\\]kenya_birds_\w+[/\\]recording(?:\.\w+)?")


@dataclass(frozen=True)
class Clip:
    """A detection to listen to.

    Attributes:
        recording: Name of its recording.
        start_s: Start of the detection.
        end_s: End of the detection.
        score: Its score.
        sound: Data URI of the sound, with context.
        picture: Data URI of the spectrogram.
    """

    recording: str
    start_s: float
    end_s: float
    score: float
    sound: str
    picture: str


@checked
def write_summary(
    found: str | Path,
    output: str | Path,
    *,
    clips_of: Whole = 20,
    recordings: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a summary of a detection run as an HTML page without other files, network access or scripts.

    Args:
        found: Output folder of `kenya-birds detect`.
        output: HTML file to write; it is written completely or not at all.
        clips_of: Number of the most frequent species of which two detections can be played.
        recordings: Folder to search for recordings that were moved.
        overwrite: Whether an existing file is replaced.

    Returns:
        `output`.

    Raises:
        UserError: If the run cannot be read, a recording that is needed is not found, or the page cannot be written.
    """
    output = Path(output)
    check_output(output, overwrite)
    survey = Survey.read(found)
    page = render_page("run_summary.html.jinja", _describe(survey, clips_of, recordings))
    with users_file(output) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
    return output


def _describe(survey: Survey, clips_of: int, folder: str | Path | None) -> dict[str, Any]:
    """All values for the template."""
    run, recordings = read_json(survey.folder / RUN_FILE), survey.run
    names = short_paths(list(recordings.duration_s))
    species = species_rows(survey.detections, recordings)
    days = sorted({day.isoformat() for path in recordings.places for day in _days(recordings, path)})
    return {
        "name": survey.folder.resolve().name,
        "run": run,
        "model": PurePath(str(run["model"])).name,
        "hours": sum(_analysed_h(recordings, path) for path in recordings.duration_s),
        "recordings": len(recordings.duration_s),
        "days": days,
        "sites": site_rows(survey.detections, recordings),
        "detections": len(survey.detections),
        "species": species.to_dict("records"),
        "clips": _clips(survey, species[SPECIES].head(clips_of), names, run, folder),
        "activity": _activity(survey),
        "failures": _failures(survey.failures, names),
    }


def short_paths(paths: Sequence[str]) -> dict[str, str]:
    """Returns paths without the folders that all share, so that a page does not show where they are on a disk."""
    parts = {path: path.replace("\\", "/").split("/") for path in paths}
    folders = zip(*(each[:-1] for each in parts.values()), strict=False)
    shared = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, folders))
    return {path: "/".join(each[shared:]) for path, each in parts.items()}


def species_rows(detections: pd.DataFrame, run: RunRecordings) -> pd.DataFrame:
    """Describes the detections of each species.

    Args:
        detections: See `read_detections`.
        run: The recordings.

    Returns:
        `code`, `common_name`, `scientific_name`, `detections`, `recordings`, `sites`, `median_score`, `max_score`;
        from the most to the least detections.
    """
    sites = {path: place.site for path, place in run.places.items()}
    by_species = detections.assign(site=detections["recording"].map(sites)).groupby("code")
    names = detections.drop_duplicates("code").set_index("code")[SPECIES[1:]]
    rows = names.join(
        by_species.agg(
            detections=("score", "size"),
            recordings=("recording", "nunique"),
            sites=("site", "nunique"),
            median_score=("score", "median"),
            max_score=("score", "max"),
        )
    )
    return rows.reset_index().sort_values(["detections", "code"], ascending=[False, True], ignore_index=True)


def site_rows(detections: pd.DataFrame, run: RunRecordings) -> list[dict[Hashable, Any]]:
    """Describes each site, the one with unknown name last: recordings, days, analysed hours, detections, species."""
    recordings = pd.DataFrame(
        [(path, place.site or "", _analysed_h(run, path), _days(run, path)) for path, place in run.places.items()],
        columns=["recording", "site", "hours", "days"],
    )
    rows = recordings.groupby("site").agg(
        recordings=("recording", "size"),
        hours=("hours", "sum"),
        days=("days", lambda days: len(set().union(*days))),
    )
    found = detections.merge(recordings[["recording", "site"]], on="recording").groupby("site")["code"]
    rows = rows.assign(detections=found.size(), species=found.nunique()).fillna({"detections": 0, "species": 0})
    rows = rows.astype({"detections": int, "species": int}).reset_index()
    return rows.sort_values("site", key=lambda site: (site == "").astype(str) + site).to_dict("records")


def _analysed_h(run: RunRecordings, path: str) -> float:
    return sum(end_s - start_s for start_s, end_s in _stretches(run, path)) / 3600


def _stretches(run: RunRecordings, path: str) -> list[tuple[float, float]]:
    return analysed_stretches(run.duration_s[path], run.gaps.get(path, ()))


def _days(run: RunRecordings, path: str) -> set[date]:
    """Returns the dates of a recording's analysed sound, in local time if it is known; none without a time."""
    days: set[date] = set()
    for start_s, end_s in _stretches(run, path):
        # Sound that ends at midnight has nothing of the next day.
        times = [run.places[path].times(timedelta(seconds=time_s)) for time_s in (start_s, end_s - SHORTEST_S)]
        first, last = (local or utc for local, utc in times)
        if first is not None and last is not None:
            days |= {first.date() + timedelta(days=n) for n in range((last.date() - first.date()).days + 1)}
    return days


def _activity(survey: Survey) -> str | None:
    """Returns the picture of the activity by hour as a data URI; None if no time is known."""
    try:
        activity = measure_activity(survey.detections, survey.run, survey.folder)
    except UserError:
        return None
    return to_png_uri(draw_activity(activity))


def _clips(
    survey: Survey, species: pd.DataFrame, names: Mapping[str, str], run: Mapping[str, Any], folder: Any
) -> list[dict[Hashable, Any]]:
    """Returns the species with clips of their detections with the highest and the lowest score."""
    order, lengths_s = survey.detections.sort_values("score", kind="stable"), survey.run.duration_s
    ends = [(LOWEST, order.drop_duplicates("code")), (HIGHEST, order.drop_duplicates("code", keep="last"))]
    chosen = pd.concat([rows.assign(end=end) for end, rows in ends])
    chosen = chosen[chosen["code"].isin(species["code"])].sort_values(["recording", "start_s"], kind="stable")
    paths = find_recordings(chosen["recording"], None if folder is None else Path(folder), lengths_s)
    made: dict[tuple[str, str], Clip | None] = {}
    with tqdm(total=len(chosen), desc="Cutting clips", unit="clip", disable=None) as bar:
        for key, rows in chosen.groupby("recording", sort=False):
            (source,) = find_sources([paths[str(key)]])
            channel = run.get("settings", {}).get("channel")
            with source.local_path() as path, RecordingReader(path, channel=channel) as reader:
                check_length(str(key), reader, lengths_s.get(str(key)))
                for row in rows.to_dict("records"):
                    made[row["code"], row["end"]] = _cut(reader, row, names[str(key)])
                    bar.update()
    found: list[dict[Hashable, Any]] = []
    for row in species.to_dict("records"):
        clips = {end: clip for end in (HIGHEST, LOWEST) if (clip := made.get((row["code"], end))) is not None}
        if len(clips) == 2 and clips[HIGHEST] == clips[LOWEST]:
            del clips[LOWEST]
        found.append({**row, "clips": clips})
    return found


def _cut(reader: RecordingReader, row: Mapping[Any, Any], name: str) -> Clip | None:
    """Cuts a detection; returns None if its sound cannot be decoded."""
    start_s, end_s = float(row["start_s"]), float(row["end_s"])
    last_s = min(end_s, start_s + MOST_CLIP_S)
    first_s, length_s = clip_span(start_s, last_s, CONTEXT_S)
    length_s = min(length_s, reader.header.duration_s - first_s)
    rate = reader.sampling_rate
    try:
        sound = read_clip(reader, (first_s, first_s + length_s), (start_s, last_s))
    except UserError as error:
        logger.warning("No clip of %s from %.3f s: %s", name, start_s, error)
        return None
    levels_db = read_levels(reader, first_s, length_s)
    picture = to_png_uri(_draw_clip(levels_db, (first_s, first_s + length_s), (start_s, end_s), rate))
    return Clip(name, start_s, end_s, float(row["score"]), encode_clip(sound, rate), picture)


@styled(**{"axes.grid": False, "font.size": 7})
def _draw_clip(
    levels_db: np.ndarray, section_s: tuple[float, float], detection_s: tuple[float, float], sampling_rate: int
) -> Figure:
    figure = Figure(figsize=CLIP_INCH, dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.13, 0.13, 0.83, 0.83))
    draw_levels(axes, levels_db, section_s, sampling_rate, shown_range(levels_db))
    for time_s in detection_s:
        axes.axvline(time_s, color=BOX_COLOUR, linewidth=0.9, linestyle=(0, (4, 3)))
    return figure


def _failures(rows: pd.DataFrame, names: Mapping[str, str]) -> dict[str, Any]:
    """Describes the sound that was not analysed: number of rows by status, and the first rows."""
    shown = []
    for row in rows.head(MOST_FAILURES).to_dict("records"):
        recording = row["recording"]
        name = names.get(recording, name_in(recording))
        shown.append({**row, "recording": name, "reason": _without_folders(row["reason"], recording, name)})
    return {"count": len(rows), "by_status": rows["status"].value_counts().to_dict(), "rows": shown}


def _without_folders(text: str, recording: str, name: str) -> str:
    """Returns a message about a recording with names instead of paths: its own, a downloaded copy's, a link's."""
    for path in (recording, str(Path(recording))):
        text = text.replace(path, name)
    text = DOWNLOADED.sub(lambda _: name, text)
    return FOLDERS.sub("", text)
