"""From a trained folder to a model that others load by its name: push_model.py against a Hub on this machine."""

import contextlib
import io
import json
import logging
import re
import runpy
import shutil
import socket
import sys

import pandas as pd
import pytest
import yaml
from fake_hub import FakeHub
from fresh_python import fork_check, run_fresh
from huggingface_hub import constants
from running import ROOT, run_here, run_script, train
from safetensors.torch import load_file, save_file

import push_model
from kenya_birds import cli
from kenya_birds.errors import UserError
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.publishing.model_folder import PROGRAM
from kenya_birds.saved_models import find_model

PUBLISHED = {
    *("LICENSE", "README.md", "config.json", "preprocessor_config.json", "model.safetensors"),
    *("configuration_kenya_birds.py", "feature_extraction_kenya_birds.py", "modeling_kenya_birds.py"),
    *(
        "audio_model_kenya_birds.py",
        "backbone_kenya_birds.py",
        "graph_kenya_birds.py",
        "network_input_kenya_birds.py",
        "noise_reduction_kenya_birds.py",
        "signal_kenya_birds.py",
        "metrics.json",
        "per_species.csv",
        "predictions.parquet",
        "splits.csv",
    ),
    *("thresholds.json", "training_summary.json", "training_recordings.csv", "run_settings.json"),
    *("confusion_matrix.png", "f1_by_training_clips.png", "precision_recall.png", "reliability.png"),
    "recording_windows.parquet",
    *("recording_calls.csv", "recording_counts.csv", "recording_detections.csv", "recording_species.csv"),
    *("recall_by_false_detections.png", "recording_reliability.png", "recording_timeline.png"),
}

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def trained(small_archive, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("push")
    # Not the split that evaluation would make by itself.
    return train(small_archive, folder / "birds", cache, num_train_epochs=1, split_seed=7)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def run(hub, home, *words):
    return run_fresh(*words, cwd=home, env={**hub.environment(home / "hf"), "PYTHONPATH": str(ROOT)})


@contextlib.contextmanager
def debug_log(name):
    """Everything that a library logs."""
    logger, log = logging.getLogger(name), io.StringIO()
    handler, level = logging.StreamHandler(log), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield log
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as server:
        yield server


@pytest.fixture(scope="module")
def published(trained, small_archive, home, hub):
    """What was said when the model was published with its clips, and, changed, on the branch `calm`."""
    data = ("--with_dataset", small_archive, "--data_license", "cc0-1.0", "--source", "A. Singer (2026)")
    with pytest.MonkeyPatch.context() as patch, debug_log("huggingface_hub") as log:
        hub.redirect(patch, home / "hf")
        patch.setattr(constants, "HF_DEBUG", True)
        fork_check(patch)
        first = run_script("push_model.py", "--model_dir", trained, "--repo_id", "birds", *data)
    assert first.returncode == 0, first.stderr
    first.stderr += log.getvalue()
    calm = shutil.copytree(trained, home / "calm", ignore=shutil.ignore_patterns("checkpoint-*", "runs"))
    weights = load_file(calm / "model.safetensors")
    weights["classifier.weight"] *= 0.5
    save_file(weights, calm / "model.safetensors", metadata={"format": "pt"})
    with pytest.MonkeyPatch.context() as patch:
        hub.redirect(patch, home / "hf")
        patch.setattr(
            "kenya_birds.publishing.model_folder.check_model", lambda *_, **__: None
        )  # it was the first one's
        second = run_here(cli.main, "push", "--model_dir", calm, "--repo_id", "ann/birds", "--revision", "calm")
    assert second.returncode == 0, second.stderr
    return first, second


def test_one_commit_holds_all_that_a_published_model_is(published, hub, trained):
    (commit,) = hub.repos["ann/birds"]["commits"]
    assert set(commit["files"]) == PUBLISHED
    for name in PUBLISHED - {"README.md", "LICENSE"}:
        assert commit["files"][name] == (trained / name).read_bytes()
    assert commit["files"]["LICENSE"] == (ROOT / "LICENSE").read_bytes()
    summary = json.loads(commit["files"]["training_summary.json"])
    assert summary["arguments"]["num_train_epochs"] == 1
    assert set(summary["versions"]) >= {"torch", "transformers", "timm", "kenya_birds"}
    assert f"{hub.endpoint}/ann/birds/commit/{commit['oid']}\n" in published[0].stdout


def test_the_card_tells_licences_data_set_and_metrics(published, hub, trained):
    card = hub.repos["ann/birds"]["commits"][0]["files"]["README.md"].decode()
    header = yaml.safe_load(card.split("---\n")[1])
    assert "license" not in header, "nobody has chosen one"
    assert header["datasets"] == ["ann/birds-clips"]
    (model,) = header["model-index"]
    assert model["results"][0]["dataset"]["type"] == "ann/birds-clips"
    macro_f1 = json.loads((trained / "metrics.json").read_text())["test"]["macro_f1"]
    assert model["results"][0]["metrics"][0]["value"] == round(macro_f1, 4)
    assert "under cc0-1.0; their clips are the data set [`ann/birds-clips`]" in card
    assert "A. Singer (2026)\n" in card
    assert 'name = "ann/birds"' in card
    assert "kenya-birds detect ann/birds recordings" in card
    assert "No licence has been chosen for the model's weights" in card
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", card):
        assert picture in PUBLISHED


def test_the_data_set_beside_it_has_the_models_splits(published, hub, trained):
    (commit,) = hub.repos["datasets/ann/birds-clips"]["commits"]
    header = yaml.safe_load(commit["files"]["README.md"].decode().split("---\n")[1])
    assert header["license"] == "cc0-1.0"
    counts = json.loads((trained / "training_summary.json").read_text())["clips_per_split"]
    assert {split["name"]: split["num_examples"] for split in header["dataset_info"]["splits"]} == counts
    assert b"A. Singer (2026)" in commit["files"]["README.md"]


# One process loads all of them: it begins with seconds of imports.
ANSWERS = """
import runpy, sys
program, *models = sys.argv[1:]
for model in models:
    sys.argv = [program, *model.split("@")]
    runpy.run_path(program, run_name="__main__")
"""


def test_a_stranger_loads_it_by_name_and_revision(published, hub, home, trained):
    oid = hub.repos["ann/birds"]["commits"][0]["oid"]
    (line,) = [line for line in published[0].stdout.splitlines() if line.startswith("Load it with: ")]
    assert f'from_pretrained("ann/birds", revision="{oid}", trust_remote_code=True)' in line
    done = run(hub, home, "-I", "-c", ANSWERS, PROGRAM, trained, f"ann/birds@{oid}", "ann/birds@calm")
    assert done.returncode == 0, done.stderr
    assert hub.token not in done.stdout + done.stderr
    local, first, calm = map(json.loads, done.stdout.splitlines())
    assert first["scores"] == local["scores"]
    assert max(calm["scores"]["clip"].values()) < max(local["scores"]["clip"].values())
    assert calm["logits"] != local["logits"]


def test_it_is_found_by_name_with_what_belongs_to_it(published, hub, trained, monkeypatch, tmp_path):
    hub.redirect(monkeypatch, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    oid = hub.repos["ann/birds"]["branches"]["calm"][-1]["oid"]
    saved = find_model("ann/birds@calm")
    assert saved.starting_point == f"ann/birds@{oid}"
    for name in ("splits.csv", "run_settings.json", "training_summary.json", "thresholds.json"):
        assert (saved.folder / name).read_bytes() == (trained / name).read_bytes()
    assert Thresholds.read(saved.folder / "thresholds.json") == Thresholds.read(trained / "thresholds.json")
    assert not list(saved.folder.glob("*.py"))


def test_it_is_evaluated_by_name_on_its_own_test_split(published, hub, home, trained, small_archive, monkeypatch):
    hub.redirect(monkeypatch, home / "hf")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hf" / "hub"))
    done = run_here(cli.main, "evaluate", "ann/birds", small_archive, "--output", home / "again")
    assert done.returncode == 0, done.stderr
    assert hub.token not in done.stdout + done.stderr
    splits = pd.read_csv(trained / "splits.csv").set_index("recording")["split"]
    again, first = (pd.read_parquet(folder / "predictions.parquet") for folder in (home / "again", trained))
    assert set(again["recording"]) == set(splits[splits == "test"].index)
    columns = ["recording", "center_s", "label"]
    assert again[columns].equals(first[columns])
    macro_f1 = json.loads((home / "again" / "metrics.json").read_text())["test"]["macro_f1"]
    assert macro_f1 == pytest.approx(json.loads((trained / "metrics.json").read_text())["test"]["macro_f1"], abs=1e-6)


def test_the_token_is_in_no_output_and_no_file(published, hub, home, trained, monkeypatch, tmp_path):
    said = [done.stdout + done.stderr for done in published]
    monkeypatch.setattr("kenya_birds.publishing.model_folder.check_model", lambda *_, **__: None)
    monkeypatch.setattr(constants, "HF_DEBUG", True)
    hub.redirect(monkeypatch, tmp_path)
    for trouble, repo_id in (("refuse_token", "other"), ("read_only", "ann/other")):
        setattr(hub, trouble, True)  # the first when the Hub is asked for the user's name, the other much later
        with debug_log("huggingface_hub") as log:
            done = run_here(cli.main, "push", "--model_dir", trained, "--repo_id", repo_id)
        setattr(hub, trouble, False)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("kenya-birds push: error: ")
        said.append(line + log.getvalue())
    assert "HTTP 401" in said[2]
    assert "HTTP 403" in said[3]
    # What the Hub's client is asked to log stands there.
    assert all("curl -X" in text for text in said[:1] + said[2:])
    assert not any(hub.token in text for text in said)

    token = hub.token.encode()
    sent = [
        content for repo in hub.repos.values() for commit in repo["commits"] for content in commit["files"].values()
    ]
    assert len(sent) > len(PUBLISHED)
    assert not any(token in content for content in sent)
    assert not any(
        token in path.read_bytes() for folder in (home, trained) for path in folder.rglob("*") if path.is_file()
    )


# From here on, in this process and without the check that takes a process of its own.


@pytest.fixture
def new_hub(monkeypatch, tmp_path):
    with FakeHub() as server:
        server.redirect(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def unchecked(monkeypatch, new_hub):
    monkeypatch.setattr("kenya_birds.publishing.model_folder.check_model", lambda *_, **__: None)
    return new_hub


def push_here(model_dir, *words):
    push_model.main(["--model_dir", str(model_dir), *map(str, words)])


def test_nothing_is_sent_before_the_checks(trained, new_hub, tmp_path):
    model_dir = shutil.copytree(trained, tmp_path / "model")
    summary = json.loads((model_dir / "training_summary.json").read_text())
    (model_dir / "training_summary.json").write_text(json.dumps({**summary, "note": new_hub.token}))
    with pytest.raises(UserError, match=r"training_summary\.json line 1: a Hugging Face token") as caught:
        push_here(model_dir, "--repo_id", "ann/birds")
    assert new_hub.token not in str(caught.value)
    assert new_hub.requests == []


def test_dry_run_lists_the_files_without_network_or_token(trained, small_archive, unchecked, monkeypatch, capsys):
    def no_network(*_):
        raise AssertionError("a dry run must not use the network")

    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    data = ("--with_dataset", small_archive, "--data_license", "cc-by-4.0")
    push_here(trained, "--repo_id", "ann/birds", "--private", "--revision", "v1", "--dry_run", *data)

    _, *head, data_set, rest = capsys.readouterr().out.split("\n", 5)
    assert head == ["Repository: ann/birds", "Visibility: private", "Revision: v1"]
    assert data_set == "Data set: ann/birds-clips, 135 clips of 5 species"
    *rows, total, last = rest.splitlines()
    sizes = {name: int(size.replace(",", "")) for name, size, _ in map(str.split, rows)}
    assert set(sizes) == PUBLISHED
    assert sizes["config.json"] == (trained / "config.json").stat().st_size
    assert total.split() == [str(len(PUBLISHED)), "files", f"{sum(sizes.values()):,}", "bytes"]
    assert "nothing was sent" in last


def test_a_file_that_only_the_earlier_model_had_is_deleted(trained, unchecked, tmp_path):
    push_here(trained, "--repo_id", "ann/birds")
    ignored = shutil.ignore_patterns("checkpoint-*", "runs", "thresholds.json")
    push_here(shutil.copytree(trained, tmp_path / "model", ignore=ignored), "--repo_id", "ann/birds")
    assert set(unchecked.repos["ann/birds"]["commits"][-1]["tree"]) == PUBLISHED - {"thresholds.json"}


def test_a_pull_request_says_where_it_is_and_how_it_is_loaded(trained, unchecked, capsys):
    unchecked.repos["bob/birds"] = {"private": False, "commits": []}
    push_here(trained, "--repo_id", "bob/birds", "--create_pr")
    told = capsys.readouterr().out
    assert f"{unchecked.endpoint}/bob/birds/discussions/1\n" in told
    assert 'from_pretrained("bob/birds", revision="refs/pr/1", trust_remote_code=True)' in told


def test_private_holds_for_model_and_data_set(trained, small_archive, unchecked):
    data = ("--with_dataset", small_archive, "--source", "kenya", "--license", "cc-by-4.0")
    push_here(trained, "--repo_id", "birds", "--private", *data)
    assert {repo: state["private"] for repo, state in unchecked.repos.items()} == {
        "ann/birds": True,
        "datasets/ann/birds-clips": True,
    }
    card = unchecked.repos["ann/birds"]["commits"][0]["files"]["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-4.0"
    assert "under cc-by-4.0, its code under Apache-2.0" in card
    assert "https://doi.org/10.5281/zenodo.10943500" in card


def test_the_demo_goes_with_the_model_and_names_its_commit(trained, unchecked, tmp_path, capsys):
    push_here(trained, "--repo_id", "birds", "--private", "--with_space", tmp_path / "space")
    (model,) = unchecked.repos["ann/birds"]["commits"]
    space = unchecked.repos["spaces/ann/birds-demo"]
    assert space["private"]
    (commit,) = space["commits"]
    assert f'"ann/birds@{model["oid"]}"' in commit["files"]["app.py"].decode()
    assert "kenya_birds/serving/demo.py" in commit["files"]
    assert f"{unchecked.endpoint}/spaces/ann/birds-demo" in capsys.readouterr().out


def test_a_dry_run_asks_for_the_owner_that_a_demo_needs(trained, unchecked, tmp_path, capsys):
    told = "give OWNER/NAME to get one that can be uploaded"
    for name, is_told in (("birds", True), ("ann/birds", False)):
        push_here(trained, "--repo_id", name, "--dry_run", "--with_space", tmp_path / "space")
        assert (told in capsys.readouterr().out) == is_told


def test_no_model_is_sent_when_its_demo_cannot_be_written(trained, unchecked, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for folder, said in ((tmp_path, "is not empty"), (tmp_path / "mine.txt", "is a file")):
        with pytest.raises(UserError, match=said):
            push_here(trained, "--repo_id", "ann/birds", "--with_space", folder)
    assert unchecked.requests == []


def test_a_dry_run_writes_the_demo_and_sends_nothing(trained, unchecked, tmp_path, capsys):
    push_here(trained, "--repo_id", "ann/birds", "--dry_run", "--with_space", tmp_path / "space")
    assert "Space: ann/birds-demo," in capsys.readouterr().out
    assert (tmp_path / "space" / "app.py").is_file()
    assert unchecked.requests == []


def test_the_same_command_again_publishes_the_demo(trained, unchecked, tmp_path):
    words = ("--repo_id", "ann/birds", "--with_space", tmp_path / "space")
    push_here(trained, *words, "--dry_run")
    unchecked.fail_on, unchecked.fail_next = "spaces/ann/birds-demo/commit", 1
    with pytest.raises(UserError, match="run this again later"):
        push_here(trained, *words)
    push_here(trained, *words)
    assert len(unchecked.repos["spaces/ann/birds-demo"]["commits"]) == 1


def test_another_archive_than_the_models_is_refused(trained, unchecked, tmp_path):
    from kenya_birds.data.synthetic import synthesize_archive

    other = synthesize_archive(
        tmp_path / "other", recordings=4, duration_s=20, species=3, annotations=60, scene="quiet", seed=5
    )
    with pytest.raises(UserError, match=r"recording|species differ"):
        push_here(trained, "--repo_id", "birds", "--with_dataset", other, "--data_license", "cc-by-4.0")
    assert unchecked.requests == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--create_pr", "--private"), "--create_pr goes to the main branch"),
        (("--create_pr", "--revision", "v1"), "--create_pr goes to the main branch"),
        (("--create_pr", "--with_space", "space"), "--create_pr goes to the main branch"),
        (
            ("--with_dataset", "archive"),
            "--with_dataset needs the licence of the recordings: --data_license NAME, or --source kenya",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_told(trained, unchecked, words, told):
    with pytest.raises(UserError, match=told):
        push_here(trained, "--repo_id", "birds", *words)
    assert unchecked.requests == []


def test_the_script_ends_with_one_line_and_code_2(tmp_path, monkeypatch, capsys):
    arguments = ["push_model.py", "--model_dir", str(tmp_path / "none"), "--repo_id", "ann/birds", "--dry_run"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "push_model.py"), run_name="__main__")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"push_model.py: error: model folder {tmp_path / 'none'} does not exist")
