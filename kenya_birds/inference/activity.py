"""Picture of the activity of species by hour of the day, or by minutes from sunrise."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kenya_birds.data.recorder_header import is_same_time
from kenya_birds.data.recording_name import (
    DAY_H,
    NamePattern,
    RecordingName,
    parse_recording_name,
    recorded_by_hour,
)
from kenya_birds.data.recording_time import TimeAndPlace, find_time_and_place
from kenya_birds.data.sunrise import time_from_sunrise
from kenya_birds.errors import UserError
from kenya_birds.files import check_picture
from kenya_birds.inference.analysed_stretches import analysed_stretches
from kenya_birds.inference.detections import name_in
from kenya_birds.inference.local_hours import NO_CHANGE, ClockChange, even_parts, find_clock_change, hours_of
from kenya_birds.inference.recordings_reader import RunRecordings, read_recordings
from kenya_birds.inference.table_formats import RECORDINGS_TABLE
from kenya_birds.inference.table_reader import read_detections
from kenya_birds.plot_style import save_picture, short_name, styled
from kenya_birds.values import Latitude, Longitude, check_fields, counted

logger = logging.getLogger(__name__)

MAX_SPECIES, MAX_LABEL = 40, 32
ROW_INCH, CELL_INCH, NAMES_INCH, MIN_WIDTH_INCH, BAR_INCH = 0.24, 0.34, 2.8, 7.0, 0.12
GREY = "#d9dce1"
MAX_PAUSE_H, MIN_SHOWN_H = 4, 6  # a longer time between analysed hours is not shown
BREAK = -1
MIN_ANALYSED_SHARE = 0.1  # of the median hour
# On the clock of hours from sunrise; from this hour on, hours are shown as those before the next sunrise.
SUNRISE, BEFORE_SUNRISE_H = datetime(2000, 1, 2), 17
MIDDLE_LUMINANCE = 0.179  # black and white text have the same contrast on it


@dataclass(frozen=True)
class Activity:
    """Detections by species and hour.

    Attributes:
        counts: Detections, one row per species by name (with its code if several have this name), in descending
            order, and 24 columns. A merged detection counts in each hour that it is in.
        detections: Number of detections of each of these species.
        analysed_h: Hours of analysed sound in each hour, shape `(24,)`; None if unknown.
        clock: Clock of the hours: `local time`, `UTC` or `sunrise`, from which hours are counted.
        recordings: Number of recordings that are counted.
        left_out: Number of skipped recordings, whose time is unknown or only known by another clock.
    """

    counts: pd.DataFrame
    detections: pd.Series
    analysed_h: np.ndarray | None
    clock: str
    recordings: int
    left_out: int


@dataclass(frozen=True)
class ActivityClock:
    """How the hours of an activity are found.

    Attributes:
        name_pattern: Pattern that reads the time from the names of recordings (see `parse_recording_name`).
        time_zone: Time zone of local times (see `find_time_and_place`).
        from_sunrise: Whether hours are counted from sunrise. Recordings without a UTC time, a place or a sunrise are
            then skipped.
        latitude: Degrees, for recordings whose place is unknown.
        longitude: Degrees, for recordings whose place is unknown.
    """

    name_pattern: NamePattern | None = None
    time_zone: tzinfo | None = None
    from_sunrise: bool = False
    latitude: Latitude | None = None
    longitude: Longitude | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            UserError: If a value is out of range, or a coordinate is given alone or without `from_sunrise`.
        """
        check_fields(self)
        if (self.latitude is None) != (self.longitude is None):
            raise UserError("one of latitude and longitude is given: expected both")
        if self.latitude is not None and not self.from_sunrise:
            raise UserError("latitude and longitude are only used with from_sunrise: omit them, or add it")

    def find_place(self, path: str, run: RunRecordings | None) -> TimeAndPlace:
        """Returns time and place of a recording: by a pattern that matches its name, in the run, or by its name.

        What the pattern does not read is that of the run: the time zone too, if both show the same time of the clock.
        Nothing is known of a recording if several of the run, of different times, may be meant.

        Args:
            path: The recording.
            run: All recordings of the run; None if unknown.
        """
        name, pattern, zone = name_in(path), self.name_pattern, self.time_zone
        known = None if run is None else run.place(path)
        is_matched = pattern is not None and pattern.match(name) is not None
        reads_time = is_matched and pattern is not None and pattern.has_time
        if run is not None and known is None and not reads_time and run.find(path):
            return TimeAndPlace()
        if known is None or known.start is None:
            found = find_time_and_place(name, pattern=pattern, time_zone=zone)
            if known is None:
                return found
            return replace(found, site=found.site or known.site, latitude=known.latitude, longitude=known.longitude)
        start = known.start
        read = (parse_recording_name(name, pattern) if is_matched else None) or RecordingName(None, None)
        if reads_time and read.start is not None and not _is_clock_of(read.start, start):
            start = read.start
        start = start.replace(tzinfo=zone) if start.tzinfo is None else start
        return replace(known, site=read.site or known.site, zone=zone or known.zone, start=start)

    def begins(self, places: Mapping[str, TimeAndPlace]) -> tuple[dict[str, datetime], str]:
        """Returns the start of each recording whose time is known, and the clock (see `Activity`).

        Args:
            places: Time and place of each recording.
        """
        times = {path: place.times(timedelta(0)) for path, place in places.items()}
        if self.from_sunrise:
            found = {path: self._sun_time(utc, places[path]) for path, (_, utc) in times.items()}
            clock = "sunrise"
        else:
            is_local = any(local is not None for local, _ in times.values())
            found = {path: local if is_local else utc for path, (local, utc) in times.items()}
            clock = "local time" if is_local else "UTC"
        return {path: start for path, start in found.items() if start is not None}, clock

    def _sun_time(self, utc: datetime | None, place: TimeAndPlace) -> datetime | None:
        """Returns the time on a clock that is at midnight at sunrise; its date means nothing. None if unknown."""
        latitude, longitude = place.latitude, place.longitude
        if latitude is None or longitude is None:
            latitude, longitude = self.latitude, self.longitude
        if utc is None or latitude is None or longitude is None:
            return None
        passed = time_from_sunrise(utc, latitude, longitude)
        return None if passed is None else SUNRISE + passed


