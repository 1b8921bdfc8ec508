"""The ground that the report's pictures stand on: one style, figures with rows in columns, SVG for a page."""

import io
import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from kenya_birds import plot_style
from kenya_birds.plot_style import short_name

WIDTH_INCH = 9.0
ROWS_PER_COLUMN = 25
MAX_COLUMNS = 3
ROW_INCH = 0.175
MAX_COLUMN_NAME = 26
# Text stays text: small, and it can be searched.
styled = plot_style.styled(**{"svg.fonttype": "none", "svg.hashsalt": "kenya_birds", "font.size": 9})


def new_figure(height_inch: float) -> tuple[Figure, Axes]:
    """A figure of the page's width, with one pair of axes."""
    figure = Figure(figsize=(WIDTH_INCH, height_inch), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def new_columns(names: Sequence[str]) -> tuple[Figure, list[tuple[Axes, slice]]]:
    """A figure with a row for each name, in up to three columns, and which rows are in which."""
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
    """The figure as an `svg` element for HTML: no namespaces, no metadata, and ids that begin with `name`."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # The style sheet of one picture would hold for the whole page.
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
