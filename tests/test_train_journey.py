"""From an archive to a model that a stranger loads: the whole path, and what stops it."""

import json
import os
import re
import shutil
import sys
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
import pandas as pd
import pytest
import soundfile
from fresh_python import run_fresh
from running import ROOT, flags, losses, metrics, run_script, train

from kenya_birds import cli
from kenya_birds.data.synthetic import synthesize_archive
from kenya_birds.errors import UserError
from kenya_birds.files import CARD_TEMPLATE, shipped_file
from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments

pytestmark = pytest.mark.usefixtures("blank_pictures")

# Unchanged clips: with so few steps, the loss would fall too slowly to see.
UNCHANGED = {f"{change}_probability": 0 for change in ("shift", "pitch", "speed", "gain", "noise", "mask")}
JOURNEY = {"noise_reduction": "stationary", "num_train_epochs": 3, **UNCHANGED}
STRANGER = "import sys; sys.modules['kenya_birds'] = None\n"


@pytest.fixture(scope="module")
def trained(small_archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("journey")
    # Not the split that training would make by itself.
    return train(small_archive, folder / "birds", folder / "cache", split_seed=7, **JOURNEY)


@pytest.fixture
def archive(small_archive, tmp_path):
    """A copy of the small archive, to be damaged."""
    return shutil.copytree(small_archive, tmp_path / "archive")


def refused(archive, tmp_path, match, **settings):
    """Training on the archive ends in a `UserError` that says so, and writes nothing."""
    with pytest.raises(UserError, match=match):
        train(archive, tmp_path / "run", tmp_path / "cache", **settings)
    assert not (tmp_path / "run").exists()


def test_training_leaves_everything_that_a_published_model_needs(trained):
    names = {path.name for path in trained.iterdir() if path.is_file()}
    assert names - {".lock", ".results.json"} == {
        "README.md",
        "audio_model_kenya_birds.py",
        "backbone_kenya_birds.py",
        "config.json",
        "configuration_kenya_birds.py",
        "confusion_matrix.png",
        "f1_by_training_clips.png",
        "feature_extraction_kenya_birds.py",
        "graph_kenya_birds.py",
        "metrics.json",
        "model.safetensors",
        "modeling_kenya_birds.py",
        "network_input_kenya_birds.py",
        "per_species.csv",
        "precision_recall.png",
        "predictions.parquet",
        "preprocessor_config.json",
        "recall_by_false_detections.png",
        "recording_calls.csv",
        "recording_windows.parquet",
        "recording_counts.csv",
        "recording_detections.csv",
        "recording_species.csv",
        "recording_reliability.png",
        "recording_timeline.png",
        "reliability.png",
        "run_settings.json",
        "noise_reduction_kenya_birds.py",
        "signal_kenya_birds.py",
        "splits.csv",
        "thresholds.json",
        "training_recordings.csv",
        "training_summary.json",
    }


def test_training_learns(trained):
    assert np.mean(losses(trained)[-5:]) < 0.8 * np.mean(losses(trained)[:5])


def test_labels_are_codes_with_names(trained, small_archive):
    config = json.loads((trained / "config.json").read_text())
    species = pd.read_csv(small_archive / "species.csv").set_index("Species eBird Code")
    for code in config["id2label"].values():
        assert config["species"][code] == {
            "scientific_name": species.at[code, "Scientific Name"],
            "common_name": species.at[code, "Common Name"],
        }


def test_no_recording_is_in_two_splits_and_the_table_repeats_the_run(trained, small_archive, tmp_path):
    table = pd.read_csv(trained / "splits.csv")
    assert table["recording"].is_unique
    assert set(table["split"]) == {"train", "validation", "test"}
    again = train(
        small_archive,
        tmp_path / "again",
        trained.parent / "cache",
        **JOURNEY,
        splits_file=trained / "splits.csv",
    )
    assert metrics(again) == metrics(trained)


def test_a_stranger_runs_the_cards_example_as_it_stands(trained, tmp_path):
    card = (trained / "README.md").read_text()
    examples = "".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))
    # Other rates than that of training need torchaudio, which need not be here.
    for name, seconds in (("clip.wav", 2.5), ("recording.wav", 10.2)):
        soundfile.write(tmp_path / name, np.random.default_rng(0).normal(0, 0.1, (round(seconds * 32_000), 2)), 32_000)
        examples = examples.replace(f'"{name}"', f'"{(tmp_path / name).as_posix()}"')
    # Every species is reported in every window.
    examples = examples.replace("\nwith soundfile", "\nthresholds = dict.fromkeys(thresholds, 0.0)\nwith soundfile")
    result = run_fresh("-c", STRANGER + examples, cwd=tmp_path, env={**os.environ, "HF_MODULES_CACHE": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    name = r"syn\w+  Synthetic \w+ \d \(Avis \w+ \d\)"
    assert all(re.fullmatch(rf"[01]\.\d\d  {name}", line) for line in lines[:5])
    starts = [line.split()[0] for line in lines[5::5]]
    assert starts == ["0.0", "1.5", "3.0", "4.5", "6.0", "7.2"]
    assert len(lines) == 5 + 5 * len(starts)
    assert "not supported" not in result.stderr
    installed = re.search(r"```bash\npip install (.*?)\n", card).group(1).replace('"', "")
    packages = {re.split("[><=]", word)[0] for word in installed.split()}
    imported = set(re.findall(r"^(?:import|from) (\w+)", examples, re.M)) - set(sys.stdlib_module_names)
    assert imported <= packages


def test_lines_of_code_in_the_card_fit_the_page(trained):
    card = (trained / "README.md").read_text().replace(str(trained), "ann/birds")
    blocks = re.findall(r"```\w+\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 5
    assert max(len(line) for block in blocks for line in block.splitlines()) <= 100


def test_the_card_tells_results_and_data_and_no_local_path(trained):
    card = (trained / "README.md").read_text()
    heading, body = card.split("---\n", 2)[1:]
    assert "pipeline_tag: audio-classification" in heading
    assert "model-index:" in heading
    macro_f1 = metrics(trained)["test"]["macro_f1"]
    assert f"value: {round(macro_f1, 4)}" in heading
    assert f" {macro_f1:.3f} |" in body
    assert "# birds\n" in body
    splits = pd.read_csv(trained / "splits.csv")["split"].value_counts()
    assert f"| Recordings | {splits['test']} | | {splits['validation']} |" in body
    low, high = json.loads((trained / "metrics.json").read_text())["test"]["intervals"]["macro_f1"]
    assert f"| Macro F1 | {macro_f1:.3f} | {low:.3f} to {high:.3f} |" in body
    table = pd.read_csv(trained / "per_species.csv")
    for _, row in table[table["n"] > 0].iterrows():
        assert re.search(rf"\| {row['code']} \| [\d, ]+ \| ({row['precision']:.3f})? \| {row['recall']:.3f} \|", body)
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", body):
        assert (trained / picture).is_file()
    assert body.count("![") == 7
    assert body.count(trained.as_posix()) == 2, "the folder stands in the two examples alone"


def test_info_shows_species_with_thresholds_data_and_figures(trained, capsys):
    cli.main(["info", str(trained)])
    text = capsys.readouterr().out
    thresholds = json.loads((trained / "thresholds.json").read_text())["species"]
    table = pd.read_csv(trained / "per_species.csv").set_index("code")
    for code, threshold in thresholds.items():
        told = "never reported" if threshold is None else f"{threshold:.3f}"
        (line,) = re.findall(rf"^{code} .*$", text, flags=re.M)
        f1 = "" if pd.isna(table.at[code, "f1"]) else rf"{table.at[code, 'f1']:.3f} +"
        assert re.fullmatch(rf"{code} +{told} +{f1}\d+  Synthetic .*\(Avis .*\)", line)
    assert f"  Macro F1 {metrics(trained)['test']['macro_f1']:>23.3f}" in text
    assert "8 recordings" in text


def test_info_says_whether_scores_are_calibrated(trained, tmp_path, capsys):
    choice = json.loads((trained / "metrics.json").read_text())["validation"]["calibration"]
    assert choice["reason"].startswith("Scores are not calibrated")
    cli.main(["info", str(trained)])
    assert "scores are not calibrated" in capsys.readouterr().out
    calibrated = shutil.copytree(trained, tmp_path / "birds", ignore=shutil.ignore_patterns("checkpoint-*", "runs"))
    config = json.loads((trained / "config.json").read_text())
    for scale, offset in ((1.3, None), ([1.0] * 5, [0.5] * 5)):
        changed = {**config, "logit_scale": scale, "logit_offset": offset}
        (calibrated / "config.json").write_text(json.dumps(changed))
        cli.main(["info", str(calibrated)])
        assert "scores are calibrated" in capsys.readouterr().out


def test_scores_are_calibrated_by_the_saved_model(trained):
    config = json.loads((trained / "config.json").read_text())
    assert config["logit_scale"] > 0
    thresholds = json.loads((trained / "thresholds.json").read_text())
    assert set(thresholds["species"]) == set(config["label2id"])


def test_the_listening_example_prints_names(trained, small_archive):
    recording = sorted((small_archive / "soundscape_data").iterdir())[0]
    result = run_script("examples/listen.py", trained, recording, "--center_s", "5")
    assert result.returncode == 0, result.stderr
    assert "3.0 s round 5.0 s" in result.stdout
    assert "Synthetic" in result.stdout
    for words, told in (((recording, "--center_s", "500"), "--center_s is 500: "), (("none.wav",), "none.wav")):
        result = run_script("examples/listen.py", trained, *words)
        assert (result.returncode, result.stdout) == (2, "")
        assert told in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


def test_a_user_error_is_one_line_and_exit_code_2(tmp_path, small_archive):
    result = run_script("train_hf.py", *flags(small_archive, tmp_path / "run", tmp_path / "cache", backbone="birdnet"))
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("train_hf.py: error: timm ")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_backbone_is_refused(small_archive, tmp_path):
    refused(
        small_archive, tmp_path, "has no model 'convnext_tinny': did you mean convnext_tiny", backbone="convnext_tinny"
    )


def test_without_the_hub_pretrained_weights_are_refused_with_the_ways_out(small_archive, tmp_path):
    refused(small_archive, tmp_path, "--init_from scratch", backbone="convnext_atto", init_from="pretrained")


def test_a_run_starts_from_the_model_of_another_and_tells_no_path(trained, small_archive, tmp_path, capfd):
    output_dir = train(
        small_archive,
        tmp_path / "run",
        tmp_path / "cache",
        init_from=trained,
        num_train_epochs=1,
        noise_reduction="stationary",
        n_mels=48,
    )
    told = capfd.readouterr().err
    assert f"'{trained}' has 5 of 5 classes" in told
    (line,) = re.findall("^INFO: Epoch .*$", told, flags=re.M)
    number = r"\d+(\.\d+)?"
    line_of = (
        rf"Epoch 1 of 1: loss {number}, validation loss {number}, macro F1 0\.\d+ \(the best so far\), [\d,]+ clips/s"
    )
    assert re.fullmatch(f"INFO: {line_of}", line)
    assert not re.search(r"'eval_loss'|\{'|Writing model shards|Loading weights", told)
    assert f"WARNING: '{trained}' was trained with --n_mels 32, this run has --n_mels 48" in told
    assert json.loads((output_dir / "training_summary.json").read_text())["starting_point"] == "model"
    card = (output_dir / "README.md").read_text()
    assert "Initial weights: those of another model." in card
    assert str(trained) not in card


def test_the_card_names_the_model_of_the_hub_that_training_started_from(trained, tmp_path):
    from kenya_birds.publishing.model_card import render_model_card

    folder = shutil.copytree(trained, tmp_path / "birds")
    summary = json.loads((folder / "training_summary.json").read_text())
    (folder / "training_summary.json").write_text(json.dumps({**summary, "starting_point": "ann/donor@0123"}))
    card = render_model_card(folder, "ann/birds", shipped_file("model_card.md"))
    assert "base_model: ann/donor\n" in card
    assert "Initial weights: those of `ann/donor@0123` on the Hub." in card
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "backbone": "convnext_tiny.in12k_ft_in1k"}))
    for starting_point, base_model in (("pretrained", "timm/convnext_tiny.in12k_ft_in1k"), ("scratch", None)):
        (folder / "training_summary.json").write_text(json.dumps({**summary, "starting_point": starting_point}))
        header = render_model_card(folder, "ann/birds", shipped_file("model_card.md")).split("---\n")[1]
        assert re.findall("^base_model: (.*)$", header, re.M) == ([base_model] if base_model else [])
    (folder / "training_summary.json").write_text(json.dumps({**summary, "starting_point": "file"}))
    assert "Initial weights: a file with weights.\n" in render_model_card(folder, "a/b", shipped_file("model_card.md"))
    (folder / "config.json").write_text(json.dumps({**config, "backbone_variant": "perch-2"}))
    card = render_model_card(folder, "a/b", shipped_file("model_card.md"))
    assert "Initial weights: a file with weights of Perch 2 (Apache-2.0).\n" in card
    assert ", padded as Perch 2, on mel spectrograms" in card


