import math

import pandas as pd
import pytest

from kenya_birds.data.recording_name import NamePattern
from kenya_birds.data.recording_time import find_time_and_place
from kenya_birds.data.split_audit import audit_split, format_audit
from kenya_birds.errors import UserError


def table_of(recordings):
    """Annotations of {recording: {species: number}}."""
    return pd.DataFrame(
        [(name, code) for name, species in recordings.items() for code, n in species.items() for _ in range(n)],
        columns=["recording", "species"],
    )


def splits_of(pairs, column="split"):
    return pd.DataFrame(pairs, columns=["recording", column])


ANNOTATIONS = table_of(
    {
        "r1": {"wren": 6, "owl": 3},
        "r2": {"wren": 3, "owl": 1},
        "r3": {"wren": 1, "tit": 2},
        "r4": {"kite": 4},
    }
)
SPLITS = splits_of([("r1", "train"), ("r2", "validation"), ("r3", "test"), ("r4", "train")])


@pytest.fixture(scope="module")
def audit():
    return audit_split(ANNOTATIONS, SPLITS)


def starting(*names):
    """A table of two splits with one annotation in each recording, and its audit's near recordings."""
    annotations = table_of({name: {"wren": 1} for name, _ in names})
    return audit_split(annotations, splits_of(names)).summary["near_recordings"]


# Classes and shares, worked by hand


def test_classes_are_counted_in_each_split(audit):
    assert audit.summary["classes"] == 4
    assert audit.summary["classes_per_part"] == {"train": 3, "validation": 2, "test": 2}
    assert audit.summary["covered_classes"] == 1


def test_classes_without_training_or_test_data_are_named(audit):
    assert audit.summary["unlearned"] == ["tit"]
    assert audit.summary["unscored"] == ["kite", "owl"]


def test_shares_of_annotations_and_recordings_are_told(audit):
    assert audit.summary["annotation_shares"] == {"train": 13 / 20, "validation": 4 / 20, "test": 3 / 20}
    assert audit.summary["recordings_per_part"] == {"train": 2, "validation": 1, "test": 1}
    assert audit.summary["recording_shares"] == {"train": 0.5, "validation": 0.25, "test": 0.25}


def test_each_class_has_its_distance_from_the_targets(audit):
    # Of 0.6, 0.2, 0.2: the wren has 0.6, 0.3, 0.1; the owl 0.75, 0.25, 0; the tit 0, 0, 1; the kite 1, 0, 0.
    expected = {"kite": 0.4, "owl": 0.2, "tit": 0.8, "wren": 0.1}
    assert audit.per_class["distance"].to_dict() == pytest.approx(expected)
    assert audit.summary["mean_distance"] == pytest.approx(1.5 / 4)
    assert audit.summary["max_distance"] == pytest.approx(0.8)
    assert audit.summary["farthest_class"] == "tit"


def test_each_class_has_its_numbers(audit):
    wren = audit.per_class.loc["wren"].drop("distance").to_dict()
    assert wren == {"annotations": 10, "recordings": 3, "train": 6, "validation": 3, "test": 1}


def test_the_targets_can_be_given():
    audit = audit_split(ANNOTATIONS, SPLITS, targets={"test": 0.1, "train": 0.6, "validation": 0.3})
    assert audit.per_class.at["wren", "distance"] == pytest.approx(0.0)
    assert audit.summary["targets"] == {"train": 0.6, "validation": 0.3, "test": 0.1}


# Folds


def test_folds_are_splits_with_equal_targets():
    folds = splits_of([("r1", 0), ("r2", 1), ("r3", 1), ("r4", 0)], "fold")
    audit = audit_split(ANNOTATIONS, folds)
    assert audit.summary["targets"] == {"fold 0": 0.5, "fold 1": 0.5}
    assert audit.summary["classes_per_part"] == {"fold 0": 3, "fold 1": 3}
    assert audit.summary["covered_classes"] == 2
    # The wren has 0.6 and 0.4, the owl 0.75 and 0.25.
    expected = {"kite": 0.5, "owl": 0.25, "tit": 0.5, "wren": 0.1}
    assert audit.per_class["distance"].to_dict() == pytest.approx(expected)


