import itertools
import logging
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from kenya_birds.data import assignment as integer_programme
from kenya_birds.data import balanced_split as balanced_strategy
from kenya_birds.data.assignment import SIZE_WEIGHT, AssignmentProblem
from kenya_birds.data.balanced_split import balanced_folds, balanced_split, make_splits
from kenya_birds.data.split_audit import audit_split
from kenya_birds.data.splits import SPLITS, read_splits, stratified_folds, stratified_split, write_splits
from kenya_birds.data.synthetic import synthesize_archive, synthetic_annotations
from kenya_birds.errors import UserError


def table_of(recordings):
    """Annotations of {recording: {species: number}}."""
    return pd.DataFrame(
        [(name, code) for name, species in recordings.items() for code, n in species.items() for _ in range(n)],
        columns=["recording", "species"],
    )


def members(table, split):
    return table.loc[table["split"] == split, "recording"].tolist()


def covered(annotations, table):
    return audit_split(annotations, table).summary["covered_classes"]


@pytest.fixture(autouse=True)
def tell_all(caplog):
    caplog.set_level(logging.INFO, "kenya_birds")


COUNTS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([1, 2, 6, 80]), min_size=1)


@st.composite
def tables(draw, least=3, most=9):
    """Annotations of some recordings; species may be in one of them only, or in all."""
    return table_of({f"r{index}": draw(COUNTS) for index in range(draw(st.integers(least, most)))})


RARE_IN_THREE = table_of({f"r{i}": {"common": 10, **({"rare": 5} if i in (0, 3, 6) else {})} for i in range(10)})


# Cases worked by hand


def test_a_class_that_the_seed_strategy_loses_is_kept():
    assert set(stratified_split(RARE_IN_THREE).set_index("recording").loc[["r0", "r3", "r6"], "split"]) == {"train"}
    table = balanced_split(RARE_IN_THREE, time_limit_s=5)
    assert set(table.set_index("recording").loc[["r0", "r3", "r6"], "split"]) == set(SPLITS)
    assert table["split"].value_counts().to_dict() == {"train": 6, "validation": 2, "test": 2}


def test_proportions_that_can_be_met_are_met():
    # Only r1 with r4 has 0.6 of both species, and of what is left one half each is r0 and r2 with r3.
    annotations = table_of(
        {
            "r0": {"a": 20, "b": 2},
            "r1": {"a": 50, "b": 1},
            "r2": {"a": 15, "b": 2},
            "r3": {"a": 5},
            "r4": {"a": 10, "b": 5},
        }
    )
    table = balanced_split(annotations, time_limit_s=5)
    assert members(table, "train") == ["r1", "r4"]
    assert {tuple(members(table, split)) for split in ("validation", "test")} == {("r0",), ("r2", "r3")}


def test_coverage_comes_before_proportions():
    # Proportions would have r0 alone in train, but then one of the other splits would be without "rare".
    annotations = table_of(
        {"r0": {"common": 60}, "r1": {"common": 20, "rare": 1}, "r2": {"common": 20, "rare": 1}, "r3": {"rare": 1}}
    )
    table = balanced_split(annotations, time_limit_s=5).set_index("recording")["split"]
    assert set(table[["r1", "r2", "r3"]]) == set(SPLITS)
    assert covered(annotations, table.reset_index()) == 2


def test_other_sizes_than_the_usual_are_aimed_at():
    annotations = table_of({f"r{i}": {"a": 5, "b": 5} for i in range(10)})
    table = balanced_split(annotations, test_size=0.3, validation_size=0.1, time_limit_s=5)
    assert table["split"].value_counts().to_dict() == {"train": 6, "test": 3, "validation": 1}


def test_a_class_in_two_recordings_is_learned_and_scored_where_that_costs_nothing():
    annotations = table_of({f"r{i}": {"common": 10, **({"rare": 5} if i in (2, 7) else {})} for i in range(10)})
    table = balanced_split(annotations, time_limit_s=5).set_index("recording")["split"]
    assert set(table[["r2", "r7"]]) == {"train", "test"}


def test_folds_have_equal_parts_of_every_class():
    annotations = table_of({f"r{i:02d}": {"a": 5, "b" if i % 2 else "c": 4} for i in range(12)})
    table = balanced_folds(annotations, 3, time_limit_s=5)
    assert table["fold"].value_counts().to_dict() == {0: 4, 1: 4, 2: 4}
    assert audit_split(annotations, table).summary["max_distance"] == pytest.approx(0.0)


def test_folds_are_numbered_in_the_order_of_their_first_recordings():
    table = balanced_folds(RARE_IN_THREE, 3, time_limit_s=5)
    assert table["fold"].drop_duplicates().tolist() == [0, 1, 2]
    assert set(table.set_index("recording").loc[["r0", "r3", "r6"], "fold"]) == {0, 1, 2}