def test_the_card_states_what_was_chosen_and_links_the_code(trained):
    from kenya_birds.publishing.model_card import render_model_card

    card = render_model_card(trained, "ann/birds", shipped_file("model_card.md"))
    assert "license:" not in card.split("---\n")[1]
    assert "No licence has been chosen for the model's weights" in card
    for name in re.findall(r"\]\((\w+\.(?:py|json))\)", card):
        assert (trained / name).is_file()
    assert "](modeling_kenya_birds.py)" in card
    assert "url     =" not in card
    card = render_model_card(
        trained, "ann/birds", shipped_file("model_card.md"), license="cc-by-4.0", code_url="https://example.org/code"
    )
    assert "license: cc-by-4.0\n" in card.split("---\n")[1]
    assert "The model is under cc-by-4.0, its code under Apache-2.0." in card
    assert "[`kenya_birds`](https://example.org/code)" in card
    assert "  url     = {https://example.org/code}" in card
    arguments = re.search(r"\| Argument \| Value \|\n(.*?)\n\n", card, re.DOTALL).group(1)
    assert r"num_train_epochs" in arguments
    assert not re.search(r"\| (train_runtime_s|device|versions|best_epoch|processes) \|", arguments)


def test_names_of_species_do_not_break_the_cards_table(trained, tmp_path):
    from kenya_birds.publishing.model_card import render_model_card

    folder = shutil.copytree(trained, tmp_path / "birds")
    config = json.loads((folder / "config.json").read_text())
    code = config["id2label"]["0"]
    config["species"][code] = {"scientific_name": "Avis _rara_", "common_name": "A|B <b>bird</b>\n*x*"}
    (folder / "config.json").write_text(json.dumps(config))
    card = render_model_card(folder, "ann/birds", shipped_file("model_card.md"))
    (row,) = [line for line in card.splitlines() if f"| {code} |" in line and "Avis" in line and "rara" in line]
    assert row.startswith(r"| A\|B \<b\>bird\</b\> \*x\* (*Avis \_rara\_*) | ")
    assert len(re.findall(r"(?<!\\)\|", row)) == 9