def test_a_class_in_one_fold_only_cannot_be_learned_when_that_is_tested():
    audit = audit_split(ANNOTATIONS, splits_of([("r1", 0), ("r2", 1), ("r3", 2), ("r4", 0)], "fold"))
    assert audit.summary["unlearned"] == ["kite", "tit"]
    assert audit.summary["unscored"] == []


def test_folds_are_in_the_order_of_their_numbers_also_as_text():
    annotations = table_of({f"r{i}": {"wren": 1} for i in range(11)})
    audit = audit_split(annotations, splits_of([(f"r{i}", str(i)) for i in range(11)], "fold"))
    assert list(audit.summary["targets"]) == [f"fold {i}" for i in range(11)]


# Faults


def test_a_sound_split_has_no_faults(audit):
    assert audit.summary["repeated_recordings"] == []
    assert audit.summary["near_recordings"] == []
    assert audit.summary["unassigned_recordings"] == []


def test_recordings_of_one_recorder_are_near_in_whatever_form_their_names_are():
    first, second = "SMM01_20211207_153852.wav", "SMM01_20211207$160000.wav"
    assert starting((first, "train"), (second, "test")) == [(first, second)]
    # Half an hour apart: 12:38:52 and 13:00 in UTC.
    first, second = "A_20211207T153852+0300.wav", "A_20211207T130000Z.wav"
    assert starting((first, "train"), (second, "test")) == [(first, second)]
    # Nobody knows whether these are of one site.
    assert starting(("20211207_153852.WAV", "train"), ("20211207_153900.WAV", "test")) == []
    annotations = table_of({"north-1": {"wren": 1}, "x 071221 15": {"wren": 1}, "x 071221 16": {"wren": 1}})
    splits = splits_of([("north-1", "train"), ("x 071221 15", "train"), ("x 071221 16", "test")])
    pattern = NamePattern("%site %d%m%y %H")
    places = {name: find_time_and_place(name, pattern=pattern) for name in splits["recording"]}
    audit = audit_split(annotations, splits, places=places)
    assert audit.summary["near_recordings"] == [("x 071221 15", "x 071221 16")]
    assert audit.summary["unparsed_recordings"] == ["north-1"]


def test_a_recording_in_two_splits_is_named_and_counts_in_both():
    audit = audit_split(ANNOTATIONS, pd.concat([SPLITS, splits_of([("r1", "test")])]))
    assert audit.summary["repeated_recordings"] == ["r1"]
    assert audit.per_class.loc["owl", ["train", "validation", "test"]].tolist() == [3, 1, 3]


def test_a_row_that_stands_twice_is_no_leak():
    audit = audit_split(ANNOTATIONS, pd.concat([SPLITS, SPLITS[:1]]))
    assert audit.summary["repeated_recordings"] == []
    assert audit.per_class.at["owl", "train"] == 3


def test_recordings_without_a_split_are_named():
    audit = audit_split(ANNOTATIONS, SPLITS[:3])
    assert audit.summary["unassigned_recordings"] == ["r4"]
    assert "kite" in audit.summary["unlearned"]
    assert math.isnan(audit.per_class.at["kite", "distance"])
    assert audit.summary["mean_distance"] == pytest.approx(1.1 / 3)


def test_an_empty_split_is_told():
    audit = audit_split(ANNOTATIONS, SPLITS.replace("test", "train"))
    assert audit.summary["classes_per_part"]["test"] == 0
    assert audit.summary["recordings_per_part"]["test"] == 0
    assert audit.summary["unscored"] == ["kite", "owl", "tit", "wren"]


def test_recordings_of_a_site_within_an_hour_are_told_when_they_are_apart():
    first, within = "KEN_001_20211207_153852.flac", "KEN_001_20211207_163852.flac"
    assert starting((first, "train"), (within, "test")) == [(first, within)]
    assert starting((first, "test"), (within, "test")) == []


@pytest.mark.parametrize(
    "other",
    [
        "KEN_001_20211207_163853.flac",  # a second more than an hour
        "KEN_002_20211207_153852.flac",
        "KEN_001_20211208_153852.flac",
        "KEN_001_20211207_153852Z.flac",  # in UTC: nobody knows how far from local time
        "recording.flac",
    ],
)
def test_recordings_elsewhere_or_later_are_not_told(other):
    assert starting(("KEN_001_20211207_153852.flac", "train"), (other, "test")) == []


