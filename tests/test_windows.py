import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kenya_birds.errors import UserError
from kenya_birds.inference.windows import WindowCutter, WindowGrid

RATE = 32_000
CLIP = 96_000


def cut(grid, sound, blocks):
    """Starts, ends and sound of all windows of a recording that comes in blocks of these lengths."""
    cutter = WindowCutter(grid, len(sound))
    found, at = [], 0
    for block in [*blocks, len(sound)]:
        piece = sound[at : at + block]
        if len(piece):
            found += list(cutter.add(at, piece))
        at += len(piece)
    return tuple(np.concatenate([getattr(one, name) for one in found]) for name in ("starts", "ends", "sound"))


def test_windows_of_twelve_hours_at_an_overlap_of_2_9_s_start_at_exact_tenths_of_a_second():
    grid = WindowGrid.with_overlap(CLIP, 2.9, RATE)
    samples = 12 * 3600 * RATE
    starts = grid.starts(0, grid.count(samples))
    assert starts.dtype == np.int64
    assert len(starts) == 12 * 3600 * 10 - 29
    np.testing.assert_array_equal(starts * 10, np.arange(len(starts)) * RATE)
    assert starts[-1] + CLIP == samples


@given(samples=st.integers(1, 10_000), length=st.integers(1, 500), data=st.data())
def test_the_last_window_is_the_first_that_reaches_the_end(samples, length, data):
    grid = WindowGrid(length, data.draw(st.integers(1, length)))
    starts = grid.starts(0, grid.count(samples))
    assert starts[0] == 0
    assert starts[-1] + length >= samples
    assert (starts[:-1] + length < samples).all()
    assert starts[-1] < samples


@settings(deadline=None)
@given(
    samples=st.integers(1, 3000),
    length=st.integers(1, 400),
    blocks=st.lists(st.integers(1, 700), max_size=12),
    data=st.data(),
)
def test_windows_do_not_depend_on_the_blocks_that_the_sound_comes_in(samples, length, blocks, data):
    grid = WindowGrid(length, data.draw(st.integers(1, length)))
    sound = np.random.default_rng(0).uniform(0.1, 1, samples).astype(np.float32)
    starts, ends, windows = cut(grid, sound, blocks)
    np.testing.assert_array_equal(starts, grid.starts(0, grid.count(samples)))
    np.testing.assert_array_equal(ends, np.minimum(starts + length, samples))
    padded = np.pad(sound, (0, length))
    np.testing.assert_array_equal(windows, [padded[start : start + length] for start in starts])


def test_windows_that_touch_lost_sound_are_left_out_and_the_others_stay_where_they_are():
    grid = WindowGrid(10, 4)
    sound = np.arange(1, 101, dtype=np.float32)
    cutter = WindowCutter(grid, 100)
    found = [*cutter.add(0, sound[:33]), *cutter.add(51, sound[51:70]), *cutter.add(70, sound[70:])]
    starts = np.concatenate([one.starts for one in found])
    np.testing.assert_array_equal(starts, [0, 4, 8, 12, 16, 20, *range(52, 93, 4)])
    for one in found:
        for start, window in zip(one.starts, one.sound, strict=True):
            np.testing.assert_array_equal(window, np.pad(sound, (0, 10))[start : start + 10])


def test_no_window_is_padded_where_the_end_is_lost():
    cutter = WindowCutter(WindowGrid(10, 10), 100)
    found = list(cutter.add(0, np.ones(95, dtype=np.float32)))
    assert max(one.ends.max() for one in found) == 90


@pytest.mark.parametrize("overlap_s", [-0.1, 3.0, 4.0, float("nan"), float("inf")])
def test_an_overlap_out_of_range_is_an_error(overlap_s):
    with pytest.raises(UserError, match="overlap"):
        WindowGrid.with_overlap(CLIP, overlap_s, RATE)
