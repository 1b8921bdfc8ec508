"""Batches: which sound, which labels."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import classification_loss
from kenya_birds.training.augmentation import DRAWS, Augmentation, AugmentationArguments
from kenya_birds.training.batches import ClipDraw, TrainingClips, clip_targets

RATE = 8000
EXTRACTOR = KenyaBirdsFeatureExtractor(
    noise_reduction="none", sampling_rate=RATE, clip_s=1.0, n_fft=512, hop_length=128, f_max_hz=4000.0, n_mels=16
)
NAMES = ["a", "b", "c"]


def dataset(centers_s, labels, context=0, unknown=False, present=None):
    """Clips of one recording; sample `i` of a stored clip is `i`, plus 10,000 for each clip before it."""
    stored = RATE + 2 * context
    waveform = [[10_000 * row + index % 10_000 for index in range(stored)] for row in range(len(labels))]
    rows = {
        "waveform": np.array(waveform, dtype=np.int16).tolist(),
        "scale": [0.5] * len(labels),
        "label": labels,
        "labels": present or [[label] for label in labels],
        "unknown": [unknown] * len(labels),
        "recording": ["r"] * len(labels),
        "start_s": [center - 0.5 for center in centers_s],
        "center_s": centers_s,
    }
    kinds = {
        "waveform": List(Value("int16"), length=stored),
        "scale": Value("float32"),
        "label": ClassLabel(names=NAMES),
        "labels": List(ClassLabel(names=NAMES)),
        "unknown": Value("bool"),
        "recording": Value("string"),
        "start_s": Value("float64"),
        "center_s": Value("float64"),
    }
    return Dataset.from_dict(rows, Features(kinds))


def training_clips(clips, multi_label=False, **changes):
    arguments = dataclasses.replace(AugmentationArguments.none(), **changes)
    return TrainingClips(clips, Augmentation(arguments, EXTRACTOR, torch.Generator()), multi_label)


def draw(clip, partner=0, **numbers):
    chance = np.full(len(DRAWS), 0.5)
    for name, number in numbers.items():
        chance[DRAWS.index(name)] = number
    return ClipDraw(clip, partner, chance)


def shift_of(share, shift_max=0.3):
    """The random number that shifts a window by a share of its length."""
    return (share / shift_max + 1) / 2


def test_a_batch_is_int16_and_holds_the_middle_of_the_stored_clip():
    clips = training_clips(dataset([1.0, 5.0], [0, 2], context=100))
    batch = clips.__getitems__([draw(1), draw(0)])
    assert batch["sound"]["waveform"].dtype == torch.int16
    assert batch["sound"]["waveform"][:, 0].tolist() == [10_100, 100]
    assert batch["labels"].tolist() == [2, 0]
    torch.testing.assert_close(clips.waveform(batch)[1], 0.5 * torch.arange(100.0, 100 + RATE))


@pytest.mark.parametrize("resident", [False, True])
@settings(max_examples=30)
@given(st.floats(-0.3, 0.3))
def test_a_shift_brings_in_the_stored_context_and_goes_no_further(resident, share):
    clips = training_clips(dataset([1.0], [0], context=1000), shift_probability=1.0)
    if resident:
        clips.move_to(torch.device("cpu"))
    batch = clips.__getitems__([draw(0, shift=shift_of(share))])
    first = 1000 + np.clip(np.rint(np.float32(share) * RATE), -1000, 1000)
    found = clips.waveform(batch)[0] / 0.5
    assert found[0].item() == pytest.approx(first, abs=1)
    torch.testing.assert_close(found.diff(), torch.ones(RATE - 1))


@pytest.mark.parametrize("resident", [False, True])
def test_without_context_what_leaves_at_one_end_returns_at_the_other(resident):
    clips = training_clips(dataset([1.0], [0]), shift_probability=1.0)
    if resident:
        clips.move_to(torch.device("cpu"))
    for share in (0.25, -0.25):
        found = clips.waveform(clips.__getitems__([draw(0, shift=shift_of(share))]))[0] / 0.5
        torch.testing.assert_close(found, torch.arange(float(RATE)).roll(round(-share * RATE)))


def test_a_partner_is_mixed_into_the_rows_that_are_mixed():
    clips = training_clips(dataset([1.0, 2.0, 3.0], [0, 1, 2]), mixup_probability=0.5, mixup_alpha=1.0)
    batch = clips.__getitems__([draw(0, 1, mixup_on=0.9), draw(1, 2, mixup_on=0.1, mixup=0.25)])
    assert batch["amounts"]["mixed"].tolist() == [1]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["partner_labels"].tolist() == [1, 2]
    first, second = clips.waveform(batch)[:, 0] / 0.5
    assert first == 0
    assert second == pytest.approx(0.75 * 10_000 + 0.25 * 20_000)


class Sender(pickle.Pickler):
    """Refuses tensors of a device, as Apple's GPUs do."""

    def reducer_override(self, value):
        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            raise RuntimeError("_share_filename_: only available on CPU")
        return NotImplemented


