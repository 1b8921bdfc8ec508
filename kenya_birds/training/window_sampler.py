"""Which windows of whole recordings an epoch holds."""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from kenya_birds.data.decoded_recordings import DecodedRecordings
from kenya_birds.data.planning import least_overlap
from kenya_birds.errors import UserError
from kenya_birds.evaluation.window_targets import WindowTargets

logger = logging.getLogger(__name__)


class WindowDraw(NamedTuple):
    """What a place in an epoch holds.

    Attributes:
        recording: Index of the recording.
        start: First sample of the window.
        partner_recording: Index of the recording whose window may be mixed into it.
        partner_start: First sample of that window.
        chance: Uniform numbers in [0, 1) for all random changes.
    """

    recording: int
    start: int
    partner_recording: int
    partner_start: int
    chance: np.ndarray


class WindowSampler(Sampler[WindowDraw]):
    """Draws an epoch of windows: some round calls, some without a call, the others anywhere.

    The draws depend on the seed and the epoch alone, so that every process draws the same and a resumed run draws what
    an uninterrupted one would. Windows lie in unbroken sound: not in damage or long digital silence.

    Windows without a call and windows anywhere lie in recordings that are annotated completely: not in those with weak
    annotations or checked detections. Wrong detections are drawn as often as calls are, instead of up to half of these
    windows.

    A window round a call: a species is drawn with a weight of `n ** (1 - species_power)`, `n` being its calls, then
    one of the recordings that hold it, then one of its calls there. The call lies anywhere in the window where its
    target is known. Only a call near the end of its stretch lies elsewhere.

    Args:
        decoded: The training recordings.
        targets: The annotations of the same recordings.
        length: Windows of an epoch.
        windows_per_step: Windows of one optimiser step, over all processes and accumulated batches. An incomplete
            last step is left out.
        seed: Seed of the draws.
        call_share: Share of the windows round a call.
        empty_share: Share of the windows without a call.
        hard_share: Share of the windows without a call that are hard.
        hard_windows: Gives the hard windows of the sampler's epoch, as `empty_places` does; may give none.
        species_power: 0: species as frequent as their calls; 1: all species alike.
        numbers: How many random numbers come with each window.

    Attributes:
        hard_number: Hard windows of an epoch.

    Raises:
        UserError: If no recording is as long as a window, or no call is in one that is, or the shares are above 1.
    """

    def __init__(
        self,
        decoded: DecodedRecordings,
        targets: WindowTargets,
        *,
        length: int,
        windows_per_step: int = 1,
        seed: int = 0,
        call_share: float = 0.5,
        empty_share: float = 0.25,
        hard_share: float = 0.0,
        hard_windows: "Callable[[WindowSampler], np.ndarray] | None" = None,
        species_power: float = 0.0,
        numbers: int = 0,
    ) -> None:
        if call_share + empty_share > 1:
            raise UserError(
                f"the shares of windows round calls and of empty windows are {call_share:g} and {empty_share:g}: "
                "expected a sum of 1 or less"
            )
        self.length = length - length % windows_per_step if length >= windows_per_step else length
        self.seed, self.epoch, self.numbers = seed, 0, numbers
        self._targets = targets
        first, end = _stretches(decoded, targets)
        self._first, self._last = first, end - targets.window
        is_long = self._last >= self._first
        self._first, self._last = self._first[is_long], self._last[is_long]
        if not len(self._first):
            raise UserError(
                f"no training recording has {targets.window / targets.sampling_rate:g} s of sound without a break: "
                "choose a lower clip_s, or train on clips"
            )
        self._calls = _Calls(targets, self._first, self._last, species_power)
        is_known = ~targets.is_partial(self._first)
        known = self._first[is_known], self._last[is_known]
        self._anywhere, self._empty = _Places(*known), _Places(*_subtracted(*known, *_forbidden(targets)))
        number = round(call_share * self.length)
        empty_number = round(empty_share * self.length)
        if empty_number and not self._empty.total:
            logger.warning(
                "No window of %g s in the training recordings is free of calls: the share of empty windows (%g) is "
                "drawn anywhere",
                targets.window / targets.sampling_rate,
                empty_share,
            )
            empty_number = 0
        if self.length > number and not self._anywhere.total:
            raise UserError(
                "no training recording with all its calls annotated has "
                f"{targets.window / targets.sampling_rate:g} s of sound without a break: choose a lower clip_s, or "
                "train on clips"
            )
        self._wrong = _WrongDetections(targets, self._first, self._last)
        wrong = wrong_number(number, self._calls.total, self._wrong.total, self.length)
        empty_number = round(empty_number * (1 - wrong / max(self.length - number, 1)))
        self._numbers = number, wrong, empty_number, self.length - number - wrong - empty_number
        self.hard_number = round(hard_share * empty_number)
        self._hard_windows = hard_windows

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch's draws; called by the trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[WindowDraw]:
        generator = np.random.default_rng([self.seed, self.epoch])
        calls, wrong, empty, anywhere = self._numbers
        hard = np.zeros(0, dtype=np.int64)
        if self.hard_number and self._hard_windows is not None:
            hard = generator.permutation(self._hard_windows(self))
            # Each of them once, and again from the first one if there are too few.
            hard = np.resize(hard, self.hard_number if len(hard) else 0)
        place = np.concatenate(
            [
                self._calls.draw(generator, calls),
                self._wrong.draw(generator, wrong),
                hard,
                self._empty.draw(generator, empty - len(hard)),
                self._anywhere.draw(generator, anywhere),
            ]
        )
        place = generator.permutation(place)
        partner = generator.permutation(place)
        chance = generator.random((self.length, self.numbers))
        yield from map(WindowDraw, *self.split(place), *self.split(partner), chance)

    def empty_places(self, number: int) -> np.ndarray:
        """Draws windows without a call, by seed and epoch: positions on the axis of the targets."""
        return self._empty.draw(np.random.default_rng([self.seed, self.epoch, 1]), number)

    def split(self, place: np.ndarray) -> tuple[list[int], list[int]]:
        """Recording and first sample of windows whose positions on the axis of the targets are given."""
        recording = self._targets.offset.searchsorted(place, side="right") - 1
        return recording.tolist(), (place - self._targets.offset[recording]).tolist()


