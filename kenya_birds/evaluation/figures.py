"""Pictures of results."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

MAX_CLASSES_WITH_COUNTS = 40


def save_confusion_matrix(
    references: np.ndarray, predictions: np.ndarray, class_names: Sequence[str], path: str | Path
) -> None:
    """Draws a confusion matrix whose rows (true classes) are normalised to 1.

    Every class has a row and a labelled line, so the picture grows with the number of classes; up to 40 classes, the
    cells hold the counts. Classes without a clip are grey.

    Args:
        references: True class ids, shape `(clips,)`.
        predictions: Predicted class ids, shape `(clips,)`.
        class_names: Names by class id.
        path: PNG file to write.
    """
    classes = len(class_names)
    counts = confusion_matrix(references, predictions, labels=np.arange(classes))
    clips = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, clips, out=np.full(counts.shape, np.nan), where=clips > 0)

    cell_inch = 0.42 if classes <= MAX_CLASSES_WITH_COUNTS else 0.16
    side_inch = cell_inch * classes
    figure = Figure(figsize=(side_inch + 3.2, side_inch + 2.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    font_size = cell_inch * 72 * 0.5 if classes <= MAX_CLASSES_WITH_COUNTS else cell_inch * 72 * 0.72
    font_size = min(font_size, 9.0)
    axes.set_xticks(np.arange(classes), class_names, rotation=90, fontsize=font_size)
    axes.set_yticks(
        np.arange(classes),
        [f"{name} ({n})" for name, n in zip(class_names, clips[:, 0], strict=True)],
        fontsize=font_size,
    )
    axes.set_xlabel("predicted")
    axes.set_ylabel("true (clips)")
    if classes <= MAX_CLASSES_WITH_COUNTS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=font_size, color=colour)
    else:
        # A line every ten classes, to follow a row to its name.
        lines = np.arange(9.5, classes, 10)
        axes.hlines(lines, -0.5, classes - 0.5, color="0.6", linewidth=0.4)
        axes.vlines(lines, -0.5, classes - 0.5, color="0.6", linewidth=0.4)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=min(1.0, 6 / side_inch), aspect=30)
    figure.savefig(path, format="png", bbox_inches="tight")
