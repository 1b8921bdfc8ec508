"""Pictures of what the answers say: probability by score of each species, and precision by threshold of all."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kenya_birds.evaluation.call_density import score_logits
from kenya_birds.files import is_portable_name
from kenya_birds.inference.species import SpeciesNames
from kenya_birds.plot_style import save_picture, short_name, styled
from kenya_birds.verification.strata import SCORE_GRID
from kenya_birds.verification.verified_species import VerifiedSpecies

PROBABILITY_FOLDER = "probability"
PRECISION_STEM = "precision_by_threshold"
PANELS, COLUMNS = 20, 4
RIGHT_COLOUR, WRONG_COLOUR, FIT_COLOUR, BIN_COLOUR = "#0072b2", "#d55e00", "#38414d", "#009e73"
TICKS_BY_IMPORTANCE = (0.5, 0.1, 0.9, 0.01, 0.99, 0.0001, 0.001, 0.999, 0.9999, 1e-5, 1e-6)
LEAST_SPAN = 4.0  # of the logits on the axis of scores


def save_pictures(
    verified_species: Sequence[VerifiedSpecies], names: Mapping[str, SpeciesNames], folder: Path
) -> None:
    """Draws a picture of the probability of each species with answers, and pictures of the precision of all.

    Args:
        verified_species: Results of the species.
        names: Names by code.
        folder: Folder for the pictures.
    """
    heard = [verified for verified in verified_species if len(verified.heard)]
    (folder / PROBABILITY_FOLDER).mkdir()
    for place, verified in enumerate(heard):
        stem = verified.species if is_portable_name(f"{verified.species}.png") else f"species_{place}"
        save_picture(_draw_probability(verified, names), folder / PROBABILITY_FOLDER / f"{stem}.png")
    pages = [heard[first : first + PANELS] for first in range(0, len(heard), PANELS)]
    for number, page in enumerate(pages, start=1):
        end = f"_{number}" if len(pages) > 1 else ""
        save_picture(_draw_precisions(page, names), folder / f"{PRECISION_STEM}{end}.png")


def _name(verified: VerifiedSpecies, names: Mapping[str, SpeciesNames]) -> str:
    found = names.get(verified.species)
    return short_name(found.common_name if found and found.common_name else verified.species, 40)


def _set_score_axis(axes: Axes, verified: VerifiedSpecies, ticks: int) -> tuple[float, float]:
    """Makes the x axis one of scores on a logit scale, from the lowest score to the highest.

    Args:
        axes: The axes.
        verified: What is drawn.
        ticks: For about so many ticks there is space.

    Returns:
        Logits of the lowest and the highest score.
    """
    low = score_logits(np.array([min(one.low_score for one in verified.strata), *verified.scores])).min()
    cells = [cell for one in verified.strata for cell in one.by_score]
    high = score_logits(np.append(verified.scores, SCORE_GRID[min(max(cells) + 1, len(SCORE_GRID) - 1)])).max()
    if high - low < LEAST_SPAN:
        low, high = (low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2
    axes.set_xlim(low - 0.3, high + 0.3)
    shown: list[float] = []
    for at in score_logits(np.array(TICKS_BY_IMPORTANCE)).tolist():
        is_free = all(abs(at - other) >= (high - low) / ticks for other in shown)
        if low - 0.3 <= at <= high + 0.3 and is_free:
            shown.append(at)
    axes.xaxis.set_major_locator(FixedLocator(sorted(shown)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1 / (1 + math.exp(-value)):.6f}".rstrip("0")))
    axes.set(ylim=(-0.06, 1.06))
    return float(low), float(high)


@styled()
def _draw_probability(verified: VerifiedSpecies, names: Mapping[str, SpeciesNames]) -> Figure:
    """Draws answers as ticks, the share of right ones in each bin, and the logistic fit with its band."""
    figure = Figure(figsize=(7, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    low, high = _set_score_axis(axes, verified, 10)
    x = score_logits(verified.scores)
    for is_right, y, colour in ((True, 1.03, RIGHT_COLOUR), (False, -0.03, WRONG_COLOUR)):
        chosen = x[verified.is_right == is_right]
        axes.plot(
            chosen, np.full(len(chosen), y), "|", color=colour, markersize=10, markeredgewidth=1.2, clip_on=False
        )
    if verified.fit is not None:
        grid = np.linspace(low, high, 200)
        scores = 1 / (1 + np.exp(-grid))
        axes.fill_between(grid, *verified.fit.band(scores), color=FIT_COLOUR, alpha=0.15, linewidth=0)
        axes.plot(grid, verified.fit.probability(scores), color=FIT_COLOUR, label="logistic fit, with 95% band")
    heard = verified.heard.assign(x=x, right=verified.is_right).groupby("stratum")
    bins = heard.agg(x=("x", "median"), right=("right", "mean"))
    axes.plot(
        bins["x"], bins["right"], "o", color=BIN_COLOUR, markersize=5, label="share of right answers in each bin"
    )
    grid = np.linspace(low, high, 200)
    axes.plot(grid, 1 / (1 + np.exp(-grid)), color="#9aa3ad", linewidth=1, linestyle=":", label="score as probability")
    axes.set_xlabel("score (logit scale)")
    axes.set_ylabel("probability of being right")
    axes.set_title(
        f"{_name(verified, names)}: {verified.counts['right']} right (ticks above), {verified.counts['wrong']} wrong "
        "(ticks below)",
        loc="left",
        fontsize=10,
    )
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0.01, 0.94))
    return figure


@styled(**{"font.size": 8})
def _draw_precisions(verified_species: Sequence[VerifiedSpecies], names: Mapping[str, SpeciesNames]) -> Figure:
    """Draws for each species the precision of the detections with at least some score."""
    columns = min(COLUMNS, len(verified_species))
    lines = math.ceil(len(verified_species) / columns)
    figure = Figure(figsize=(max(3.4, 2.9 * columns), 0.45 + 2.2 * lines), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, verified in zip(panels, verified_species, strict=False):
        _set_score_axis(axes, verified, 6)
        known = [at for at in verified.curve if not np.isnan(at.precision.estimate)]
        x = score_logits(np.array([at.score for at in known]))
        low, high = ([getattr(at.precision, side) for at in known] for side in ("low", "high"))
        axes.fill_between(x, low, high, color=BIN_COLOUR, alpha=0.2, linewidth=0)
        axes.plot(x, [at.precision.estimate for at in known], color=BIN_COLOUR, marker=".", markersize=4)
        axes.plot(x, [at.by_fit for at in known], color=FIT_COLOUR, linestyle="--", linewidth=1)
        axes.axhline(0.9, color="#9aa3ad", linewidth=0.8, linestyle=":")
        axes.set_title(_name(verified, names), loc="left", fontsize=8.5)
    for axes in panels[len(verified_species) :]:
        axes.axis("off")
    figure.suptitle("Precision of detections from a score on: answers with 95% interval, logistic fit dashed",
                    x=0.01, ha="left", fontsize=9.5)  # fmt: skip
    figure.supxlabel("score (logit scale)", fontsize=8.5)
    figure.supylabel("precision", fontsize=8.5)
    return figure
