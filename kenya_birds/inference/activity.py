"""Who is heard at which hour of the day, as a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePath

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from kenya_birds.data.recording_name import DAY_H, parse_recording_name, recorded_by_hour
from kenya_birds.errors import UserError
from kenya_birds.inference.pictures import check_picture, save_picture
from kenya_birds.inference.reading import read_detections
from kenya_birds.inference.table_formats import RECORDINGS_TABLE
from kenya_birds.plot_style import short_name, styled

MAX_SPECIES = 40
WIDTH_INCH, ROW_INCH = 11.0, 0.24
GREY = "#d9dce1"


@dataclass(frozen=True)
class Activity:
    """Detections by species and hour of the day.

    Attributes:
        counts: Detections, one row a species by name, from many to few, and 24 columns.
        recorded_h: Hours recorded at each hour of the day, shape `(24,)`; None where it is not known.
        clock: Which time the hours are in: `local time` or `UTC`.
        recordings: Number of recordings that it is about.
        left_out: Number of recordings whose names do not tell the time, or another clock's.
    """

    counts: pd.DataFrame
    recorded_h: np.ndarray | None
    clock: str
    recordings: int
    left_out: int


def plot_activity(detections: str | Path, output: str | Path, *, overwrite: bool = False) -> Activity:
    """Draws how often each species was detected at each hour of the day, as a heat map.

    Where `recordings.csv` lies beside the table, as `write_tables` leaves it, colours are detections per recorded
    hour, so that hours in which more was recorded do not look livelier, and hours without a recording are grey. The
    hours are those of the recordings' names; recordings whose names do not tell are left out, and counted in the
    title. Where some names are in local time and some in UTC, those in UTC are left out.

    Args:
        detections: A table of detections (see `read_detections`).
        output: PNG, SVG or PDF to write.
        overwrite: Whether a file that is there already is replaced.

    Returns:
        What was drawn; all species, of which the 40 most frequent are in the picture.

    Raises:
        UserError: If a file cannot be used, or has no detection in a recording whose name tells when it was made.
    """
    check_picture(output, overwrite)
    table = read_detections(detections)
    activity = measure_activity(table, _durations(Path(detections), table), detections)
    save_picture(_draw(activity), output)
    return activity


def measure_activity(table: pd.DataFrame, duration_s: Mapping[str, float] | None, name: str | Path) -> Activity:
    """Counts detections by species and hour of the day, each at the hour of its middle.

    Args:
        table: See `read_detections`.
        duration_s: Length of all recordings, also those without a detection; None where it is not known.
        name: The table's, for messages.

    Raises:
        UserError: If no detection is in a recording whose name tells when it was made.
    """
    recordings = list(duration_s if duration_s is not None else dict.fromkeys(table["recording"]))
    starts = {recording: _start(recording) for recording in dict.fromkeys([*recordings, *table["recording"]])}
    clock = None if any(start is not None and start.tzinfo is None for start in starts.values()) else UTC
    begins = {path: start for path, start in starts.items() if start is not None and start.tzinfo is clock}
    known = table[table["recording"].isin(list(begins))]
    if known.empty:
        raise UserError(
            f"{name} has no detection in a recording whose name tells when it was made, as "
            "KEN_001_20211207_153852.flac does: there is no hour of the day to draw "
            f"(found {', '.join(sorted(starts)[:3]) or 'nothing'})"
        )
    begin_s = known["recording"].map({path: _second_of_day(start) for path, start in begins.items()})
    hour = ((begin_s + (known["start_s"] + known["end_s"]) / 2) // 3600 % DAY_H).astype(int)
    names = known["common_name"].where(known["common_name"] != "", known["code"])
    counts = pd.crosstab(names, hour).reindex(columns=range(DAY_H), fill_value=0)
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    recorded_h = None
    if duration_s is not None:
        known_s = [(begins[path], seconds) for path, seconds in duration_s.items() if path in begins]
        recorded_h = recorded_by_hour(known_s) / 3600
    kept = sum(path in begins for path in recordings)
    return Activity(counts, recorded_h, "UTC" if clock else "local time", kept, len(recordings) - kept)


def _start(recording: str) -> datetime | None:
    parsed = parse_recording_name(PurePath(recording).name)
    return None if parsed is None else parsed.start


def _second_of_day(time: datetime) -> int:
    return time.hour * 3600 + time.minute * 60 + time.second


def _durations(detections: Path, table: pd.DataFrame) -> dict[str, float] | None:
    """Lengths of recordings in the table beside this one; None if there is none, or it is of another run."""
    path = detections.parent / RECORDINGS_TABLE
    if not path.is_file():
        return None
    try:
        rows = pd.read_csv(path, dtype={"recording": str}, keep_default_na=False)
        durations = dict(zip(rows["recording"], rows["duration_s"].astype(float), strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): mend it, or move it away") from None
    # Raven's table has absolute paths.
    listed = {PurePath(recording).name for recording in durations}
    return durations if {PurePath(recording).name for recording in table["recording"].unique()} <= listed else None


@styled(**{"axes.grid": False, "font.size": 9})
def _draw(activity: Activity) -> Figure:
    counts = activity.counts.iloc[:MAX_SPECIES]
    values = counts.to_numpy(dtype=float)
    recorded_h = activity.recorded_h
    if recorded_h is None:
        ground, what, note = "white", "detections", "how much was recorded at each is not known"
        values[values == 0] = np.nan
    else:
        ground, what, note = GREY, "detections per recorded hour (in the cells: detections)", "grey: not recorded"
        values = np.divide(values, recorded_h, out=np.full_like(values, np.nan), where=recorded_h > 0)
    figure = Figure(figsize=(WIDTH_INCH, 1.5 + ROW_INCH * len(counts)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor(ground)
    # By the square root, so that rare species can be seen beside frequent ones.
    norm = PowerNorm(0.5, vmin=0, vmax=np.nanmax(values))
    image = axes.imshow(values, cmap="YlGnBu", norm=norm, aspect="auto", extent=(0, DAY_H, len(counts), 0))
    lines = "#eceef1" if ground == "white" else "white"
    axes.hlines(np.arange(1, len(counts)), 0, DAY_H, colors=lines, linewidth=0.8)
    axes.vlines(np.arange(1, DAY_H), 0, len(counts), colors=lines, linewidth=0.4)
    numbers = counts.to_numpy()
    for row, hour in zip(*np.nonzero(numbers), strict=True):
        dark = norm(values[row, hour]) > 0.55
        axes.text(hour + 0.5, row + 0.52, str(numbers[row, hour]), ha="center", va="center", fontsize=7,
                  color="white" if dark else "#30343a")  # fmt: skip
    axes.set_yticks(np.arange(len(counts)) + 0.5, [short_name(str(name), 32) for name in counts.index])
    axes.set_xticks(range(0, DAY_H + 1, 2), [f"{hour}" for hour in range(0, DAY_H + 1, 2)])
    axes.tick_params(length=2)
    axes.set_xlabel(f"hour of the day ({activity.clock}; {note})")
    axes.set_title(_title(activity), loc="left", fontsize=10)
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=30, fraction=0.04)
    bar.set_label(what, fontsize=8)
    bar.outline.set_visible(False)
    return figure


def _title(activity: Activity) -> str:
    counts = activity.counts
    title = f"{counts.to_numpy().sum():,} detections of {len(counts)} species in {activity.recordings:,} recordings"
    if activity.left_out:
        title += f"; {activity.left_out:,} recordings without {activity.clock} in their names are left out"
    if len(counts) > MAX_SPECIES:
        rest = counts.iloc[MAX_SPECIES:].to_numpy().sum()
        title += f"\nshown are the {MAX_SPECIES} most frequent; the others have {rest:,} detections"
    return title