def test_the_card_says_before_and_after_calibration_only_of_a_calibrated_model(trained, tmp_path):
    from kenya_birds.publishing.model_card import render_model_card

    folder = shutil.copytree(trained, tmp_path / "birds")
    metrics = json.loads((folder / "metrics.json").read_text())
    for before, caption in ((None, "by score"), (0.2, "by score, before and after calibration")):
        metrics["test"]["ece_before_calibration"] = before
        (folder / "metrics.json").write_text(json.dumps(metrics))
        card = render_model_card(folder, "ann/birds", shipped_file("model_card.md"))
        assert f"![Reliability on clips: share of correct predictions {caption}](reliability.png)" in card


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ({"best_epoch": 3.0}, "The best epoch was chosen by macro F1 on the validation split"),
        ({"best_epoch": 3.0, "chosen_by": "eval_loss"}, "The best epoch was chosen by loss on the validation split"),
        ({}, "The model is that of the last epoch. Its calibration was chosen on the validation split"),
    ],
)
def test_the_card_says_how_the_epoch_was_chosen(trained, tmp_path, result, told):
    from kenya_birds.publishing.model_card import render_model_card

    folder = shutil.copytree(trained, tmp_path / "birds")
    summary = json.loads((folder / "training_summary.json").read_text())
    summary["result"] = {"epochs": 5.0, "train_runtime_s": 7.0, **result}
    (folder / "training_summary.json").write_text(json.dumps(summary))
    assert told in render_model_card(folder, "ann/birds", shipped_file("model_card.md"))