def _is_clock_of(read: datetime, start: datetime) -> bool:
    """Whether the time in a name is that of a start with a time zone, on its local clock or in UTC."""
    return start.tzinfo is not None and any(is_same_time(read, time) for time in (start, start.astimezone(UTC)))


# What skipped recordings lack.
MISSING = {"sunrise": "UTC time, place or sunrise"}
USUAL_CLOCK = ActivityClock()


def plot_activity(
    detections: str | Path, output: str | Path, *, overwrite: bool = False, clock: ActivityClock = USUAL_CLOCK
) -> Activity:
    """Draws how often each species was detected at each hour of the day or from sunrise, as a heat map.

    If `recordings.csv` of the same run is in the table's folder, colours are detections per analysed hour, so that
    hours with more recordings do not seem more active, and hours without analysed sound are grey (see `failed.csv`).
    Hours are those of `recordings.csv`, otherwise of the recordings' names; recordings without a time are skipped and
    counted in the title. If some have local time and others only UTC, those with UTC are skipped.

    Args:
        detections: A table of detections (see `read_detections`).
        output: PNG, SVG or PDF to write.
        overwrite: Replaces an existing file.
        clock: How hours are found.

    Returns:
        The activity of all species; the picture shows the 40 most frequent ones.

    Raises:
        UserError: If a file cannot be used, or has no detection in a recording whose time is known.
    """
    check_picture(output, overwrite)
    table = read_detections(detections)
    run = read_recordings(Path(detections), table["recording"].unique())
    activity = measure_activity(table, run, detections, clock)
    save_picture(draw_activity(activity), output)
    return activity


def measure_activity(
    table: pd.DataFrame,
    run: RunRecordings | None,
    name: str | Path,
    clock: ActivityClock = USUAL_CLOCK,
) -> Activity:
    """Counts detections by species and hour, by the middle of each detection.

    Args:
        table: See `read_detections`.
        run: All recordings, including those without detections; None if unknown.
        name: Name of the table, for messages.
        clock: How hours are found.

    Raises:
        UserError: If there is no detection, or none is in a recording whose time is known.
    """
    recordings = list(run.duration_s if run is not None else dict.fromkeys(table["recording"]))
    paths = list(dict.fromkeys([*recordings, *table["recording"]]))
    if clock.name_pattern is not None:
        clock.name_pattern.check(map(name_in, paths))
    places = {path: clock.find_place(path, run) for path in paths}
    begins, name_of_clock = clock.begins(places)
    _warn_of_uncertain([path for path in paths if path not in begins], run, name)
    known = table[table["recording"].isin(list(begins))]
    if table.empty and begins:
        raise UserError(f"{name} has no detections: run kenya-birds detect with a lower --threshold")
    if known.empty and clock.from_sunrise:
        raise UserError(
            f"{name} has no detection in a recording whose UTC time, place and sunrise are known: expected utc_time, "
            f"latitude and longitude in {RECORDINGS_TABLE}; give --time_zone for recorders on local clocks, and "
            "--latitude and --longitude"
        )
    if known.empty:
        raise UserError(
            f"{name} has no detection in a recording whose time is known: expected a time in {RECORDINGS_TABLE}, or "
            f"names such as KEN_001_20211207_153852.flac, found {', '.join(sorted(paths)[:3]) or 'no recording'}; "
            "other names need a name pattern (--name_pattern)"
        )
    changes = dict.fromkeys(begins, NO_CHANGE)
    if name_of_clock == "local time":
        lengths_s = {**table.groupby("recording")["end_s"].max(), **({} if run is None else run.duration_s)}
        changes = {path: find_clock_change(places[path], lengths_s[path]) for path in begins}
    row, hour = hours_of(known, begins, changes)
    names = _species_labels(known)
    counts = pd.crosstab(names.iloc[row].reset_index(drop=True), hour % DAY_H).reindex(
        columns=range(DAY_H), fill_value=0
    )
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    analysed_h = None if run is None else _analysed_h(run, begins, changes, name)
    kept = sum(path in begins for path in recordings)
    detections = names.value_counts().reindex(counts.index)
    return Activity(counts, detections, analysed_h, name_of_clock, kept, len(recordings) - kept)


