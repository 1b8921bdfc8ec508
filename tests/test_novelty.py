import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from detecting import run_in_folder, tables
from detecting import save_model as save_random_model
from hypothesis import given
from hypothesis import strategies as st
from running import run_script, train

from kenya_birds import cli
from kenya_birds.errors import UserError
from kenya_birds.evaluation.novelty import NoveltyReference, draw_calls
from kenya_birds.evaluation.unknown_species import (
    CallEmbeddings,
    Separation,
    leave_one_species_out,
    pooled_figures,
    separate_unlearned,
    unknown_species_figures,
)
from kenya_birds.experiments.novelty_fit import refit_reference
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.pipeline import SoundscapePipeline
from kenya_birds.inference.postprocessing import DetectionFinder
from kenya_birds.saved_models import NOVELTY_FILE

pytestmark = pytest.mark.usefixtures("blank_figures")

# Their directions are 0, 90, 180 and 270 degrees.
CROSS = np.array([[2.0, 0.0], [0.0, 3.0], [-2.0, 0.0], [0.0, -3.0]])


def at(*degrees: float) -> np.ndarray:
    """Vectors of some length in these directions."""
    angle = np.radians(degrees)
    return 5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def reference(known=(0.1, 0.2, 0.3, 0.4)) -> NoveltyReference:
    return NoveltyReference((at(0) / 5).astype(np.float16), np.array(known, np.float32), 1)


def test_distance_is_one_minus_the_cosine_of_the_angle_to_the_call_of_the_rank():
    for rank, expected in ((1, [0, 0.5, 1 - np.sqrt(0.5)]), (2, [1, 1 - np.sqrt(0.75), 1 - np.sqrt(0.5)])):
        # 60 degrees are 30 from the call at 90 degrees and 60 from that at 0 degrees.
        expected[1] = 1 - np.cos(np.radians(30 if rank == 1 else 60))
        found = NoveltyReference.of(CROSS, None, rank).nearest()(at(0, 60, 45))
        assert found == pytest.approx(expected, abs=1e-3)


def test_the_length_of_an_embedding_does_not_matter():
    near = NoveltyReference.of(CROSS, None).nearest()(at(10, 50))
    assert NoveltyReference.of(7 * CROSS, None).nearest()(0.1 * at(10, 50)) == pytest.approx(near, abs=1e-6)


def test_novelty_is_the_share_of_known_calls_that_are_as_near_or_nearer():
    novelty = reference().novelty(np.array([0.0, 0.05, 0.1, 0.2, 0.25, 0.4, 1.7]))
    assert novelty.tolist() == [0, 0.125, 0.25, 0.5, 0.625, 1, 1]
    # Two of five known calls are in the reference themselves.
    assert reference([0, 0, 0.1, 0.1, 0.3]).novelty(np.array([0, 0.1, 0.2])).tolist() == [0.4, 0.8, 0.9]


def test_the_stated_share_of_calls_like_the_known_ones_is_above_a_limit():
    rng = np.random.default_rng(0)
    calls, known, others = (rng.normal(size=(number, 6)) + 1 for number in (50, 1000, 4000))
    fitted = NoveltyReference.of(calls, known)
    above = fitted.novelty(fitted.nearest()(others)) > 0.95
    assert above.mean() == pytest.approx(0.05, abs=0.015)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=30), st.lists(st.floats(0, 2), min_size=2, max_size=30))
def test_novelty_rises_with_distance_and_lies_between_0_and_1(known, distances):
    novelty = reference(sorted(known)).novelty(np.sort(distances))
    assert (np.diff(novelty) >= 0).all()
    assert novelty.min() >= 0
    assert novelty.max() <= 1


@given(st.integers(0, 1000))
def test_the_order_of_training_calls_and_of_known_calls_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    calls, known, sounds = (rng.normal(size=(number, 4)) for number in (9, 12, 5))
    one = NoveltyReference.of(calls, known)
    other = NoveltyReference.of(rng.permutation(calls), rng.permutation(known))
    assert one.novelty(one.nearest()(sounds)) == pytest.approx(other.novelty(other.nearest()(sounds)), abs=2e-3)


def test_calls_are_drawn_up_to_a_number_of_each_species_and_of_all():
    present = np.zeros((40, 3), dtype=bool)
    present[:30, 0] = present[28:33, 1] = present[39, 2] = True
    drawn = draw_calls(present, np.random.default_rng(0), per_species=4, most=100)
    assert present[drawn].any(axis=1).all()
    assert (present[drawn].sum(axis=0) >= [4, 4, 1]).all()
    assert len(drawn) <= 9
    again = draw_calls(present, np.random.default_rng(0), per_species=4, most=100)
    assert drawn.tolist() == again.tolist() == sorted(set(drawn.tolist()))
    assert len(draw_calls(present, np.random.default_rng(0), per_species=4, most=3)) == 3


