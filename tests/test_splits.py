import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kenya_birds.data.splits import (
    SPLITS,
    check_splits,
    problematic_classes,
    read_splits,
    stratified_split,
    write_splits,
)
from kenya_birds.errors import UserError


def table_of(recordings):
    """Annotations of {recording: {species: number}}."""
    return pd.DataFrame(
        [(name, code) for name, species in recordings.items() for code, n in species.items() for _ in range(n)],
        columns=["recording", "species"],
    )


def members(table, split):
    return set(table.loc[table["split"] == split, "recording"])


def all_folds(annotations, **choices):
    """The splits of every fold that there is."""
    folds = []
    try:
        while True:
            folds.append(stratified_split(annotations, fold=len(folds), **choices))
    except UserError as error:
        message = str(error)
    assert message.startswith(f"fold is {len(folds)}: expected 0 to {len(folds) - 1}")
    return folds


def split_and_problems(annotations, **choices):
    """The split, and how many recordings are in each split by whether they are problematic (5 and 4 folds)."""
    table = stratified_split(annotations, **choices)
    problematic = annotations["species"].isin(problematic_classes(annotations, 5, 4))
    names = set(annotations.loc[problematic, "recording"])
    part = table["recording"].isin(names).map({True: "problematic", False: "stratifiable"})
    return table, table.groupby(part)["split"].value_counts().to_dict()


