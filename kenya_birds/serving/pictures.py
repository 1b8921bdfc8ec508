"""Pictures of the page: the spectrogram of a section with its detections, and a timeline of the whole recording."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from kenya_birds.inference.detections import Detection
from kenya_birds.inference.plots import draw_section
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.plot_style import SpeciesStyle, save_picture, short_name, styled
from kenya_birds.serving.analysis import clock

SECTION_S = 30.0
MAX_SPECIES = 20
WIDTH_INCH, ROW_INCH = 11.0, 0.24
# matplotlib's style is global.
_drawing = threading.Lock()


def picture_of_section(
    recording: Path,
    detections: Sequence[Detection],
    names: Mapping[str, SpeciesNames],
    styles: Mapping[str, SpeciesStyle],
    start_s: float,
    output: Path,
) -> None:
    """Draws the spectrogram of 30 s, or up to the recording's end, with a labelled bar for each detection.

    Args:
        recording: The recording.
        detections: Detections of the whole recording.
        names: Names by code.
        styles: Colours by code.
        start_s: Start of the section.
        output: PNG to write.

    Raises:
        UserError: If the recording cannot be read there.
    """
    near = [one for one in detections if one.end_s > start_s and one.start_s < start_s + SECTION_S]
    table = pd.DataFrame(
        [(one.start_s, one.end_s, one.species, names[one.species].common_name, one.score) for one in near],
        columns=["start_s", "end_s", "code", "common_name", "score"],
    )
    with _drawing:
        save_picture(draw_section(recording, table, start_s, SECTION_S, styles)[0], output)


def picture_of_whole(
    duration_s: float,
    detections: Sequence[Detection],
    names: Mapping[str, SpeciesNames],
    styles: Mapping[str, SpeciesStyle],
    output: Path,
) -> None:
    """Draws a timeline with one row per species, in its colour.

    Args:
        duration_s: Length of the recording.
        detections: Detections of the whole recording. The 20 species with the most detections are drawn.
        names: Names by code.
        styles: Colours by code.
        output: PNG to write.
    """
    with _drawing:
        save_picture(_timeline(duration_s, detections, names, styles), output)


def species_of_timeline(detections: Sequence[Detection]) -> list[str]:
    """Returns the codes of the species in the picture of the whole recording, those with the most detections first."""
    counts = Counter(one.species for one in detections)
    return sorted(counts, key=lambda code: (-counts[code], code))[:MAX_SPECIES]


@styled(**{"axes.grid": False, "font.size": 9})
def _timeline(
    duration_s: float,
    detections: Sequence[Detection],
    names: Mapping[str, SpeciesNames],
    styles: Mapping[str, SpeciesStyle],
) -> Figure:
    most = species_of_timeline(detections)
    figure = Figure(figsize=(WIDTH_INCH, 0.6 + ROW_INCH * max(1, len(most))), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    least_s = duration_s / 1000  # keeps short detections visible
    for row, code in enumerate(most):
        found = [one for one in detections if one.species == code]
        spans = [(one.start_s, max(one.end_s - one.start_s, least_s)) for one in found]
        colour, hatch = styles[code]
        axes.broken_barh(
            spans, (row + 0.14, 0.72), facecolor=(colour, 0.6), edgecolor=colour, hatch=hatch, linewidth=0.8
        )
    axes.set_yticks([row + 0.5 for row in range(len(most))], [short_name(names[code].common_name) for code in most])
    axes.set(xlim=(0, duration_s), ylim=(max(1, len(most)), 0))
    axes.xaxis.set_major_locator(MaxNLocator(12, steps=[1, 1.2, 1.5, 2, 3, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: clock(value, duration_s).removesuffix(".0")))
    axes.hlines(range(1, len(most)), 0, duration_s, colors="#dfe3e8", linewidth=0.6)
    axes.tick_params(length=2)
    return figure