def test_the_card_counts_whole_epochs_and_says_why_fewer_are_averaged(trained, tmp_path):
    from kenya_birds.publishing.model_card import render_model_card

    folder = shutil.copytree(trained, tmp_path / "birds")
    summary = json.loads((folder / "training_summary.json").read_text())
    summary["arguments"]["average_epochs"] = 5
    summary["result"] |= {"epochs": 12.0, "best_epoch": 10.5, "averaged_epochs": [6.0, 9.0, 10.0, 10.5]}
    (folder / "training_summary.json").write_text(json.dumps(summary))
    card = render_model_card(folder, "ann/birds", shipped_file("model_card.md"))
    assert "Training ran for 12 epochs; the best one was 10.5." in card
    assert "the mean of the weights of epochs 6, 9, 10, 10.5 (at most a third of all epochs)." in card


@pytest.mark.parametrize(
    ("model", "python", "shell", "title"),
    [
        (PureWindowsPath(r"C:\Users\ann\birds"), "C:/Users/ann/birds", "C:/Users/ann/birds", "birds"),
        (PurePosixPath("my runs/birds"), "my runs/birds", '"my runs/birds"', "birds"),
        ("ann/birds", "ann/birds", "ann/birds", "birds"),
    ],
)
def test_both_examples_of_the_card_find_the_model(trained, model, python, shell, title):
    from kenya_birds.publishing.model_card import render_model_card

    card = render_model_card(trained, model, shipped_file("model_card.md"))
    assert f'\nname = "{python}"\n' in card
    assert f"\nkenya-birds detect {shell} recordings --output detections" in card
    assert f"\n# {title}\n" in card


