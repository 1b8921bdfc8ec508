"""Clips of detections for listening: short sound files and their spectrograms."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import soundfile
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from kenya_birds.data.audio import RecordingReader, UndecodableError
from kenya_birds.errors import UserError
from kenya_birds.files import users_file
from kenya_birds.inference.plots import draw_levels, read_levels, read_with_zeros, shown_range
from kenya_birds.inference.sources import find_sources
from kenya_birds.plot_style import save_picture, styled
from kenya_birds.verification.moved_recordings import SAME_LENGTH_S

logger = logging.getLogger(__name__)

ClipFormat = Literal["flac", "wav"]
CLIPS_FOLDER, PICTURES_FOLDER = "clips", "pictures"
PEAK_DBFS = -1.0
WIDTH_INCH, HEIGHT_INCH, DPI = 6.4, 2.8, 100
AXES = (0.07, 0.09, 0.9, 0.88)  # left, bottom, width and height as shares of the picture
BOX_COLOUR = "#c2185b"


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut.

    Attributes:
        context_s: Sound before and after the detection, in seconds.
        clip_format: `flac` or `wav`, with 16 bits.
        channel: See `RecordingReader`: the channel that the detection run read.
        pictures: Whether spectrograms are drawn.
    """

    context_s: float = 2.0
    clip_format: ClipFormat = "flac"
    channel: str | None = None
    pictures: bool = True


def write_clips(
    folder: Path, rows: pd.DataFrame, recordings: Mapping[str, str], lengths_s: Mapping[str, float], how: ClipSettings
) -> list[str]:
    """Writes clips and pictures that do not exist yet; each recording is opened once.

    A clip has its peak at -1 dBFS and the sampling rate of the recording.

    Args:
        folder: Folder of the sample.
        rows: Drawn detections (see `read_rows`).
        recordings: Path or URL of each recording.
        lengths_s: Length of each recording when it was analysed, where it is known.
        how: How clips are cut.

    Returns:
        Ids of detections whose sound cannot be decoded; they have no clip.

    Raises:
        UserError: If a recording cannot be opened or has another length, or a file cannot be written.
    """
    for name in (CLIPS_FOLDER, PICTURES_FOLDER)[: 1 + how.pictures]:
        (folder / name).mkdir(parents=True, exist_ok=True)
    is_made = [
        (folder / clip).is_file() and (not how.pictures or (folder / picture).is_file())
        for clip, picture in zip(rows["clip"], rows["picture"], strict=True)
    ]
    todo = rows[~np.array(is_made, dtype=bool)].sort_values(["recording", "start_s"])
    lost: list[str] = []
    with tqdm(total=len(todo), desc="Writing clips", unit="clip", disable=None) as bar:
        for key, its in todo.groupby("recording", sort=False):
            name = str(key)
            (source,) = find_sources([recordings[name]])
            with source.local_path() as path, RecordingReader(path, channel=how.channel) as reader:
                check_length(name, reader, lengths_s.get(name))
                for row in its.itertuples():
                    try:
                        _write_clip(folder, row, reader, how)
                    except UndecodableError as error:
                        lost.append(str(row.id))
                        logger.warning("No clip of %s from %.3f s: %s", name, row.start_s, error)
                    bar.update()
    return lost


def check_length(name: str, reader: RecordingReader, length_s: float | None) -> None:
    """Raises `UserError` if a recording is not as long as the one that was analysed.

    Args:
        name: Path of the one that was analysed.
        reader: The recording.
        length_s: Length of the one that was analysed; None: unknown.
    """
    found_s = reader.header.duration_s
    if length_s is not None and abs(found_s - length_s) > SAME_LENGTH_S:
        raise UserError(
            f"the recording {reader.path} is {found_s:.3f} s long, and {name} was {length_s:.3f} s long when it was "
            "analysed: it is another recording; give the folder of the right ones with --recordings"
        )


