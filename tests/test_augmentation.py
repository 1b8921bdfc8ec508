import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kenya_birds.training.augmentation import crop, uniform_per_clip


def test_draws_are_uniform():
    drawn = uniform_per_clip(0, 0, range(4000), 2)
    assert drawn.shape == (4000, 2)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    np.testing.assert_allclose(np.histogram(drawn, bins=10, range=(0, 1))[0], 800, rtol=0.15)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.05


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=8), st.integers(0, 2**32 - 1), st.integers(0, 10**6))
def test_a_clips_draw_does_not_depend_on_its_batch(clips, seed, step):
    together = uniform_per_clip(seed, step, clips, 3)
    alone = np.concatenate([uniform_per_clip(seed, step, [clip], 3) for clip in clips])
    np.testing.assert_array_equal(together, alone)


def test_seed_step_and_clip_each_change_the_draw():
    draws = [uniform_per_clip(*arguments)[0, 0] for arguments in ((1, 2, [3]), (2, 2, [3]), (1, 3, [3]), (1, 2, [4]))]
    assert len(set(draws)) == 4


def test_a_crop_is_the_clips_own_sound_at_its_position():
    waveform = torch.arange(20).reshape(2, 10)
    assert crop(waveform, 7, np.array([0.0, 0.999])).tolist() == [list(range(7)), list(range(13, 20))]


def test_every_position_is_as_likely():
    waveform = torch.arange(5).repeat(10_000, 1)
    starts = crop(waveform, 3, uniform_per_clip(0, 0, range(10_000))[:, 0])[:, 0]
    np.testing.assert_allclose(np.bincount(starts), 10_000 / 3, rtol=0.06)