def test_as_many_folds_as_recordings_hold_one_each():
    table = balanced_folds(RARE_IN_THREE, 10, time_limit_s=5)
    assert table["fold"].tolist() == list(range(10))


def test_quality_of_an_assignment_is_as_worked_by_hand():
    problem = AssignmentProblem(np.array([[3, 1, 0], [0, 0, 2]]), np.array([0.5, 0.5]))
    totals = problem.totals(np.array([0, 1, 1]))
    # The first class is 3/4 and 1/4, the second 0 and 1; of all annotations it is one half each.
    assert problem.covered(totals) == 1
    assert problem.deviation(totals) == pytest.approx((0.25 + 0.5) / 2)
    totals = problem.totals(np.array([0, 0, 1]))
    assert problem.covered(totals) == 0
    assert problem.deviation(totals) == pytest.approx((0.5 + 0.5) / 2 + SIZE_WEIGHT * (4 / 6 - 0.5))


# Whatever the archive


@settings(max_examples=5)
@given(tables(), st.sampled_from([0.1, 0.2, 0.4]), st.sampled_from([0.1, 0.2, 0.5]))
def test_each_recording_is_in_one_split_none_is_empty_and_no_class_is_lost(annotations, test_size, validation_size):
    sizes = {"test_size": test_size, "validation_size": validation_size}
    table = balanced_split(annotations, **sizes, time_limit_s=2)
    assert table["recording"].tolist() == sorted(set(annotations["recording"]))
    assert set(table["split"]) == set(SPLITS)
    assert covered(annotations, table) >= covered(annotations, stratified_split(annotations, **sizes))


@settings(max_examples=3)
@given(tables())
def test_the_order_of_the_annotations_does_not_matter(annotations):
    table = balanced_split(annotations, time_limit_s=10)
    shuffled = annotations.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(balanced_split(shuffled, time_limit_s=10), table)


@settings(max_examples=5)
@given(tables(least=2), st.integers(2, 4))
def test_each_recording_is_in_one_fold_none_is_empty_and_no_class_is_lost(annotations, folds):
    folds = min(folds, annotations["recording"].nunique())
    table = balanced_folds(annotations, folds, time_limit_s=2)
    assert table["recording"].tolist() == sorted(set(annotations["recording"]))
    assert set(table["fold"]) == set(range(folds))
    assert covered(annotations, table) >= covered(annotations, stratified_folds(annotations, folds))


TARGETS = st.sampled_from([(0.6, 0.2, 0.2), (0.5, 0.3, 0.2), (0.5, 0.5), (1 / 3, 1 / 3, 1 / 3)])


def problem_and_best(annotations, targets):
    """The problem, and the totals of the best of all assignments."""
    counts = pd.crosstab(annotations["species"], annotations["recording"]).to_numpy()
    problem = AssignmentProblem(counts, np.array(targets))
    ways = itertools.product(range(len(targets)), repeat=counts.shape[1])
    return problem, problem.totals(problem.best(*(np.array(way) for way in ways)))


@settings(max_examples=8)
@given(tables(most=6), TARGETS)
def test_no_other_assignment_is_better(annotations, targets):
    problem, best = problem_and_best(annotations, targets)
    if len(set(targets)) > 1:
        sizes = {"validation_size": targets[1], "test_size": targets[2]}
        found = balanced_split(annotations, **sizes, time_limit_s=10)["split"].map(SPLITS.index).to_numpy()
    else:
        found = balanced_folds(annotations, len(targets), time_limit_s=10)["fold"].to_numpy()
    found = problem.totals(found)
    assert problem.covered(found) == problem.covered(best)
    assert problem.deviation(found) <= problem.deviation(best) * 1.002 + 1e-9


@settings(max_examples=15)
@given(tables(most=6), TARGETS)
def test_the_programmes_alone_find_the_best_and_their_bounds_are_true(annotations, targets):
    problem, best = problem_and_best(annotations, targets)
    most, least = problem.covered(best), problem.deviation(best)
    wide, bound = integer_programme.widest(problem, 10)
    assert bound == most
    if wide is None:
        assert most == 0
        wide = np.minimum(np.arange(problem.present.shape[1]), len(targets) - 1)
    assert problem.covered(problem.totals(wide)) == most
    near, bound = integer_programme.nearest(problem, wide, 10)
    found = problem.totals(wide if near is None else near)
    assert problem.covered(found) == most
    assert problem.deviation(found) <= least * 1.002 + 1e-9
    assert least * 0.998 - 1e-6 <= bound <= least + 1e-6


# What is told


def test_a_proof_is_told(caplog):
    balanced_split(RARE_IN_THREE, time_limit_s=10)
    assert "2 of 2 classes are in all 3 parts (the most possible)" in caplog.text
    assert "(the least possible)" in caplog.text
    assert "time limit" not in caplog.text


