from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kenya_birds.errors import UserError
from kenya_birds.inference.windows import WindowCutter, WindowGrid, Windows

RATE = 32_000
CLIP = 96_000


def cut(grid, pieces):
    """Starts, ends and sound of all windows of (place, sound)."""
    cutter = WindowCutter(grid)
    found = [windows for start, sound in pieces for windows in cutter.add(start, sound)] + list(cutter.finish())
    empty = Windows(np.zeros(0, int), np.zeros(0, int), np.zeros((0, grid.window_samples), np.float32))
    return tuple(
        np.concatenate([getattr(one, name) for one in [empty, *found]]) for name in ("starts", "ends", "sound")
    )


def in_blocks(sound, lengths, begin=0):
    """Unbroken sound that comes in blocks of these lengths."""
    edges = np.unique(np.minimum(np.cumsum([0, *lengths, len(sound)]), len(sound)))
    return [(begin + int(first), sound[first:last]) for first, last in pairwise(edges)]


def grids(max_length):
    return st.integers(1, max_length).flatmap(
        lambda length: st.builds(WindowGrid, st.just(length), st.integers(1, length))
    )


def test_windows_of_twelve_hours_at_an_overlap_of_2_9_s_start_at_exact_tenths_of_a_second():
    grid = WindowGrid.with_overlap(CLIP, 2.9, RATE)
    samples = 12 * 3600 * RATE
    starts = grid.starts(0, samples)
    assert starts.dtype == np.int64
    assert len(starts) == 12 * 3600 * 10 - 29
    np.testing.assert_array_equal(starts * 10, np.arange(len(starts)) * RATE)
    assert starts[-1] + CLIP == samples


@given(grid=grids(500), begin=st.integers(0, 3000), samples=st.integers(1, 10_000))
def test_windows_hold_every_sample_of_a_stretch_and_nothing_else(grid, begin, samples):
    length, hop, end = grid.window_samples, grid.hop_samples, begin + samples
    starts = grid.starts(begin, end)
    assert (np.diff(starts) > 0).all()
    if samples < length:
        assert starts.tolist() == ([begin] if samples >= length / 4 else [])
        return
    assert starts[0] == begin
    assert starts[-1] + length == end
    assert (np.diff(starts) <= min(hop, length)).all()
    # All but the first and the last are where they would be in the whole recording.
    assert not (starts[1:-1] % hop).any()
    every = np.arange(-(-begin // hop), (end - length) // hop + 1) * hop
    assert set(every) <= set(starts)


@given(
    grid=grids(400),
    begin=st.integers(0, 1000),
    samples=st.integers(1, 3000),
    lengths=st.lists(st.integers(1, 700), max_size=12),
)
def test_windows_do_not_depend_on_the_blocks_that_the_sound_comes_in(grid, begin, samples, lengths):
    sound = np.random.default_rng(0).uniform(0.1, 1, samples).astype(np.float32)
    starts, ends, windows = cut(grid, in_blocks(sound, lengths, begin))
    length = grid.window_samples
    np.testing.assert_array_equal(starts, grid.starts(begin, begin + samples))
    np.testing.assert_array_equal(ends, np.minimum(starts + length, begin + samples))
    missing = max(0, length - samples)
    padded = np.pad(sound, (missing // 2, missing - missing // 2), mode="symmetric")
    expected = [padded[start - begin : start - begin + length] for start in starts]
    np.testing.assert_array_equal(windows, np.reshape(expected, (-1, length)))


def test_beside_lost_sound_windows_are_moved_and_the_others_stay_where_they_are():
    sound = np.arange(1, 101, dtype=np.float32)
    starts, ends, windows = cut(WindowGrid(10, 4), [(0, sound[:33]), (51, sound[51:70]), (70, sound[70:])])
    np.testing.assert_array_equal(starts, [0, 4, 8, 12, 16, 20, 23, 51, *range(52, 89, 4), 90])
    np.testing.assert_array_equal(ends, starts + 10)
    np.testing.assert_array_equal(windows, [sound[start : start + 10] for start in starts])


def test_what_is_left_between_losses_is_a_window_from_a_quarter_of_one_on():
    sound = np.arange(1, 41, dtype=np.float32)
    starts, ends, windows = cut(WindowGrid(10, 10), [(0, sound[:2]), (8, sound[8:11]), (20, sound[20:])])
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [(8, 11), (20, 30), (30, 40)]
    assert windows[0].tolist() == [11, 10, 9, 9, 10, 11, 11, 10, 9, 9], "mirrored at both ends"


@pytest.mark.parametrize("overlap_s", [-0.1, 3.0, 4.0, float("nan"), float("inf")])
def test_an_overlap_out_of_range_is_an_error(overlap_s):
    with pytest.raises(UserError, match="overlap"):
        WindowGrid.with_overlap(CLIP, overlap_s, RATE)