def test_the_card_counts_the_recordings_in_which_people_have_checked_detections(trained, tmp_path):
    from kenya_birds.publishing.model_card import render_model_card

    assert "people have checked" not in (trained / "README.md").read_text(encoding="utf-8")
    folder = shutil.copytree(trained, tmp_path / "birds")
    summary = json.loads((folder / "training_summary.json").read_text())
    summary["archive"]["checked_recordings"] = 4
    (folder / "training_summary.json").write_text(json.dumps(summary))
    card = render_model_card(folder, "ann/birds", shipped_file("model_card.md"))
    assert "In 4 of the recordings people have checked detections" in card


def test_a_missing_archive_is_refused(tmp_path):
    refused(tmp_path / "nowhere", tmp_path, "no archive at")


def test_an_archive_without_rows_is_refused(archive, tmp_path):
    header = (archive / "annotations.csv").read_text().splitlines()[0]
    (archive / "annotations.csv").write_text(header + "\n")
    refused(archive, tmp_path, "has no annotations")


def test_damaged_recordings_cost_their_own_clips_only(archive, tmp_path, capfd):
    whole, cut, not_audio, *_ = sorted((archive / "soundscape_data").iterdir())[1:]
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    not_audio.write_text("this is not sound")
    output_dir = train(archive, tmp_path / "run", tmp_path / "cache", num_train_epochs=1, min_annotations=5)
    told = capfd.readouterr().err
    assert re.search(rf"Skipped \d+ of \d+ annotations: the recording cannot be read .*{not_audio.name}", told)
    assert re.search(rf"Skipped \d+ of \d+ clips, whose sound cannot be read: \d+ of {cut.name}", told)
    splits = pd.read_csv(output_dir / "splits.csv")["recording"].tolist()
    assert whole.name in splits
    assert cut.name in splits
    assert not_audio.name not in splits