def test_classes_that_cannot_be_everywhere_are_told_and_those_that_only_the_seed_loses_are_not(caplog):
    annotations = pd.concat([RARE_IN_THREE, table_of({"r1": {"lone": 12}})])
    balanced_split(annotations, time_limit_s=5)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert all(message.endswith(": lone") for message in warnings)


@pytest.fixture(scope="module")
def full_size():
    return synthetic_annotations(recordings=35, duration_s=3600.0, species=176, annotations=10_294, scene="quiet")


def test_a_time_limit_that_ends_the_search_is_kept_and_told(full_size, caplog):
    table = balanced_split(full_size, time_limit_s=0.3)
    assert "The time limit of 0.3 s ended the search" in caplog.text
    assert "gap of" in caplog.text
    assert set(table["split"]) == set(SPLITS)
    assert covered(full_size, table) >= covered(full_size, stratified_split(full_size))


@pytest.mark.parametrize("recordings", [600, 2_400])
def test_many_recordings_take_little_memory_and_keep_the_time_limit(recordings):
    rng = np.random.default_rng(0)
    species = rng.integers(8, size=(4, recordings)).ravel()
    annotations = pd.DataFrame(
        {"recording": np.tile([f"r{i:04}" for i in range(recordings)], 4), "species": [f"s{i}" for i in species]}
    )
    counts = pd.crosstab(annotations["species"], annotations["recording"]).to_numpy()
    problem = AssignmentProblem(counts, np.array([0.6, 0.2, 0.2]))
    start = np.arange(recordings) % 3
    tracemalloc.start()
    begin_s = time.process_time()  # less than the time on the clock if the machine is busy
    found = balanced_strategy._solve(problem, start, 2.0)
    took_s, (_, peak) = time.process_time() - begin_s, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert problem.value(problem.totals(found)) > problem.value(problem.totals(start))
    assert took_s < 8
    assert peak < 60e6


@pytest.mark.parametrize("status", [1, 4])
def test_without_any_result_of_the_programme_the_local_search_stands_in_and_says_so(monkeypatch, caplog, status):
    nothing = SimpleNamespace(x=None, status=status, mip_dual_bound=None, message="time is over")
    monkeypatch.setattr(integer_programme, "milp", lambda *_, **__: nothing)
    table = balanced_split(RARE_IN_THREE, time_limit_s=5)
    assert covered(RARE_IN_THREE, table) == 2
    assert "The integer program found no assignment in 1.5 s (time is over)" in caplog.text
    assert ("The integer program failed" in caplog.text) == (status == 4)


# The real numbers


def test_at_full_size_more_classes_are_everywhere_and_nearer_to_their_proportions(full_size):
    counts = full_size["species"].value_counts()
    annotations = full_size[full_size["species"].isin(counts.index[counts >= 10])]
    stratified, balanced = (
        audit_split(annotations, make_splits(annotations, strategy, time_limit_s=5)).summary
        for strategy in ("stratified", "balanced")
    )
    assert balanced["covered_classes"] >= stratified["covered_classes"] + 4
    assert balanced["mean_distance"] < 0.85 * stratified["mean_distance"]
    assert balanced["annotation_shares"]["train"] == pytest.approx(0.6, abs=0.05)


def test_annotations_of_a_synthetic_archive_are_had_without_its_audio(tmp_path):
    size = {"recordings": 3, "duration_s": 5.0, "species": 4, "annotations": 20, "seed": 3}
    written = pd.read_csv(synthesize_archive(tmp_path / "archive", **size) / "annotations.csv")
    expected = written.drop(columns="End Time (s)").set_axis(["recording", "center_s", "species"], axis=1)
    pd.testing.assert_frame_equal(synthetic_annotations(**size), expected)


# Stratified folds, and the choice of a strategy


@settings(max_examples=20)
@given(tables(least=2, most=12), st.integers(2, 12), st.integers(0, 2**31))
def test_the_stratified_strategy_makes_folds_too(annotations, folds, seed):
    folds = min(folds, annotations["recording"].nunique())
    table = stratified_folds(annotations, folds, seed=seed)
    assert table["recording"].tolist() == sorted(set(annotations["recording"]))
    assert set(table["fold"]) == set(range(folds))


def test_stratified_folds_are_the_test_splits_of_stratified_split():
    annotations = table_of({f"r{i:02d}": {f"s{i % 2}": 5 + i} for i in range(20)})
    table = stratified_folds(annotations, 5, seed=1)
    for fold in range(5):
        tested = members(stratified_split(annotations, fold=fold, seed=1), "test")
        assert table.loc[table["fold"] == fold, "recording"].tolist() == tested


