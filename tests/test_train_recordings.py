"""Training on windows of whole recordings, from the command line to a model that is evaluated on whole recordings."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from archives import write_archive
from running import flags, losses, settings_of, train

import train_hf
from kenya_birds.cli import main
from kenya_birds.data.synthetic import synthesize_archive
from kenya_birds.errors import UserError
from kenya_birds.evaluation.predictions import score_clips
from kenya_birds.experiments.results import score_splits
from kenya_birds.files import CARD_TEMPLATE, shipped_file
from kenya_birds.model_loading import load_model
from kenya_birds.publishing.model_card import render_model_card
from kenya_birds.training.arguments import AugmentationArguments, DataArguments, ModelArguments
from kenya_birds.training.setting_rules import USED_WITH
from kenya_birds.training.training_run import Run
from kenya_birds.training.window_mining import HardWindows
from kenya_birds.training.window_training import WindowPlan, choose_windows

pytestmark = pytest.mark.usefixtures("blank_figures")

UNCHANGED = {f"{change}_probability": 0 for change in ("pitch", "speed", "gain", "noise", "mask")}
ON_RECORDINGS = {"train_on": "recordings", "windows_per_epoch": 48, **UNCHANGED}


@pytest.fixture(scope="module")
def trained(small_archive, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    return train(small_archive, folder / "birds", cache, num_train_epochs=3, **ON_RECORDINGS)


def test_a_model_of_recordings_is_multi_label_and_chosen_by_windows(trained, capsys):
    config = json.loads((trained / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    summary = json.loads((trained / "training_summary.json").read_text())
    assert not any(name.startswith("shift_") for name in summary["augmentation"]), "windows are not shifted"
    assert summary["train_on"] == "recordings"
    assert summary["result"]["chosen_by"] == "cmap"
    settings = json.loads((trained / "run_settings.json").read_text())["settings"]
    assert (settings["train_on"], settings["call_windows"], settings["overlap_s"]) == ("recordings", 0.5, 0.0)
    thresholds = json.loads((trained / "thresholds.json").read_text())
    assert thresholds["overlap_s"] == 0.0
    assert len(losses(trained)) == 3 * 48 / 8
    # Training has corrected for the drawn windows: few recordings do not change the scores.
    assert (config["logit_scale"], config.get("logit_offset")) == (1.0, None)
    told = json.loads((trained / "metrics.json").read_text())["validation"]
    assert "Scores are not calibrated" in told["calibration"]["reason"]
    main(["info", str(trained)])
    assert "scores are not calibrated" in capsys.readouterr().out
    assert told["thresholds"] == (
        "The thresholds were chosen on all windows of the validation recordings. 1 of 5 species are in none of them "
        "and have the shared threshold."
    )
    (unheard,) = thresholds["defaults"]
    assert thresholds["species"][unheard] == thresholds["every_species"]


def test_whole_recordings_come_first(trained):
    test = json.loads((trained / "metrics.json").read_text())["test"]
    assert next(iter(test)) == "whole_recordings"
    whole = test["whole_recordings"]
    recordings = pd.read_csv(trained / "recording_counts.csv")
    splits = pd.read_csv(trained / "splits.csv")
    assert set(recordings["recording"]) == set(splits.loc[splits["split"] == "test", "recording"])
    assert whole["hours"] == pytest.approx(20 * len(recordings) / 3600)
    assert recordings["calls"].sum() == whole["calls"]
    recall = recordings["found"].sum() / recordings["calls"].sum()
    assert whole["metrics"]["recall"]["value"] == pytest.approx(recall)
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert "| On whole recordings | Test | 95% interval |" in card
    assert card.index("recording_timeline.png") < card.index("confusion_matrix.png")
    assert card.index("(recording_reliability.png)") < card.index("(reliability.png)")
    told = (
        "A species is predicted if its score is above 0.5. The scores are probabilities in whole recordings and "
        "rarely exceed 0.5. Judge the model by average precision and by the table of whole recordings.\n\n"
        "| Metric | Test |"
    )
    assert card.count(told) == 1


def test_the_cards_header_begins_with_whole_recordings(trained):
    header = yaml.safe_load((trained / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    ((result,),) = [model["results"] for model in header["model-index"]]
    test = json.loads((trained / "metrics.json").read_text())["test"]
    whole = test["whole_recordings"]["metrics"]
    assert [(metric["name"], metric["value"]) for metric in result["metrics"][:3]] == [
        ("Mean average precision over windows of whole recordings", round(whole["cmap"]["value"], 4)),
        ("F1 of events in whole recordings", round(whole["f1"]["value"], 4)),
        ("Macro F1 on clips, at a score of 0.5", round(test["macro_f1"], 4)),
    ]
    assert all(" on clips" in metric["name"] for metric in result["metrics"][2:])


def test_the_cards_table_of_species_is_at_the_models_thresholds(trained, tmp_path):
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert "| Precision at threshold | Recall at threshold | F1 at threshold | AP |" in card
    table = pd.read_csv(trained / "per_species.csv", dtype=str, keep_default_na=False)
    assert any(float(row.f1_at_threshold or 0) > 0 for row in table.itertuples())
    for row in table.itertuples():
        columns = (row.precision_at_threshold, row.recall_at_threshold, row.f1_at_threshold, row.ap)
        cells = " | ".join(f"{float(value):.3f}" if value else "" for value in columns)
        assert re.search(rf"\| {row.code} \| [\d, ]+ \| {re.escape(cells)} \| ", card)
    assert re.search(r"at its own decision threshold\. .*\n\n\| Species ", card)
    # A table of an earlier version has no F1 at the thresholds.
    earlier = shutil.copytree(trained, tmp_path / "birds")
    table.drop(columns="f1_at_threshold").to_csv(earlier / "per_species.csv", index=False)
    assert "| Precision | Recall | F1 | AP |" in render_model_card(earlier, "a/b", shipped_file(CARD_TEMPLATE))


def test_evaluation_and_detection_give_the_same_figures_again(trained, small_archive, tmp_path, capsys):
    evaluate = ["evaluate", str(trained), str(small_archive), "--output", str(tmp_path / "out")]
    assert main([*evaluate, "--cache_dir", str(tmp_path / "cache")]) in (None, 0)
    assert "whole recordings: " in capsys.readouterr().out
    stored, again = (
        json.loads((folder / "metrics.json").read_text())["test"]["whole_recordings"]
        for folder in (trained, tmp_path / "out")
    )
    assert again["metrics"]["cmap"]["value"] == pytest.approx(stored["metrics"]["cmap"]["value"], abs=1e-4)
    assert again["metrics"]["f1"]["value"] == pytest.approx(stored["metrics"]["f1"]["value"])

    counts = pd.read_csv(trained / "recording_counts.csv")
    files = [str(small_archive / "soundscape_data" / name) for name in counts["recording"]]
    with pytest.raises(SystemExit, match="0"):
        main(["detect", str(trained), *files, "--output", str(tmp_path / "detections"), "--overlap_s", "0"])
    detected = pd.read_csv(tmp_path / "detections" / "recordings.csv")
    assert detected["detections"].sum() == pd.read_csv(trained / "recording_detections.csv").shape[0]


def test_detection_overlaps_and_merges_as_the_evaluation_did(trained, tmp_path, caplog):
    from kenya_birds.inference.finding_settings import FindingSettings
    from kenya_birds.inference.pipeline import SoundscapePipeline

    folder = shutil.copytree(trained, tmp_path / "birds")
    thresholds = json.loads((folder / "thresholds.json").read_text())
    (folder / "thresholds.json").write_text(json.dumps({**thresholds, "overlap_s": 0.25, "merge": True}))
    caplog.set_level("INFO")
    pipeline = SoundscapePipeline(folder, device="cpu")
    assert (pipeline.overlap_s, pipeline.settings.merge) == (0.25, True)
    assert pipeline.grid.hop_samples == pipeline.grid.window_samples - round(0.25 * pipeline.sampling_rate)
    assert "Windows overlap by 0.25 s and detections are merged, as in the evaluation" in caplog.text
    # Thresholds of a file have their own evaluation.
    pipeline = SoundscapePipeline(folder, device="cpu", thresholds=trained / "thresholds.json")
    assert (pipeline.overlap_s, pipeline.settings.merge) == (0, False)
    # One threshold for all species was not evaluated.
    pipeline = SoundscapePipeline(folder, device="cpu", settings=FindingSettings(threshold=0.3))
    assert (pipeline.overlap_s, pipeline.settings.merge) == (0, False)
    SoundscapePipeline(folder, device="cpu", overlap_s=1.5, settings=FindingSettings(threshold=0.3))
    assert caplog.text.count("as in the evaluation with these thresholds") == 1
    assert "The thresholds were chosen for" not in caplog.text
    # Windows side by side are rows of their own, unless merging is set.
    pipeline = SoundscapePipeline(folder, device="cpu", overlap_s=0)
    assert (pipeline.overlap_s, pipeline.settings.merge) == (0, False)
    assert "windows that overlap by 0.25 s and merged detections (now 0 s, not merged)" in caplog.text


def test_detection_warns_of_another_overlap_and_of_merging(trained, small_archive, tmp_path, caplog):
    from kenya_birds.inference.finding_settings import FindingSettings
    from kenya_birds.inference.pipeline import SoundscapePipeline

    SoundscapePipeline(str(trained))
    assert "The thresholds were chosen for" not in caplog.text
    SoundscapePipeline(str(trained), overlap_s=1.5)
    assert "chosen for windows that overlap by 0 s (now 1.5 s)" in caplog.text
    SoundscapePipeline(str(trained), settings=FindingSettings(merge=True))
    assert "chosen for unmerged detections (now merged)" in caplog.text


def test_the_card_detects_with_the_windows_and_the_threshold_of_its_figures(trained, tmp_path):
    card = (trained / "README.md").read_text(encoding="utf-8")
    assert "recordings --output detections\n" in card
    assert "round(3.0 * rate), round(3.0 * rate)\n" in card
    assert card.count("A species is predicted if its score is above 0.5.") == 1, (
        "the table of species is at thresholds"
    )
    folder = shutil.copytree(trained, tmp_path / "birds")
    thresholds = json.loads((folder / "thresholds.json").read_text())
    (folder / "thresholds.json").write_text(json.dumps({**thresholds, "overlap_s": 0.25, "merge": True}))
    card = render_model_card(folder, "ann/birds", shipped_file(CARD_TEMPLATE))
    assert "Its windows overlap by 0.25 s, and detections in consecutive windows are merged" in card
    assert "round(3.0 * rate), round(2.75 * rate)\n" in card


def test_a_run_that_was_stopped_ends_as_one_that_was_not(small_archive, cache, tmp_path):
    def run(name, **settings):
        words = flags(small_archive, tmp_path / name, cache, num_train_epochs=2, **ON_RECORDINGS)
        with Run(settings_of([*words, *(word for item in settings.items() for word in map(str, item))])) as run:
            trainer, _, _ = run.train()
        return trainer.model.classifier.weight.detach().numpy()

    whole = run("whole")
    first = next((tmp_path / "whole").glob("checkpoint-6"))
    resumed = run("resumed", **{"--resume_from_checkpoint": first})
    assert np.array_equal(whole, resumed)


def test_after_mixed_precision_a_run_is_scored_as_its_saved_model(small_archive, cache, tmp_path):
    words = flags(small_archive, tmp_path / "run", cache, num_train_epochs=1, bf16=True, **ON_RECORDINGS)
    for resumed in ([], ["--resume_from_checkpoint", "true"]):  # the second run finds that training has ended
        with Run(settings_of([*words, *resumed])) as run:
            trainer, clips, _ = run.train()
            scores = score_splits(run, trainer, clips)
            run.save_model(tmp_path / "model")
            grid, _ = run.windows.of("validation")
        model, extractor = load_model(tmp_path / "model")
        expected = score_clips(model, extractor, clips["test"])
        np.testing.assert_allclose(scores.scored.test_logits, expected, atol=1e-5)
        np.testing.assert_allclose(scores.scored.window_logits, grid.logits(model, extractor), atol=1e-5)


def test_a_model_with_a_softmax_has_no_call_in_no_result(trained, small_archive, tmp_path):
    folder = trained
    config = json.loads((folder / "config.json").read_text())
    species = list(config["id2label"].values())
    assert config["no_call_class"]
    assert json.loads((folder / "run_settings.json").read_text())["settings"]["window_loss"] == "softmax"
    assert losses(folder)[-1] < losses(folder)[0]
    assert set(json.loads((folder / "thresholds.json").read_text())["species"]) == set(species)
    assert sorted(pd.read_csv(folder / "per_species.csv")["code"]) == sorted(species)
    with pytest.raises(SystemExit, match="0"):
        main(["detect", str(folder), str(small_archive), "--output", str(tmp_path / "found"), "--threshold", "0.05"])
    found = pd.read_csv(tmp_path / "found" / "detections.csv")
    assert len(found) > 0
    assert set(found["code"]) <= set(species)


def test_focal_weights_lower_the_loss_of_what_is_easy(small_archive, cache, tmp_path):
    first, unmeasured = [], {"eval_strategy": "no", "load_best_model_at_end": False}
    for gamma in (0, 2):
        settings = {**ON_RECORDINGS, "window_loss": "bce", "focal_gamma": gamma, "num_train_epochs": 1}
        words = flags(small_archive, tmp_path / f"gamma{gamma}", cache, **unmeasured, **settings)
        with Run(settings_of(words)) as run:
            run.train()
        first.append(losses(tmp_path / f"gamma{gamma}"))
    assert len(first[0]) == len(first[1]) == 6
    # A new classifier gives each species 2% in the recordings, and a little more in the drawn windows: about 0.96 ** 2
    # of the loss of a call remains, of the others next to nothing.
    assert 0.9 < first[1][0] / first[0][0] < 0.98


@pytest.fixture(scope="module")
def quiet_archive(tmp_path_factory):
    """Six recordings of 30 s with few calls."""
    folder = tmp_path_factory.mktemp("quiet") / "archive"
    return synthesize_archive(folder, recordings=6, duration_s=30, species=2, annotations=30, scene="quiet", seed=2)


def test_a_run_with_hard_windows_that_was_stopped_within_an_epoch_ends_as_one_that_was_not(quiet_archive, tmp_path):
    def run(name, **resume):
        settings = {**ON_RECORDINGS, "num_train_epochs": 3, "hard_windows": 0.5, "rescore_epochs": 1}
        settings |= {
            "save_strategy": "steps",
            "save_steps": 8,
            "save_total_limit": 9,
            "eval_strategy": "no",
            "load_best_model_at_end": False,
        }
        words = flags(quiet_archive, tmp_path / name, tmp_path / "cache", **settings, **resume)
        with Run(settings_of(words)) as run:
            trainer, _, _ = run.train()
        hard = next(one for one in trainer.callback_handler.callbacks if isinstance(one, HardWindows))
        return trainer.model.classifier.weight.detach().numpy(), hard

    weight, hard = run("whole")
    # 12 empty windows in an epoch, 6 of them hard: 24 are scored.
    assert (hard.epoch, len(hard.places)) == (2, 6)
    # Two steps after the second epoch began.
    checkpoint = tmp_path / "whole" / "checkpoint-8"
    state = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]["HardWindows"]
    assert (state["attributes"]["epoch"], len(state["attributes"]["places"])) == (1, 6)
    resumed_weight, resumed = run("resumed", resume_from_checkpoint=checkpoint)
    assert resumed.places == hard.places
    assert np.array_equal(weight, resumed_weight)


def test_a_split_decodes_its_own_recordings_only(small_archive, tmp_path):
    run = Run(settings_of(flags(small_archive, tmp_path / "run", tmp_path / "cache")))
    grid, _ = run.windows.of("test")
    tested = run.splits.loc[run.splits["split"] == "test", "recording"]
    assert set(grid.decoded.names) == set(tested)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == len(tested) < len(run.splits)
    assert run.windows.of("test")[0] is grid


def test_windows_shorter_than_the_margin_are_evaluated(small_archive, tmp_path):
    settings = {"clip_s": 0.4, "n_mels": 32, "num_train_epochs": 1, **UNCHANGED}
    folder = train(small_archive, tmp_path / "birds", tmp_path / "cache", **settings)
    assert json.loads((folder / "metrics.json").read_text())["test"]["whole_recordings"]["calls"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problem_type": "single_label_classification"}, "training on recordings is multi-label"),
        ({"call_windows": 0.8, "empty_windows": 0.4}, "expected a sum of 1 or less"),
        ({"edge_margin_s": 1.5}, "edge_margin_s is 1.5: expected less than half of clip_s"),
        ({"overlap_s": 3.0}, "overlap_s is 3: expected less than clip_s"),
        ({"window_loss": "softmax", "focal_gamma": 2}, "focal_gamma weighs binary losses"),
        ({"window_loss": "softmax", "train_on": "clips"}, "window_loss is softmax, and each clip has a call"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(small_archive, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        train_hf.main(
            flags(small_archive, tmp_path / "run", tmp_path / "cache", **{"train_on": "recordings", **settings})
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_s": 0.5}, "--context_s is for --train_on clips: leave it out, or use --train_on clips"),
        ({"no_call_windows": 100}, "--no_call_windows is for --train_on clips"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor is for --train_on clips"),
        ({"shift_probability": 0.9}, "--shift_probability is for --train_on clips"),
        ({"shift_max": 0.1}, "--shift_max is for --train_on clips"),
        ({"rescore_epochs": 2}, "--rescore_epochs is for --hard_windows: leave it out, or use --hard_windows"),
        ({"hard_windows": 0, "scored_windows": 9}, "--scored_windows is for --hard_windows"),
        ({"train_on": "clips", "call_windows": 0.5}, "--call_windows is for --train_on recordings"),
        ({"train_on": "clips", "hard_windows": 0.5}, "--hard_windows is for --train_on recordings"),
        ({"train_on": "clips", "validation_windows": 9}, "--validation_windows is for --train_on recordings"),
        ({"train_on": "clips", "focal_gamma": 2}, "--focal_gamma is for --problem_type multi_label_classification"),
        (
            {"train_on": "clips", "problem_type": "multi_label_classification", "label_smoothing_factor": 0.1},
            "--label_smoothing_factor is for --problem_type single_label_classification",
        ),
        ({"freeze_backbone": True, "head_hidden_size": 8}, "--head_hidden_size is for --head mlp"),
    ],
)
@pytest.mark.parametrize("from_file", [False, True])
def test_settings_without_an_effect_are_refused_on_the_command_line_and_in_a_params_file(
    small_archive, tmp_path, settings, message, from_file
):
    words = flags(small_archive, tmp_path / "run", tmp_path / "cache", **{"train_on": "recordings"} | settings)
    if from_file:
        (tmp_path / "best.json").write_text(json.dumps({"flags": settings}))
        chosen = {name: value for name, value in settings.items() if name in ("train_on", "hard_windows")}
        words = flags(small_archive, tmp_path / "run", tmp_path / "cache", **{"train_on": "recordings"} | chosen)
        words += ["--params", str(tmp_path / "best.json")]
    with pytest.raises(UserError) as caught:
        settings_of(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"context_s": 0.5}, {"no_call_windows": 0}, {"rescore_epochs": 2}])
def test_settings_without_an_effect_are_refused_in_python(small_archive, tmp_path, changes):
    words = flags(small_archive, tmp_path / "run", tmp_path / "cache", train_on="recordings")
    settings = settings_of(words).changed(**changes)
    with pytest.raises(UserError, match=f"--{next(iter(changes))} is for"):
        Run(settings)


def test_every_setting_whose_help_names_the_way_of_training_is_refused_with_the_other_way():
    refused = {(name, f"--{flag} {value}") for names, flag, value in USED_WITH for name in names}
    stated = {
        (name, match[0])
        for group in (DataArguments, ModelArguments, AugmentationArguments)
        for name, field in group.__dataclass_fields__.items()
        for match in [re.search(r"--train_on (clips|recordings)(?=:)", field.metadata["help"])]
        if match
    }
    assert stated - refused == {("window_loss", "--train_on recordings")}, "its values have a check of their own"


def test_a_detector_of_one_species_is_learned_from_recordings_alone(tmp_path):
    archive = synthesize_archive(
        tmp_path / "archive", recordings=9, duration_s=20, species=1, annotations=27, scene="quiet", seed=1
    )
    with pytest.raises(UserError, match="synwhi1 is the only species with at least 8 annotations"):
        train(archive, tmp_path / "clips", tmp_path / "cache")
    folder = train(archive, tmp_path / "birds", tmp_path / "cache", num_train_epochs=1, **ON_RECORDINGS)
    test = json.loads((folder / "metrics.json").read_text())["test"]
    table = pd.read_csv(folder / "per_species.csv")
    assert table["code"].to_list() == ["synwhi1"]
    predictions = pd.read_parquet(folder / "predictions.parquet")
    recall = (predictions["synwhi1"] > 0.5).mean()  # every clip has a call
    assert table["recall"][0] == pytest.approx(recall, abs=1e-4)
    assert test["macro_f1"] == pytest.approx(2 * recall / (1 + recall))
    # What compares clips with clips of other species.
    undefined = {"top1_accuracy", "top5_accuracy", "cmap", "auroc", "ece"}
    assert {name for name in test["intervals"] if test[name] is None} == undefined
    assert np.isnan(table["ap"][0])
    card = (folder / "README.md").read_text(encoding="utf-8")
    figures = {path.name for path in folder.glob("*.png")}
    assert figures == {"recording_timeline.png", "recall_by_false_detections.png", "recording_reliability.png"}
    assert set(re.findall(r"!\[.*\]\((.*)\)", card)) == figures
    assert "calibration error" not in card.split("## Results")[1].lower()
    with pytest.raises(SystemExit, match="0"):
        main(["detect", str(folder), str(archive), "--output", str(tmp_path / "found"), "--threshold", "0"])
    found = pd.read_csv(tmp_path / "found" / "detections.csv")
    assert set(found["code"]) == {"synwhi1"}
    assert 0 < found["score"].min() <= found["score"].max() < 1


def test_recordings_shorter_than_a_window_are_refused(tmp_path):
    rows = [(f"{name}.wav", time, code) for name in "abcd" for time, code in ((0.5, "lark"), (1.0, "owl"))]
    archive = write_archive(tmp_path / "archive", rows, seconds=2.0)
    with pytest.raises(UserError, match=r"recordings with calls that are not shorter than a window \(clip_s\)"):
        train(archive, tmp_path / "run", tmp_path / "cache", min_annotations=2, **ON_RECORDINGS)


def test_an_epoch_has_twice_the_calls_in_windows_and_at_least_1800():
    def length(calls, **plan):
        return WindowPlan(decoded=None, targets=SimpleNamespace(label=np.array([0] * calls + [-1, -2])), **plan).length

    assert length(1000) == 2000
    assert length(2000, call_share=0.8) == 2500
    assert length(89) == length(900) == 1800
    assert length(89, windows_per_epoch=178) == 178


def test_the_epoch_is_chosen_by_windows_with_calls_and_a_sample_of_others():
    targets = np.zeros((1000, 2), dtype=int)
    targets[::100, 1] = 1
    rows = choose_windows(targets, 50, seed=0)
    assert len(rows) == len(set(rows)) == 50
    assert set(range(0, 1000, 100)) <= set(rows)
    assert np.array_equal(rows, choose_windows(targets, 50, seed=0))
    assert len(choose_windows(targets, 2000, seed=0)) == 1000
    targets[:] = -100
    with pytest.raises(UserError, match="no window of the validation recordings is known to hold a call"):
        choose_windows(targets, 50, seed=0)
