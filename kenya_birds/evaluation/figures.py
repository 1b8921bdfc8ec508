"""Figures of results, as PNG files. No display is needed."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import precision_recall_curve

from kenya_birds.evaluation.metrics import CALIBRATION_BINS, calibration_bin, expected_calibration_error
from kenya_birds.plot_style import COLOURS, short_name, styled

MAX_COLUMNS_WITH_COUNTS = 40
MAX_CLASSES_NAMED = 12
NAMED_OUTLIERS = 12
MIN_CLIPS_OF_A_LINE = 5
MIN_SCORES_OF_A_BIN = 10  # a bin with fewer is faint
MIN_SPECIES_OF_A_TREND = 30
LINES = ("-", "--", ":")
MAX_NAME = 40
NAME_GAP = 7  # points from a name to the dots of others; its own dot is nearer
MAX_SPECIES = 200  # of a confusion matrix; its memory grows with the square
NOTHING_REPORTED = "nothing reported instead"
RECALL_GRID = np.linspace(0, 1, 201)[1:]
STRONG, SECOND, FAINT, NOTE = "#1f4e8c", "#c8661b", "#8fa3bf", "#38414d"


@styled()
def save_confusions(
    counts: np.ndarray,
    class_names: Sequence[str],
    path: str | Path,
    about: str = "",
    reported_if: str = "its score is above 0.5",
) -> None:
    """Draws a confusion matrix whose rows (true classes) are normalised to 1.

    Confused classes are neighbours (see `confusion_order`), so confusions appear as blocks on the diagonal. Each class
    with clips has a labelled row; each class with clips or predictions has a labelled column. Of more than 200 such
    classes, those with the most confusions are shown. The size of the figure grows with their number; with up to 40
    columns, the cells show the counts. Colours use the square root of the share, so that rare confusions are visible.

    Args:
        counts: See `Predictions.confusions`.
        class_names: Names by class id.
        path: PNG file to write.
        about: What was evaluated, for the title.
        reported_if: When a species is reported, for the notes of a matrix with one more column.
    """
    total = counts.sum(axis=1, keepdims=True)
    used = np.flatnonzero((total[:, 0] > 0) | (counts[:, : len(counts)].sum(axis=0) > 0))
    shown = _most_confused(counts, used)
    with_last = np.append(shown, np.arange(len(counts), counts.shape[1]))
    columns = shown[confusion_order(counts[np.ix_(shown, with_last)])]
    rows = columns[total[columns, 0] > 0]
    multi_label = counts.shape[1] > len(counts)
    if multi_label:
        columns, class_names = np.append(columns, len(counts)), [*class_names, NOTHING_REPORTED]
    clips, counts = total[rows], counts[np.ix_(rows, columns)]
    classes = len(columns)
    shares = counts / clips
    with_counts = classes <= MAX_COLUMNS_WITH_COUNTS
    cell_inch = min(1.3, max(0.42, 2.6 / classes)) if with_counts else 0.16
    width_inch, height_inch = cell_inch * classes, cell_inch * len(rows)
    font_size = min(cell_inch * 72 * (0.5 if with_counts else 0.72), 9.0)
    class_names = [short_name(name, MAX_NAME) for name in class_names]
    longest = max(len(class_names[label]) for label in columns)
    # Many classes have their names on all four sides.
    names_inch = (1 if with_counts else 2) * (longest + 5) * 0.6 * font_size / 72
    figure, axes = _new_figure(width_inch + names_inch + 1.8, height_inch + names_inch + 1.2)
    axes.grid(visible=False)
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    axes.set_xticks(np.arange(classes), [class_names[label] for label in columns], rotation=90, fontsize=font_size)
    row_names = [f"{class_names[label]} ({n})" for label, n in zip(rows, clips[:, 0], strict=True)]
    axes.set_yticks(np.arange(len(rows)), row_names, fontsize=font_size)
    axes.set(xlabel="reported species" if multi_label else "predicted species", ylabel="true species (clips)")
    notes = "Confused species are next to each other. Colour: share of the row's clips, on a square-root scale."
    notes += " Number: clips." if with_counts else ""
    if multi_label:
        notes += f" A species is reported if {reported_if}. A clip in which it is not reported counts under the most"
        notes += f" probable species that is reported and absent; without one, under '{NOTHING_REPORTED}'."
    if len(shown) < len(used):
        notes += f" Shown: the {len(shown)} of {len(used)} species with the most confusions."
    _set_title(axes, "Confusion matrix", about, notes, width_inch + 1.4)
    if with_counts:
        _write_counts(axes, counts, shares, font_size)
    else:
        # A line every ten classes helps to follow a row to its name.
        axes.hlines(np.arange(9.5, len(rows), 10), -0.5, classes - 0.5, color="0.6", linewidth=0.4)
        axes.vlines(np.arange(9.5, classes, 10), -0.5, len(rows) - 0.5, color="0.6", linewidth=0.4)
        axes.tick_params(top=True, labeltop=True, right=True, labelright=True)
    figure.colorbar(image, ax=axes, label="share of the row's clips", shrink=min(1.0, 6 / height_inch), aspect=30)
    _save(figure, path)


def _most_confused(counts: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Those classes of `used`, ascending, that a picture of bearable size can show: with the most confused clips."""
    if len(used) <= MAX_SPECIES:
        return used
    between = counts[:, : len(counts)] * (1 - np.eye(len(counts), dtype=counts.dtype))
    confused = (between.sum(axis=0) + between.sum(axis=1))[used]
    return np.sort(used[np.argsort(-confused, kind="stable")[:MAX_SPECIES]])


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray, font_size: float) -> None:
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.3 else "black"
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", fontsize=font_size, color=colour)