def warn_of_short_stretches(decoded: DecodedRecordings, targets: WindowTargets) -> None:
    """Logs how many stretches of unbroken sound are shorter than a window, and how many annotations lie in them.

    Args:
        decoded: The training recordings.
        targets: Their annotations.
    """
    first, end = _stretches(decoded, targets)
    middle = (targets.start + targets.end) // 2
    stretch = first.searchsorted(middle, side="right") - 1
    is_short = end - first < targets.window
    if not is_short.any():
        return
    lies_in = (stretch >= 0) & (middle < end[stretch]) & is_short[stretch]
    logger.warning(
        "%d of %d stretches of unbroken sound in the training recordings are shorter than a window of %g s (%.1f s in "
        "all): no window is drawn from them, and their %d annotations are not learned",
        is_short.sum(),
        len(first),
        targets.window / targets.sampling_rate,
        (end - first)[is_short].sum() / targets.sampling_rate,
        lies_in.sum(),
    )


def _stretches(decoded: DecodedRecordings, targets: WindowTargets) -> np.ndarray:
    """First sample and end of each stretch of unbroken sound, on the axis of the targets; shape `(2, stretches)`."""
    runs = [recording.runs + targets.offset[index] for index, recording in enumerate(decoded.recordings)]
    return np.concatenate([np.zeros((0, 2), dtype=np.int64), *runs]).T


