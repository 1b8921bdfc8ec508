"""Spectrograms of recordings with bars for detections."""

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kenya_birds.data.audio import RecordingReader
from kenya_birds.data.recorder_header import read_recorder_header
from kenya_birds.data.recording_time import find_time_and_place
from kenya_birds.defaults import PLOT_DURATION_S
from kenya_birds.errors import UserError
from kenya_birds.files import check_picture
from kenya_birds.inference.annotation_boxes import annotations_of
from kenya_birds.inference.detection_boxes import Box, cut, join, stack
from kenya_birds.inference.detections import name_in
from kenya_birds.inference.table_reader import read_detections
from kenya_birds.model.signal_kenya_birds import power_spectrogram
from kenya_birds.plot_style import SpeciesStyle, save_picture, short_name, species_styles, styled
from kenya_birds.values import Channel, PlotDuration, Seconds, checked

LEAD_S = 1.0  # shown before the first detection
# A picture has up to 8 rows; with 15 s per row, the label of a detection of 3 s fits.
MAX_ROWS = 8
ROW_S = 15.0
WIDTH_INCH, LEFT_INCH, RIGHT_INCH, TOP_INCH = 11.0, 0.6, 0.25, 0.45
SPECTROGRAM_INCH, LANE_INCH, GAP_INCH, PAD_INCH = 1.15, 0.165, 0.36, 0.03
WINDOW_S = 0.03  # of the Fourier transform, at most
COLUMNS = 1600  # of a row
MAX_HZ = 15_000
LABEL_SIZE, TITLE_SIZE, KEY_SIZE = 7.5, 10, 8
KEY, TITLE_GAP_INCH, MAX_TITLE_NAME = "boxes: annotations", 0.2, 70
LABEL_BOX = {"facecolor": "white", "alpha": 0.9, "edgecolor": "none", "pad": 0.6}  # over hatches and lines
DAMAGED = "#f7dc6f"
ANNOTATED = "#c2185b"
MIN_SHARE_OF_POWER = 1e-12  # of a row's loudest cell
QUIET_SHARE, LOUD_SHARE, MIN_RANGE_DB = 0.3, 0.999, 25.0


@checked
def plot_recording(
    recording: str | Path,
    detections: str | Path,
    output: str | Path,
    *,
    start_s: Seconds | None = None,
    duration_s: PlotDuration = PLOT_DURATION_S,
    annotations: str | Path | None = None,
    channel: Channel | None = None,
    overwrite: bool = False,
) -> tuple[float, float]:
    """Draws the spectrogram of a section of a recording, in rows, with a labelled bar above it for each detection.

    A bar shows when a species was detected; dashed lines mark its start and end in the spectrogram. Overlapping
    detections of a species share a bar with the highest score. A species has the same colour in every section of a
    recording. Only the section is read; sound that cannot be decoded is marked.

    Args:
        recording: The recording.
        detections: A table of detections of this and possibly other recordings (see `read_detections`).
        output: PNG, SVG or PDF to write.
        start_s: Start of the section in seconds; by default one second before the first detection.
        duration_s: Length in seconds, up to 600; the section ends with the recording at the latest.
        annotations: An archive or a table of annotations (see `annotations_of`), drawn as boxes in the spectrogram,
            over all frequencies where these are unknown; a line for a point in time. Boxes above the picture's
            frequencies are skipped.
        channel: See `RecordingReader`.
        overwrite: Replaces an existing file.

    Returns:
        Start and end of the section in seconds.

    Raises:
        UserError: If a file cannot be used, the table has no detections of the recording, or the section is outside
            it.
    """
    check_picture(output, overwrite)
    found = detections_of(recording, read_detections(detections), detections)
    annotated = None if annotations is None else annotations_of(recording, annotations)
    begin_s = max(0.0, found["start_s"].min() - LEAD_S) if start_s is None else start_s
    styles = species_styles(
        found["code"].value_counts().sort_index().sort_values(ascending=False, kind="stable").index
    )
    figure, end_s = draw_section(recording, found, begin_s, duration_s, styles, annotations=annotated, channel=channel)
    save_picture(figure, output)
    return begin_s, end_s