def confusion_order(counts: np.ndarray) -> np.ndarray:
    """An order of the classes in which confused classes are neighbours.

    Average-linkage clustering of the symmetrised shares, with optimal leaf ordering (Bar-Joseph et al. 2001). Classes
    without clips come last.

    Args:
        counts: Shape `(classes, classes)`.

    Returns:
        Class ids, shape `(classes,)`.
    """
    clips = counts.sum(axis=1)
    present, absent = np.flatnonzero(clips > 0), np.flatnonzero(clips == 0)
    if len(present) < 3:
        return np.concatenate([present, absent])
    shares = counts[np.ix_(present, present)] / clips[present, None]
    distance = 1 - (shares + shares.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return np.concatenate([present[leaves_list(tree)], absent])


@styled()
def save_precision_recall(
    scores: np.ndarray, targets: np.ndarray, class_names: Sequence[str], path: str | Path, about: str = ""
) -> None:
    """Draws precision against recall: a thin line for each class, and their mean, whose area is cmAP.

    The precision at a recall is that of the highest threshold that reaches this recall. Up to 12 classes are named.
    With more classes, those with fewer than 5 clips are only part of the mean.

    Args:
        scores: Probabilities, shape `(clips, classes)`.
        targets: 1, 0 and -100 (see `class_targets`); classes without clips are skipped.
        class_names: Names by class id.
        path: PNG file to write.
        about: What was evaluated, for the title.
    """
    figure, axes = _new_figure(7.5, 5.5)
    present = np.flatnonzero((targets == 1).any(axis=0))
    named = len(present) <= MAX_CLASSES_NAMED
    curves, lines = np.zeros((len(present), len(RECALL_GRID))), 0
    for index, label in enumerate(present.tolist()):
        known = targets[:, label] >= 0
        precision, recall, _ = precision_recall_curve(targets[known, label], scores[known, label])
        precision, recall = precision[-2::-1], recall[-2::-1]  # from the highest threshold on
        curves[index] = precision[np.searchsorted(recall, RECALL_GRID - 1e-9)]
        area = np.sum(np.diff(recall, prepend=0) * precision)
        if not named and (targets[:, label] == 1).sum() < MIN_CLIPS_OF_A_LINE:
            continue
        lines += 1
        axes.step(
            np.concatenate([[0], recall]),
            np.concatenate([precision[:1], precision]),
            where="pre",
            color=COLOURS[index % len(COLOURS)] if named else FAINT,
            linestyle=LINES[index // len(COLOURS)] if named else "-",
            linewidth=1.2 if named else 0.8,
            alpha=0.9 if named else 0.5,
            label=f"{short_name(class_names[label], MAX_NAME)} ({area:.2f})" if named else None,
        )
    if not named:
        axes.plot([], [], color=FAINT, label=f"a species with {MIN_CLIPS_OF_A_LINE} clips or more: {lines}")
    mean = curves.mean(axis=0)
    axes.plot(
        RECALL_GRID,
        mean,
        color="black",
        linewidth=2.6,
        label=f"mean of {len(present)} species (cmAP {mean.mean():.2f})",
    )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.005), ylim=(0, 1.02))
    notes = "Each species at every threshold, and their mean. The area under a line is the average precision."
    _set_title(axes, "Precision and recall", about, notes, 7.5)
    if named:
        axes.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, title="average precision"
        )
    else:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False, fontsize=9, ncols=2)
    _save(figure, path)


