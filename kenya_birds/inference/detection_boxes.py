"""Boxes of detections above a spectrogram: joined by species, cut to rows, stacked so that labels do not overlap."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from kenya_birds.plot_style import short_name

MAX_LANES = 12


@dataclass(frozen=True)
class Box:
    """A detection, or several overlapping detections of one species, or the part of it in one row.

    Attributes:
        start_s: Start.
        end_s: End.
        species: eBird code.
        name: Common name; may be empty.
        score: Highest score.
        lane: Lane above the spectrogram, from 0.
        label_s: Start of the label.
        is_begin: Whether the box begins with the detection, and not with the row.
        is_end: Whether the box ends with the detection, and not with the row.
    """

    start_s: float
    end_s: float
    species: str
    name: str
    score: float
    lane: int = 0
    label_s: float = 0.0
    is_begin: bool = True
    is_end: bool = True

    @property
    def label(self) -> str:
        """Name and score."""
        return f"{short_name(self.name.strip() or self.species)} {self.score:.2f}"


def join(detections: pd.DataFrame) -> list[Box]:
    """Joins overlapping detections of a species into boxes, sorted by start.

    Args:
        detections: Detections of one recording (see `read_detections`).
    """
    rows = detections.sort_values(["start_s", "score"], ascending=[True, False], kind="stable")
    columns = (rows[name].tolist() for name in ("start_s", "end_s", "code", "common_name", "score"))
    last: dict[str, Box] = {}
    boxes = []
    for box in map(Box, *columns):
        before = last.get(box.species)
        if before is not None and box.start_s < before.end_s:
            box = replace(before, end_s=max(before.end_s, box.end_s), score=max(before.score, box.score))
        elif before is not None:
            boxes.append(before)
        last[box.species] = box
    return sorted([*boxes, *last.values()], key=lambda box: (box.start_s, -box.score, box.species))


def cut(boxes: Sequence[Box], first_s: float, last_s: float) -> list[Box]:
    """Returns the boxes, or parts of boxes, between two times, in the same order.

    Args:
        boxes: The boxes.
        first_s: Start of the section.
        last_s: End of the section.
    """
    parts = [
        replace(
            box,
            start_s=max(box.start_s, first_s),
            end_s=min(box.end_s, last_s),
            is_begin=box.start_s >= first_s,
            is_end=box.end_s <= last_s,
        )
        for box in boxes
    ]
    return [part for part in parts if part.start_s < part.end_s]


def stack(boxes: Sequence[Box], widths_s: Sequence[float], first_s: float, last_s: float) -> list[Box]:
    """Assigns lanes to boxes and positions to labels, so that none of them overlap.

    A label is in its box if it fits, otherwise after it, or before it at the end of the row. If more than 12 lanes
    are necessary, the boxes with the lowest scores are dropped.

    Args:
        boxes: Boxes by start.
        widths_s: Width of each label in seconds.
        first_s: Start of the row.
        last_s: End of the row.

    Returns:
        The boxes that fit, by start.
    """
    labels_s = [_label_place(box, width_s, first_s, last_s) for box, width_s in zip(boxes, widths_s, strict=True)]
    spans_s = [
        (min(box.start_s, label_s), max(box.end_s, label_s + width_s))
        for box, label_s, width_s in zip(boxes, labels_s, widths_s, strict=True)
    ]
    by_score = sorted(range(len(boxes)), key=lambda place: boxes[place].score)
    # Fewer boxes never need more lanes, so the number of dropped boxes is found by halving.
    drop = bisect_left(range(len(boxes)), True, key=lambda number: _lanes(spans_s, by_score[number:]) is not None)
    lanes = _lanes(spans_s, by_score[drop:]) or {}
    return [replace(boxes[place], lane=lanes[place], label_s=labels_s[place]) for place in sorted(lanes)]


def _lanes(spans_s: Sequence[tuple[float, float]], places: Iterable[int]) -> dict[int, int] | None:
    """Returns the lane of each place: the first one that is free. None if more than `MAX_LANES` are necessary."""
    ends_s: list[float] = []
    lanes = {}
    # In the order of begins, no more lanes are taken than spans overlap at some time.
    for place in sorted(places, key=lambda place: (spans_s[place][0], place)):
        begin_s, end_s = spans_s[place]
        lane = next((lane for lane, before_s in enumerate(ends_s) if before_s <= begin_s), len(ends_s))
        if lane == MAX_LANES:
            return None
        ends_s[lane : lane + 1] = [end_s]
        lanes[place] = lane
    return lanes


def _label_place(box: Box, width_s: float, first_s: float, last_s: float) -> float:
    if width_s <= box.end_s - box.start_s:
        return box.start_s
    if box.end_s + width_s <= last_s:
        return box.end_s
    if box.start_s - width_s >= first_s:
        return box.start_s - width_s
    return max(first_s, min(box.start_s, last_s - width_s))  # a label as long as the row