def left_out_case() -> tuple[CallEmbeddings, CallEmbeddings]:
    """Windows and training calls of species a at 0 degrees, b at 180, c at 90 and d at 270."""
    calls = np.concatenate([at(0, 1, 359), at(180, 181, 179), at(90, 91, 89), at(270)])
    present = np.zeros((10, 4), dtype=int)
    present[:3, 0] = present[3:6, 1] = present[6:9, 2] = present[9, 3] = 1
    # One call of b lies where those of c are.
    windows = np.concatenate([at(2, 3), at(182, 95), at(92, 93), at(0), at(45)])
    targets = np.zeros((8, 4), dtype=int)
    targets[:2, 0] = targets[2:4, 1] = targets[4:6, 2] = 1
    targets[6, [0, 1]] = 1  # two species call: neither unknown nor known if one of them is left out
    others = np.arange(8) == 7
    return CallEmbeddings(windows, targets, others), CallEmbeddings(calls, present, np.zeros(10, dtype=bool))


def test_the_auroc_of_a_species_that_is_left_out_is_that_of_its_distances():
    windows, calls = left_out_case()
    found = leave_one_species_out(windows, calls, ["a", "b", "c", "d"], rank=1, least=2)
    # d has no window. Without its training calls, the windows of a and c are farther than all others. Of b, one window
    # is farther than the four known ones; the other lies 4 degrees from a call of c, and the known ones 1 or 2.
    assert {code: (one.auroc, one.calls) for code, one in found.items()} == dict.fromkeys("abc", (1.0, 2))
    near = CallEmbeddings(
        np.concatenate([windows.vectors[:3], at(90), windows.vectors[4:]]), windows.targets, windows.others
    )
    # Now it lies on a call of c, and is nearer than all four known ones: 4 of 8 pairs are right.
    assert leave_one_species_out(near, calls, ["a", "b", "c", "d"], rank=1, least=2)["b"].auroc == 0.5
    assert leave_one_species_out(windows, calls, ["a", "b", "c", "d"], rank=1, least=3) == {}


def drawn_case(size: int, windows: int, calls: int, species: int) -> tuple[CallEmbeddings, CallEmbeddings, list[str]]:
    """Windows and training calls in random directions; in some, two species call, or it is unknown which."""
    rng = np.random.default_rng(0)

    def draw(number: int) -> CallEmbeddings:
        targets = np.zeros((number, species), dtype=int)
        targets[np.arange(number), rng.integers(species, size=number)] = 1
        targets[rng.random(targets.shape) < 0.1 / species] = 1
        targets[rng.random(targets.shape) < 0.1 / species] = -100
        return CallEmbeddings(rng.normal(size=(number, size)) + 0.3, targets, np.zeros(number, dtype=bool))

    return draw(windows), draw(calls), [f"s{label}" for label in range(species)]


def one_by_one(windows: CallEmbeddings, calls: CallEmbeddings, classes: list[str], rank: int) -> dict[str, Separation]:
    """`leave_one_species_out` by its definition: distances to the calls that are left, for each species again."""
    found = {}
    for label, code in enumerate(classes):
        others = np.delete(windows.present, label, axis=1).any(axis=1)
        unknown, known = windows.present[:, label] & ~others, (windows.targets[:, label] == 0) & others
        left = calls.vectors[~calls.present[:, label]]
        if min(unknown.sum(), known.sum()) >= 5 and len(left) >= rank:
            distances = NoveltyReference.of(left, None, rank).nearest()(windows.vectors)
            right = distances[unknown][:, None] - distances[known]
            auroc = float(((right > 0) + 0.5 * (right == 0)).mean())
            found[code] = Separation(auroc, int(unknown.sum()))
    return found


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_species_are_left_out_together_as_one_by_one(rank):
    # More windows than are measured at once.
    windows, calls, classes = drawn_case(size=6, windows=600, calls=60, species=7)
    expected = one_by_one(windows, calls, classes, rank)
    found = leave_one_species_out(windows, calls, classes, rank=rank)
    assert list(found) == list(expected) == classes
    for code in classes:
        assert found[code].auroc == pytest.approx(expected[code].auroc, abs=1e-4)
        assert found[code].calls == expected[code].calls
    # All training calls are of one species: without it, none is left.
    only = CallEmbeddings(calls.vectors, np.eye(7, dtype=int)[np.zeros(60, dtype=int)], calls.others)
    assert list(leave_one_species_out(windows, only, classes, rank=rank)) == classes[1:]