def test_all_stratified_folds_come_from_one_division(monkeypatch):
    divide, divisions = StratifiedGroupKFold.split, []

    def counted(self, *args):
        divisions.append(self)
        return divide(self, *args)

    monkeypatch.setattr(StratifiedGroupKFold, "split", counted)
    stratified_folds(table_of({f"r{i:02d}": {f"s{i % 2}": 5 + i} for i in range(20)}), 5)
    assert len(divisions) == 1


def test_both_strategies_are_chosen_by_name():
    quick = {"time_limit_s": 5.0}
    for made, expected in (
        (
            make_splits(RARE_IN_THREE, "stratified", test_size=0.3, seed=1),
            stratified_split(RARE_IN_THREE, test_size=0.3, seed=1),
        ),
        (make_splits(RARE_IN_THREE, "balanced", **quick), balanced_split(RARE_IN_THREE, **quick)),
        (make_splits(RARE_IN_THREE, "stratified", folds=4, seed=1), stratified_folds(RARE_IN_THREE, 4, seed=1)),
        (make_splits(RARE_IN_THREE, "balanced", folds=2, **quick), balanced_folds(RARE_IN_THREE, 2, **quick)),
    ):
        pd.testing.assert_frame_equal(made, expected)


# What is refused


@pytest.mark.parametrize("recordings", [0, 1, 2])
def test_fewer_than_three_recordings_cannot_be_split(recordings):
    with pytest.raises(UserError, match=f"^{recordings} recordings cannot be split .* expected 3 or more"):
        balanced_split(table_of({f"r{i}": {"a": 5, "b": 5} for i in range(recordings)}))


@pytest.mark.parametrize("name", ["test_size", "validation_size"])
@pytest.mark.parametrize("size", [0, -0.2, 0.6, float("nan")])
def test_impossible_shares_are_refused(name, size):
    with pytest.raises(UserError, match=f"{name} is {size}: expected more than 0 and at most 0.5"):
        balanced_split(RARE_IN_THREE, **{name: size})


def test_something_must_be_left_to_train_on():
    with pytest.raises(UserError, match="leave nothing to train on"):
        balanced_split(RARE_IN_THREE, test_size=0.5, validation_size=0.5)


@pytest.mark.parametrize("make", [balanced_folds, stratified_folds])
@pytest.mark.parametrize("folds", [-1, 0, 1, 11])
def test_impossible_numbers_of_folds_are_refused(make, folds):
    with pytest.raises(UserError, match=f"folds is {folds}: expected 2 to 10"):
        make(RARE_IN_THREE, folds)


@pytest.mark.parametrize("make", [balanced_folds, stratified_folds])
def test_one_recording_cannot_be_divided(make):
    with pytest.raises(UserError, match=r"^1 recordings cannot be divided"):
        make(table_of({"r0": {"a": 5}}), 2)


@pytest.mark.parametrize("time_limit_s", [0, -1, float("nan"), float("inf")])
def test_impossible_time_limits_are_refused(time_limit_s):
    with pytest.raises(UserError, match=f"time_limit_s is {time_limit_s}: expected"):
        balanced_split(RARE_IN_THREE, time_limit_s=time_limit_s)


def test_unknown_strategies_are_refused():
    with pytest.raises(UserError, match="strategy is 'random': expected one of stratified, balanced"):
        make_splits(RARE_IN_THREE, "random")


# Writing


def test_a_split_is_written_and_read_back(tmp_path):
    table = stratified_split(RARE_IN_THREE)
    write_splits(table, tmp_path / "splits.csv")
    pd.testing.assert_frame_equal(read_splits(tmp_path / "splits.csv"), table)
    assert [path.name for path in tmp_path.iterdir()] == ["splits.csv"]


def test_a_file_that_is_there_is_overwritten_only_when_asked_for(tmp_path):
    path = tmp_path / "splits.csv"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"splits\.csv exists already"):
        write_splits(stratified_split(RARE_IN_THREE), path)
    assert path.read_text() == "mine"
    write_splits(stratified_split(RARE_IN_THREE), path, overwrite=True)
    assert path.read_text().startswith("recording,split\nr0,")


def test_a_split_that_cannot_be_written_whole_is_not_written(tmp_path, monkeypatch):
    def half(self, path, **_):
        path.write_text("recording")
        raise OSError("no space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", half)
    with pytest.raises(UserError, match="cannot be written: no space left"):
        write_splits(stratified_split(RARE_IN_THREE), tmp_path / "splits.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["nowhere/splits.csv", "folder"])
def test_a_path_that_cannot_be_a_file_is_told(tmp_path, path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"{path} (is a folder|cannot be written: .* is not a writable folder)"):
        write_splits(stratified_split(RARE_IN_THREE), tmp_path / path, overwrite=True)