def _species_labels(table: pd.DataFrame) -> pd.Series:
    """Returns the common name of each detection's species, with the code if several codes have this name."""
    species = table[table["code"] != ""].drop_duplicates("code").set_index("code")["common_name"]
    labels = {
        code: f"{short_name(name, MAX_LABEL - len(code) - 3)} ({code})" if is_repeated else name
        for code, name, is_repeated in zip(species.index, species, species.duplicated(keep=False), strict=True)
        if name != ""
    }
    # Selections that somebody drew may have only one of both.
    code = table["code"].where(table["code"] != "", table["common_name"])
    return code.map(lambda code: labels.get(code, code))


def _analysed_h(
    run: RunRecordings, begins: Mapping[str, datetime], changes: Mapping[str, ClockChange], name: str | Path
) -> np.ndarray:
    """Returns the analysed hours in each hour of the day; raises `UserError` if there are none."""
    known_s = [
        part
        for path, duration_s in run.duration_s.items()
        if path in begins
        for stretch_s in analysed_stretches(duration_s, run.gaps.get(path, ()))
        for part in even_parts(begins[path], stretch_s, changes[path])
    ]
    analysed_h = recorded_by_hour(known_s) / 3600
    if not analysed_h.any():
        raise UserError(
            f"{RECORDINGS_TABLE} beside {name} has no analysed sound at a known hour: expected duration_s, and a "
            "time; run kenya-birds detect again"
        )
    return analysed_h


def _warn_of_uncertain(skipped: list[str], run: RunRecordings | None, name: str | Path) -> None:
    """Logs the skipped recordings for which several of the run may be meant."""
    uncertain = [path for path in skipped if run is not None and len(run.find(path)) > 1]
    if uncertain:
        logger.warning(
            "%s: %d recordings are skipped, because several in %s have the same name and end of path (%s): give "
            "detections.csv or detections.parquet",
            name,
            len(uncertain),
            RECORDINGS_TABLE,
            ", ".join(uncertain[:3]),
        )


def shown_hours(analysed_h: np.ndarray | None) -> np.ndarray:
    """Returns the hours of the day in the picture: from the first analysed one to the last, possibly across midnight.

    Four or more consecutive hours without analysed sound become one break. At least six columns are shown, and all 24
    hours if there is no such break, or the analysed hours are unknown.

    Args:
        analysed_h: Hours of analysed sound in each hour of the day, shape `(24,)`; None if unknown.

    Returns:
        int64, in order; `BREAK` is a break.
    """
    analysed = np.arange(DAY_H) if analysed_h is None else np.flatnonzero(analysed_h > 0)
    pauses = np.diff(analysed, append=analysed[0] + DAY_H)  # to the next analysed hour
    if pauses.max() <= MAX_PAUSE_H:
        return np.arange(DAY_H)
    # From the first hour of the day, if midnight is in a break.
    first = 0 if pauses[-1] > MAX_PAUSE_H else int(pauses.argmax()) + 1
    hours: list[int] = []
    for hour, pause in zip(np.roll(analysed, -first).tolist(), np.roll(pauses, -first).tolist(), strict=True):
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