def test_windows_of_species_that_were_not_learned_are_separated_from_known_ones():
    windows, calls = left_out_case()
    # The window at 45 degrees is farther from all training calls than the seven known ones.
    assert separate_unlearned(windows, calls, rank=1, least=1) == Separation(1.0, 1)
    assert separate_unlearned(windows, calls, rank=1, least=2) is None


def test_figures_of_folds_are_means_weighted_by_calls():
    one = unknown_species_figures({"a": Separation(0.5, 10), "b": Separation(0.7, 5)}, None)
    other = unknown_species_figures({"a": Separation(0.8, 20)}, Separation(0.6, 9))
    assert (one["auroc"], one["species"], one["calls"]) == (0.6, 2, 15)
    assert pooled_figures([one, other]) == {
        "auroc": 0.7,
        "species": 2,
        "calls": 35,
        "left_out": {"a": {"auroc": 0.7, "calls": 30}, "b": {"auroc": 0.7, "calls": 5}},
        "unlearned": {"auroc": 0.6, "calls": 9},
    }
    assert unknown_species_figures({}, None)["auroc"] is None


def test_a_detection_of_merged_windows_has_the_novelty_of_the_highest_score():
    starts = np.arange(4) * 10
    scores, novelty = np.array([[0.6], [0.9], [0.7], [0.1]]), np.array([0.1, 0.2, 0.9, 1.0])
    settings = FindingSettings(threshold=0.5, merge=True)
    finder = DetectionFinder("x", ["a"], np.full(1, 0.5), settings, 10)
    found = finder.add(starts[:1], starts[:1] + 10, scores[:1], novelty[:1])
    found += finder.add(starts[1:], starts[1:] + 10, scores[1:], novelty[1:]) + finder.finish()
    assert [(one.start_sample, one.end_sample, one.novelty) for one in found] == [(0, 30, 0.2)]


@pytest.fixture(scope="module")
def trained(small_archive, cache, tmp_path_factory):
    """A model with overlapping windows of 1 s, so that validation has enough of them."""
    folder = tmp_path_factory.mktemp("novelty")
    more = {"train_on": "recordings", "windows_per_epoch": 48, "clip_s": 1.0, "overlap_s": 0.5, "edge_margin_s": 0.1}
    return train(small_archive, folder / "fold-0", cache, **more)