@pytest.mark.parametrize("resident", [False, True])
def test_processes_that_read_batches_are_sent_no_tensor_of_the_device(resident):
    clips = training_clips(dataset([1.0, 2.0], [0, 1]), noise_probability=1.0, background_probability=1.0)
    clips.augmentation = Augmentation(
        clips.augmentation.args, EXTRACTOR, torch.Generator(), torch.zeros(3, RATE, device="meta"), "meta"
    )
    if resident:
        clips.move_to(torch.device("meta"))
    sent = io.BytesIO()
    Sender(sent).dump(clips)
    there = pickle.loads(sent.getvalue())  # noqa: S301  (our own)
    draws = [draw(1), draw(0, noise_on=0.2)]
    batch, expected = there.__getitems__(draws), clips.__getitems__(draws)
    assert batch["sound"].keys() == expected["sound"].keys()
    torch.testing.assert_close(batch, expected)
    with pytest.raises(AttributeError, match="noise"):
        there.augmentation(torch.zeros(2, RATE), batch["amounts"])
    if resident:
        with pytest.raises(AttributeError, match="resident"):
            there.waveform(batch)


def test_a_multi_label_target_has_a_one_for_every_species_in_the_clip():
    targets = clip_targets(dataset([1.0, 2.0], [0, 2], present=[[0, 1], [2]]), multi_label=True)
    assert targets.tolist() == [[1, 1, 0], [0, 0, 1]]


def test_an_unknown_bird_masks_what_it_could_be():
    targets = clip_targets(dataset([1.0], [1], unknown=True), multi_label=True)
    assert targets.tolist() == [[-100, 1, -100]]
    losses = classification_loss(torch.tensor([[5.0, 0.0, -5.0]]), targets, "multi_label_classification")
    assert losses.tolist() == [[0, pytest.approx(np.log(2)), 0]]


def test_mixed_multi_label_targets_are_joined_by_or_and_stay_unknown():
    known = dataset([1.0, 3.0, 5.0], [0, 1, 2], present=[[0], [1], [2]])
    rows = known.to_dict() | {"unknown": [False, False, True]}
    clips = training_clips(Dataset.from_dict(rows, known.features), multi_label=True, mixup_probability=1.0)
    batch = clips.__getitems__([draw(0, 1), draw(1, 2), draw(2, 0)])
    assert batch["labels"].tolist() == [[1, 1, 0], [-100, 1, 1], [1, -100, 1]]
    assert "partner_labels" not in batch


def test_a_shifted_window_has_the_labels_of_the_calls_in_it():
    # Windows of 1 s round 1.0, 1.4 and 1.8 s.
    calls = dataset([1.0, 1.4, 1.8], [0, 1, 2], context=2400, present=[[0, 1], [0, 1, 2], [1, 2]])
    clips = training_clips(calls, multi_label=True, shift_probability=1.0)
    batch = clips.__getitems__([draw(0, shift=shift_of(share)) for share in (0.0, -0.2, 0.1, 0.29)])
    assert batch["labels"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0]]
    batch = clips.__getitems__([draw(1, shift=shift_of(share)) for share in (0.0, -0.2, 0.2)])
    assert batch["labels"].tolist() == [[1, 1, 1], [1, 1, 0], [0, 1, 1]]


def test_a_shifted_window_stays_unknown_where_a_bird_is():
    calls = dataset([1.0, 1.4], [0, 1], context=2400, unknown=True, present=[[0, 1], [0, 1]])
    clips = training_clips(calls, multi_label=True, shift_probability=1.0)
    assert clips.__getitems__([draw(0, shift=shift_of(-0.2))])["labels"].tolist() == [[1, -100, -100]]
