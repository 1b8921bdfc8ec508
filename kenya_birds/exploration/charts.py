"""Charts of an archive's report, as SVG."""

import base64
import io
import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from kenya_birds import plot_style
from kenya_birds.inference.activity import at_hours, hour_labels, shown_hours
from kenya_birds.model.signal_kenya_birds import hz_to_mel
from kenya_birds.plot_style import short_name

WIDTH_INCH = 9.0
ROWS_PER_COLUMN = 25
MAX_COLUMNS = 3
ROW_INCH = 0.175
MAX_COLUMN_NAME = 26
# Text is not converted to paths: the file is smaller, and readers can search in it.
styled = plot_style.styled(**{"svg.fonttype": "none", "svg.hashsalt": "kenya_birds", "font.size": 9})


def new_figure(height_inch: float) -> tuple[Figure, Axes]:
    """A figure with the page's width and one axes."""
    figure = Figure(figsize=(WIDTH_INCH, height_inch), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def new_columns(names: Sequence[str]) -> tuple[Figure, list[tuple[Axes, slice]]]:
    """A figure with one row per name in up to three columns, and the rows of each column."""
    columns = min(MAX_COLUMNS, math.ceil(len(names) / ROWS_PER_COLUMN))
    per_column = math.ceil(len(names) / columns)
    figure = Figure(figsize=(WIDTH_INCH, 1.0 + ROW_INCH * per_column), layout="constrained")
    FigureCanvasSVG(figure)
    parts = []
    for column, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        first = column * per_column
        part = [short_name(name, MAX_COLUMN_NAME) for name in names[first : first + per_column]]
        axes.set_yticks(np.arange(len(part)), part, fontsize=8)
        axes.set_ylim(per_column - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        parts.append((axes, slice(first, first + per_column)))
    return figure, parts


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an `svg` element for HTML, without namespaces and metadata; its ids start with `name`."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # A style sheet in one figure would apply to the whole page.
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {}
        for key, value in element.attrib.items():
            key = key.rpartition("}")[2]
            if key == "id":
                value = f"{name}-{value}"
            elif key == "href":
                value = f"#{name}-{value.removeprefix('#')}"
            else:
                value = re.sub(r"url\(#", f"url(#{name}-", value)
            attributes[key] = value
        element.attrib = attributes
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}
    return ElementTree.tostring(root, encoding="unicode")


LEAST_HZ = 20.0  # limits of logarithmic frequency axes
BLUE, ORANGE, RED, GREY = "#2b6ca3", "#c85a00", "#9b2242", "#8a8f98"
LOG_TICKS_HZ = (50, 100, 200, 500, 1000, 2000, 4000, 8000, 16_000, 32_000)
MEL_TICKS_HZ = (500, 1000, 2000, 4000, 8000, 12_000)
LINEAR_TICKS_HZ = (2000, 4000, 6000, 8000, 10_000, 12_000, 14_000)
LABEL_BACKGROUND = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}  # over the dashed line


@styled
def draw_species_counts(counts: pd.Series, first: int, last: int, top: int, bottom: int, min_annotations: int) -> str:
    """Bar chart of annotations per species on a logarithmic axis, from the most frequent to the rarest.

    Args:
        counts: Annotations by species name, descending; the axis covers all of them.
        first: Index of the first species to draw.
        last: Index after the last species to draw.
        top: Species with this many or more annotations are marked.
        bottom: Species with this many or fewer annotations are marked.
        min_annotations: Position of the dashed line.
    """
    drawn = counts.iloc[first:last]
    figure, parts = new_columns(list(drawn.index))
    for axes, rows in parts:
        part = drawn.iloc[rows]
        colours = [ORANGE if n >= top else RED if n <= bottom else BLUE for n in part]
        axes.barh(np.arange(len(part)), part.to_numpy() - 0.5, left=0.5, color=colours, height=0.72)
        for row, n in enumerate(part):
            label = axes.text(n * 1.1, row, str(n), va="center", fontsize=7.5, bbox=LABEL_BACKGROUND)
            label.set_in_layout(False)
        axes.set_xscale("log")
        axes.set_xlim(0.5, counts.iloc[0] * 3)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.axvline(min_annotations, color="black", linewidth=0.8, linestyle="--", zorder=1.5)
        axes.set_xlabel("annotations")
    return to_svg(figure, f"species{first}")