def draw_section(
    recording: str | Path,
    detections: pd.DataFrame,
    start_s: float,
    duration_s: float,
    styles: Mapping[str, SpeciesStyle],
    annotations: pd.DataFrame | None = None,
    channel: str | None = None,
) -> tuple[Figure, float]:
    """Draws the picture of `plot_recording`, in which sound that cannot be decoded is marked.

    Args:
        recording: The recording.
        detections: Detections of this recording, possibly none (see `read_detections`).
        start_s: Start of the section in seconds.
        duration_s: Length in seconds; the section ends with the recording at the latest.
        styles: Style of each species by eBird code.
        annotations: Annotations of this recording (see `annotations_of`).
        channel: See `RecordingReader`.

    Returns:
        The picture, and the end of the section.

    Raises:
        UserError: If the recording cannot be opened, or the section is outside it.
    """
    with RecordingReader(Path(recording), channel=channel) as reader:
        end_s = min(start_s + duration_s, reader.header.duration_s)
        if not 0 <= start_s < end_s:
            raise UserError(
                f"start_s is {start_s:g}: expected 0 to less than {reader.header.duration_s:g}, the end of {recording}"
            )
        number = min(MAX_ROWS, math.ceil((end_s - start_s) / ROW_S))
        row_s = (end_s - start_s) / number
        rows = [(start_s + n * row_s, read_levels(reader, start_s + n * row_s, row_s)) for n in range(number)]
    return _draw(rows, row_s, join(detections), styles, Path(recording), reader.sampling_rate, annotations), end_s


def detections_of(recording: str | Path, table: pd.DataFrame, name: str | Path) -> pd.DataFrame:
    """Selects the detections of one recording, by its path, or otherwise by its file name if that is unique.

    Args:
        recording: The recording.
        table: Result of `read_detections`.
        name: Name of the table, for messages.

    Raises:
        UserError: If there are none, or several recordings have this file name.
    """
    paths = table["recording"].unique()
    same = [path for path in paths if Path(path).resolve() == Path(recording).resolve()]
    same = same or [path for path in paths if name_in(path) == name_in(str(recording))]
    if len(same) > 1:
        raise UserError(
            f"{name} has detections of {' and '.join(same[:3])}: give the recording's path as in the table"
        )
    if not same:
        others = ", ".join(sorted(paths)[:3]) or "no recording"
        raise UserError(f"{name} has no detections of {recording}: found {others}")
    return table[table["recording"] == same[0]]