class _Places:
    """Ranges of first samples, both ends included, from which windows are drawn evenly."""

    def __init__(self, first: np.ndarray, last: np.ndarray) -> None:
        self._first = first
        self._until = np.cumsum(last - first + 1)
        self.total = int(self._until[-1]) if len(first) else 0

    def draw(self, generator: np.random.Generator, number: int) -> np.ndarray:
        if not number:
            return np.zeros(0, dtype=np.int64)
        at = generator.integers(self.total, size=number)
        index = self._until.searchsorted(at, side="right")
        before = np.where(index > 0, self._until[index - 1], 0)
        return self._first[index] + at - before


class SpeciesDraws:
    """Draws calls or windows: first a species, then one of the recordings with it, then one of its items there.

    Args:
        label: Class id of each item, shape `(items,)`.
        recording: Index of each item's recording, same shape.
        power: 0: species are as frequent as their calls; 1: all species are equally frequent.
        calls: Number of calls of each class, shape `(classes,)`; by default the items are the calls.
    """

    def __init__(
        self, label: np.ndarray, recording: np.ndarray, power: float, calls: np.ndarray | None = None
    ) -> None:
        self._order = np.lexsort((recording, label))
        label, recording = label[self._order], recording[self._order]
        # Items are sorted by species and recording: each pair of them is a group of neighbours.
        self._group = np.flatnonzero(np.diff(label, prepend=-1) | np.diff(recording, prepend=-1))
        self._group_size = np.diff(self._group, append=len(label))
        self._species = np.flatnonzero(np.diff(label[self._group], prepend=-1))
        self._species_groups = np.diff(self._species, append=len(self._group))
        first = self._group[self._species]
        number = np.diff(first, append=len(label)) if calls is None else np.maximum(calls[label[first]], 1)
        weights = number.astype(np.float64) ** (1 - power)
        self._weights = weights / weights.sum()

    def draw(self, generator: np.random.Generator, number: int) -> np.ndarray:
        """Returns the indices of drawn items, shape `(number,)`."""
        species = generator.choice(len(self._weights), number, p=self._weights)
        groups = (generator.random(number) * self._species_groups[species]).astype(np.int64)
        group = self._species[species] + groups
        return self._order[self._group[group] + (generator.random(number) * self._group_size[group]).astype(np.int64)]


