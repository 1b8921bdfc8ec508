"""Settings of detections, which commands read without numpy."""

from dataclasses import dataclass
from typing import Annotated, Literal

from kenya_birds.errors import UserError
from kenya_birds.values import Count, Odd, Range, Seconds, Share, check_fields


@dataclass(frozen=True)
class FindingSettings:
    """Settings of detections.

    Attributes:
        threshold: One decision threshold for all species, instead of the model's own. None: the model's threshold of
            each species; species without a threshold are never reported.
        min_confidence: Never report below this score, whatever the species' threshold.
        top_k: Report at most this many species in one window, those with the highest scores. None: all.
        species: Report only these eBird codes. None: all.
        merge: Whether to merge touching or overlapping detections of a species. None: as in the evaluation that the
            thresholds belong to, otherwise not.
        merge_gap_s: Also merge across gaps up to this many seconds.
        merge_score: Score of merged detections: `mean` or `max` of their windows.
        smoothing: Average scores over this odd number of windows, centred on each window; over fewer at a recording's
            ends and at gaps.
        novelty: Whether each detection gets its novelty (see `Detection`).

    Raises:
        UserError: If a value is out of range.
    """

    threshold: Share | None = None
    min_confidence: Share = 0.0
    top_k: Count | None = None
    species: tuple[str, ...] | None = None
    merge: bool | None = None
    merge_gap_s: Seconds = 0.0
    merge_score: Literal["mean", "max"] = "mean"
    smoothing: Annotated[int, Range(1), Odd()] = 1
    novelty: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        check_fields(self)
        if self.species is not None and not self.species:
            raise UserError("species is empty: expected one or more, or None for all")
        if self.merge_gap_s and not self.merge:
            raise UserError(
                f"merge_gap_s is {self.merge_gap_s}, but merge is not set: set merge too, or remove merge_gap_s"
            )
