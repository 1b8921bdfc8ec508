"""Probes of frozen embeddings: what they find, over which splits, beside which runs."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
from archives import edit, write_archive
from foreign import save_ast, save_wav2vec2
from running import FEATURES, train
from safetensors.torch import load_file, save_file
from test_evaluate import save_model

from kenya_birds.cli import main
from kenya_birds.data.audio import decode_wav
from kenya_birds.data.splits import splits_of_fold
from kenya_birds.errors import UserError
from kenya_birds.evaluation.evaluation_report import plain_metrics
from kenya_birds.evaluation.metrics import classification_metrics
from kenya_birds.evaluation.predictions import read_predictions
from kenya_birds.experiments import heads
from kenya_birds.experiments import heads as clip_embeddings
from kenya_birds.experiments import probe as probe_module
from kenya_birds.experiments.heads import METHODS, NEIGHBOURS, STRENGTHS, fit_head
from kenya_birds.experiments.probe import ProbeSettings, format_comparison, probe
from kenya_birds.inference.embedding_models import load_embedder
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor

SETTINGS = {"min_annotations": 8}
# Enough for whole probes, each of which fits them all; the tests of the classifiers have the others too.
FEW_STRENGTHS = STRENGTHS[2::4]
CANDIDATES = {"linear": heads._linear, "knn": heads._nearest}

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def model(tmp_path_factory, clips):
    folder = tmp_path_factory.mktemp("probe_model") / "birds"
    save_model(folder, clips["test"].features["label"].names)
    KenyaBirdsFeatureExtractor(**FEATURES).save_pretrained(folder)  # fewer bands and frames to compute
    return folder


@pytest.fixture(scope="module")
def validated(small_archive, cache, tmp_path_factory):
    """A cross-validation to stand beside."""
    folder = tmp_path_factory.mktemp("probe_runs") / "cv"
    return train(small_archive, folder, cache, folds=3, num_train_epochs=1, **SETTINGS)


@pytest.fixture(scope="module")
def trained(small_archive, cache, tmp_path_factory):
    """A single run to stand beside."""
    folder = tmp_path_factory.mktemp("probe_runs") / "birds"
    return train(small_archive, folder, cache, num_train_epochs=1, **SETTINGS)


@pytest.fixture(scope="module")
def probed(model, small_archive, cache, tmp_path_factory):
    """A probe over the splits that training makes."""
    return run(model, small_archive, tmp_path_factory.mktemp("probed") / "out", cache)[1]


@pytest.fixture(scope="module")
def probed_folds(model, small_archive, cache, tmp_path_factory, validated):
    """A probe over three folds beside a cross-validation: its table and folder."""
    return run(model, small_archive, tmp_path_factory.mktemp("probed") / "folds", cache, folds=3, beside=validated)


@pytest.fixture
def answer(monkeypatch):
    """Lets embeddings hold the answer: one-hot classes (or those present), far from each other, with some noise."""

    def embed(clips, embedder, batch_size):
        rng = np.random.default_rng(0)
        names = clips.features["label"].names
        hot = np.zeros((len(clips), len(names)), dtype=np.float32)
        for row, labels in zip(hot, clips["labels"][:] if multi[0] else clips["label"][:], strict=True):
            row[labels] = 1
        # Some number for everything, so that no vector is zero.
        return np.concatenate([hot + 0.01 * rng.random(hot.shape), np.ones((len(hot), 1))], axis=1).astype(np.float32)

    multi = [False]
    monkeypatch.setattr(probe_module, "embed_clips", embed)
    return multi


def read(path):
    return json.loads(path.read_text())


def run(model, archive, output, cache, *, beside=None, **settings):
    settings = ProbeSettings(**{**SETTINGS, **settings})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "STRENGTHS", FEW_STRENGTHS)
        table = probe(str(model), archive, output, settings, cache_dir=cache, beside=beside)
    return table, output


# The classifiers


def blobs(per_class=(40, 30, 10), size=8, spread=0.2, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(len(per_class), size))
    labels = np.repeat(np.arange(len(per_class)), per_class)
    return (centres[labels] + spread * rng.normal(size=(len(labels), size))).astype(np.float32), labels


@pytest.mark.parametrize("method", METHODS)
def test_what_lies_apart_is_told_apart(method):
    head = fit_head(method, blobs(), blobs(seed=1), classes=3, weight_power=0.5)
    embeddings, labels = blobs(seed=2)
    assert head.validation_macro_f1 == 1
    assert (head.predict(embeddings).argmax(axis=1) == labels).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_choice_is_the_best_on_validation_and_of_equals_the_smoothest(method, multi_label):
    def case(seed):
        embeddings, labels = blobs(spread=2.0, seed=seed)
        return embeddings, (labels[:, None] == np.arange(3)).astype(int) if multi_label else labels

    train, validation = case(0), case(1)
    chosen = fit_head(method, train, validation, classes=3, weight_power=0.5)
    candidates = dict(CANDIDATES[method](*train, 3, 0.5))
    assert list(candidates) == list({"linear": STRENGTHS, "knn": NEIGHBOURS}[method])
    scores = {
        value: classification_metrics(predict(validation[0]), validation[1], multi_label=multi_label)["macro_f1"]
        for value, predict in candidates.items()
    }
    best = max(scores.values())
    assert chosen.validation_macro_f1 == pytest.approx(best)
    assert chosen.chosen == next(value for value, score in scores.items() if score == best)


@pytest.mark.parametrize("method", METHODS)
def test_a_class_that_was_never_heard_is_the_unlikeliest_and_not_impossible(method):
    embeddings, labels = blobs()
    labels = np.where(labels == 2, 3, labels)  # of four classes, 2 has no clip
    logits = fit_head(method, (embeddings, labels), (embeddings, labels), classes=4, weight_power=0.5).predict(
        embeddings
    )
    assert logits.shape == (80, 4)
    assert np.isfinite(logits).all()
    assert (logits[:, 2] <= logits.min(axis=1)).all()


@pytest.mark.parametrize("method", METHODS)
def test_two_classes_are_enough_and_one_is_not(method):
    pair = blobs((20, 10))
    assert fit_head(method, pair, blobs((20, 10), seed=1), classes=2, weight_power=0.5).validation_macro_f1 == 1
    with pytest.raises(UserError, match="all clips of the train split have the same species"):
        fit_head(method, blobs((20,)), pair, classes=2, weight_power=0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_class_that_may_be_in_a_clip_is_not_counted_as_absent_from_it(method):
    embeddings, labels = blobs((30, 30, 20), spread=1.0)
    absent = (labels[:, None] == np.arange(3)).astype(int)
    unknown = np.where((absent == 0) & (np.arange(80) % 3 == 0)[:, None], -100, absent)
    others = blobs((30, 30, 20), spread=1.0, seed=1)[0]
    known, not_known = (dict(CANDIDATES[method](embeddings, found, 3, 0.0)) for found in (absent, unknown))
    for value in known:
        assert not_known[value](others).mean() > known[value](others).mean()


def test_weights_help_the_rare():
    train, test = blobs((200, 200, 6), size=4, spread=1.2), blobs((200, 200, 200), size=4, spread=1.2, seed=1)

    def recall_of_the_rare(power):
        predicted = fit_head("linear", train, test, classes=3, weight_power=power).predict(test[0]).argmax(axis=1)
        return (predicted[test[1] == 2] == 2).mean()

    assert recall_of_the_rare(1.0) > recall_of_the_rare(0.0)


# The probe


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("multi_label", [False, True])
def test_embeddings_that_hold_the_answer_score_one(model, small_archive, cache, tmp_path, answer, method, multi_label):
    answer[0] = multi_label
    problem_type = f"{'multi' if multi_label else 'single'}_label_classification"
    table, output = run(model, small_archive, tmp_path / "out", cache, method=method, problem_type=problem_type)
    found = read(output / "metrics.json")["test"]["macro_f1"]
    # The nearest neighbours of a clip with two species that nowhere else sing together hold one of them.
    assert found == 1 if method == "linear" or not multi_label else found > 0.9
    assert f"macro_f1       {found:.4f}" in table
    assert read_predictions(output / "predictions.parquet").multi_label == multi_label


def test_a_probe_leaves_what_a_run_leaves_of_its_test(probed, trained):
    output = probed
    evaluated = {
        "metrics.json",
        "per_species.csv",
        "predictions.parquet",
        "thresholds.json",
        "splits.csv",
        *(f"{name}.png" for name in ("confusion_matrix", "precision_recall", "reliability", "f1_by_training_clips")),
    }
    assert {path.name for path in output.iterdir()} == evaluated | {"probe.json"}
    assert evaluated <= {path.name for path in trained.iterdir()}
    told, ran = read(output / "metrics.json"), read(trained / "metrics.json")
    assert told["test"].keys() | {"loss", "whole_recordings", "unknown_species"} == ran["test"].keys()
    assert told["validation"].keys() | {"loss"} == ran["validation"].keys()
    assert (output / "splits.csv").read_text() == (trained / "splits.csv").read_text()
    names = ["code", "n_train", "n"]
    pd.testing.assert_frame_equal(
        pd.read_csv(output / "per_species.csv")[names], pd.read_csv(trained / "per_species.csv")[names]
    )
    about = read(output / "probe.json")
    assert about["C"] in FEW_STRENGTHS
    assert about["embedding_size"] > 0


def test_multi_label_models_are_compared_by_average_precision():
    names = ("macro_f1", "accuracy", "cmap")
    metrics = {"clips": 2, "recordings": 2, **dict.fromkeys(names, 0.5), "intervals": dict.fromkeys(names)}
    lines = format_comparison({"probe": metrics, "run": metrics}, multi_label=True).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["cmap", "macro_f1", "accuracy"]
    assert lines[5].startswith("Compare by cmap (mean average precision). macro_f1, weighted_f1 and accuracy are at")
    lines = format_comparison({"probe": metrics, "run": metrics}).splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(names)


def test_folds_are_those_of_training(probed_folds, validated):
    table, output = probed_folds
    assert (output / "folds.csv").read_text() == (validated / "folds.csv").read_text()
    folds = pd.read_csv(output / "folds.csv")
    for fold in range(3):
        own = splits_of_fold(folds, fold)
        tested = read_predictions(output / f"fold-{fold}" / "predictions.parquet")
        assert set(tested.recordings) == set(own.loc[own["split"] == "test", "recording"])
        ran = pd.read_csv(validated / f"fold-{fold}" / "per_species.csv")["n_train"]
        pd.testing.assert_series_equal(pd.read_csv(output / f"fold-{fold}" / "per_species.csv")["n_train"], ran)
    pooled = read_predictions(output / "predictions.parquet")
    told, results = read(output / "metrics.json")["out_of_fold"], read(output / "probe.json")
    assert told["macro_f1"] == pytest.approx(plain_metrics(pooled.scores, pooled.references)["macro_f1"])
    scores = [read(output / f"fold-{fold}" / "metrics.json")["test"]["macro_f1"] for fold in range(3)]
    assert [fold["macro_f1"] for fold in results["each"]] == scores
    assert results["mean"]["macro_f1"] == pytest.approx(np.mean(scores))
    assert all(fold["C"] in FEW_STRENGTHS for fold in results["each"])
    theirs = read(validated / "metrics.json")["out_of_fold"]["macro_f1"]
    assert f"{told['macro_f1']:.4f}" in table
    assert f"{theirs:.4f}" in table


def test_a_table_of_folds_is_cross_validated(model, small_archive, cache, tmp_path, validated, probed_folds):
    _, one = run(model, small_archive, tmp_path / "one", cache, splits_file=validated / "folds.csv")
    _, other = probed_folds
    assert (one / "metrics.json").read_text() == (other / "metrics.json").read_text()


def test_without_a_table_the_splits_are_the_runs(model, small_archive, cache, tmp_path, trained, validated):
    table, output = run(model, small_archive, tmp_path / "one", cache, beside=trained, method="knn", split_seed=7)
    assert (output / "splits.csv").read_text() == (trained / "splits.csv").read_text()
    assert f"{read(trained / 'metrics.json')['test']['macro_f1']:.4f}" in table
    _, output = run(model, small_archive, tmp_path / "other", cache, beside=validated, method="knn")
    assert (output / "folds.csv").read_text() == (validated / "folds.csv").read_text()


@pytest.mark.usefixtures("answer")
def test_recordings_with_weak_labels_are_tested_by_neither(model, small_archive, cache, tmp_path, validated):
    other = shutil.copytree(small_archive, tmp_path / "archive")
    table = pd.read_csv(other / "annotations.csv")
    its = table[table["Species eBird Code"] == table["Species eBird Code"].mode()[0]]
    recording = its["Filename"].iloc[0]
    sound, rate = soundfile.read(other / "soundscape_data" / recording, dtype="int16")
    soundfile.write(other / "soundscape_data" / "weak.flac", sound[::-1], rate)
    weak = its[its["Filename"] == recording].assign(Filename="weak.flac", Weak="yes")
    pd.concat([table.assign(Weak="no"), weak]).to_csv(other / "annotations.csv", index=False)
    _, output = run(model, other, tmp_path / "out", cache, beside=validated, method="knn")
    tested = read_predictions(output / "predictions.parquet").recordings
    assert set(tested) == set(read_predictions(validated / "predictions.parquet").recordings)


def test_a_clip_is_embedded_once(model, small_archive, cache, tmp_path, monkeypatch, probed):
    def refuse(*_):
        raise AssertionError("embedded again")

    monkeypatch.setattr("kenya_birds.inference.embedding_models.OwnEmbedder._embed", refuse)
    _, knn = run(model, small_archive, tmp_path / "second", cache, method="knn")
    _, again = run(model, small_archive, tmp_path / "third", cache)
    assert (knn / "metrics.json").is_file()
    assert (again / "metrics.json").read_text() == (probed / "metrics.json").read_text()


def test_embeddings_are_those_of_the_model_and_not_of_another(model, clips, tmp_path):
    embedder = load_embedder(str(model), device="cpu")
    found = clip_embeddings.embed_clips(clips["test"], embedder, 7)
    sound = np.stack([decode_wav(clip["bytes"]) for clip in clips["test"][:]["audio"]])
    np.testing.assert_allclose(found, embedder(sound), atol=1e-4)
    other = shutil.copytree(model, tmp_path / "other")
    weights = {name: tensor * 1.1 for name, tensor in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    changed = clip_embeddings.embed_clips(clips["test"], load_embedder(str(other), device="cpu"), 7)
    assert np.abs(changed - found).max() > 1e-3


@pytest.mark.parametrize(("save", "clip_s"), [(save_ast, 1.2), (save_wav2vec2, 2.0)])
def test_a_model_of_transformers_is_probed(small_archive, cache, tmp_path, save, clip_s, capsys):
    folder = save(tmp_path / "model")
    words = ["--output", tmp_path / "out", "--cache_dir", cache, "--min_annotations", 8, "--clip_s", clip_s]
    main(["probe", str(folder), str(small_archive), "--method", "knn", *map(str, words)])
    about = read(tmp_path / "out" / "probe.json")
    assert about["sampling_rate"] == 16_000
    assert about["settings"]["clip_s"] == clip_s
    assert "knn probe" in capsys.readouterr().out


# What is refused


def test_a_run_on_something_else_cannot_stand_beside(model, small_archive, cache, tmp_path, trained, validated):
    here = {"archive": small_archive, "output": tmp_path / "out", "cache": cache}
    with pytest.raises(UserError, match="trained with other splits"):
        run(model, **here, beside=trained, splits_file=validated / "folds.csv")
    with pytest.raises(UserError, match="trained with other splits"):
        run(model, **here, beside=validated, splits_file=trained / "splits.csv")
    with pytest.raises(UserError, match="trained with other problem_type"):
        run(model, **here, beside=trained, problem_type="multi_label_classification")
    with pytest.raises(UserError, match="trained with other classes"):
        run(model, **here, beside=trained, min_annotations=20)
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped" / "splits.csv").write_text("recording,split\n")
    with pytest.raises(UserError, match=r"has no metrics.json, predictions.parquet"):
        run(model, **here, beside=tmp_path / "stopped")
    assert not (tmp_path / "out").exists()


def test_a_run_that_was_tested_on_other_clips_cannot_stand_beside(model, small_archive, cache, tmp_path, trained):
    other = shutil.copytree(small_archive, tmp_path / "archive")
    splits = pd.read_csv(trained / "splits.csv").set_index("recording")["split"]
    lines = (other / "annotations.csv").read_text().splitlines()
    line = next(line for line in lines[1:] if splits.get(line.split(",")[0]) == "test")
    recording, time_s, _, code = line.split(",")
    edit(other / "annotations.csv", line + "\n", f"{recording},{float(time_s) / 2},{float(time_s) / 2},{code}\n")
    with pytest.raises(UserError, match="tested on other clips"):
        run(model, other, tmp_path / "out", cache, beside=trained)


def test_clips_of_one_species_are_refused(model, tmp_path):
    rows = [(f"{name}.wav", time, "owl") for name in "abcd" for time in range(1, 9)]
    archive = write_archive(tmp_path / "archive", rows, seconds=10.0)
    with pytest.raises(UserError, match="owl is the only species with at least 8 annotations"):
        run(model, archive, tmp_path / "out", tmp_path / "cache", min_annotations=8)
    assert not (tmp_path / "out").exists()


def test_bad_settings_are_refused_before_the_work(model, small_archive, cache, tmp_path):
    here = {"archive": small_archive, "output": tmp_path / "out", "cache": cache}
    with pytest.raises(UserError, match=r"method is 'svm': expected one of linear, knn"):
        run(model, **here, method="svm")
    with pytest.raises(UserError, match="loss_weight_power is -1"):
        run(model, **here, loss_weight_power=-1.0)
    with pytest.raises(UserError, match="folds is 2: expected 3 or more"):
        run(model, **here, folds=2)
    with pytest.raises(UserError, match="there is no model"):
        run("nowhere", **here)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        run(model, small_archive, tmp_path / "full", cache)
    assert not (tmp_path / "out").exists()


def test_a_model_is_not_tested_on_what_it_was_trained_on(small_archive, cache, tmp_path, trained):
    with pytest.raises(UserError, match=r"was trained on \d and chosen with .* of the 8 recordings"):
        run(trained, small_archive, tmp_path / "out", cache, folds=3)
    _, output = run(trained, small_archive, tmp_path / "out", cache, splits_file=trained / "splits.csv", method="knn")
    assert (output / "probe.json").is_file()