def read_levels(reader: RecordingReader, start_s: float, duration_s: float) -> np.ndarray:
    """Reads the levels of a section in dB, for a spectrogram.

    Args:
        reader: The recording.
        start_s: Start of the section; the section may reach past the recording.
        duration_s: Its length.

    Returns:
        float32 of shape `(bins, columns)`, from 0 Hz to half the sampling rate. Columns in which sound cannot be
        decoded are NaN.
    """
    rate = reader.sampling_rate
    n_fft = 1 << int(math.log2(WINDOW_S * rate))
    hop = max(1, min(n_fft // 2, round(duration_s * rate / COLUMNS)))
    # The margin keeps the transform's mirrored padding out of the picture.
    margin = n_fft // hop + 1
    frames = math.ceil(duration_s * rate / hop)
    sound, is_lost = read_with_zeros(reader, round(start_s * rate) - margin * hop, (frames + 2 * margin) * hop)
    waveform = torch.from_numpy(sound)[None]
    with torch.inference_mode():
        power = power_spectrogram(waveform, n_fft, hop)[0, :, margin : margin + frames].numpy()
    # The maximum keeps short loud sounds visible if several frames are one column.
    joined = max(1, math.ceil(frames / COLUMNS))
    first_frames = np.arange(0, frames, joined)
    columns = np.maximum.reduceat(power, first_frames, axis=1)
    # Avoids the logarithm of zero.
    columns = np.maximum(columns, max(columns.max() * MIN_SHARE_OF_POWER, np.finfo(np.float32).tiny))
    lost_frames = is_lost[margin * hop : (margin + frames) * hop].reshape(frames, hop).max(axis=1)
    columns[:, np.maximum.reduceat(lost_frames, first_frames)] = np.nan
    return 10 * np.log10(columns)


def read_with_zeros(reader: RecordingReader, first: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads a window of a recording that may be damaged.

    Args:
        reader: The recording, at its own sampling rate.
        first: First sample; may be negative.
        samples: Number of samples; the window may reach past the end.

    Returns:
        Sound, with zeros for missing sound, and a mask of undecodable samples; both of shape `(samples,)`.
    """
    sound, is_lost = np.zeros(samples, dtype=np.float32), np.zeros(samples, dtype=bool)
    for block in reader.blocks(samples, max(first, 0), first + samples):
        place = slice(block.start - first, block.start - first + block.frames)
        if block.sound is None:
            is_lost[place] = True
        else:
            sound[place] = block.sound
    return sound, is_lost


@styled(**{"axes.grid": False, "font.size": 9})
def _draw(
    rows: Sequence[tuple[float, np.ndarray]],
    row_s: float,
    found: Sequence[Box],
    styles: Mapping[str, SpeciesStyle],
    recording: Path,
    sampling_rate: int,
    annotations: pd.DataFrame | None,
) -> Figure:
    figure = Figure(figsize=(WIDTH_INCH, 1), dpi=150)
    canvas = FigureCanvasAgg(figure)
    seconds_per_inch = row_s / (WIDTH_INCH - LEFT_INCH - RIGHT_INCH)
    boxes, left_out = [], 0
    for first, _ in rows:
        in_row = cut(found, first, first + row_s)
        widths_s = [(_label_inch(canvas, box.label) + 2 * PAD_INCH) * seconds_per_inch for box in in_row]
        boxes.append(stack(in_row, widths_s, first, first + row_s))
        left_out += len(in_row) - len(boxes[-1])

    lanes = [max((box.lane + 1 for box in row), default=1) for row in boxes]
    height_inch = TOP_INCH + sum(lanes) * LANE_INCH + len(rows) * (SPECTROGRAM_INCH + GAP_INCH)
    figure.set_size_inches(WIDTH_INCH, height_inch)
    levels_db = np.concatenate([levels.ravel()[::7] for _, levels in rows])
    notes = [f"not shown: {left_out:,} with the lowest scores"] if left_out else []
    if np.isnan(levels_db).any():
        notes.append("yellow: damaged, cannot be read")
    left, title_inch = LEFT_INCH / WIDTH_INCH, 0.15 if notes else 0.22
    room_inch = WIDTH_INCH - LEFT_INCH - RIGHT_INCH
    if annotations is not None:
        room_inch -= _label_inch(canvas, KEY, size=KEY_SIZE) + TITLE_GAP_INCH
    title = _title(canvas, recording, (rows[0][0], rows[-1][0] + row_s), room_inch)
    figure.text(left, 1 - title_inch / height_inch, title, fontsize=TITLE_SIZE, weight="bold", va="center")
    if annotations is not None:
        right, top = 1 - RIGHT_INCH / WIDTH_INCH, 1 - 0.22 / height_inch
        figure.text(right, top, KEY, fontsize=KEY_SIZE, color=ANNOTATED, ha="right", va="center")
    if notes:
        figure.text(left, 1 - 0.34 / height_inch, "; ".join(notes), fontsize=8, va="center")

    limits_db = shown_range(levels_db)
    y_inch = height_inch - TOP_INCH
    width = (WIDTH_INCH - LEFT_INCH - RIGHT_INCH) / WIDTH_INCH
    for (first, levels), row, number in zip(rows, boxes, lanes, strict=True):
        y_inch -= number * LANE_INCH + SPECTROGRAM_INCH
        bottoms_and_heights = ((y_inch, SPECTROGRAM_INCH), (y_inch + SPECTROGRAM_INCH, number * LANE_INCH))
        axes, above = (
            figure.add_axes((left, bottom / height_inch, width, height / height_inch))
            for bottom, height in bottoms_and_heights
        )
        draw_levels(axes, levels, (first, first + row_s), sampling_rate, limits_db)
        if annotations is not None:
            _draw_annotations(axes, annotations, first, first + row_s)
        above.set(xlim=axes.get_xlim(), ylim=(0, number))
        above.axis("off")
        _draw_boxes(axes, above, row, styles)
        y_inch -= GAP_INCH
    return figure


def _title(canvas: FigureCanvasAgg, recording: Path, section_s: tuple[float, float], room_inch: float) -> str:
    """The recording, the section, and when the recording begins, if its name or header says so.

    The name is shortened to the room for the title.
    """
    name = name_in(str(recording))
    local, utc = find_time_and_place(name, header=read_recorder_header(recording)).times(timedelta(0))
    start = local or utc
    clock = "" if not start else f", begun {start:%Y-%m-%d %H:%M:%S} {'UTC' if start.tzinfo else 'local time'}"
    titles = (
        f"{short_name(name, most)}   {_minutes(section_s[0])} to {_minutes(section_s[1])}{clock}"
        for most in range(MAX_TITLE_NAME, 0, -1)
    )
    return next(title for title in titles if _label_inch(canvas, title, TITLE_SIZE, "bold") <= room_inch)


def draw_levels(
    axes: Axes,
    levels_db: np.ndarray,
    section_s: tuple[float, float],
    sampling_rate: int,
    limits_db: tuple[float, float],
) -> None:
    """Draws a spectrogram.

    Args:
        axes: The axes.
        levels_db: See `read_levels`.
        section_s: Start and end of the section.
        sampling_rate: Sampling rate of the recording in Hz.
        limits_db: The levels that are white and black.
    """
    axes.imshow(
        levels_db,
        origin="lower",
        aspect="auto",
        extent=(*section_s, 0, sampling_rate / 2),
        cmap=colormaps["Greys"].with_extremes(bad=DAMAGED),
        vmin=limits_db[0],
        vmax=limits_db[1],
    )
    axes.set(xlim=section_s, ylim=(0, min(MAX_HZ, sampling_rate / 2)))
    is_long = section_s[1] - section_s[0] >= 5
    axes.xaxis.set_major_locator(MaxNLocator(15, steps=[1, 2, 5, 10], integer=is_long))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _minutes(value)))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}"))
    axes.tick_params(labelsize=7.5, length=2.5)
    axes.set_ylabel("kHz", fontsize=8)


def _draw_boxes(axes: Axes, above: Axes, boxes: Sequence[Box], styles: Mapping[str, SpeciesStyle]) -> None:
    """Draws labelled bars above the spectrogram, and lines at their starts and ends."""
    pad_s = PAD_INCH * np.ptp(axes.get_xlim()) / (WIDTH_INCH - LEFT_INCH - RIGHT_INCH)
    for box in boxes:
        colour, hatch = styles[box.species]
        for time_s, is_edge in ((box.start_s, box.is_begin), (box.end_s, box.is_end)):
            if is_edge:
                axes.axvline(time_s, color=colour, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7)
                above.plot([time_s, time_s], [0, box.lane + 0.06], color=colour, linewidth=0.9, alpha=0.7,
                           linestyle=(0, (4, 3)), zorder=0.5)  # fmt: skip
        width_s = box.end_s - box.start_s
        background = Rectangle((box.start_s, box.lane + 0.06), width_s, 0.88, facecolor="white", linewidth=0)
        bar = Rectangle((box.start_s, box.lane + 0.06), width_s, 0.88, facecolor=(colour, 0.28), edgecolor=colour,
                        linewidth=0.9, hatch=hatch)  # fmt: skip
        above.add_patch(background)
        above.add_patch(bar)
        above.text(
            box.label_s + pad_s,
            box.lane + 0.47,
            box.label,
            fontsize=LABEL_SIZE,
            va="center_baseline",
            bbox=LABEL_BOX if hatch or box.label_s != box.start_s else None,
        )


def _draw_annotations(axes: Axes, annotations: pd.DataFrame, start_s: float, end_s: float) -> None:
    """Draws the annotations of a row as boxes with their names; those above its highest frequency are skipped."""
    top_hz = 0.99 * axes.get_ylim()[1]
    there = annotations[(annotations["end_s"] >= start_s) & (annotations["start_s"] <= end_s)]
    there = there[~(there["low_hz"] >= top_hz)]  # unknown frequencies are NaN
    numbers = there[["start_s", "end_s", "low_hz", "high_hz"]].to_numpy(dtype=float).tolist()
    for (first_s, last_s, low_hz, high_hz), label in zip(numbers, there["label"], strict=True):
        low_hz = top_hz / 99 if math.isnan(low_hz) else low_hz
        high_hz = top_hz if math.isnan(high_hz) else min(high_hz, top_hz)
        size = last_s - first_s, high_hz - low_hz
        axes.add_patch(Rectangle((first_s, low_hz), *size, fill=False, edgecolor=ANNOTATED, linewidth=1.1))
        at, name = (max(first_s, start_s), high_hz), short_name(label)
        axes.text(*at, f" {name}", fontsize=LABEL_SIZE - 1, va="top", color=ANNOTATED, clip_on=True)


def _label_inch(canvas: FigureCanvasAgg, text: str, size: float = LABEL_SIZE, weight: str = "normal") -> float:
    """Returns the width of a label in inches."""
    properties = FontProperties(size=size, weight=weight)
    width_px, _, _ = canvas.get_renderer().get_text_width_height_descent(text, properties, ismath=False)
    return width_px / canvas.figure.dpi


def shown_range(levels_db: np.ndarray) -> tuple[float, float]:
    """Returns the levels that are drawn white and black."""
    known_db = levels_db[~np.isnan(levels_db)]
    if not len(known_db):
        return 0.0, MIN_RANGE_DB
    quiet, loud = np.quantile(known_db, (QUIET_SHARE, LOUD_SHARE))
    return float(quiet), float(max(loud, quiet + MIN_RANGE_DB))


def _minutes(time_s: float) -> str:
    """Formats a time in a recording as `12:34` or `12:34.5`."""
    minutes, seconds = divmod(round(time_s, 3), 60)
    return f"{int(minutes)}:{seconds:06.3f}".rstrip("0").rstrip(".")