def hour_labels(hours: np.ndarray, *, from_sunrise: bool = False) -> list[str]:
    """Returns the labels at the edges of the columns, shape `(columns + 1,)`.

    Args:
        hours: See `shown_hours`.
        from_sunrise: Whether hours are from sunrise: labels are then minutes, negative before it.
    """
    signed = [hour - DAY_H if from_sunrise and hour >= BEFORE_SUNRISE_H else hour for hour in hours.tolist()]
    labels = []
    for edge in range(len(hours) + 1):
        if edge < len(hours) and hours[edge] != BREAK and (edge == 0 or hours[edge - 1] == BREAK):
            labels.append(signed[edge])
        else:
            labels.append(signed[edge - 1] + 1)
    return [str(60 * label if from_sunrise else label) for label in labels]


@styled(**{"axes.grid": False, "font.size": 9})
def draw_activity(activity: Activity) -> Figure:
    """Draws the heat map of the most frequent species (see `plot_activity`)."""
    counts = activity.counts.iloc[:MAX_SPECIES]
    is_from_sunrise = activity.clock == "sunrise"
    hours = shown_hours(activity.analysed_h)
    if is_from_sunrise and len(hours) == DAY_H and BREAK not in hours:
        hours = np.roll(hours, DAY_H - BEFORE_SUNRISE_H)
    numbers = values = at_hours(counts.to_numpy(dtype=float), hours)
    if activity.analysed_h is None:
        values = np.where(values == 0, np.nan, values)
        most, what = np.nanmax(values), "detections"
    else:
        analysed_h = at_hours(activity.analysed_h, hours)
        values = np.divide(values, analysed_h, out=np.full_like(values, np.nan), where=analysed_h > 0)
        # Hours with little analysed sound have unreliable rates, which must not set the scale.
        well = analysed_h >= MIN_ANALYSED_SHARE * np.median(analysed_h[analysed_h > 0])
        most, what = np.nanmax(values[:, well]), "detections per analysed hour"
    most = most or np.nanmax(values)
    height_inch = 1.9 + ROW_INCH * len(counts)
    width_inch = max(MIN_WIDTH_INCH, NAMES_INCH + CELL_INCH * len(hours))
    figure = Figure(figsize=(width_inch, height_inch), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor("white" if activity.analysed_h is None else GREY)
    # A square-root scale shows rare species next to frequent ones.
    norm = PowerNorm(0.5, vmin=0, vmax=most, clip=True)
    extent = (0, len(hours), len(counts), 0)
    image = axes.imshow(values, cmap="YlGnBu", norm=norm, aspect="auto", extent=extent, interpolation="nearest")
    lines = "#eceef1" if activity.analysed_h is None else "white"
    axes.hlines(np.arange(1, len(counts)), 0, len(hours), colors=lines, linewidth=0.8)
    axes.vlines(np.arange(1, len(hours)), 0, len(counts), colors=lines, linewidth=0.4)
    breaks = np.flatnonzero(hours == BREAK)
    axes.bar(breaks + 0.5, len(counts), width=1, color="white", linewidth=0)
    for row, column in zip(*np.nonzero(numbers > 0), strict=True):
        colour = "white" if _luminance(image.to_rgba(values[row, column])) < MIDDLE_LUMINANCE else "black"
        axes.text(column + 0.5, row + 0.52, f"{numbers[row, column]:,.0f}", ha="center", va="center", fontsize=7,
                  color=colour)  # fmt: skip
    axes.set_yticks(np.arange(len(counts)) + 0.5, [short_name(str(name), MAX_LABEL) for name in counts.index])
    axes.set_xticks(np.arange(len(hours) + 1), hour_labels(hours, from_sunrise=is_from_sunrise))
    axes.tick_params(length=2)
    axes.set_xlabel("minutes from sunrise" if is_from_sunrise else f"hour of the day ({activity.clock})")
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
    detections, recordings = int(activity.detections.sum()), activity.recordings
    lines = [
        f"{counted(detections, 'detection', ',')} of {len(counts)} species in {counted(recordings, 'recording', ',')}",
    ]
    if activity.analysed_h is None:
        lines.append("The analysed time of each hour is unknown.")
    else:
        lines.append("Number: detections. Colour: detections per analysed hour. Grey: nothing analysed.")
    if len(hours) < DAY_H:
        lines.append("Not shown: four or more consecutive hours without analysed sound.")
    if activity.left_out:
        lines.append(
            f"Skipped: {counted(activity.left_out, 'recording', ',')} without "
            f"{MISSING.get(activity.clock, activity.clock)}."
        )
    if len(counts) > MAX_SPECIES:
        rest = int(activity.detections.iloc[MAX_SPECIES:].sum())
        lines.append(
            f"Shown: the {MAX_SPECIES} species with the most detections. The others have {rest:,} detections."
        )
    return lines


def _luminance(rgba: np.ndarray) -> float:
    """Returns the relative luminance as WCAG defines it, 0 to 1."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
