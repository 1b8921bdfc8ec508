"""What is about to be published is loaded and asked first, in a process that knows nothing of this package."""

import json
import shutil

import pytest
import torch

from kenya_birds.errors import UserError
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.publishing import model_folder as folder_check
from kenya_birds.publishing.model_folder import check_model, model_contents

LABELS = {"single": ["combul2", "gnbcam2", "hartur1"], "multi": ["combul2", "gnbcam2", "hartur1"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked")
    for problem, labels in LABELS.items():
        torch.manual_seed(0)
        config = KenyaBirdsConfig(
            backbone="test_convnext",
            problem_type=f"{problem}_label_classification",
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
        KenyaBirdsForAudioClassification(config).save_pretrained(folder / problem)
        KenyaBirdsFeatureExtractor(noise_reduction="none").save_pretrained(folder / problem)
        versions = dict.fromkeys(folder_check.VERSIONS, "1.2.3")
        (folder / problem / "training_summary.json").write_text(json.dumps({"versions": versions}))
        (folder / problem / "README.md").write_text("---\nlicense: apache-2.0\n---\n# birds\n")
    return folder


@pytest.fixture
def model_dir(folders, tmp_path):
    """A copy of the single-label model, to be damaged."""
    return shutil.copytree(folders / "single", tmp_path / "model")


def refused(model_dir, match, **options):
    with pytest.raises(UserError, match=match) as caught:
        check_model(model_contents(model_dir), **options)
    assert "\n" not in str(caught.value)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_model_that_answers_passes(folders):
    check_model(model_contents(folders / "multi"))


@pytest.mark.usefixtures("forked_check")
def test_code_that_needs_this_package_is_refused_although_it_is_installed_here(model_dir):
    edit(model_dir / "modeling_kenya_birds.py", "import math\n", "import math\nfrom kenya_birds import errors\n")
    refused(model_dir, "cannot be loaded and run: .*kenya_birds")


@pytest.mark.usefixtures("forked_check")
def test_the_code_sees_no_token_and_is_told_to_stay_offline(model_dir, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a1B2" * 8)
    monkeypatch.setenv("MY_PASSWORD", "correct horse")
    tell = (
        "import os\n"
        "secrets = {name for name in os.environ if 'TOKEN' in name or 'PASSWORD' in name}\n"
        "raise RuntimeError(f\"seen: {sorted(secrets)} offline {os.environ['HF_HUB_OFFLINE']}\")\n"
    )
    edit(model_dir / "modeling_kenya_birds.py", "import math\n", tell)
    refused(model_dir, r"cannot be loaded and run: RuntimeError: seen: \[\] offline 1$")


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([0.5, float("nan"), 0.5], r"scores of a test sound \(long\) are not from 0 to 1: .*nan"),
        ([1.5, -0.25, -0.25], r"scores of a test sound \(long\) are not from 0 to 1: .*1\.5"),
        ([0.5, 0.4, 0.2], r"\(long\) sum to 1\.1000, expected 1"),
        ([0.5, 0.5], "have 2 labels, expected the 3 of config.json"),
    ],
)
def test_scores_that_are_no_probabilities_are_refused(model_dir, monkeypatch, scores, told):
    good, bad = ({"combul2": 0.5, "gnbcam2": 0.3, "hartur1": 0.2}, dict(zip(LABELS["single"], scores, strict=False)))
    answer = {"scores": {"clip": good, "long": bad}, "multi_label": False}
    monkeypatch.setattr(folder_check, "answer_in_clean_process", lambda *_: answer)
    refused(model_dir, told)


def test_a_model_that_takes_too_long_is_refused(model_dir, monkeypatch):
    monkeypatch.setattr(folder_check, "TIMEOUT_S", 0.2)
    refused(model_dir, r"gave no result within 0\.2 s")


def test_what_tells_of_this_machine_is_refused_before_anything_is_run(model_dir, monkeypatch):
    monkeypatch.setattr(folder_check.subprocess, "run", None)
    (model_dir / "splits.csv").write_text("recording,split\n" + "/home/ann/a.wav,train\n" * 8)
    refused(model_dir, "must not be published: splits.csv line 2: /home/ann/a.wav; .*, and 3 more; remove it")
    (model_dir / "splits.csv").write_text("recording,split\nhf_" + "a1B2" * 8 + ",train\n")
    refused(model_dir, "splits.csv line 2: a Hugging Face token; remove it")


@pytest.mark.parametrize(
    ("summary", "told"),
    [
        ({}, "of: kenya_birds, torch, timm, transformers"),
        ({"versions": {"kenya_birds": "1", "torch": "2", "timm": ""}}, "of: timm, transformers"),
        (None, "the folder has no training_summary.json"),
    ],
)
def test_a_model_of_unknown_versions_is_refused(model_dir, summary, told):
    (model_dir / "training_summary.json").unlink()
    if summary is not None:
        (model_dir / "training_summary.json").write_text(json.dumps(summary))
    refused(model_dir, told)
