"""The search space of tuning: what is searched, and which flags of training a point is."""

import json

import optuna
import pytest
from running import tuning_words

from kenya_birds.errors import UserError
from kenya_birds.training import search_space, tuning
from kenya_birds.training.flags import parse_train_flags, tuning_flags
from kenya_birds.training.search_space import RANGES, SearchSpace


def settings_of(archive, tmp_path, **more):
    return tuning._parse(archive, tmp_path / "out", tuning_words(tmp_path, **more))[0]


def test_the_strength_multiplies_probabilities_up_to_always(tmp_path, small_archive):
    space = SearchSpace(settings_of(small_archive, tmp_path, noise_probability=0.8, pitch_probability=0.0))
    given = space.flags({search_space.STRENGTH: 1.5})
    assert given["noise_probability"] == 1
    assert given["pitch_probability"] == 0
    assert given["shift_probability"] == 0.75
    assert search_space.STRENGTH not in given


def test_windows_of_recordings_are_not_shifted_so_tuning_leaves_shifts_out(tmp_path, small_archive):
    space = SearchSpace(settings_of(small_archive, tmp_path, train_on="recordings"))
    assert "shift_probability" not in space.flags({search_space.STRENGTH: 1.5})
    assert "shift_probability" not in space.fixed()


def test_only_what_acts_is_searched(tmp_path, small_archive):
    single, multi = (
        SearchSpace(settings_of(small_archive, tmp_path, problem_type=f"{kind}_label_classification"))
        for kind in ("single", "multi")
    )
    assert single.describe().keys() == RANGES.keys()
    assert single.describe().keys() - multi.describe().keys() == {"label_smoothing_factor"}

    # DLA has no stochastic depth.
    mixed = SearchSpace(settings_of(small_archive, tmp_path), ["test_convnext", "dla46_c"])
    for backbone, has_it in (("test_convnext", True), ("dla46_c", False)):
        fixed = {name: numbers.low for name, numbers in RANGES.items()} | {"backbone": backbone}
        drawn = mixed.suggest(trial := optuna.trial.FixedTrial(fixed))
        assert ("drop_path_rate" in trial.params) == has_it
        assert drawn["drop_path_rate"] == 0
        assert drawn["backbone"] == backbone
    # Training on clips is single-label unless the flags say otherwise.
    assert [space.fixed()["problem_type"][:6] for space in (single, multi)] == ["single", "multi_"]


def test_a_point_with_sizes_of_splits_goes_with_folds(tmp_path, small_archive):
    point = tmp_path / "best.json"
    point.write_text(json.dumps({"flags": {"test_size": 0.3, "split_seed": 3}}), encoding="utf-8")
    words = ["--data_dir", str(small_archive), "--output_dir", str(tmp_path / "run"), "--params", str(point)]
    assert parse_train_flags([*words, "--folds", "3"]).data.test_size == 0.3


def test_a_seed_divides_what_a_table_of_splits_leaves(tmp_path, small_archive):
    table = tmp_path / "splits.csv"
    table.touch()
    given = tuning_flags(small_archive, tmp_path / "out", ["--splits_file", str(table), "--split_seed", "3"])
    assert given.data.split_seed == 3


def test_a_folder_with_the_name_of_a_kind_of_start_is_not_the_start(tmp_path, small_archive, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("scratch", "birds"):
        (tmp_path / name).mkdir()
    settings = settings_of(small_archive, tmp_path)
    assert SearchSpace(settings).fixed()["init_from"] == "scratch"
    assert SearchSpace(settings.changed(init_from="birds")).fixed()["init_from"] == str(tmp_path / "birds")


def test_flags_of_a_params_file_come_first_and_unknown_ones_are_refused(small_archive, tmp_path):
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"flags": {"learning_rate": 0.001, "backbone": "test_convnext"}}))
    line = ["--data_dir", str(small_archive), "--output_dir", str(tmp_path / "run"), "--params", str(path)]
    flags = parse_train_flags(line)
    assert (flags.training["learning_rate"], flags.model.backbone) == (0.001, "test_convnext")
    assert parse_train_flags([*line, "--learning_rate", "0.1"]).training["learning_rate"] == 0.1
    for content, said in (
        ({"flags": {"learning_rat": 0.001}}, r"best.json names learning_rat among its flags"),
        ({"flags": {"learning_rate": -1}}, r"learning_rate is -1: expected more than 0"),
        ({}, "has no object 'flags'"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=said):
            parse_train_flags(line)


def test_a_setting_of_an_earlier_study_is_searched_again(tmp_path, small_archive):
    (tmp_path / "best.json").write_text(json.dumps({"flags": {"weight_decay": 0.04, "n_mels": 32}}))
    _, given = tuning._parse(small_archive, tmp_path / "out", tuning_words(tmp_path, params=tmp_path / "best.json"))
    assert "weight_decay" not in given