@styled
def draw_durations(durations_s: np.ndarray) -> str:
    """Histogram of the durations of annotations with a start and an end, in seconds."""
    figure, axes = new_figure(2.6)
    low, high = durations_s.min(), durations_s.max()
    logarithmic = 0 < low < high / 10
    axes.hist(durations_s, bins=np.geomspace(low, high, 41).tolist() if logarithmic else 40, color=BLUE)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="end minus start (s)", ylabel="annotations")
    return to_svg(figure, "durations")


@styled
def draw_spectral_ranges(table: pd.DataFrame, central_hz: tuple[float, float]) -> str:
    """Spectral range of each species.

    Args:
        table: The result of `summarize_spectral_ranges`, indexed by species names.
        central_hz: Range of the central 98 % of the centroids of all calls; frequencies outside it are shaded.
    """
    figure, axes = new_figure(1.0 + ROW_INCH * 1.1 * len(table))
    table = table.drop(columns="calls").clip(lower=LEAST_HZ)
    rows = np.arange(len(table))
    axes.hlines(rows, table["least_hz"], table["greatest_hz"], color=GREY, linewidth=1)
    axes.hlines(rows, table["low_hz"], table["high_hz"], color=BLUE, linewidth=5)
    axes.plot(table["centroid_hz"], rows, "o", color="white", markeredgecolor="black", markersize=4)
    axes.set_xscale("log")
    low = max(LEAST_HZ, min(table["least_hz"].min(), central_hz[0]) / 1.15)
    high = max(table["greatest_hz"].max(), central_hz[1]) * 1.15
    axes.axvspan(low, max(central_hz[0], low), color="#eef0f3", zorder=0)
    axes.axvspan(central_hz[1], high, color="#eef0f3", zorder=0)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(LOG_TICKS_HZ))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(rows, [short_name(name) for name in table.index], fontsize=8)
    axes.set_ylim(-0.7, len(table) - 0.3)
    axes.set_xlabel("frequency (Hz)")
    return to_svg(figure, "spectral")