def test_an_annotation_past_the_end_is_counted_and_left_out(archive, tmp_path):
    table = pd.read_csv(archive / "annotations.csv")
    duration_s = soundfile.info(archive / "soundscape_data" / table["Filename"][0]).duration
    table.loc[0, ["Start Time (s)", "End Time (s)"]] = duration_s + 5
    table.to_csv(archive / "annotations.csv", index=False)
    output_dir = train(archive, tmp_path / "run", tmp_path / "cache", num_train_epochs=1)
    summary = json.loads((output_dir / "training_summary.json").read_text())
    assert summary["archive"]["annotations_set_aside"] == {"past the end of the recording": 1}
    kept = (
        table["Species eBird Code"].value_counts().drop(summary["archive"]["dropped_species"], errors="ignore").sum()
    )
    assert sum(summary["clips_per_split"].values()) == kept - 1


def test_background_comes_from_windows_without_a_call(tmp_path, small_archive, capfd):
    sparse = synthesize_archive(
        tmp_path / "archive", recordings=5, duration_s=40, species=2, annotations=30, scene="quiet", seed=1
    )
    settings = {"num_train_epochs": 1, "background_probability": 0.5, "min_annotations": 5}
    train(sparse, tmp_path / "run", tmp_path / "cache", **settings)
    reason = "--background_probability needs windows without a call, and none of the 5 training recordings has 3 s"
    refused(small_archive, tmp_path / "other", reason, **settings)


def test_a_folder_that_holds_something_is_not_written_to(trained, small_archive):
    before = (trained / "metrics.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        train(small_archive, trained, trained.parent / "cache")
    assert (trained / "metrics.json").stat().st_mtime_ns == before


def test_one_process_with_several_gpus_is_refused_before_anything_is_written(small_archive, tmp_path, monkeypatch):
    monkeypatch.setattr(KenyaBirdsTrainingArguments, "n_gpu", 2)
    for settings in ({}, {"folds": 3}):
        refused(small_archive, tmp_path, "2 GPUs but one process", **settings)
    assert not [*tmp_path.iterdir()]


def test_resuming_without_a_checkpoint_is_refused(small_archive, tmp_path):
    refused(small_archive, tmp_path, "no checkpoint to resume from", resume_from_checkpoint="true")


def test_features_out_of_range_are_refused(small_archive, tmp_path):
    refused(small_archive, tmp_path, "f_min_hz and f_max_hz are", f_max_hz=20_000)


def test_a_split_table_of_other_recordings_is_refused(small_archive, tmp_path):
    table = tmp_path / "splits.csv"
    table.write_text("recording,split\nKEN_001.flac,train\nKEN_002.flac,validation\nKEN_003.flac,test\n")
    refused(small_archive, tmp_path, "recordings without clips in the archive: KEN_001.flac", splits_file=table)


def test_feature_flags_are_the_extractors_arguments():
    import dataclasses
    import inspect

    from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
    from kenya_birds.training.arguments import FeatureArguments

    parameters = inspect.signature(KenyaBirdsFeatureExtractor.__init__).parameters
    expected = {name: p.default for name, p in parameters.items() if name not in ("self", "kwargs")}
    assert dataclasses.asdict(FeatureArguments()) == expected


def test_the_card_s_template_is_beside_the_script():
    assert shipped_file(CARD_TEMPLATE) == ROOT / "model_card.md"
    with pytest.raises(FileNotFoundError, match="install kenya_birds again"):
        shipped_file("nothing.md")
