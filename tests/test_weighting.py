import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kenya_birds.model.modeling_kenya_birds import classification_loss
from kenya_birds.training.batches import ClipSampler, power_weights

counts = st.lists(st.integers(0, 1000), min_size=2, max_size=30).filter(any)


def test_inverse_frequency_worked_by_hand():
    # 1/10 and 1/30, scaled so that 10 * a + 30 * b = 40 clips.
    np.testing.assert_allclose(power_weights([10, 30], 1.0), [2.0, 2 / 3])


def test_square_root_weighs_four_times_as_many_clips_half():
    common, rare = power_weights([40, 10], 0.5)
    assert rare / common == pytest.approx(2)


def test_power_zero_weighs_all_alike():
    np.testing.assert_array_equal(power_weights([1, 700, 30], 0.0), [1, 1, 1])


@given(counts, st.floats(0, 2))
def test_weights_are_positive_and_their_mean_over_clips_is_one(counts, power):
    weights = power_weights(counts, power)
    assert (weights > 0).all()
    assert (weights * counts).sum() / sum(counts) == pytest.approx(1)


@given(counts, st.floats(0, 2))
def test_an_undecided_classifier_has_the_loss_of_a_guess_at_every_power(counts, power):
    labels = torch.tensor([label for label, n in enumerate(counts) for _ in range(n)])
    losses = classification_loss(torch.zeros(len(labels), len(counts)), labels, None)
    weights = torch.tensor(power_weights(counts, power))
    assert (losses * weights[labels]).mean().item() == pytest.approx(math.log(len(counts)), rel=1e-5)


def test_negative_power_and_no_clips_are_refused():
    with pytest.raises(ValueError, match="power is -1"):
        power_weights([1, 2], -1)
    with pytest.raises(ValueError, match="no class has any clip"):
        power_weights([0, 0], 1)


def drawn(epoch=0, **settings):
    sampler = ClipSampler(**{"clips": 1000, "clips_per_step": 8, "seed": 1, **settings})
    sampler.set_epoch(epoch)
    draws = list(sampler)
    assert len(draws) == len(sampler)
    return [draw.clip for draw in draws]


def test_without_weights_each_clip_is_drawn_once():
    assert sorted(drawn()) == list(range(1000))


def test_an_incomplete_step_is_left_out_with_other_clips_each_epoch():
    first, second = drawn(clips=21), drawn(clips=21, epoch=1)
    assert len(set(first)) == len(set(second)) == 16
    assert set(first) != set(second)


def test_fewer_clips_than_a_step_are_all_drawn():
    assert sorted(drawn(clips=5)) == list(range(5))


def test_clips_are_drawn_in_proportion_to_weights():
    clips = np.array(drawn(weights=[1.0] * 500 + [3.0] * 500))
    assert (clips >= 500).mean() == pytest.approx(0.75, abs=0.04)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0] * 500])
def test_a_draw_depends_on_seed_and_epoch_alone(weights):
    assert drawn(weights=weights, seed=1, epoch=4) == drawn(weights=weights, seed=1, epoch=4)
    different = [drawn(weights=weights, seed=seed, epoch=epoch) for seed, epoch in ((1, 4), (1, 5), (2, 4))]
    assert all(a != b for a, b in itertools.combinations(different, 2))


def test_partners_and_chance_come_with_each_clip_and_are_independent_of_it():
    sampler = ClipSampler(4000, 8, seed=1, numbers=3)
    draws, again = list(sampler), list(sampler)
    clip, partner = (np.array([getattr(draw, name) for draw in draws]) for name in ("clip", "partner"))
    assert abs(np.corrcoef(clip, partner)[0, 1]) < 0.05
    chance = np.stack([draw.chance for draw in draws])
    assert chance.shape == (4000, 3)
    np.testing.assert_allclose(np.histogram(chance, bins=10, range=(0, 1))[0], 1200, rtol=0.15)
    assert abs(np.corrcoef(chance.T) - np.eye(3)).max() < 0.06
    np.testing.assert_array_equal(chance, np.stack([draw.chance for draw in again]))
