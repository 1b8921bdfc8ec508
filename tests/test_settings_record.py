"""The record of a run's settings: what is in it, and that later commands cut and label clips as training did."""

import json

import pytest
from running import flags, settings_of

from kenya_birds.errors import UserError
from kenya_birds.experiments.probe import ProbeSettings
from kenya_birds.training.run_folder import SETTINGS_FILE
from kenya_birds.training.settings import CLIPS_PER_STEP, clip_settings, differences, read_settings


@pytest.fixture
def given(small_archive, tmp_path):
    def given(**settings):
        return settings_of(flags(small_archive, tmp_path / "run", tmp_path / "cache", **settings))

    return given


def write(folder, *, front_end=None, settings=None, summary=None):
    folder.mkdir(exist_ok=True)
    front_end = {"sampling_rate": 32_000, "clip_s": 3.0} if front_end is None else front_end
    (folder / "preprocessor_config.json").write_text(json.dumps(front_end))
    if settings is not None:
        (folder / SETTINGS_FILE).write_text(json.dumps({"settings": settings}))
    if summary is not None:
        (folder / "training_summary.json").write_text(json.dumps(summary))
    return folder


def test_the_record_has_every_setting_and_no_path(given, tmp_path, small_archive):
    donor = tmp_path / "weights.safetensors"
    donor.touch()
    record = given(
        context_s=0.4,
        edge_tolerance_s=0.7,
        problem_type="multi_label_classification",
        mixup_probability=0.5,
        adam_beta2=0.98,
        dataloader_num_workers=2,
        init_from=donor,
        gradient_accumulation_steps=3,
        run_name=tmp_path / "mine",
    ).record()
    expected = {
        "context_s": 0.4,
        "edge_tolerance_s": 0.7,
        "min_annotations": 8,
        "problem_type": "multi_label_classification",
        "clip_s": 3.0,
        "mixup_probability": 0.5,
        "adam_beta2": 0.98,
        "dataloader_num_workers": 2,
        "init_from": "weights.safetensors",
        "test_size": 0.2,
        CLIPS_PER_STEP: 24,
    }
    assert {name: record.get(name) for name in expected} == expected
    assert not any(str(path) in json.dumps(record) for path in (tmp_path, small_archive))


def test_how_clips_are_spread_over_batches_decides_nothing(given):
    one = given(per_device_train_batch_size=8).deciding()
    other = given(per_device_train_batch_size=2, gradient_accumulation_steps=4, dataloader_num_workers=1).deciding()
    assert one == other


def test_differences_are_told_with_both_values_and_a_setting_that_is_new_had_its_default(given):
    then = given().deciding()
    now = given(n_fft=1024, clip_s=5.0).deciding()
    assert differences(then, then) == []
    assert differences(then, now) == ["clip_s was 3.0 and is 5.0 now", "n_fft was 2048 and is 1024 now"]
    del then["clip_s"], then["n_fft"]
    assert differences({**then, "gone": 1}, now) == ["clip_s was 3.0 and is 5.0 now", "n_fft was 2048 and is 1024 now"]


def test_clips_are_cut_as_the_record_says_unless_a_setting_is_given(tmp_path):
    told = {"context_s": 0.4, "edge_tolerance_s": 0.7, "min_overlap_s": 0.2, "min_annotations": 4, "channel": "best"}
    model = write(tmp_path / "m", settings=told)
    recorded = {
        "sampling_rate": 32_000,
        "clip_s": 3.0,
        "context_s": 0.4,
        "edge_tolerance_s": 0.7,
        "min_overlap_s": 0.2,
        "min_annotations": 4,
        "channel": "best",
        "weak_labels": "train",
    }
    assert clip_settings(model) == recorded
    assert clip_settings(model, context_s=0.0, edge_tolerance_s=None) == {**recorded, "context_s": 0.0}


def test_of_an_older_model_is_used_what_its_files_tell_and_the_rest_is_logged(tmp_path, caplog):
    model = write(tmp_path / "m", summary={"archive": {"min_annotations": 4}})
    found = clip_settings(model, context_s=0.5)
    assert found["min_annotations"] == 4
    assert (found["context_s"], found["edge_tolerance_s"]) == (0.5, 0.0)
    assert "edge_tolerance_s is assumed to be 0" in caplog.text
    assert "context_s" not in caplog.text
    assert read_settings(model) == {}


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"settings": {"context_s": "1.0; rm"}}, "context_s is '1.0; rm': expected a number"),
        ({"settings": {}, "front_end": {"clip_s": 3.0}}, "sampling_rate is None"),
        ({"settings": {"min_annotations": True}}, "min_annotations is True"),
        ({"settings": [1]}, "has no object 'settings'"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, files, told):
    with pytest.raises(UserError, match=told):
        clip_settings(write(tmp_path / "m", **files))


def test_a_probe_takes_from_the_record_what_it_is_not_given():
    recorded = {"problem_type": "multi_label_classification", "edge_tolerance_s": 0.7, "min_annotations": 4}
    recorded |= {"min_overlap_s": 0.2, "weak_labels": "leave_out"}
    completed = ProbeSettings(min_annotations=6).completed(recorded)
    assert completed.problem_type == "multi_label_classification"
    assert (completed.edge_tolerance_s, completed.min_annotations) == (0.7, 6)
    assert (completed.min_overlap_s, completed.weak_labels) == (0.2, "leave_out")
    usual = ProbeSettings().completed({})
    assert (usual.problem_type, usual.min_annotations) == ("single_label_classification", 10)