def test_nearness_reaches_over_a_recording_between_and_over_midnight():
    names = [
        f"UHH_{i:03d}_S01_{start}.flac"
        for i, start in enumerate(("20161121_233000", "20161121_234500", "20161122_001500"))
    ]
    pairs = starting((names[0], "train"), (names[1], "train"), (names[2], "test"))
    assert pairs == [(names[0], names[2]), (names[1], names[2])]


def test_names_that_do_not_tell_their_site_are_counted():
    annotations = table_of({"KEN_001_20211207_153852.flac": {"wren": 1}, "b.flac": {"wren": 1}})
    audit = audit_split(annotations, splits_of([("KEN_001_20211207_153852.flac", "train"), ("b.flac", "test")]))
    assert audit.summary["unparsed_recordings"] == ["b.flac"]
    assert audit.summary["sites"] == 1


# The text


def test_audits_stand_side_by_side_in_aligned_columns(audit):
    other = audit_split(ANNOTATIONS, SPLITS.replace({"recording": {"r3": "r4", "r4": "r3"}}))
    lines = format_audit({"seed": audit, "balanced": other}).splitlines()
    assert lines[0].split() == ["seed", "balanced"]
    table = [line for line in lines[1:] if ":" not in line]
    ends = lines[0].index("seed") + len("seed"), len(lines[0])
    figures = {line.rsplit(maxsplit=2)[0].strip(): line.split()[-2:] for line in table if line[ends[0] :]}
    for line in table:
        if line[ends[0] :]:
            assert (len(line), line[ends[0] : ends[0] + 2]) == (ends[1], "  ")
    assert figures["classes"] == ["4", "4"]
    assert figures["in every part"] == ["1", "0"]
    assert figures["of them in train"] == ["65.0%", "60.0%"]
    assert figures["greatest"] == ["0.800", "0.800"]


def test_one_audit_needs_no_name(audit):
    text = format_audit(audit)
    assert text.splitlines()[0].split() == ["classes", "4"]
    assert "cannot be learned (1): tit" in text
    assert "cannot be evaluated (2): kite, owl" in text


def test_names_say_which_audit_they_belong_to(audit):
    text = format_audit({"mine": audit, "yours": audit})
    assert "mine: cannot be learned (1): tit" in text
    assert "yours: cannot be learned (1): tit" in text


def test_what_is_not_wrong_is_not_listed(audit):
    assert "in no part (" not in format_audit(audit)


def test_splits_and_folds_stand_side_by_side(audit):
    folds = audit_split(ANNOTATIONS, splits_of([("r1", 0), ("r2", 1), ("r3", 1), ("r4", 0)], "fold"))
    lines = format_audit({"splits": audit, "folds": folds}).splitlines()
    assert next(line for line in lines if line.startswith("  in test")).split()[-2:] == ["2", "-"]
    assert next(line for line in lines if line.startswith("  in fold 1")).split()[-2:] == ["-", "3"]


def test_long_lists_are_cut_and_fit_a_terminal():
    annotations = table_of({"r1": {f"species{i:02d}": 1 for i in range(50)}, "r2": {"wren": 1}, "r3": {"wren": 1}})
    text = format_audit(audit_split(annotations, splits_of([("r1", "train"), ("r2", "validation"), ("r3", "test")])))
    assert "cannot be evaluated (50): species00, species01" in text
    assert text.endswith("and 30 more")
    assert max(map(len, text.splitlines())) <= 100


# What cannot be examined


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (splits_of([("r1", "dev")]), "found splits dev: expected train, validation, test"),
        (splits_of([("r1", "train")], "part"), "expected recording and split, or recording and fold"),
        (splits_of([("r1", "first")], "fold"), "found fold 'first': expected numbers"),
        (splits_of([("r9", "train")]), "no recording of the splits has annotations"),
    ],
)
def test_a_table_that_is_no_split_is_refused(splits, message):
    with pytest.raises(UserError, match=message):
        audit_split(ANNOTATIONS, splits)


def test_nothing_cannot_be_examined():
    with pytest.raises(UserError, match="no annotations"):
        audit_split(ANNOTATIONS[:0], SPLITS)


def test_every_split_needs_a_target():
    with pytest.raises(UserError, match="found targets for train, test: expected one target for each"):
        audit_split(ANNOTATIONS, SPLITS, targets={"train": 0.5, "test": 0.5})