@styled()
def save_reliability(points: dict[str, tuple[np.ndarray, np.ndarray]], path: str | Path, about: str = "") -> None:
    """Draws a reliability diagram: the share of correct outcomes by score, and the number of scores in each bin.

    Bins with fewer than 10 scores are faint and labelled with their number.

    Args:
        points: Confidences and outcomes (see `calibration_points`) by name, such as `"before calibration"`: up to two.
        path: PNG file to write.
        about: What was evaluated, for the title.
    """
    figure = Figure(figsize=(6.4, 7.0), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="0.4", linewidth=1, linestyle="--", label="perfect calibration")
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    series = list(zip(([SECOND, STRONG] if len(points) > 1 else [STRONG]), "so", (9, -13), strict=False))
    for (name, (confidences, outcomes)), (colour, marker, below) in zip(points.items(), series, strict=False):
        number = calibration_bin(confidences)
        count = np.bincount(number, minlength=CALIBRATION_BINS)
        filled = count > 0
        x, y = (
            np.bincount(number, weights=values, minlength=CALIBRATION_BINS)[filled] / count[filled]
            for values in (confidences, outcomes)
        )
        count_of = count[filled]
        enough = count_of >= MIN_SCORES_OF_A_BIN
        upper.plot(x, np.where(enough, y, np.nan), color=colour, linewidth=1, alpha=0.6)  # breaks at small bins
        # Bins with few points are unreliable, so they get small markers.
        area = 14 + 90 * np.sqrt(count_of / count.max())
        label = f"{name}: ECE {expected_calibration_error(confidences, outcomes):.3f}"
        upper.scatter(x[enough], y[enough], s=area[enough], color=colour, marker=marker, linewidth=0, label=label)
        upper.scatter(x[~enough], y[~enough], s=area[~enough], facecolor="none", edgecolor=colour, alpha=0.6,
                      marker=marker)  # fmt: skip
        for at, n in zip(zip(x[~enough], y[~enough], strict=True), count_of[~enough], strict=True):
            upper.annotate(str(n), at, (0, below), textcoords="offset points", fontsize=7, color=colour, ha="center")
        lower.stairs(count, edges, color=colour, linewidth=1.5)
    upper.set(ylabel="share that is correct", xlim=(-0.02, 1.02), ylim=(-0.07, 1.08))
    # Points may lie anywhere in the axes.
    figure.legend(loc="outside lower center", frameon=False, fontsize=9, scatterpoints=1, ncols=2)
    lower.axhline(MIN_SCORES_OF_A_BIN, color="0.4", linewidth=0.8, linestyle=":")
    lower.set(xlabel="score", ylabel="number of scores", yscale="log")
    lower.set_ylim(bottom=0.7)
    plain_numbers(lower.yaxis, subs=(1,))
    notes = f"Hollow: fewer than {MIN_SCORES_OF_A_BIN} scores (the number is shown); such points are unreliable."
    _set_title(upper, "Reliability: how often scores are correct", about, notes, 6.4)
    _save(figure, path)