def clip_span(start_s: float, end_s: float, context_s: float) -> tuple[float, float]:
    """Start and length of the clip of a detection, in seconds; a clip does not begin before its recording."""
    first_s = max(0.0, start_s - context_s)
    return first_s, end_s + context_s - first_s


def read_clip(reader: RecordingReader, section_s: tuple[float, float], detection_s: tuple[float, float]) -> np.ndarray:
    """Reads the sound of a clip, with zeros where only the context of the detection cannot be decoded.

    Args:
        reader: The recording, at its own sampling rate.
        section_s: Start and end of the clip.
        detection_s: Start and end of the detection.

    Returns:
        Shape `(samples,)`.

    Raises:
        UndecodableError: If a part of the detection cannot be decoded.
    """
    rate = reader.sampling_rate
    first, samples = round(section_s[0] * rate), round((section_s[1] - section_s[0]) * rate)
    try:
        return reader.read(first, samples)
    except UndecodableError:
        reader.read(round(detection_s[0] * rate), round((detection_s[1] - detection_s[0]) * rate))
        return read_with_zeros(reader, first, samples)[0]


def _write_clip(folder: Path, row: Any, reader: RecordingReader, how: ClipSettings) -> None:
    """Writes the clip and the picture of a row; raises `UndecodableError`."""
    start_s, end_s = float(row.start_s), float(row.end_s)
    first_s, length_s = clip_span(start_s, end_s, how.context_s)
    length_s = min(length_s, reader.header.duration_s - first_s)
    rate = reader.sampling_rate
    sound = read_clip(reader, (first_s, first_s + length_s), (start_s, end_s))
    write_clip(sound, rate, folder / str(row.clip), how.clip_format)
    if how.pictures:
        section_s = (first_s, first_s + length_s)
        draw_clip(folder / str(row.clip), folder / str(row.picture), section_s, (start_s, end_s))


def write_clip(sound: np.ndarray, sampling_rate: int, path: Path, clip_format: ClipFormat) -> None:
    """Writes a clip with its peak at -1 dBFS and 16 bits.

    Args:
        sound: Samples of any scale, shape `(samples,)`.
        sampling_rate: In Hz.
        path: The file.
        clip_format: Its format.

    Raises:
        UserError: If the file cannot be written.
    """
    peak = float(np.abs(sound).max(initial=0.0))
    scaled = sound * (10 ** (PEAK_DBFS / 20) / peak) if peak > 0 else sound
    with users_file(path) as partial:
        soundfile.write(partial, scaled, sampling_rate, format=clip_format.upper(), subtype="PCM_16")


def draw_clip(
    clip: Path, picture: Path, section_s: tuple[float, float], detection_s: tuple[float, float] | None
) -> None:
    """Draws the spectrogram of a clip.

    Args:
        clip: The clip.
        picture: The picture, a PNG.
        section_s: Times of its start and end, for the axis.
        detection_s: Start and end of the dashed box; None: no box.

    Raises:
        UserError: If the picture cannot be written.
    """
    # The clip is short and not compressed with loss: reading it again is quicker than seeking in the recording.
    with RecordingReader(clip) as reader:
        levels = read_levels(reader, 0.0, section_s[1] - section_s[0])
        figure = _draw(levels, section_s, detection_s, reader.sampling_rate)
    save_picture(figure, picture)


@styled(**{"axes.grid": False, "font.size": 9})
def _draw(
    levels_db: np.ndarray,
    section_s: tuple[float, float],
    detection_s: tuple[float, float] | None,
    sampling_rate: int,
) -> Figure:
    """Draws the spectrogram of a clip, with lines where the detection begins and ends, without species and score."""
    figure = Figure(figsize=(WIDTH_INCH, HEIGHT_INCH), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes(AXES)
    draw_levels(axes, levels_db, section_s, sampling_rate, shown_range(levels_db))
    if detection_s is not None:
        axes.axvspan(*detection_s, facecolor="none", edgecolor=BOX_COLOUR, linewidth=1.2, linestyle=(0, (4, 3)))
    return figure