class _Calls:
    """The calls round which windows can be drawn."""

    def __init__(self, targets: WindowTargets, first: np.ndarray, last: np.ndarray, power: float) -> None:
        self._window, self._margin, self._min_overlap = targets.window, targets.margin, targets.min_overlap
        middle = (targets.start + targets.end) // 2
        run = first.searchsorted(middle, side="right") - 1
        is_usable = (targets.label >= 0) & (run >= 0)
        is_usable &= middle < last[run] + targets.window
        if not is_usable.any():
            raise UserError("no call lies in a part of the training recordings that can be read: train on others")
        chosen = np.flatnonzero(is_usable)
        # A call may begin before its recording, and so before its place on the axis.
        recording = targets.offset.searchsorted(middle[chosen], side="right") - 1
        self._start, self._end = targets.start[chosen], targets.end[chosen]
        self._low, self._high = first[run[chosen]], last[run[chosen]]
        self.total = len(chosen)
        # In the box of a checked detection, the call may be anywhere.
        is_verified = np.zeros(self.total, dtype=bool) if targets.verified is None else targets.verified[recording]
        self._is_verified = is_verified
        self._draws = SpeciesDraws(targets.label[chosen], recording, power)

    def draw(self, generator: np.random.Generator, number: int) -> np.ndarray:
        call = self._draws.draw(generator, number)
        where = generator.random(number)
        start, length = self._start[call], self._end[call] - self._start[call]
        # The middle of a call of this length lies in the window; of a longer call, the middle of the window in it.
        inside = self._margin + (where * (self._window - 2 * self._margin)).astype(np.int64)
        place = np.where(
            length <= self._window,
            start + length // 2 - inside,
            start + (where * length).astype(np.int64) - self._window // 2,
        )
        if self._min_overlap:
            # Where the window has the wanted part of the call, too.
            half = np.where(length <= self._window, self._window // 2 - self._margin, length // 2)
            central = start + length // 2 - self._window // 2
            needed = least_overlap(length, self._window, self._min_overlap).astype(np.int64)
            first = np.maximum(central - half, start + needed - self._window)
            until = np.minimum(central + half, start + length - needed)
            place = np.where(length > 0, first + (where * (until - first + 1)).astype(np.int64), place)
        if self._is_verified.any():
            # The window holds all but the margin of the box, or lies in it but for the margin.
            at_end = self._end[call] - self._window
            first, until = np.minimum(start, at_end) - self._margin, np.maximum(start, at_end) + self._margin
            whole = first + (where * (until - first + 1)).astype(np.int64)
            place = np.where(self._is_verified[call], whole, place)
        return place.clip(self._low[call], self._high[call])


class _WrongDetections:
    """Spans of wrong detections in which windows can be drawn; longer ones are drawn more often."""

    def __init__(self, targets: WindowTargets, first: np.ndarray, last: np.ndarray) -> None:
        begin, end = targets.absent[:, 1], targets.absent[:, 2]
        run = first.searchsorted((begin + end) // 2, side="right") - 1
        low = np.maximum(begin - targets.margin, first[run])
        high = np.minimum(end - targets.window + targets.margin, last[run])
        is_usable = (run >= 0) & (low <= high) & (end - begin >= targets.window - targets.margin)
        self._low, self._high = low[is_usable], high[is_usable]
        self._number = np.maximum((end - begin)[is_usable] / targets.window, 1)
        self.total = round(self._number.sum())

    def draw(self, generator: np.random.Generator, number: int) -> np.ndarray:
        if not number:
            return np.zeros(0, dtype=np.int64)
        span = generator.choice(len(self._number), number, p=self._number / self._number.sum())
        return generator.integers(self._low[span], self._high[span], endpoint=True)


def wrong_number(call_windows: int, calls: int, wrong: int, length: int) -> int:
    """How many windows of an epoch are at wrong detections: each as often as a call, at most half of the others.

    Args:
        call_windows: Windows round calls.
        calls: Number of calls.
        wrong: Number of wrong detections.
        length: Windows of an epoch.
    """
    return min(round(call_windows * wrong / max(calls, 1)), (length - call_windows) // 2)


def _forbidden(targets: WindowTargets) -> tuple[np.ndarray, np.ndarray]:
    """First and last of the places at which a window touches each annotation, sorted and joined where they meet."""
    is_point = targets.start == targets.end
    first = targets.start - targets.window + 1 - np.where(is_point, targets.margin, 0)
    last = np.where(is_point, targets.start + targets.margin, targets.end - 1)
    if not len(first):
        return first, last
    order = np.argsort(first, kind="stable")
    first, reached = first[order], np.maximum.accumulate(last[order])
    begins = np.flatnonzero(np.concatenate([[True], first[1:] > reached[:-1] + 1]))
    ends = np.concatenate([begins[1:] - 1, [len(first) - 1]])
    return first[begins], reached[ends]


def _subtracted(
    first: np.ndarray, last: np.ndarray, without_first: np.ndarray, without_last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ranges, both ends included, without what lies in other ranges; both are sorted and apart."""
    firsts, lasts = [], []
    for begin, end in zip(first.tolist(), last.tolist(), strict=True):
        low, high = without_last.searchsorted(begin), without_first.searchsorted(end, side="right")
        firsts += [begin, *(without_last[low:high] + 1)]
        lasts += [*(without_first[low:high] - 1), end]
    pairs = np.array([firsts, lasts], dtype=np.int64)
    pairs = pairs[:, pairs[0] <= pairs[1]]
    return pairs[0], pairs[1]
