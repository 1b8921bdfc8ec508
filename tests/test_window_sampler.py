"""Which windows an epoch holds, and the batches that are made of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from archives import noise, write_archive

from kenya_birds.data.archive import read_archive
from kenya_birds.data.decoded_recordings import DecodedRecording, DecodedRecordings, decode_recordings
from kenya_birds.errors import UserError
from kenya_birds.evaluation.window_targets import WindowTargets
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.training.arguments import AugmentationArguments
from kenya_birds.training.augmentation import DRAWS, Augmentation
from kenya_birds.training.recording_windows import RecordingWindows
from kenya_birds.training.window_prevalence import prior_shift
from kenya_birds.training.window_sampler import WindowSampler, warn_of_short_stretches

RATE, WINDOW = 10, 30
# Two recordings of 60 s; the second has damage from 30 to 31 s.
CALLS = [
    ("a", 10.0, 10.0, "owl"),
    ("a", 40.0, 41.0, "owl"),
    ("b", 20.0, 20.0, "owl"),
    ("b", 50.0, 50.0, "lark"),
    ("b", 5.0, 15.0, "lark"),
]


def recording(name, runs, samples=600):
    return DecodedRecording(name, Path(name), samples, 1.0, np.array(runs), 0.0)


DECODED = DecodedRecordings([recording("a", [[0, 600]]), recording("b", [[0, 300], [310, 600]])], RATE)


def targets_of(decoded=DECODED, calls=CALLS, unknown=(), **settings):
    return WindowTargets.of(
        pd.DataFrame(calls, columns=["recording", "start_s", "end_s", "species"]),
        pd.DataFrame(unknown, columns=["recording", "start_s", "end_s"]),
        decoded.lengths,
        ["lark", "owl"],
        sampling_rate=RATE,
        window=WINDOW,
        margin_s=0.5,
        **settings,
    )


def draws_of(decoded=DECODED, epoch=0, targets=None, **settings):
    sampler = WindowSampler(decoded, targets or targets_of(decoded), **{"length": 1000, "seed": 1, **settings})
    sampler.set_epoch(epoch)
    draws = list(sampler)
    assert len(draws) == len(sampler)
    return np.array([draw[0] for draw in draws]), np.array([draw[1] for draw in draws])


def test_an_epoch_depends_on_seed_and_epoch_alone():
    assert np.array_equal(draws_of(epoch=3), draws_of(epoch=3))
    for other in ({"epoch": 4}, {"seed": 2}):
        assert not np.array_equal(draws_of(epoch=3), draws_of(**{"epoch": 3, **other}))


def test_windows_lie_in_unbroken_sound():
    recordings, start = draws_of()
    assert (start >= 0).all()
    assert (start <= 570).all()
    in_b = start[recordings == 1]
    assert ((in_b <= 270) | (in_b >= 310)).all()


def test_windows_round_calls_hold_a_call_and_lie_evenly():
    targets = targets_of()
    recordings, start = draws_of(call_share=1.0, empty_share=0.0)
    assert (targets(recordings, start) == 1).any(axis=1).all()
    to_call = 100 - start[(recordings == 0) & (start < 200)]
    # The call at 10 s is anywhere from half a second inside to half a second before the end.
    assert (to_call.min(), to_call.max()) == (5, 24)
    assert np.bincount(to_call)[5:].min() > 3


@pytest.mark.parametrize("length_s", [0.5, 2.0, 4.0])
def test_windows_round_calls_have_as_much_of_the_call_as_is_wanted(length_s):
    targets = targets_of(calls=[("a", 10.0, 10.0 + length_s, "lark")], min_overlap_s=2.5)
    recordings, start = draws_of(targets=targets, call_share=1.0, empty_share=0.0)
    assert (targets(recordings, start)[:, 0] == 1).all()
    assert len(np.unique(start)) > 4


def test_species_are_drawn_by_power():
    for power, share in ((0.0, 2 / 5), (1.0, 1 / 2)):
        recordings, start = draws_of(call_share=1.0, empty_share=0.0, species_power=power, length=4000)
        is_lark = (targets_of()(recordings, start)[:, 0] == 1).mean()
        assert is_lark == pytest.approx(share, abs=0.04)


def test_a_call_that_begins_before_its_recording_is_not_of_the_one_before():
    calls = pd.DataFrame([("b", -0.5, 1.5, "owl")], columns=["recording", "start_s", "end_s", "species"])
    targets = WindowTargets.of(
        calls, calls.iloc[:0], DECODED.lengths, ["owl"], sampling_rate=RATE, window=WINDOW, verified=["a"]
    )
    recordings, start = draws_of(targets=targets, call_share=1.0, empty_share=0.0)
    assert set(recordings) == {1}
    # A window that had to hold the whole box, as those of checked detections have, would begin at 0.
    assert set(start) == {0, 1, 2, 3}


def test_empty_windows_touch_no_annotation():
    targets = targets_of(unknown=[("a", 30.0, 30.0)])
    recordings, start = draws_of(targets=targets, call_share=0.0, empty_share=1.0)
    assert targets.is_empty(recordings, start).all()
    # Every such place can be drawn.
    everywhere = np.arange(0, 571)
    places = everywhere[targets.is_empty(np.zeros(571, dtype=int), everywhere)]
    drawn = draws_of(targets=targets, call_share=0.0, empty_share=1.0, length=20_000)
    assert set(drawn[1][drawn[0] == 0]) == set(places)


def test_shares_are_kept_in_every_epoch():
    targets = targets_of()
    recordings, start = draws_of(call_share=0.5, empty_share=0.5)
    assert targets.is_empty(recordings, start).sum() == 500


def test_windows_anywhere_need_a_recording_with_all_its_calls_annotated():
    decoded = DecodedRecordings([recording("a", [[0, 600]]), recording("b", [[0, 20]], 20)], RATE)
    calls = pd.DataFrame(CALLS[:2], columns=["recording", "start_s", "end_s", "species"])
    targets = WindowTargets.of(
        calls, calls.iloc[:0], decoded.lengths, ["owl"], sampling_rate=RATE, window=WINDOW, weak=["a"]
    )
    with pytest.raises(UserError, match="no training recording with all its calls annotated has 3 s of sound"):
        draws_of(decoded, targets=targets)
    recordings, _ = draws_of(decoded, targets=targets, call_share=1.0, empty_share=0.0)
    assert set(recordings) == {0}


def test_without_empty_windows_their_share_is_drawn_anywhere_and_logged(caplog):
    targets = targets_of(unknown=[("a", 0.0, 60.0), ("b", 0.0, 60.0)])
    recordings, _ = draws_of(targets=targets)
    assert len(recordings) == 1000
    assert "No window of 3 s in the training recordings is free of calls" in caplog.text


@pytest.mark.parametrize(
    ("decoded", "calls", "settings", "message"),
    [
        (DecodedRecordings([recording("a", [[0, 29]])], RATE), CALLS, {}, "no training recording has 3 s of sound"),
        (DECODED, [("a", 10.0, 10.0, "rare")], {}, "no call lies in a part of the training recordings"),
        (DECODED, CALLS, {"call_share": 0.8, "empty_share": 0.3}, "expected a sum of 1 or less"),
    ],
)
def test_what_cannot_be_drawn_from_is_one_line(decoded, calls, settings, message):
    with pytest.raises(UserError, match=message):
        draws_of(decoded, targets=targets_of(decoded, calls), **settings)


def test_stretches_shorter_than_a_window_are_logged_with_their_annotations(caplog):
    warn_of_short_stretches(DECODED, targets_of())
    assert not caplog.text
    decoded = DecodedRecordings(
        [recording("a", [[0, 90], [95, 120], [390, 419]]), recording("b", [[0, 300], [310, 600]])], RATE
    )
    # Of the calls of recording a, that at 10 s lies in the second stretch and that at 40 s in the third.
    warn_of_short_stretches(decoded, targets_of(decoded))
    assert (
        "2 of 5 stretches of unbroken sound in the training recordings are shorter than a window of 3 s" in caplog.text
    )
    assert "(5.4 s in all)" in caplog.text
    assert "their 2 annotations are not learned" in caplog.text


def test_incomplete_steps_are_left_out():
    assert len(draws_of(length=100, windows_per_step=64)[0]) == 64
    assert len(draws_of(length=10, windows_per_step=64)[0]) == 10


@pytest.fixture
def windows(tmp_path):
    """Batches of windows of two recordings of 10 s at 8 kHz, with mixup."""
    rows = [("a.wav", 3.0, "lark"), ("a.wav", 7.0, "owl"), ("b.wav", 5.0, "owl")]
    archive = read_archive(write_archive(tmp_path / "archive", rows))
    paths = {name: archive.recording_path(name) for name in archive.headers}
    decoded = decode_recordings(paths, tmp_path / "cache", 8_000)
    targets = WindowTargets.of(
        archive.annotations, archive.unknown, decoded.lengths, ["lark", "owl"], sampling_rate=8_000, window=24_000
    )
    extractor = KenyaBirdsFeatureExtractor(sampling_rate=8_000, f_max_hz=4_000.0)

    def make(**settings):
        args = AugmentationArguments.none()
        for name, value in settings.items():
            setattr(args, name, value)
        augmentation = Augmentation(args, extractor, torch.Generator())
        dataset = RecordingWindows(decoded, targets, augmentation, 8)
        draws = list(WindowSampler(decoded, targets, length=8, numbers=len(DRAWS)))
        return dataset, draws

    return make


def test_a_batch_holds_what_detection_would_see_of_its_windows(windows):
    dataset, draws = windows(shift_probability=1.0)
    batch = dataset.__getitems__(draws)
    assert "shift" not in batch["amounts"]
    waveform = dataset.waveform(batch)
    for draw, row in zip(draws, waveform, strict=True):
        sound = noise(10.0, seed=draw.recording)[draw.start : draw.start + 24_000] / np.float32(32768)
        torch.testing.assert_close(row, dataset.augmentation.extractor.clean(torch.from_numpy(sound)[None])[0])
    assert batch["labels"].tolist() == dataset.targets(*np.array([draw[:2] for draw in draws]).T).tolist()


def test_mixed_windows_hold_what_either_holds(windows):
    dataset, draws = windows(mixup_probability=1.0)
    plain, _ = windows()
    batch = dataset.__getitems__(draws)
    own = plain.__getitems__(draws)["labels"]
    partners = [draw._replace(recording=draw.partner_recording, start=draw.partner_start) for draw in draws]
    others = plain.__getitems__(partners)["labels"]
    assert ((batch["labels"] == 1) == ((own == 1) | (others == 1))).all()
    assert dataset.waveform(batch).shape == (8, 24_000)


def shift_of(softmax_weights=None, **settings):
    """Shift of the priors of `DECODED`, and the targets of its drawn windows and of all its windows."""
    targets = targets_of()
    augmentation = Augmentation(AugmentationArguments.none(), KenyaBirdsFeatureExtractor(), torch.Generator())
    dataset = RecordingWindows(DECODED, targets, augmentation, 8)
    sampler = WindowSampler(DECODED, targets, length=30_000, numbers=len(DRAWS), **settings)
    drawn = dataset.labels(list(sampler))
    places = [(index, start) for index, end in ((0, 600), (1, 300)) for start in range(end - WINDOW + 1)]
    places += [(1, start) for start in range(310, 600 - WINDOW + 1)]
    every = targets(*np.array(places).T)
    return prior_shift(dataset, sampler, softmax_weights=softmax_weights), drawn, every


def log_odds(targets):
    return np.log((targets == 1).sum(axis=0) / (targets == 0).sum(axis=0))


def test_the_shift_turns_the_odds_of_draws_into_those_of_the_recordings():
    shift, drawn, every = shift_of(call_share=0.6, empty_share=0.2)
    assert (shift > 0.4).all()  # calls are drawn more often than they occur
    assert log_odds(drawn) - shift == pytest.approx(log_odds(every), abs=0.15)


def test_windows_that_are_drawn_anywhere_need_no_shift():
    shift, _, _ = shift_of(call_share=0.0, empty_share=0.0)
    assert shift == pytest.approx([0, 0], abs=0.15)


def test_without_a_recording_whose_calls_are_all_annotated_there_is_no_shift():
    calls = pd.DataFrame(CALLS, columns=["recording", "start_s", "end_s", "species"])
    targets = WindowTargets.of(
        calls, calls.iloc[:0], DECODED.lengths, ["lark", "owl"], sampling_rate=RATE, window=WINDOW, weak=["a", "b"]
    )
    augmentation = Augmentation(AugmentationArguments.none(), KenyaBirdsFeatureExtractor(), torch.Generator())
    sampler = WindowSampler(DECODED, targets, length=100, call_share=1.0, empty_share=0.0, numbers=len(DRAWS))
    windows = RecordingWindows(DECODED, targets, augmentation, 8)
    assert prior_shift(windows, sampler).tolist() == [0, 0]
    assert prior_shift(windows, sampler, softmax_weights=np.ones(2)).tolist() == [0, 0]


def test_the_odds_of_a_softmax_are_those_against_no_call():
    shift, drawn, every = shift_of(np.ones(2), call_share=0.6, empty_share=0.2)

    def against_no_call(targets):
        present = targets == 1
        shares = (present / np.maximum(present.sum(axis=1, keepdims=True), 1)).sum(axis=0)
        return np.log(shares / (targets == 0).all(axis=1).sum())

    assert against_no_call(drawn) - shift == pytest.approx(against_no_call(every), abs=0.15)
    weighted, _, _ = shift_of(np.array([1.0, 3.0]), call_share=0.6, empty_share=0.2)
    assert weighted - shift == pytest.approx([0, np.log(3)], abs=1e-3)


@pytest.mark.parametrize("is_softmax", [False, True])
def test_a_drawn_window_counts_with_its_weight_in_the_loss(is_softmax):
    targets, weights = targets_of(), np.array([2.0, 0.5], dtype=np.float32)
    augmentation = Augmentation(AugmentationArguments.none(), KenyaBirdsFeatureExtractor(), torch.Generator())
    sampler = WindowSampler(DECODED, targets, length=30_000, call_share=0.6, empty_share=0.2, numbers=len(DRAWS))
    softmax_weights = np.ones(2) if is_softmax else None

    def found(weights):
        dataset = RecordingWindows(DECODED, targets, augmentation, 8, weights)
        return prior_shift(dataset, sampler, softmax_weights=softmax_weights)

    draws = list(sampler)
    labels, weight = targets(*np.array([draw[:2] for draw in draws]).T), weights[[draw.recording for draw in draws]]

    def odds(weight):
        present, absent = labels == 1, labels == 0
        if is_softmax:
            present, absent = present / np.maximum(present.sum(axis=1, keepdims=True), 1), absent.all(axis=1)[:, None]
        return np.log((weight @ present) / (weight @ absent))

    assert found(weights) - found(None) == pytest.approx(odds(weight) - odds(np.ones(len(draws))), abs=1e-3)
    assert np.abs(found(weights) - found(None)).max() > 0.4
    assert found(np.ones(2, dtype=np.float32)) == pytest.approx(found(None))


def test_checked_detections_are_drawn_where_their_answer_holds():
    decoded = DecodedRecordings([*DECODED.recordings, recording("c", [[0, 600]])], RATE)
    calls = [*CALLS, ("c", 10.0, 13.0, "owl"), ("c", 30.0, 33.0, "lark")]
    spans = [("c", 20.0, 23.0, "owl"), ("c", 40.0, 46.0, "lark"), ("c", 50.0, 51.0, "owl")]
    targets = WindowTargets.of(
        pd.DataFrame(calls, columns=["recording", "start_s", "end_s", "species"]),
        pd.DataFrame([], columns=["recording", "start_s", "end_s"]),
        decoded.lengths,
        ["lark", "owl"],
        sampling_rate=RATE,
        window=WINDOW,
        margin_s=0.5,
        verified=["c"],
        absent=pd.DataFrame(spans, columns=["recording", "start_s", "end_s", "species"]),
    )
    recordings, start = draws_of(decoded, targets=targets, call_share=0.4)
    found = targets(recordings, start)[recordings == 2]
    assert (found != -100).any(axis=1).all()
    # 7 calls with 400 windows; 3 windows' length of wrong detections: 171 windows.
    assert (found == 0).any(axis=1).sum() == round(400 * 3 / 7)
    first = start[recordings == 2]
    assert set(first[found[:, 1] == 0]) == set(range(195, 206))
    assert set(first[found[:, 0] == 0]) == set(range(395, 436))
    assert set(first[found[:, 1] == 1]) == set(range(95, 106))
    # The rest is known in the other recordings: 100 windows in three at random there.
    assert (targets.is_empty(recordings, start)).sum() > 200
