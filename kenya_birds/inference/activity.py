"""Picture of the activity of species by hour of the day."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kenya_birds.data.recording_name import DAY_H, NamePattern, recorded_by_hour
from kenya_birds.data.recording_time import TimeAndPlace, find_time_and_place
from kenya_birds.errors import UserError
from kenya_birds.files import check_picture
from kenya_birds.inference.detections import name_in
from kenya_birds.inference.recordings_reader import RunRecordings, read_recordings
from kenya_birds.inference.table_formats import RECORDINGS_TABLE
from kenya_birds.inference.table_reader import read_detections
from kenya_birds.plot_style import save_picture, short_name, styled

MAX_SPECIES = 40
ROW_INCH, CELL_INCH, NAMES_INCH, MIN_WIDTH_INCH, BAR_INCH = 0.24, 0.34, 2.8, 7.0, 0.12
GREY = "#d9dce1"
MAX_PAUSE_H, MIN_SHOWN_H = 4, 6  # a longer time between recorded hours is not shown
BREAK = -1
MIN_RECORDED_SHARE = 0.1  # of the median hour
MIDDLE_LUMINANCE = 0.179  # black and white text have the same contrast on it


@dataclass(frozen=True)
class Activity:
    """Detections by species and hour of the day.

    Attributes:
        counts: Detections, one row per species by name, in descending order, and 24 columns.
        recorded_h: Hours recorded in each hour of the day, shape `(24,)`; None if unknown.
        clock: Clock of the hours: `local time` or `UTC`.
        recordings: Number of recordings that are counted.
        left_out: Number of skipped recordings, whose time is unknown or only known by another clock.
    """

    counts: pd.DataFrame
    recorded_h: np.ndarray | None
    clock: str
    recordings: int
    left_out: int


def plot_activity(
    detections: str | Path, output: str | Path, *, overwrite: bool = False, name_pattern: NamePattern | None = None
) -> Activity:
    """Draws how often each species was detected at each hour of the day, as a heat map.

    If `recordings.csv` of the same run is in the table's folder, colours are detections per recorded hour, so that
    hours with more recordings do not seem more active, and hours without a recording are grey. Hours are those of
    `recordings.csv`, otherwise of the recordings' names; recordings without a time are skipped and counted in the
    title. If some have local time and others only UTC, those with UTC are skipped.

    Args:
        detections: A table of detections (see `read_detections`).
        output: PNG, SVG or PDF to write.
        overwrite: Replaces an existing file.
        name_pattern: Pattern that reads the time from the names of recordings (see `parse_recording_name`).

    Returns:
        The activity of all species; the picture shows the 40 most frequent ones.

    Raises:
        UserError: If a file cannot be used, or has no detection in a recording whose time is known.
    """
    check_picture(output, overwrite)
    table = read_detections(detections)
    run = read_recordings(Path(detections), table["recording"].unique())
    activity = measure_activity(table, run, detections, name_pattern)
    save_picture(_draw(activity), output)
    return activity


def measure_activity(
    table: pd.DataFrame,
    run: RunRecordings | None,
    name: str | Path,
    name_pattern: NamePattern | None = None,
) -> Activity:
    """Counts detections by species and hour of the day, by the middle of each detection.

    Args:
        table: See `read_detections`.
        run: All recordings, including those without detections; None if unknown.
        name: Name of the table, for messages.
        name_pattern: Pattern that reads the time from the names of recordings (see `parse_recording_name`).

    Raises:
        UserError: If no detection is in a recording whose time is known.
    """
    recordings = list(run.duration_s if run is not None else dict.fromkeys(table["recording"]))
    paths = list(dict.fromkeys([*recordings, *table["recording"]]))
    if name_pattern is not None:
        name_pattern.check(map(name_in, paths))
    times = {path: _find_place(path, run, name_pattern).times(timedelta(0)) for path in paths}
    is_local = any(local is not None for local, _ in times.values())
    starts = {path: local if is_local else utc for path, (local, utc) in times.items()}
    begins = {path: start for path, start in starts.items() if start is not None}
    known = table[table["recording"].isin(list(begins))]
    if known.empty:
        raise UserError(
            f"{name} has no detection in a recording whose time is known: expected a time in {RECORDINGS_TABLE}, or "
            f"names such as KEN_001_20211207_153852.flac, found {', '.join(sorted(paths)[:3]) or 'no recording'}; "
            "other names need a name pattern (--name_pattern)"
        )
    begin_s = known["recording"].map({path: _second_of_day(start) for path, start in begins.items()})
    hour = ((begin_s + (known["start_s"] + known["end_s"]) / 2) // 3600 % DAY_H).astype(int)
    names = known["common_name"].where(known["common_name"] != "", known["code"])
    counts = pd.crosstab(names, hour).reindex(columns=range(DAY_H), fill_value=0)
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    recorded_h = None
    if run is not None:
        known_s = [(begins[path], seconds) for path, seconds in run.duration_s.items() if path in begins]
        recorded_h = recorded_by_hour(known_s) / 3600
    kept = sum(path in begins for path in recordings)
    return Activity(counts, recorded_h, "local time" if is_local else "UTC", kept, len(recordings) - kept)


def _find_place(path: str, run: RunRecordings | None, pattern: NamePattern | None) -> TimeAndPlace:
    """Returns time and place of a recording: by a pattern that matches its name, in the run, or by its name."""
    is_matched = pattern is not None and pattern.match(name_in(path)) is not None
    place = None if run is None or is_matched else run.place(path)
    return place if place is not None and place.start else find_time_and_place(name_in(path), pattern=pattern)


def _second_of_day(time: datetime) -> int:
    return time.hour * 3600 + time.minute * 60 + time.second


def shown_hours(recorded_h: np.ndarray | None) -> np.ndarray:
    """Returns the hours of the day in the picture: from the first recorded one to the last, possibly across midnight.

    Four or more consecutive hours without a recording become one break. At least six columns are shown, and all 24
    hours if there is no such break, or the recorded hours are unknown.

    Args:
        recorded_h: Hours recorded in each hour of the day, shape `(24,)`; None if unknown.

    Returns:
        int64, in order; `BREAK` is a break.
    """
    recorded = np.arange(DAY_H) if recorded_h is None else np.flatnonzero(recorded_h > 0)
    pauses = np.diff(recorded, append=recorded[0] + DAY_H)  # to the next recorded hour
    if pauses.max() <= MAX_PAUSE_H:
        return np.arange(DAY_H)
    # From the first hour of the day, if midnight is in a break.
    first = 0 if pauses[-1] > MAX_PAUSE_H else int(pauses.argmax()) + 1
    hours: list[int] = []
    for hour, pause in zip(np.roll(recorded, -first).tolist(), np.roll(pauses, -first).tolist(), strict=True):
        hours += [hour] + ([BREAK] if pause > MAX_PAUSE_H else [(hour + n) % DAY_H for n in range(1, pause)])
    hours.pop()  # the break before the first hour
    more = max(0, MIN_SHOWN_H - len(hours))  # on both sides, so that cells do not become wide bars
    before = [(hours[0] - n) % DAY_H for n in range(more // 2, 0, -1)]
    after = [(hours[-1] + n) % DAY_H for n in range(1, more - more // 2 + 1)]
    return np.array([*before, *hours, *after])


def at_hours(values: np.ndarray, hours: np.ndarray) -> np.ndarray:
    """Selects the values of the shown hours along the last axis; NaN at a break.

    Args:
        values: Values with 24 hours along the last axis.
        hours: Result of `shown_hours`.
    """
    return np.where(hours == BREAK, np.nan, values[..., hours])


def hour_labels(hours: np.ndarray) -> list[str]:
    """Returns the labels at the edges of the columns of `shown_hours`, shape `(columns + 1,)`."""
    labels = []
    for edge in range(len(hours) + 1):
        if edge < len(hours) and hours[edge] != BREAK and (edge == 0 or hours[edge - 1] == BREAK):
            labels.append(str(hours[edge]))
        else:
            labels.append(str(hours[edge - 1] + 1))
    return labels


@styled(**{"axes.grid": False, "font.size": 9})
def _draw(activity: Activity) -> Figure:
    counts = activity.counts.iloc[:MAX_SPECIES]
    hours = shown_hours(activity.recorded_h)
    numbers = values = at_hours(counts.to_numpy(dtype=float), hours)
    if activity.recorded_h is None:
        values = np.where(values == 0, np.nan, values)
        most, what = np.nanmax(values), "detections"
    else:
        recorded_h = at_hours(activity.recorded_h, hours)
        values = np.divide(values, recorded_h, out=np.full_like(values, np.nan), where=recorded_h > 0)
        # Hours with little recorded time have unreliable rates, which must not set the scale.
        well = recorded_h >= MIN_RECORDED_SHARE * np.median(recorded_h[recorded_h > 0])
        most, what = np.nanmax(values[:, well]), "detections per recorded hour"
    most = most or np.nanmax(values)
    height_inch = 1.9 + ROW_INCH * len(counts)
    width_inch = max(MIN_WIDTH_INCH, NAMES_INCH + CELL_INCH * len(hours))
    figure = Figure(figsize=(width_inch, height_inch), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor("white" if activity.recorded_h is None else GREY)
    # A square-root scale shows rare species next to frequent ones.
    norm = PowerNorm(0.5, vmin=0, vmax=most, clip=True)
    extent = (0, len(hours), len(counts), 0)
    image = axes.imshow(values, cmap="YlGnBu", norm=norm, aspect="auto", extent=extent, interpolation="nearest")
    lines = "#eceef1" if activity.recorded_h is None else "white"
    axes.hlines(np.arange(1, len(counts)), 0, len(hours), colors=lines, linewidth=0.8)
    axes.vlines(np.arange(1, len(hours)), 0, len(counts), colors=lines, linewidth=0.4)
    breaks = np.flatnonzero(hours == BREAK)
    axes.bar(breaks + 0.5, len(counts), width=1, color="white", linewidth=0)
    for row, column in zip(*np.nonzero(numbers > 0), strict=True):
        colour = "white" if _luminance(image.to_rgba(values[row, column])) < MIDDLE_LUMINANCE else "black"
        axes.text(column + 0.5, row + 0.52, f"{numbers[row, column]:,.0f}", ha="center", va="center", fontsize=7,
                  color=colour)  # fmt: skip
    axes.set_yticks(np.arange(len(counts)) + 0.5, [short_name(str(name), 32) for name in counts.index])
    axes.set_xticks(np.arange(len(hours) + 1), hour_labels(hours))
    axes.tick_params(length=2)
    axes.set_xlabel(f"hour of the day ({activity.clock})")
    lines_of_title = _title(activity, hours)
    axes.set_title(lines_of_title[0], loc="left", fontsize=10, weight="bold", pad=8 + 12 * (len(lines_of_title) - 1))
    axes.annotate("\n".join(lines_of_title[1:]), (0, 1), (0, 5), xycoords="axes fraction", textcoords="offset points",
                  fontsize=8, va="bottom", color="#38414d", linespacing=1.3)  # fmt: skip
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=50, fraction=BAR_INCH / height_inch, pad=0.02,
                          shrink=0.6, anchor=(0, 0.5))  # fmt: skip
    bar.set_label(what, fontsize=8)
    bar.set_ticks([tick for tick in MaxNLocator(5).tick_values(0, most) if tick <= most])
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_visible(False)
    return figure


def _title(activity: Activity, hours: np.ndarray) -> list[str]:
    """Returns the lines of the title: a heading and explanations."""
    counts = activity.counts
    detections, recordings = int(counts.to_numpy().sum()), activity.recordings
    lines = [
        f"{_count(detections, 'detection')} of {len(counts)} species in {_count(recordings, 'recording')}",
    ]
    if activity.recorded_h is None:
        lines.append("The recorded time of each hour is unknown.")
    else:
        lines.append("Number: detections. Colour: detections per recorded hour. Grey: not recorded.")
    if len(hours) < DAY_H:
        lines.append("Not shown: four or more consecutive hours without a recording.")
    if activity.left_out:
        lines.append(f"Skipped: {_count(activity.left_out, 'recording')} without {activity.clock}.")
    if len(counts) > MAX_SPECIES:
        rest = int(counts.iloc[MAX_SPECIES:].to_numpy().sum())
        lines.append(
            f"Shown: the {MAX_SPECIES} species with the most detections. The others have {rest:,} detections."
        )
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _luminance(rgba: np.ndarray) -> float:
    """Returns the relative luminance as WCAG defines it, 0 to 1."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