@pytest.fixture(scope="module")
def everywhere():
    """35 recordings of different lengths, in each of which each of 8 species may be heard, none in only a few."""
    rng = np.random.default_rng(0)
    return table_of(
        {f"r{i:02d}": {f"s{j}": int(rng.integers(0, 40 // (j + 1) + 2)) for j in range(8)} for i in range(35)}
    )


COUNTS = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([1, 2, 6, 80]), min_size=1)
SHARES = st.sampled_from([0.1, 0.2, 0.25, 0.3, 1 / 3, 0.4, 0.5])


@st.composite
def tables(draw):
    """Annotations of 3 to 16 recordings; species may be in one of them only, or in all."""
    recordings = {f"r{index}": draw(COUNTS) for index in range(draw(st.integers(3, 16)))}
    return table_of(recordings)


# Whatever the archive


@settings(max_examples=20)
@given(tables(), SHARES, SHARES, st.integers(0, 3), st.integers(0, 2**31))
def test_each_recording_is_in_one_split_and_no_split_is_empty(annotations, test_size, validation_size, fold, seed):
    fold = min(fold, 1)  # there are always two
    choices = {"test_size": test_size, "validation_size": validation_size, "fold": fold, "seed": seed}
    table = stratified_split(annotations, **choices)
    assert table["recording"].tolist() == sorted(set(annotations["recording"]))
    assert set(table["split"]) == set(SPLITS)
    # The order of the annotations does not matter, and the seed is all that does.
    pd.testing.assert_frame_equal(stratified_split(annotations.sample(frac=1, random_state=1), **choices), table)


@settings(max_examples=10)
@given(tables(), SHARES, st.integers(0, 2**31))
def test_the_folds_test_every_recording_once(annotations, test_size, seed):
    folds = all_folds(annotations, test_size=test_size, seed=seed)
    tested = [name for table in folds for name in members(table, "test")]
    assert sorted(tested) == sorted(set(annotations["recording"]))


# Where there are recordings enough


def test_five_folds_test_every_recording_once_and_validate_on_another_fifth(everywhere):
    folds = [stratified_split(everywhere, fold=fold) for fold in range(5)]
    tested = [name for table in folds for name in members(table, "test")]
    assert sorted(tested) == sorted(set(everywhere["recording"]))
    clips = everywhere["recording"].value_counts()
    for table in folds:
        shares = clips.groupby(table.set_index("recording")["split"]).sum() / clips.sum()
        assert shares["test"] == pytest.approx(0.2, abs=0.05)
        assert shares["validation"] == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize(
    ("test_size", "validation_size", "test", "validation"),
    [
        (0.2, 0.2, 24, 24),
        (0.1, 0.1, 12, 12),
        (0.25, 0.25, 30, 30),
        (0.5, 0.25, 60, 30),
        (0.2, 0.4, 24, 48),
        (1 / 3, 1 / 3, 40, 40),
        (0.3, 0.3, 30, 30),
    ],
)
def test_the_shares_are_those_asked_for_or_the_next_smaller_fold(test_size, validation_size, test, validation):
    annotations = table_of({f"r{i:03d}": {f"s{i % 2}": 5} for i in range(120)})
    table = stratified_split(annotations, test_size=test_size, validation_size=validation_size)
    assert len(members(table, "test")) == test
    assert len(members(table, "validation")) == validation


def test_every_species_has_its_share_in_every_split():
    regions = table_of({f"r{i:02d}": {f"s{i % 4}": 30, "s9": 5} for i in range(40)})
    for fold in range(5):
        table = stratified_split(regions, fold=fold)
        split = regions["recording"].map(table.set_index("recording")["split"])
        shares = pd.crosstab(regions["species"], split, normalize="index")
        assert shares["test"].between(0.15, 0.25).all()
        assert shares["validation"].between(0.15, 0.25).all()


def test_seeds_give_other_splits_of_recordings_that_are_alike():
    alike = table_of({f"r{i:02d}": {"a": 5, "b": 5} for i in range(35)})
    alone = table_of({f"r{i:02d}": {f"s{i}": 5} for i in range(35)})
    for annotations in (alike, alone):
        assert len({tuple(stratified_split(annotations, seed=seed)["split"]) for seed in range(5)}) == 5


def test_nothing_is_told_where_everything_is_well(everywhere, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stratified_split(everywhere)
    assert not caplog.messages


# Classes in few recordings


def test_a_class_is_problematic_when_it_cannot_reach_every_fold():
    annotations = table_of({f"r{i}": {f"in{n}": 1 for n in (1, 4, 5, 6) if i < n} for i in range(6)})
    assert problematic_classes(annotations, outer=5, inner=4) == ["in1", "in4"]
    assert problematic_classes(annotations, outer=2, inner=5) == ["in1", "in4", "in5"]
    assert problematic_classes(annotations, outer=2, inner=2) == ["in1"]


@pytest.mark.parametrize("fold", range(5))
def test_problematic_and_other_recordings_are_divided_apart(fold):
    # "rare" species are in two recordings each, of ten together.
    annotations = table_of(
        {
            **{f"p{i:02d}": {"common": 5, f"rare{i // 2}": 3} for i in range(10)},
            **{f"s{i:02d}": {"common": 5, "usual": 5} for i in range(20)},
        }
    )
    _, counts = split_and_problems(annotations, fold=fold)
    assert counts == {
        ("problematic", "train"): 6,
        ("problematic", "validation"): 2,
        ("problematic", "test"): 2,
        ("stratifiable", "train"): 12,
        ("stratifiable", "validation"): 4,
        ("stratifiable", "test"): 4,
    }


@pytest.mark.parametrize(
    ("problematic", "stratifiable", "strategy"), [(3, 20, "stratifiable"), (20, 3, "problematic")]
)
def test_a_part_too_small_for_the_folds_joins_the_other(problematic, stratifiable, strategy, caplog):
    annotations = table_of(
        {
            **{f"p{i:02d}": {"common": 5, f"rare{i}": 3} for i in range(problematic)},
            **{f"s{i:02d}": {"common": 5} for i in range(stratifiable)},
        }
    )
    table = stratified_split(annotations)
    assert table["split"].value_counts().to_dict() == {"train": 13, "validation": 5, "test": 5}
    assert f"so all are divided as {strategy}" in caplog.text


def test_a_class_in_one_recording_only_is_in_one_split_and_told(everywhere, caplog):
    annotations = pd.concat([everywhere, table_of({"r07": {"local": 12}})])
    table = stratified_split(annotations)
    home = table.set_index("recording").at["r07", "split"]
    missed = [message for message in caplog.messages if message.endswith(": local")]
    assert len(missed) == 2
    assert not any(f"no clip in {home}" in message for message in missed)


# Few recordings


@pytest.mark.parametrize(("recordings", "sizes"), [(3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1))])
def test_with_few_recordings_there_are_fewer_folds(recordings, sizes, caplog):
    annotations = table_of({f"r{i}": {"a": 5, "b": 5} for i in range(recordings)})
    table = stratified_split(annotations)
    assert tuple(len(members(table, split)) for split in SPLITS) == sizes
    assert (f"Only {recordings} recordings for 5 test and 4 validation folds" in caplog.text) == (recordings < 5)


@pytest.mark.parametrize("recordings", [3, 4, 5, 6])
@pytest.mark.parametrize("test_size", [0.1, 0.2, 0.34, 0.5])
@pytest.mark.parametrize("validation_size", [0.1, 0.2, 0.5])
def test_three_recordings_are_enough_whatever_the_shares(recordings, test_size, validation_size):
    annotations = table_of({f"r{i}": {"a": 5, "b": 5} for i in range(recordings)})
    folds = all_folds(annotations, test_size=test_size, validation_size=validation_size)
    assert all(set(table["split"]) == set(SPLITS) for table in folds)
    assert sorted(name for table in folds for name in members(table, "test")) == [f"r{i}" for i in range(recordings)]


def test_a_recording_with_most_of_the_calls_does_not_empty_a_split(caplog):
    # Stratified halves would be one recording and six, which leaves too few for three validation folds.
    calls = {"a": [2, 0, 300, 5, 1, 50, 2], "b": [5, 1, 50, 2, 5, 1, 2]}
    annotations = table_of({f"r{i}": {code: n[i] for code, n in calls.items()} for i in range(7)})
    folds = all_folds(annotations, test_size=0.5)
    assert all(set(table["split"]) == set(SPLITS) for table in folds)
    assert sorted(name for table in folds for name in members(table, "test")) == [f"r{i}" for i in range(7)]
    assert "2 stratified folds would be too unequal" in caplog.text


@pytest.mark.parametrize("common", [0, 10])
def test_classes_that_are_rare_among_the_stratifiable_recordings_do_not_matter(common):
    # "c" classes are in six recordings each, of which five are problematic for another's sake.
    annotations = table_of(
        {
            **{f"p{i}": {**{f"c{j}": 1 for j in range(6)}, f"rare{i}": 1, "common": common} for i in range(5)},
            **{f"s{i}": {f"c{i}": 1, "common": common} for i in range(6)},
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, counts = split_and_problems(annotations)
    assert len(counts) == 6


@pytest.mark.parametrize("recordings", [0, 1, 2])
def test_fewer_than_three_recordings_cannot_be_split(recordings):
    with pytest.raises(UserError, match=f"^{recordings} recordings cannot be split .* expected 3 or more"):
        stratified_split(table_of({f"r{i}": {"a": 5, "b": 5} for i in range(recordings)}))


@pytest.mark.parametrize("size", [0, -0.2, 0.6, 1, math.nan])
@pytest.mark.parametrize("name", ["test_size", "validation_size"])
def test_impossible_shares_are_refused(everywhere, name, size):
    with pytest.raises(UserError, match=f"{name} is {size}: expected more than 0 and at most 0.5"):
        stratified_split(everywhere, **{name: size})


@pytest.mark.parametrize("fold", [-1, 5])
def test_impossible_folds_are_refused(everywhere, fold):
    with pytest.raises(UserError, match=f"fold is {fold}: expected 0 to 4"):
        stratified_split(everywhere, fold=fold)


# Split tables


GIVEN = pd.DataFrame({"recording": ["a", "b", "c", "d"], "split": ["train", "validation", "test", "train"]})


def test_a_split_that_was_saved_is_read_back(tmp_path):
    GIVEN.to_csv(tmp_path / "splits.csv", index=False)
    pd.testing.assert_frame_equal(read_splits(tmp_path / "splits.csv"), GIVEN)


def test_a_split_table_from_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "splits.csv").write_text("\ufeffsite,recording,split\r\n1,NA,train\r\n", newline="")
    assert read_splits(tmp_path / "splits.csv").to_dict("list") == {"recording": ["NA"], "split": ["train"]}


@pytest.mark.parametrize(
    "content", ["", "recording\na\n", "a,b\n1,2\n1,2,3\n", "recording,part\na,train\n", "split\ntest\n", "fold\n0\n"]
)
def test_a_file_that_is_not_a_split_table_is_named(tmp_path, content):
    path = tmp_path / "splits.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=r"splits\.csv"):
        read_splits(path)


FOLDS = pd.DataFrame({"recording": list("abcdefg"), "fold": [0, 1, 2, 3, 0, 1, 2]})


def test_each_fold_of_a_table_is_the_test_split_once_and_the_next_one_validation(tmp_path):
    write_splits(FOLDS, tmp_path / "folds.csv")
    tables = [read_splits(tmp_path / "folds.csv", fold) for fold in range(4)]
    assert [members(table, "test") for table in tables] == [{"a", "e"}, {"b", "f"}, {"c", "g"}, {"d"}]
    assert [members(table, "validation") for table in tables] == [{"b", "f"}, {"c", "g"}, {"d"}, {"a", "e"}]
    assert [members(table, "train") for table in tables][3] == {"b", "c", "f", "g"}
    for table in tables:
        check_splits(table, set("abcdefg"))


def test_a_table_of_splits_has_no_folds_to_choose_from(tmp_path):
    GIVEN.to_csv(tmp_path / "splits.csv", index=False)
    with pytest.raises(UserError, match="table of splits, without folds: expected no fold, but fold is 1"):
        read_splits(tmp_path / "splits.csv", 1)


@pytest.mark.parametrize(
    ("table", "fold", "message"),
    [
        (FOLDS, 4, "fold is 4: expected 0 to 3"),
        (FOLDS, -1, "fold is -1: expected 0 to 3"),
        (FOLDS.assign(split="train"), 0, "columns recording, fold, split: expected recording and split, or"),
        (FOLDS.replace(3, 5), 0, "fold '5' among 4 folds: expected 0 to 3"),
        (FOLDS.replace(3, "x"), 0, "fold 'x' among 4 folds"),
        (FOLDS.assign(fold=FOLDS["fold"] % 2), 0, "has 2 folds: expected 3 or more"),
    ],
)
def test_folds_that_cannot_be_used_are_refused(tmp_path, table, fold, message):
    table.to_csv(tmp_path / "folds.csv", index=False)
    with pytest.raises(UserError, match=message):
        read_splits(tmp_path / "folds.csv", fold)


def test_a_missing_split_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.csv"):
        read_splits(tmp_path / "nowhere.csv")


def test_a_table_of_every_recording_is_accepted():
    check_splits(GIVEN, {"a", "b", "c", "d"})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (GIVEN.replace("validation", "dev"), "splits other than train, validation, test: dev"),
        (GIVEN[:3], "lacks recordings of the archive: d"),
        (pd.concat([GIVEN, GIVEN[:1]]), "has recordings twice: a"),
        (GIVEN.replace("d", "e"), "without clips in the archive: e"),
        (GIVEN.replace("test", "train"), "has no recording in: test"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, message):
    with pytest.raises(UserError, match=message):
        check_splits(table, {"a", "b", "c", "d"})