@pytest.fixture(scope="module")
def found(trained, small_archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found") / "tables"
    _detect(trained, small_archive, folder)
    return folder


def _detect(model, archive, output, paths=None):
    paths = paths or [archive / "soundscape_data"]
    settings = {"threshold": 0.05, "novelty": True}
    return run_in_folder(model, paths, output, settings=settings)


def test_training_saves_the_calls_and_the_distances_of_known_ones(trained):
    saved = NoveltyReference.read(trained / NOVELTY_FILE)
    assert saved.calls.dtype == np.float16
    assert np.linalg.norm(saved.calls.astype(float), axis=1) == pytest.approx(1, abs=1e-3)
    summary = json.loads((trained / "training_summary.json").read_text())
    assert 20 <= len(saved.calls) <= 20 * len(summary["clips_per_species"])
    assert len(saved.known) >= 20


def test_metrics_and_card_say_how_well_unknown_species_are_separated(trained):
    figures = json.loads((trained / "metrics.json").read_text())["test"]["unknown_species"]
    assert figures["species"] == len(figures["left_out"]) > 0
    assert all(0 <= one["auroc"] <= 1 and one["calls"] >= 5 for one in figures["left_out"].values())
    mean = np.mean([one["auroc"] for one in figures["left_out"].values()])
    assert figures["auroc"] == pytest.approx(mean, abs=2e-4)
    assert figures["unlearned"] is None  # the species with too few annotations calls in fewer than 5 windows
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert f"the mean AUROC is {figures['auroc']:.3f} over {figures['species']} species" in card


def test_tables_have_the_novelty_of_each_detection(found):
    table = pd.read_csv(found / "detections.csv")
    assert len(table) > 10
    assert table["novelty"].between(0, 1).all()
    assert table["novelty"].nunique() > 5
    parquet = pq.read_table(found / "detections.parquet").to_pandas()
    assert parquet["novelty"].to_numpy() == pytest.approx(table["novelty"].to_numpy(), abs=1e-6)
    listed = json.loads((found / "detections.json").read_text())["detections"]
    assert [one["novelty"] for one in listed] == table["novelty"].to_list()
    assert json.loads((found / "run.json").read_text())["settings"]["novelty"] is True


def test_scores_are_the_same_without_novelty(trained, found, small_archive, tmp_path):
    run_in_folder(trained, [small_archive / "soundscape_data"], tmp_path / "out", settings={"threshold": 0.05})
    plain, scored = (pd.read_csv(folder / "detections.csv") for folder in (tmp_path / "out", found))
    pd.testing.assert_frame_equal(plain, scored.drop(columns="novelty"))


def test_an_interrupted_run_ends_with_the_same_bytes(trained, found, small_archive, tmp_path):
    recordings = sorted((small_archive / "soundscape_data").iterdir())
    _detect(trained, small_archive, tmp_path / "out", recordings[:3])
    _detect(trained, small_archive, tmp_path / "out")
    assert json.loads((tmp_path / "out/run.json").read_text())["this_run"]["recordings"] == len(recordings) - 3
    assert tables(tmp_path / "out") == tables(found)


def test_a_run_is_done_again_when_novelty_is_wanted(trained, found, small_archive, tmp_path, caplog):
    paths = sorted((small_archive / "soundscape_data").iterdir())[:1]
    run_in_folder(trained, paths, tmp_path / "out", settings={"threshold": 0.05})
    caplog.clear()
    _detect(trained, small_archive, tmp_path / "out", paths)
    assert "novelty false -> true" in caplog.text
    assert "novelty" in pd.read_csv(tmp_path / "out/detections.csv")


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_the_benchmark_counts_windows_and_measures_the_cost(trained, small_archive):
    result = run_script("benchmarks/unknown_sounds.py", "separate", trained.parent, small_archive)
    assert result.returncode == 0, result.stderr
    fold, unknown, known, *aurocs = result.stdout.splitlines()[2].strip("| ").split(" | ")
    assert fold == "0"
    assert all(0 <= float(value) <= 1 or int(unknown) == 0 for value in aurocs)
    counts = [int(line.split(" | ")[1]) for line in result.stdout.splitlines()[-3:]]
    assert counts[:2] == [int(known), int(unknown)]
    recording = min((small_archive / "soundscape_data").iterdir())
    result = run_script("benchmarks/unknown_sounds.py", "cost", trained, recording, "--repeats", "1")
    assert "times as much" in result.stdout


def test_a_final_fit_has_its_own_calls_and_the_known_distances_of_the_folds(clips, tmp_path, caplog):
    vectors = np.random.default_rng(0).normal(size=(len(clips["train"]), 2))
    run = SimpleNamespace(
        builder=SimpleNamespace(classes=clips["train"].features["label"].names),
        settings=SimpleNamespace(training=SimpleNamespace(seed=0)),
        model=SimpleNamespace(embedding_size=2),
        frozen=SimpleNamespace(clips=lambda chosen, what: vectors[: len(chosen)]),
    )
    folds = [tmp_path / name for name in ("fold-0", "fold-1")]
    for folder, known in zip(folds, ([0.1, 0.4], [0.2, 0.3, 0.5]), strict=True):
        folder.mkdir()
        reference(known).write(folder / NOVELTY_FILE)
    fitted = refit_reference(run, clips["train"], folds)
    assert fitted.known == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert len(fitted.calls) <= 20 * len(run.builder.classes)
    assert fitted.size == 2
    (folds[1] / NOVELTY_FILE).unlink()
    assert refit_reference(run, clips["train"], folds) is None
    assert "because the model of fold-1 has none" in caplog.text


def _refused(model, archive, tmp_path, capsys):
    words = ["detect", str(model), str(archive / "soundscape_data"), "--output", str(tmp_path / "out"), "--novelty"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert not (tmp_path / "out").exists()
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1, said
    return said


def test_a_model_without_the_calls_is_refused_in_one_line(small_archive, tmp_path, capsys):
    model = save_random_model(tmp_path / "model")
    assert f"has no {NOVELTY_FILE}" in _refused(model, small_archive, tmp_path, capsys)
    with pytest.raises(UserError, match=r"fewer than 20 windows with a call.*leave out --novelty"):
        SoundscapePipeline(model, settings=FindingSettings(novelty=True))


@pytest.mark.parametrize("content", [b"", b"not tensors", None])
def test_a_damaged_file_is_refused_in_one_line(trained, small_archive, tmp_path, capsys, content):
    model = save_random_model(tmp_path / "model")
    whole = (trained / NOVELTY_FILE).read_bytes()
    (model / NOVELTY_FILE).write_bytes(whole[:-40] if content is None else content)
    assert "is not a file with embeddings of training calls" in _refused(model, small_archive, tmp_path, capsys)


def test_the_calls_of_another_network_are_refused(trained, tmp_path):
    model = save_random_model(tmp_path / "model")
    NoveltyReference.of(CROSS, CROSS).write(model / NOVELTY_FILE)
    with pytest.raises(UserError, match="it belongs to another model"):
        SoundscapePipeline(model, settings=FindingSettings(novelty=True))
