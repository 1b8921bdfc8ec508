"""Pictures of detections on whole recordings, as PNG files."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kenya_birds.evaluation.figures import plain_numbers
from kenya_birds.plot_style import COLOURS, short_name, styled

RIGHT, WRONG, MISSED, IGNORED = COLOURS[2], COLOURS[1], COLOURS[4], "#8fa3bf"
ROW_INCH = 0.35
MAX_ROWS = 60


@styled()
def save_recall_by_false_reports(
    false_per_h: np.ndarray,
    recall: np.ndarray,
    path: str | Path,
    *,
    own: tuple[float, float] | None = None,
    about: str = "",
) -> None:
    """Draws recall against false detections an hour, over all scores as one threshold for all species.

    Args:
        false_per_h: Shape `(scores,)`, from the highest score on.
        recall: Same shape.
        path: PNG file to write.
        own: False detections an hour and recall at the model's own thresholds, which are shown as a point.
        about: What was evaluated, for the title.
    """
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.step(np.maximum(false_per_h, 0.1), recall, where="post", color=COLOURS[0], label="one threshold for all")
    if own is not None:
        axes.plot(max(own[0], 0.1), own[1], "o", color=COLOURS[1], label="the model's own thresholds")
    axes.set_xscale("log")
    axes.set_xlim(left=0.1)
    plain_numbers(axes.xaxis, subs=(1,))
    axes.set_ylim(0, 1)
    axes.set_xlabel("false detections an hour (0.1: 0.1 or fewer)")
    axes.set_ylabel("recall of annotated calls")
    axes.set_title(f"Recall by false detections\n{about}".rstrip(), loc="left")
    axes.legend(loc="best", frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


@styled()
def save_recording_timeline(
    recording: str,
    detections: pd.DataFrame,
    calls: pd.DataFrame,
    path: str | Path,
    *,
    duration_s: float,
    names: dict[str, str] | None = None,
) -> None:
    """Draws one recording: annotated calls and detections of each species along time.

    Of more than 60 species, the 60 with the most calls and detections are shown, and the title says so.

    Args:
        recording: Its name.
        detections: Of this recording: `species`, `start_s`, `end_s`, `is_right` and `is_ignored`.
        calls: Of this recording: `species`, `start_s`, `end_s` and `is_found`.
        path: PNG file to write.
        duration_s: Length of the recording.
        names: Names of the species by code; by default the codes.
    """
    counts = pd.concat([detections["species"], calls["species"]]).value_counts()
    species = sorted(counts.index[:MAX_ROWS])
    figure = Figure(figsize=(11, 1.8 + ROW_INCH * max(len(species), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    row_of = {code: row for row, code in enumerate(species)}
    for kind, colour, table in (
        ("right detection", RIGHT, detections[detections["is_right"]]),
        ("wrong detection", WRONG, detections[~detections["is_right"] & ~detections["is_ignored"]]),
        ("detection near an unknown bird", IGNORED, detections[~detections["is_right"] & detections["is_ignored"]]),
    ):
        table = table[table["species"].isin(species)]
        if len(table):
            rows = table["species"].map(row_of).to_numpy()
            width = (table["end_s"] - table["start_s"]).to_numpy()
            axes.barh(rows, width, left=table["start_s"].to_numpy(), height=0.7, color=colour, alpha=0.75, label=kind)
    for kind, marker, is_found in (("annotated call, found", "|", True), ("annotated call, missed", "x", False)):
        table = calls[(calls["is_found"] == is_found) & calls["species"].isin(species)]
        if len(table):
            middle = (table["start_s"] + table["end_s"]) / 2
            colour = "black" if is_found else MISSED
            axes.plot(middle, table["species"].map(row_of), marker, color=colour, markersize=9, label=kind)
    axes.set_yticks(range(len(species)), [short_name((names or {}).get(code) or code) for code in species])
    axes.set_ylim(len(species) - 0.5, -0.5)
    axes.set_xlim(0, duration_s)
    axes.set_xlabel("time in the recording (s)")
    title = f"Annotated and detected calls in {short_name(recording, 60)}"
    if len(counts) > len(species):
        title += f"\nShown: {len(species)} of {len(counts)} species, those with the most calls and detections"
    axes.set_title(title, loc="left")
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def typical_recording(table: pd.DataFrame) -> str:
    """The recording to draw: the one with the most annotated calls and detections together.

    Args:
        table: What `EventScores.per_recording` returns.
    """
    busy = np.asarray(table["calls"] + table["detections"])
    return str(table["recording"].iloc[int(busy.argmax())])
