"""Several trained models as one, which computes the mean of their logits."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from running import run_here, train
from safetensors.torch import load_file, save_file

from kenya_birds.cli import main
from kenya_birds.errors import UserError
from kenya_birds.experiments import combined_model
from kenya_birds.files import CARD_TEMPLATE, shipped_file
from kenya_birds.model_loading import load_model
from kenya_birds.publishing.model_card import render_model_card
from kenya_birds.training.member_models import check_members
from kenya_birds.training.training_recordings import TrainingRecordings

pytestmark = pytest.mark.usefixtures("blank_figures")

ON_RECORDINGS = {"train_on": "recordings", "windows_per_epoch": 48, "num_train_epochs": 1, "overlap_s": 1.5}


def edited(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def folder(small_archive, tmp_path_factory):
    """Two models, and `birds`, which combines them."""
    folder = tmp_path_factory.mktemp("combined")
    first = train(small_archive, folder / "birds-0", folder / "cache", **ON_RECORDINGS)
    # As if it were another training.
    second = shutil.copytree(first, folder / "birds-1")
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: value + 0.02 * torch.randn(value.shape, generator=generator) if value.ndim > 1 else value
        for name, value in load_file(first / "model.safetensors").items()
    }
    save_file(weights, second / "model.safetensors", metadata={"format": "pt"})
    summary = json.loads((second / "training_summary.json").read_text())
    edited(second / "training_summary.json", arguments={**summary["arguments"], "seed": 1})
    words = [first, second, "--data_dir", small_archive, "--output_dir", folder / "birds"]
    ended = run_here(main, "combine", *words, "--cache_dir", folder / "cache", "--use_cpu")
    assert ended.returncode == 0, ended.stderr
    return folder


def members(folder):
    return [folder / "birds-0", folder / "birds-1"]


@torch.inference_mode()
def raw_logits(model, features):
    """Before the softmax with no call."""
    return model._classify(model.head_input(features))


def test_its_logits_are_the_mean_of_theirs(folder):
    models = [load_model(member)[0] for member in members(folder)]
    together, extractor = load_model(folder / "birds")
    sound = np.random.default_rng(0).normal(0, 0.1, (3, extractor.clip_samples)).astype(np.float32)
    features = extractor.extract(torch.from_numpy(sound))
    single = torch.stack([raw_logits(model, features) for model in models])
    assert (single[0] - single[1]).abs().max() > 0.01
    torch.testing.assert_close(raw_logits(together, features), single.mean(dim=0), rtol=1e-5, atol=1e-5)
    assert together.embed(features).shape == (3, 2 * models[0].embedding_size)


def card_of(folder, *told):
    """The card if the members had taken these hours of two processes, and had these origins."""
    summary = json.loads((folder / "training_summary.json").read_text())
    for member, hours, start in zip(summary["members"], told[:2], told[2:], strict=True):
        member |= {
            "processes": 1,
            "starting_point": start,
            "result": {**member["result"], "train_runtime_s": 3600 * hours},
        }
        member["first_stage"] = {"train_runtime_s": 1800}
    edited(folder / "training_summary.json", **summary)
    return render_model_card(folder, "ann/birds", shipped_file(CARD_TEMPLATE))


def test_the_folder_has_what_training_writes_and_figures_of_its_own(folder):
    single, together = folder / "birds-0", folder / "birds"
    written = {path.name for path in single.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert written <= {path.name for path in together.iterdir()}
    assert (single / "splits.csv").read_text() == (together / "splits.csv").read_text()
    whole = [
        json.loads((each / "metrics.json").read_text())["test"]["whole_recordings"]["metrics"]["cmap"]["value"]
        for each in (single, together)
    ]
    assert whole[0] != whole[1]
    scores = pd.read_parquet(together / "recording_windows.parquet")
    assert not scores.equals(pd.read_parquet(single / "recording_windows.parquet"))
    summary = json.loads((together / "training_summary.json").read_text())
    assert [member["arguments"]["seed"] for member in summary["members"]] == [42, 1]
    # Each member keeps its cost and its origin.
    assert re.search(r"All of it took\s+2.1 device-hours", card_of(together, 1.0, 0.1, "x/first@0a1", "y/second@0b2"))
    assert "- x/first\n- y/second" in card_of(together, 1.0, 0.1, "x/first@0a1", "y/second@0b2")
    card = (together / "README.md").read_text(encoding="utf-8")
    assert "The model combines 2 networks" in card
    assert "with seed 42 ran for 1 epoch, the best one was 1; training with seed 1 ran for" in card
    assert "It combines 2 networks" in run_here(main, "info", together).stdout


def test_it_is_no_start_of_a_training_and_no_member(folder, small_archive, tmp_path):
    for flag in ("init_from", "backbone"):
        with pytest.raises(UserError, match="combines 2 networks: give one of the models that it was made of"):
            train(small_archive, tmp_path / "new", folder / "cache", **{flag: folder / "birds"})
    with pytest.raises(UserError, match="combines 2 networks"):
        check_members([folder / "birds", folder / "birds-0"])


@pytest.mark.parametrize(
    ("file", "changes", "told"),
    [
        ("config.json", {"backbone": "test_convnext2"}, "differ in backbone .'test_convnext2' and 'test_convnext'."),
        ("config.json", {"id2label": {"0": "owl1"}}, "differ in species: combine models that"),
        ("preprocessor_config.json", {"n_mels": 64}, "differ in n_mels .64 and 32."),
        # Of another version of this package.
        ("preprocessor_config.json", {"return_attention_mask": True}, None),
        ("config.json", {"head": {"hidden_size": None}}, "is a head on a frozen backbone"),
        ("training_summary.json", {"cross_validation": {}}, "was trained on all recordings"),
    ],
)
def test_models_that_do_not_fit_each_other_are_refused(folder, tmp_path, file, changes, told):
    other = shutil.copytree(folder / "birds-1", tmp_path / "other")
    edited(other / file, **changes)
    if told is None:
        check_members([folder / "birds-0", other])
        return
    with pytest.raises(UserError, match=told):
        check_members([folder / "birds-0", other])


def test_what_its_members_learned_without_annotations_is_known(folder, small_archive, tmp_path):
    other = shutil.copytree(folder / "birds-1", tmp_path / "other")
    table = pd.read_csv(other / "training_recordings.csv", keep_default_na=False)
    table.loc[len(table)] = ["night.flac", "train", "samples-0123", ""]
    table.to_csv(other / "training_recordings.csv", index=False)
    words = [folder / "birds-0", other, "--data_dir", small_archive, "--output_dir", tmp_path / "birds", "--use_cpu"]
    assert run_here(main, "combine", *words, "--cache_dir", folder / "cache").returncode == 0
    known = TrainingRecordings.read(tmp_path / "birds")
    assert known.overlap({"again.flac": "samples-0123"}).names("train") == ["again.flac"]
    own = pd.read_csv(folder / "birds-0" / "training_recordings.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(known.table.iloc[:-1].reset_index(drop=True), own)


def test_models_of_a_gpu_are_combined_without_one(folder, tmp_path):
    copy = shutil.copytree(folder / "birds-0", tmp_path / "birds")
    record = json.loads((copy / "run_settings.json").read_text())
    edited(copy / "run_settings.json", settings={**record["settings"], "tf32": True})
    settings = combined_model._settings(
        copy, data_dir=tmp_path, output_dir=tmp_path / "out", cache_dir=None, num_proc=None, use_cpu=True
    )
    assert not settings.training.tf32


def test_models_of_other_splits_are_refused(folder, tmp_path):
    other = shutil.copytree(folder / "birds-1", tmp_path / "other")
    rows = (other / "splits.csv").read_text().splitlines()
    # The order of rows does not matter.
    (other / "splits.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]) + "\n")
    check_members([folder / "birds-0", other])
    (other / "splits.csv").write_text((other / "splits.csv").read_text().replace(",test", ",train", 1))
    with pytest.raises(UserError, match="differ in splits: combine models"):
        check_members([folder / "birds-0", other])
    (other / "splits.csv").unlink()
    with pytest.raises(UserError, match=r"has no splits.csv: expected the output folder of a finished training"):
        check_members([folder / "birds-0", other])


def test_another_archive_is_refused_before_anything_is_written(folder, small_archive, tmp_path):
    archive = shutil.copytree(small_archive, tmp_path / "archive")
    table = pd.read_csv(archive / "annotations.csv")
    table = table[table["Species eBird Code"] != table["Species eBird Code"].value_counts().index[0]]
    table.to_csv(archive / "annotations.csv", index=False)
    words = [
        *members(folder),
        "--data_dir",
        archive,
        "--output_dir",
        tmp_path / "new",
        "--cache_dir",
        folder / "cache",
    ]
    ended = run_here(main, "combine", *words, "--use_cpu")
    assert ended.returncode == 2
    assert "give the archive that they were trained on" in ended.stderr
    assert not (tmp_path / "new").exists()
