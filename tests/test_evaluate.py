"""A saved model is evaluated again: the same numbers, the same files, and only on classes that it knows."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from running import run_here, train

from kenya_birds.cli import main
from kenya_birds.errors import UserError
from kenya_birds.evaluation.predictions import clip_references, score_clips
from kenya_birds.evaluation.thresholds import Thresholds, choose_window_thresholds
from kenya_birds.evaluation.window_scoring import WindowPredictions
from kenya_birds.experiments import evaluate as evaluate_module
from kenya_birds.experiments.evaluate import evaluate_model
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.publishing.clips_dataset import model_clips_builder

pytestmark = pytest.mark.usefixtures("blank_figures")


def save_model(folder, classes, multi_label=False, **fields):
    torch.manual_seed(0)
    model = KenyaBirdsForAudioClassification(
        KenyaBirdsConfig(
            backbone="test_convnext",
            problem_type=f"{'multi' if multi_label else 'single'}_label_classification",
            id2label=dict(enumerate(classes)),
            label2id={code: label for label, code in enumerate(classes)},
            **fields,
        )
    ).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    model.save_pretrained(folder)
    KenyaBirdsFeatureExtractor(noise_reduction="none").save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def classes(clips):
    return clips["test"].features["label"].names


def settings(cache, **more):
    return {"min_annotations": 8, "cache_dir": cache, **more}


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_numbers_are_those_of_the_models_own_scores(tmp_path, small_archive, cache, classes, clips, multi_label):
    calibration = {"logit_scale": [0.5, 1, 2, 1, 1.0], "logit_offset": [0.0, 0, 1, 0, -1]} if multi_label else {}
    model = save_model(tmp_path / "model", classes, multi_label, **calibration)
    metrics = evaluate_model(
        str(tmp_path / "model"), small_archive, tmp_path / "out", **settings(cache, context_s=0.0)
    )
    assert metrics["clips"] == len(clips["test"])
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    logits = torch.tensor(score_clips(model, KenyaBirdsFeatureExtractor(noise_reduction="none"), clips["test"]))
    expected = logits.sigmoid() if multi_label else logits.softmax(dim=1)
    np.testing.assert_allclose(table[classes], expected, atol=1e-5)
    assert table["recording"].tolist() == list(clips["test"]["recording"])
    labels = table["labels"] if multi_label else table["label"]
    names = np.array(classes)
    column = clips["test"]["labels" if multi_label else "label"]
    assert [list(label) if multi_label else label for label in labels] == [
        names[label].tolist() if multi_label else names[label] for label in column
    ]
    assert (metrics["ece_before_calibration"] is not None) == multi_label


def test_the_command_uses_the_models_splits_summary_and_thresholds(
    tmp_path, small_archive, cache, classes, clips, capsys
):
    save_model(tmp_path / "model", classes)
    every = pd.concat([clips[split].to_pandas()[["recording"]].drop_duplicates() for split in clips])
    other = every.assign(split=["test", "validation", *["train"] * (len(every) - 2)])
    other.to_csv(tmp_path / "model" / "splits.csv", index=False)
    counts = {code: {"train": 100 + label} for label, code in enumerate(classes)}
    summary = {"archive": {"min_annotations": 8}, "clips_per_species": counts}
    (tmp_path / "model" / "training_summary.json").write_text(json.dumps(summary))
    thresholds = {"wanted_precision": 0.9, "every_species": 0.5, "species": {classes[0]: 0.25, classes[1]: None}}
    (tmp_path / "model" / "thresholds.json").write_text(json.dumps(thresholds))
    words = ["evaluate", tmp_path / "model", small_archive, "--output", tmp_path / "out", "--cache_dir", cache]
    main([str(word) for word in words])
    table = pd.read_csv(tmp_path / "out" / "per_species.csv")
    assert table["n_train"].tolist() == [100, 101, 102, 103, 104]
    assert table["threshold"][0] == 0.25
    assert table["threshold"][1:].isna().all()
    recordings = pd.read_parquet(tmp_path / "out" / "predictions.parquet")["recording"].unique()
    assert list(recordings) == [other["recording"].iloc[0]]
    printed = capsys.readouterr().out
    assert "macro_f1" in printed
    assert str(tmp_path / "out") in printed
    with pytest.raises(SystemExit, match="2"):
        main([str(word) for word in words])
    assert "not an empty folder" in capsys.readouterr().err


def test_other_classes_are_refused_and_listed_unless_the_common_ones_are_asked_for(
    tmp_path, small_archive, cache, classes, clips
):
    save_model(tmp_path / "model", [*classes[:-1], "dodo1"])
    with pytest.raises(UserError, match=rf"lacks 1 \({classes[-1]}\).*the archive 1 \(dodo1\).*--common_classes.* 4 "):
        evaluate_model(str(tmp_path / "model"), small_archive, tmp_path / "out", **settings(cache))
    assert not (tmp_path / "out").exists()
    metrics = evaluate_model(
        str(tmp_path / "model"), small_archive, tmp_path / "out", common_classes=True, **settings(cache)
    )
    labels = np.array(clips["test"]["label"])
    assert metrics["clips"] == (labels != len(classes) - 1).sum()
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    np.testing.assert_allclose(table[classes[:-1]].sum(axis=1), 1)
    save_model(tmp_path / "strange", ["dodo1", "moa1"])
    with pytest.raises(UserError, match="0 in common are too few"):
        evaluate_model(
            str(tmp_path / "strange"), small_archive, tmp_path / "no", common_classes=True, **settings(cache)
        )


def test_classes_in_another_order_are_the_same_classes(tmp_path, small_archive, cache, classes):
    save_model(tmp_path / "model", classes[::-1])
    evaluate_model(str(tmp_path / "model"), small_archive, tmp_path / "out", **settings(cache))
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert list(table.columns[4:]) == classes[::-1]
    truth = pd.read_csv(small_archive / "annotations.csv").set_index(["Filename", "Start Time (s)"])
    for row in table.head(5).itertuples():
        assert row.label in truth.loc[[(row.recording, row.center_s)], "Species eBird Code"].tolist()


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "is no model: expected a config.json"), ('{"model_type": "convnext"}', "no model of this package")],
)
def test_what_is_no_model_of_this_package_is_refused(tmp_path, small_archive, cache, classes, content, text):
    save_model(tmp_path / "model", classes)
    if content is None:
        (tmp_path / "model" / "config.json").unlink()
    else:
        (tmp_path / "model" / "config.json").write_text(content)
    with pytest.raises(UserError, match=text):
        evaluate_model(str(tmp_path / "model"), small_archive, tmp_path / "out", **settings(cache))


def test_splits_with_unknown_recordings_are_refused(tmp_path, small_archive, cache, classes):
    save_model(tmp_path / "model", classes)
    (tmp_path / "splits.csv").write_text("recording,split\na.flac,train\nb.flac,validation\nc.flac,test\n")
    with pytest.raises(UserError, match="recordings without clips in the archive"):
        evaluate_model(
            str(tmp_path / "model"),
            small_archive,
            tmp_path / "out",
            **settings(cache, splits_file=tmp_path / "splits.csv"),
        )


# Shifted crops


@pytest.fixture(scope="module")
def with_context(small_archive, cache):
    from kenya_birds.data.dataset import load_clips

    return load_clips(small_archive, split="test", cache_dir=cache, min_annotations=8, context_s=0.9)


def test_shifted_crops_are_averaged(tmp_path, with_context, classes):
    from kenya_birds.data.audio import decode_wav

    model = save_model(tmp_path, classes)
    extractor = KenyaBirdsFeatureExtractor(noise_reduction="none")
    some = with_context.select(range(5))
    rate = extractor.sampling_rate
    waveform = np.stack([decode_wav(audio["bytes"]) for audio in some["audio"]])
    expected = []
    for start in (0, round(0.9 * rate), round(1.8 * rate)):
        crop = waveform[:, start : start + 3 * rate]
        with torch.no_grad():
            expected.append(model(**extractor(crop, sampling_rate=rate, return_tensors="pt")).logits.numpy())
    np.testing.assert_allclose(score_clips(model, extractor, some), expected[1], atol=1e-4)
    found = score_clips(model, extractor, some, time_shifts=3, batch_size=2)
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-4)
    assert np.abs(found - expected[1]).max() > 0.01


def test_crops_cannot_be_shifted_without_context(tmp_path, clips, classes):
    model = save_model(tmp_path, classes)
    extractor = KenyaBirdsFeatureExtractor(noise_reduction="none")
    with pytest.raises(UserError, match="context_s above 0"):
        score_clips(model, extractor, clips["test"], time_shifts=2)
    with pytest.raises(UserError, match="time_shifts is 0"):
        score_clips(model, extractor, clips["test"], time_shifts=0)


def test_references_are_in_the_models_classes(clips, classes):
    few = {classes[2]: 0, classes[0]: 1}
    test = clips["test"]
    single = clip_references(test, few, multi_label=False)
    multi = clip_references(test, few, multi_label=True)
    for label, labels, found, row in zip(test["label"], test["labels"], single, multi, strict=True):
        assert found == {2: 0, 0: 1}.get(label, -1)
        assert row.tolist() == [int(2 in labels), int(0 in labels)]


def test_in_a_clip_with_an_unknown_bird_absent_species_are_not_known(tmp_path, small_archive, cache, classes):
    from kenya_birds.data.dataset import load_clips

    archive = shutil.copytree(small_archive, tmp_path / "archive")
    table = pd.read_csv(archive / "annotations.csv", dtype=str)
    first = table.iloc[0]
    with (archive / "annotations.csv").open("a") as file:
        file.write(f"{first.iloc[0]},{first.iloc[1]},{first.iloc[2]},????\n")
    every = load_clips(archive, cache_dir=cache, min_annotations=8)
    ids = {code: label for label, code in enumerate(classes)}
    masked = sum((clip_references(clips, ids, multi_label=True) == -100).any(axis=1).sum() for clips in every.values())
    assert masked == sum(sum(clips["unknown"]) for clips in every.values()) > 0


def test_what_training_found_is_found_again(tmp_path, small_archive):
    """Whatever training was told about clips and labels; no flag repeats it."""
    trained = train(
        small_archive,
        tmp_path / "birds",
        tmp_path / "cache",
        num_train_epochs=1,
        min_annotations=5,
        context_s=0.4,
        edge_tolerance_s=1.2,
        problem_type="multi_label_classification",
    )
    (checkpoint,) = trained.glob("checkpoint-*")
    told = json.loads((trained / "metrics.json").read_text())["test"]
    summary = json.loads((trained / "training_summary.json").read_text())["clips_per_species"]
    ranks = ("cmap", "auroc", "classes")  # calibration changes no rank, and a checkpoint has none
    for folder, names in ((trained, ("macro_f1", "weighted_f1", "accuracy", *ranks)), (checkpoint, ranks)):
        output = tmp_path / f"{folder.name}-again"
        found = evaluate_model(str(folder), small_archive, output, cache_dir=tmp_path / "cache")
        for name in names:
            assert found[name] == pytest.approx(told[name], rel=1e-5), name
        first, again = (pd.read_parquet(path / "predictions.parquet") for path in (trained, output))
        assert [sorted(labels) for labels in again["labels"]] == [sorted(labels) for labels in first["labels"]]
        assert again["recording"].tolist() == first["recording"].tolist()
    table = pd.read_csv(tmp_path / "birds-again" / "per_species.csv")
    assert table["n_train"].tolist() == [summary[code]["train"] for code in table["code"]]
    columns = ["code", "n", "n_train"]
    pd.testing.assert_frame_equal(table[columns], pd.read_csv(trained / "per_species.csv")[columns])
    config = model_clips_builder(trained, small_archive).config
    assert (config.context_s, config.edge_tolerance_s, config.min_annotations) == (0.4, 1.2, 5)


@pytest.mark.parametrize(
    ("recorded", "given", "used"),
    [({"seed": 7}, {}, 7), ({"seed": 7}, {"seed": 3}, 3), ({}, {}, 0), (None, {}, 0)],
)
def test_intervals_are_drawn_with_the_seed_of_the_training(
    tmp_path, small_archive, cache, classes, monkeypatch, recorded, given, used
):
    save_model(tmp_path / "model", classes)
    if recorded is not None:
        (tmp_path / "model" / "run_settings.json").write_text(json.dumps({"settings": recorded}))
    drawn = []
    monkeypatch.setattr(evaluate_module._Evaluation, "write", lambda self, folder, context, **_: drawn.append(context))
    evaluate_model(str(tmp_path / "model"), small_archive, tmp_path / "out", **settings(cache), **given)
    assert [context.seed for context in drawn] == [used]


def test_a_stopped_evaluation_leaves_nothing_and_can_be_repeated(
    tmp_path, small_archive, cache, classes, capsys, monkeypatch
):
    save_model(tmp_path / "model", classes, multi_label=True)
    own = {"wanted_precision": None, "every_species": 0.5, "species": dict.fromkeys(classes, 0.5)}
    (tmp_path / "model" / "thresholds.json").write_text(json.dumps(own))
    words = ["evaluate", tmp_path / "model", small_archive, "--output", tmp_path / "out", "--cache_dir", cache]
    words += ["--split", "all", "--min_annotations", 8]

    def stop(folder, *_, **__):
        assert (folder / "recording_windows.parquet").is_file()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_module, "write_evaluation", stop)
        assert run_here(main, *words).returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert run_here(main, *words).returncode == 0
    assert (tmp_path / "out" / "metrics.json").is_file()


@pytest.mark.parametrize("has_thresholds", [True, False])
def test_thresholds_are_chosen_on_the_windows_of_the_evaluated_recordings(
    tmp_path, small_archive, cache, classes, capsys, has_thresholds
):
    save_model(tmp_path / "model", classes, multi_label=True)
    if has_thresholds:
        own = {"wanted_precision": None, "every_species": 0.5, "species": dict.fromkeys(classes, 0.5)}
        (tmp_path / "model" / "thresholds.json").write_text(json.dumps(own))
    words = ["evaluate", tmp_path / "model", small_archive, "--split", "all", "--output", tmp_path / "out"]
    words += ["--choose_thresholds", "--cache_dir", cache, "--min_annotations", "8"]
    main([str(word) for word in words])
    told = capsys.readouterr().err
    assert f"kenya-birds detect --thresholds {tmp_path / 'out' / 'thresholds.json'}" in told
    chosen = Thresholds.read(tmp_path / "out" / "thresholds.json")
    assert set(chosen.species) == set(classes)
    assert (chosen.overlap_s, chosen.merge) == (0, False)
    assert (tmp_path / "out" / "recording_windows.parquet").exists() == has_thresholds
    if has_thresholds:
        windows = WindowPredictions.read(tmp_path / "out" / "recording_windows.parquet")
        again = choose_window_thresholds(windows.scores, windows.targets, windows.classes, overlap_s=0)
        assert chosen.species == pytest.approx(again.species)
        # The table of species has the thresholds that the metrics are at.
        assert set(pd.read_csv(tmp_path / "out" / "per_species.csv")["threshold"]) == {0.5}
        recording = next((small_archive / "soundscape_data").iterdir())
        detect = ["detect", tmp_path / "model", recording, "--output", tmp_path / "found"]
        with pytest.raises(SystemExit, match="0"):
            main([str(word) for word in [*detect, "--thresholds", tmp_path / "out" / "thresholds.json"]])
        found = pd.read_csv(tmp_path / "found" / "detections.csv")
        assert len(found) > 0
        assert (found["score"] >= found["code"].map(chosen.species) - 1e-4).all()


def test_thresholds_are_not_chosen_on_recordings_whose_calls_are_not_all_known(
    tmp_path, small_archive, cache, classes
):
    save_model(tmp_path / "model", classes, multi_label=True)
    shutil.copytree(small_archive, tmp_path / "weak")
    table = pd.read_csv(tmp_path / "weak" / "annotations.csv")
    table.assign(Weak=1).to_csv(tmp_path / "weak" / "annotations.csv", index=False)
    with pytest.raises(UserError, match=r"the 0 completely annotated recordings .* omit --choose_thresholds"):
        evaluate_model(
            str(tmp_path / "model"),
            tmp_path / "weak",
            tmp_path / "out",
            split="all",
            choose_thresholds=True,
            **settings(cache, weak_labels="every_split"),
        )
    assert not (tmp_path / "out").exists()