@styled
def draw_levels(levels: pd.DataFrame, first: int, last: int) -> str:
    """Noise floor and level of recordings.

    Args:
        levels: By recording: `floor_dbfs`, `median_dbfs`, `loud_dbfs`; the axis covers all of them.
        first: Index of the first recording to draw.
        last: Index after the last recording to draw.
    """
    drawn = levels.iloc[first:last]
    figure, parts = new_columns(list(drawn.index))
    low, high = levels["floor_dbfs"].min() - 3, levels["loud_dbfs"].max() + 3
    for axes, rows in parts:
        part = drawn.iloc[rows]
        y = np.arange(len(part))
        axes.hlines(y, part["floor_dbfs"], part["loud_dbfs"], color="#b9cde0", linewidth=4)
        axes.plot(part["floor_dbfs"], y, "|", color=RED, markersize=9, markeredgewidth=2, label="noise floor")
        axes.plot(part["median_dbfs"], y, "o", color=BLUE, markersize=4.5, label="median")
        axes.set_xlim(low, high)
        axes.set_xlabel("level (dBFS)")
    figure.legend(*parts[0][0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    return to_svg(figure, f"levels{first}")


@styled
def draw_overlaps(shares: pd.DataFrame) -> str:
    """Bar chart of how many clips contain 1, 2, 3 ... annotations and species.

    Args:
        shares: By number ("1", "2", ..., the last with "or more"): `annotations` and `species`, shares of the clips.
    """
    figure, axes = new_figure(2.9)
    position = np.arange(len(shares))
    for offset, column, colour in ((-0.2, "annotations", BLUE), (0.2, "species", ORANGE)):
        axes.bar(position + offset, 100 * shares[column], width=0.38, color=colour, label=column)
        axes.margins(y=0.1)
        for x, share in zip(position + offset, shares[column], strict=True):
            axes.text(x, 100 * share, f"{100 * share:.0f}" if share else "", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(position, list(shares.index))
    axes.set(xlabel="centred in the clip", ylabel="clips (%)")
    axes.legend(frameon=False)
    return to_svg(figure, "overlaps")


@styled
def draw_activity_along(table: pd.DataFrame) -> str:
    """Annotations per recorded minute, by time from the start of the recording (see `activity_along`)."""
    figure, axes = new_figure(2.6)
    axes.bar(table["start_s"] / 60, table["per_minute"], (table["end_s"] - table["start_s"]) / 60, align="edge",
             color=BLUE, edgecolor="white", linewidth=0.4)  # fmt: skip
    axes.set(xlabel="minutes from the start of the recording", ylabel="annotations per minute")
    axes.set_xlim(0, table["end_s"].iloc[-1] / 60)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return to_svg(figure, "along")


@styled
def draw_activity_by_hour(table: pd.DataFrame, clock: str) -> str:
    """Annotations per recorded minute by hour of the day (see `activity_by_hour`).

    Hours without sound are grey; four or more of them in a row are omitted.

    Args:
        table: 24 rows.
        clock: Time zone of the hours, for the axis.
    """
    figure, axes = new_figure(2.6)
    hours = shown_hours(table["recorded_s"].to_numpy() / 3600)
    recorded_s, per_minute = (at_hours(table[name].to_numpy(), hours) for name in ("recorded_s", "per_minute"))
    places = np.arange(len(hours)) + 0.5
    axes.bar(places[recorded_s == 0], 1, width=1, color="#eef0f3", linewidth=0.5, transform=axes.get_xaxis_transform())
    axes.bar(places, np.nan_to_num(per_minute), width=0.9, color=BLUE)
    axes.set_ylim(0, max(1e-9, 1.1 * table["per_minute"].max()))
    axes.set_xlim(0, len(hours))
    axes.set_xticks(np.arange(len(hours) + 1), hour_labels(hours))
    axes.set(xlabel=f"hour of the day ({clock})", ylabel="annotations per minute")
    return to_svg(figure, "hours")


@styled
def draw_spectrograms(
    spectrograms: Sequence[tuple[str, np.ndarray]], clip_s: float, band_edges_hz: tuple[float, float], mel: bool
) -> str:
    """Spectrograms of one call, stacked vertically, as the data URI of a PNG.

    Args:
        spectrograms: Title and levels in dB, shape `(bands, frames)`, of each spectrogram.
        clip_s: Length of the clip in seconds; the call is in its middle.
        band_edges_hz: Lower edge of the lowest band and upper edge of the highest.
        mel: Whether the bands have equal width on Slaney's mel scale, instead of in Hz.
    """
    height_inch = 0.3 + 2.0 * len(spectrograms)
    figure = Figure(figsize=(3.4, height_inch), dpi=160)
    FigureCanvasAgg(figure)
    # The automatic layout would draw the figure twice.
    figure.subplots_adjust(left=0.14, right=0.97, top=1 - 0.27 / height_inch, bottom=0.43 / height_inch, hspace=0.2)
    panels = figure.subplots(len(spectrograms), sharex=True, squeeze=False)[:, 0]
    low, high = _scale(band_edges_hz, mel)
    ticks = [hz for hz in (MEL_TICKS_HZ if mel else LINEAR_TICKS_HZ) if band_edges_hz[0] <= hz <= band_edges_hz[1]]
    for axes, (title, level_db) in zip(panels, spectrograms, strict=True):
        axes.grid(visible=False)
        axes.imshow(
            level_db,
            origin="lower",
            aspect="auto",
            extent=(0, clip_s, low, high),
            cmap="magma",
            interpolation="nearest",
        )
        axes.plot(clip_s / 2, 1.0, "v", color=ORANGE, clip_on=False, transform=axes.get_xaxis_transform())
        axes.set_yticks(_scale(ticks, mel), [f"{hz / 1000:g}" for hz in ticks])
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_ylabel("kHz")
    panels[-1].set_xlabel("seconds")
    return to_png_uri(figure)


def to_png_uri(figure: Figure) -> str:
    """Returns a figure as the data URI of a PNG, for a page without other files."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None}, pil_kwargs=plot_style.PNG_ENCODER)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _scale(frequency_hz: Sequence[float], mel: bool) -> list[float]:
    values = torch.tensor(frequency_hz, dtype=torch.float32)
    return (hz_to_mel(values) if mel else values).tolist()