@styled()
def save_f1_by_training(
    f1: np.ndarray,
    train_counts: np.ndarray,
    test_counts: np.ndarray,
    class_names: Sequence[str],
    path: str | Path,
    about: str = "",
    measure: str = "F1",
) -> None:
    """Draws each class's F1 against the number of its training clips.

    With 30 or more classes, a trend line is drawn and the classes farthest from it are named. With fewer, all classes
    are named. A name without a free place beside its dot is left out.

    Args:
        f1: Shape `(classes,)`; classes with NaN are skipped.
        train_counts: Training clips by class id; 0 is drawn at 0.5.
        test_counts: Test clips by class id, shown by the size of the dot.
        class_names: Names by class id.
        path: PNG file to write.
        about: What was evaluated, for the title.
        measure: Which F1 it is, for the title and the axis.
    """
    figure, axes = _new_figure(8.0, 5.2)
    shown = np.flatnonzero(~np.isnan(f1))
    x, y, n = np.maximum(train_counts[shown], 0.5), f1[shown], test_counts[shown]
    axes.scatter(x, y, s=10 + 6 * np.sqrt(n), color=STRONG, alpha=0.5, linewidth=0)
    axes.set(xlabel="training clips", ylabel=measure, xscale="log", ylim=(-0.03, 1.09))
    plain_numbers(axes.xaxis, subs=(1, 2, 5))
    notes = "Larger dots: more test clips."
    named = np.argsort(-n, kind="stable")
    if len(shown) >= MIN_SPECIES_OF_A_TREND and len(np.unique(x)) > 2:
        # F1 from few clips has less weight.
        trend = np.polynomial.Polynomial.fit(np.log(x), y, 1, w=np.sqrt(n))
        line = np.geomspace(x.min(), x.max(), 50)
        axes.plot(line, trend(np.log(line)).clip(0, 1), color=SECOND, linewidth=1.5, label="trend")
        axes.legend(frameon=False, loc="lower right")
        residual = np.abs(y - trend(np.log(x)))
        named = np.argsort(-residual * np.sqrt(n), kind="stable")[:NAMED_OUTLIERS]
        notes += " Named: species far from the trend, where there is room."
    _set_title(axes, f"{measure} of each species against its training clips", about, notes, 8.0)
    names = {point: short_name(class_names[shown[point]], MAX_NAME) for point in named.tolist()}
    _name_points(axes, np.column_stack([x, y]), names)
    _save(figure, path)


def _name_points(axes: Axes, points: np.ndarray, names: dict[int, str]) -> None:
    """Writes names beside points, and skips names for which another name, another point or the legend leaves no place.

    Args:
        axes: Where the points are drawn.
        points: All points, shape `(points, 2)`.
        names: By number of the point, the most important first.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    legend = axes.get_legend()
    taken = [] if legend is None else [legend.get_window_extent()]
    near = NAME_GAP * figure.dpi / 72
    dots = [Bbox.from_extents(x - near, y - near, x + near, y + near) for x, y in axes.transData.transform(points)]
    for point, name in names.items():
        others = [dots[other] for other in np.flatnonzero((points != points[point]).any(axis=1))]
        for side, below in ((1, 4), (1, -11), (-1, 4), (-1, -11)):
            align = "left" if side > 0 else "right"
            at = (points[point, 0], points[point, 1])
            text = axes.annotate(name, at, xytext=(5 * side, below), textcoords="offset points", fontsize=8, ha=align)
            box = text.get_window_extent()
            # Beside the axes it would shrink them, and the other names would move.
            inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) and axes.bbox.containsy(box.y0)
            if inside and not any(box.overlaps(other) for other in (*taken, *others)):
                taken.append(box)
                break
            text.remove()


def plain_numbers(axis: Axis, subs: Sequence[float]) -> None:
    """Writes plain numbers on a logarithmic axis, because powers of ten would need mathematical text."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value == 0.5 else f"{value:,.12g}"))
    axis.set_minor_formatter(NullFormatter())


def _set_title(axes: Axes, heading: str, about: str, notes: str, width_inch: float) -> None:
    """Sets the heading with what was evaluated, and below it notes on how to read the figure."""
    heading = f"{heading}, {about}" if about else heading
    characters = max(40, int(width_inch * 13))
    lines = textwrap.wrap(notes, characters)
    axes.set_title("\n".join(lines), loc="left", fontsize=8.5, color=NOTE, linespacing=1.3)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.suptitle(textwrap.fill(heading, int(characters * 0.8)), x=0.01, ha="left", fontsize=11, weight="bold")


def _new_figure(width_inch: float, height_inch: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_inch, height_inch), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _save(figure: Figure, path: str | Path) -> None:
    figure.savefig(path, format="png", bbox_inches="tight")
