import hashlib
import json
import socket
import traceback
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from fake_hub import FakeHub
from fresh_python import run_fresh
from huggingface_hub import constants, snapshot_download
from safetensors.numpy import save_file

from kenya_birds.errors import UserError
from kenya_birds.publishing.hub import check_license, upload_files
from kenya_birds.publishing.model_folder import EARLIER_FILES, model_contents, published_files

CODE = {
    "configuration_kenya_birds.py": """from transformers import PretrainedConfig

class KenyaBirdsConfig(PretrainedConfig):
    model_type = "kenya_birds"
""",
    "modeling_kenya_birds.py": "from .configuration_kenya_birds import KenyaBirdsConfig\n",
    "feature_extraction_kenya_birds.py": "from .signal_kenya_birds import mel\n",
    "signal_kenya_birds.py": "mel = None\n",
}
CONFIG = {
    "model_type": "kenya_birds",
    "id2label": {"0": "Cisticola", "1": "Bulbul"},
    "auto_map": {
        "AutoConfig": "configuration_kenya_birds.KenyaBirdsConfig",
        "AutoModel": "owner/other--modeling_other.Other",
        "AutoModelForAudioClassification": "modeling_kenya_birds.KenyaBirds",
    },
}
PREPROCESSOR = {"auto_map": {"AutoFeatureExtractor": ["feature_extraction_kenya_birds.KenyaBirdsExtractor", None]}}
CARD = "---\nlicense: apache-2.0\n---\n# ann/birds\n"
PUBLISHED = sorted(
    [
        *CODE,
        *("README.md", "LICENSE", "config.json", "confusion_matrix.png", "metrics.json", "model.safetensors"),
        *("preprocessor_config.json", "splits.csv", "training_args.json"),
    ]
)
SECRET_FILES = (
    *("checkpoint-7/optimizer.pt", "checkpoint-7/model.safetensors", "runs/events.json", "logs/log.csv"),
    *("training_args.bin", "model.pt", "best.pth", ".secret.json", ".env", "notes.txt", "EXTRA.md"),
)


@pytest.fixture
def model_dir(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for name, text in CODE.items():
        (folder / name).write_text(text)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    save_file({"weight": np.arange(6, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Local card\n")
    (folder / "LICENSE").write_text("Apache")
    (folder / "splits.csv").write_text("file,split\na.wav,train\n")
    (folder / "metrics.json").write_text("{}")
    (folder / "training_args.json").write_text("{}")
    (folder / "confusion_matrix.png").write_bytes(b"\x89PNG not really")
    for name in SECRET_FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"secret")
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    (folder / "linked.json").symlink_to(outside)
    (folder / "linked.png").symlink_to(tmp_path / "nowhere.png")
    return folder


@pytest.fixture
def fake_hub(monkeypatch, tmp_path):
    with FakeHub() as server:
        server.redirect(monkeypatch, tmp_path / "home")
        yield server


def publish(model_dir, repo_id, readme=None, **options):
    return upload_files(model_contents(model_dir, readme=readme), repo_id, message="Upload", **options)


def test_one_commit_holds_exactly_the_allowed_files(model_dir, fake_hub):
    url = publish(model_dir, "ann/birds", readme=CARD).commit_url

    (commit,) = fake_hub.repos["ann/birds"]["commits"]
    assert url == f"{fake_hub.endpoint}/ann/birds/commit/{commit['oid']}"
    assert sorted(commit["files"]) == PUBLISHED
    assert commit["files"].pop("README.md") == CARD.encode()
    assert all(content == (model_dir / name).read_bytes() for name, content in commit["files"].items())
    assert not fake_hub.repos["ann/birds"]["private"]


def test_what_is_published_downloads_the_same(model_dir, fake_hub, tmp_path):
    publish(model_dir, "ann/birds")
    folder = snapshot_download("ann/birds", cache_dir=tmp_path / "cache")

    got = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    assert got == {name: (model_dir / name).read_bytes() for name in PUBLISHED}


def test_publishing_again_sends_only_what_changed(model_dir, fake_hub):
    publish(model_dir, "ann/birds")
    unchanged = publish(model_dir, "ann/birds").commit_url
    (model_dir / "metrics.json").write_text('{"map": 0.5}')
    publish(model_dir, "ann/birds")

    first, second = fake_hub.repos["ann/birds"]["commits"]
    assert unchanged.endswith(first["oid"])
    assert list(second["files"]) == ["metrics.json"]


@pytest.mark.parametrize("options", [{}, {"create_pr": True}, {"revision": "calm"}])
def test_files_of_the_earlier_model_go_and_those_of_others_stay(model_dir, fake_hub, options):
    others = {"notes.md", "notes.csv", "LICENSE", "model.onnx", "images/metrics.json", "model-notes.safetensors"}
    earlier = {"thresholds.json", "novelty.safetensors", "per_species.csv", "recording_timeline.png"}
    earlier |= {"model-00001-of-00001.safetensors", "model.safetensors.index.json", "run_settings.json"}
    upload_files({name: name.encode() for name in others | earlier}, "ann/birds", message="Earlier")
    commit = publish(model_dir, "ann/birds", replaced=EARLIER_FILES, **options)
    repo = fake_hub.repos["ann/birds"]
    commits = [*repo["commits"], *(one for branch in repo.get("branches", {}).values() for one in branch)]
    (tree,) = {frozenset(one["tree"]) for one in commits if one["oid"] == commit.oid}
    assert tree == others | set(PUBLISHED)


def test_a_private_repository_is_private_and_needs_the_token_to_read(model_dir, fake_hub, tmp_path):
    publish(model_dir, "ann/birds", private=True)

    assert fake_hub.repos["ann/birds"]["private"]
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError):
        snapshot_download("ann/birds", cache_dir=tmp_path / "cache", token=False)


def test_private_is_not_given_up_where_a_public_repository_exists(model_dir, fake_hub):
    fake_hub.repos["ann/birds"] = {"private": False, "commits": []}
    with pytest.raises(UserError, match="ann/birds exists and is public"):
        publish(model_dir, "ann/birds", private=True)
    assert fake_hub.repos["ann/birds"]["commits"] == []


def test_a_name_without_owner_belongs_to_the_account(model_dir, fake_hub):
    publish(model_dir, "birds")
    assert list(fake_hub.repos) == ["ann/birds"]


def test_shards_with_their_index_replace_the_single_file(model_dir):
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    (model_dir / "model.safetensors").rename(model_dir / shards[0])
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=shards[1]):
        published_files(model_dir)

    (model_dir / shards[1]).write_bytes(b"more")
    assert {*shards, "model.safetensors.index.json"} < {path.name for path in published_files(model_dir)}


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "config.json", "preprocessor_config.json", "README.md"),
        *("modeling_kenya_birds.py", "feature_extraction_kenya_birds.py", "signal_kenya_birds.py"),
    ],
)
def test_what_is_missing_is_named(model_dir, name, fake_hub):
    (model_dir / name).unlink()
    with pytest.raises(UserError, match=f"missing files: {name};"):
        publish(model_dir, "ann/birds")
    assert fake_hub.requests == []


def test_weights_behind_a_link_that_leads_outside_count_as_missing(model_dir, tmp_path):
    (model_dir / "model.safetensors").rename(tmp_path / "model.safetensors")
    (model_dir / "model.safetensors").symlink_to(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors \(a link"):
        published_files(model_dir)


def test_a_link_within_the_folder_is_followed(model_dir):
    (model_dir / "config.json").rename(model_dir / "kept.json")
    (model_dir / "config.json").symlink_to("kept.json")
    assert model_dir / "config.json" in published_files(model_dir)


def test_unusable_folders_are_told(model_dir, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        published_files(tmp_path / "nothing")
    (model_dir / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read as JSON"):
        published_files(model_dir)


def refused(fake_hub, model_dir, repo_id="ann/birds", **options):
    """Publishes, and gives the message of the `UserError` that it must end with."""
    with pytest.raises(UserError) as caught:
        publish(model_dir, repo_id, **options)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert fake_hub.token not in told
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("repo_id", ["ann/birds", "birds"])
def test_a_refused_token_is_told_without_showing_it(model_dir, fake_hub, repo_id):
    fake_hub.refuse_token = True
    assert "HTTP 401); log in with `hf auth login` or set HF_TOKEN" in refused(fake_hub, model_dir, repo_id)


def test_a_token_that_may_only_read_is_told(model_dir, fake_hub):
    fake_hub.read_only = True
    assert "may not write to ann/birds (HTTP 403)" in refused(fake_hub, model_dir)


def test_someone_elses_account_is_told(model_dir, fake_hub):
    assert "may not write to bob/birds (HTTP 403)" in refused(fake_hub, model_dir, "bob/birds")


def test_no_token_is_told_before_anything_is_sent(model_dir, fake_hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "no Hugging Face token found; log in with `hf auth login`" in refused(fake_hub, model_dir)
    assert fake_hub.requests == []


def test_a_token_that_cannot_be_sent_is_not_quoted(model_dir, fake_hub, monkeypatch):
    monkeypatch.setattr("kenya_birds.publishing.hub.get_token", lambda: f"{fake_hub.token}\n{fake_hub.token}")
    assert "log in" in refused(fake_hub, model_dir)


def test_a_token_that_the_client_quotes_is_blotted_out(model_dir, fake_hub, monkeypatch):
    def quote(api, *_, **__):
        raise ValueError(f"bad header: Bearer {api.token}")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", quote)
    assert "bad header: Bearer ***" in refused(fake_hub, model_dir)


@pytest.mark.parametrize("repo_id", ["", "a/b/c", "ann/b..d", "https://huggingface.co/ann/birds", "ann/my birds"])
def test_an_invalid_name_is_told(model_dir, fake_hub, repo_id):
    assert "is not a valid name of a model" in refused(fake_hub, model_dir, repo_id)
    assert fake_hub.requests == []


def test_an_invalid_card_is_told(model_dir, fake_hub):
    message = refused(fake_hub, model_dir, readme="---\nlicense: [\n---\n")
    assert "Invalid metadata in README.md" in message
    assert fake_hub.repos["ann/birds"]["commits"] == []


@pytest.mark.parametrize("step", ["/preupload/", "/lfs-upload/"])
def test_a_hub_that_is_busy_for_a_moment_is_asked_again(model_dir, fake_hub, step):
    fake_hub.fail_next, fake_hub.fail_on = 1, step
    publish(model_dir, "ann/birds")
    assert len(fake_hub.repos["ann/birds"]["commits"]) == 1


@pytest.mark.parametrize("step", ["/repos/create", "/validate-yaml", "/commit/"])
def test_a_busy_hub_is_told_and_the_next_run_succeeds(model_dir, fake_hub, step):
    fake_hub.fail_next, fake_hub.fail_on = 1, step
    assert "again later" in refused(fake_hub, model_dir)
    publish(model_dir, "ann/birds")
    assert len(fake_hub.repos["ann/birds"]["commits"]) == 1


def test_what_goes_wrong_while_large_files_are_sent_is_told(model_dir, fake_hub):
    fake_hub.refuse_uploads = True
    assert "HTTP 403" in refused(fake_hub, model_dir)


def test_an_unreachable_hub_is_told(model_dir, fake_hub, monkeypatch):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://user:pass@127.0.0.1:{reserved.getsockname()[1]}")
        message = refused(fake_hub, model_dir)
    assert "cannot reach 127.0.0.1" in message
    assert "pass" not in message
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "unset HF_HUB_OFFLINE" in refused(fake_hub, model_dir)


JOURNEY = """
import sys
from pathlib import Path
from kenya_birds.publishing.hub import upload_files
from kenya_birds.publishing.model_folder import model_contents
upload_files(model_contents(Path(sys.argv[1])), "ann/birds", message="Upload", private=True)
from transformers import AutoConfig
config = AutoConfig.from_pretrained("ann/birds", trust_remote_code=True)
print(type(config).__name__, config.id2label[1])
"""


def test_a_fresh_process_publishes_and_loads_by_name(model_dir, fake_hub, tmp_path):
    done = run_fresh("-c", JOURNEY, model_dir, cwd=tmp_path, env=fake_hub.environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["KenyaBirdsConfig", "Bulbul"]
    assert fake_hub.token not in done.stdout + done.stderr


def test_a_branch_is_made_and_the_main_one_stays_as_it_is(model_dir, fake_hub, tmp_path):
    publish(model_dir, "ann/birds")
    (model_dir / "metrics.json").write_text('{"map": 0.5}')
    commit = publish(model_dir, "ann/birds", revision="wet season")
    again = publish(model_dir, "ann/birds", revision="wet season")

    assert len(fake_hub.repos["ann/birds"]["commits"]) == 1
    _, second = fake_hub.repos["ann/birds"]["branches"]["wet season"]
    assert (list(second["files"]), second["oid"]) == (["metrics.json"], commit.oid)
    assert again.oid == commit.oid
    for revision in ("wet season", commit.oid):
        folder = Path(snapshot_download("ann/birds", revision=revision, cache_dir=tmp_path / "cache"))
        assert (folder / "metrics.json").read_text() == '{"map": 0.5}'


def test_a_new_repository_may_begin_with_a_branch(model_dir, fake_hub):
    publish(model_dir, "ann/birds", revision="v1")
    assert fake_hub.repos["ann/birds"]["commits"] == []
    assert sorted(fake_hub.repos["ann/birds"]["branches"]["v1"][0]["files"]) == PUBLISHED


def test_a_pull_request_goes_to_someone_elses_repository_and_takes_more_commits(model_dir, fake_hub, tmp_path):
    fake_hub.repos["bob/birds"] = {"private": False, "commits": []}
    commit = publish(model_dir, "bob/birds", create_pr=True)
    assert commit.pr_url == f"{fake_hub.endpoint}/bob/birds/discussions/1"
    assert fake_hub.repos["bob/birds"]["commits"] == []
    assert Path(snapshot_download("bob/birds", revision=commit.pr_revision, cache_dir=tmp_path)).name == commit.oid

    fake_hub.user = "bob"
    (model_dir / "metrics.json").write_text('{"map": 0.5}')
    publish(model_dir, "bob/birds", revision="refs/pr/1")
    assert [list(commit["files"]) for commit in fake_hub.repos["bob/birds"]["branches"]["refs/pr/1"]][1:] == [
        ["metrics.json"]
    ]


def test_a_pull_request_that_leads_nowhere_is_told(model_dir, fake_hub):
    assert "no model repository bob/birds" in refused(fake_hub, model_dir, "bob/birds", create_pr=True)
    fake_hub.repos["ann/birds"] = {"private": False, "commits": []}
    assert "ann/birds has no such revision" in refused(fake_hub, model_dir, revision="refs/pr/7")


def without_waiting(monkeypatch):
    """The client waits 23 s in all before it gives up."""
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _: None)


def test_an_upload_that_breaks_once_is_taken_up_by_the_client(model_dir, fake_hub, monkeypatch):
    without_waiting(monkeypatch)
    fake_hub.break_next, fake_hub.break_file = 1, (model_dir / "model.safetensors").read_bytes()
    publish(model_dir, "ann/birds")
    assert fake_hub.break_next == 0
    assert sorted(fake_hub.repos["ann/birds"]["commits"][0]["files"]) == PUBLISHED


def test_an_upload_that_broke_goes_on_when_it_is_run_again(model_dir, fake_hub, monkeypatch):
    without_waiting(monkeypatch)
    weights = (model_dir / "model.safetensors").read_bytes()
    fake_hub.break_next, fake_hub.break_file = 99, weights
    message = refused(fake_hub, model_dir)
    assert "cannot reach 127.0.0.1" in message
    assert message.endswith("then run this again")
    # It was tried several times; what arrived beside it is there, and no half a model can be loaded.
    assert fake_hub.break_next < 98
    hashes = [
        hashlib.sha256(content).hexdigest() for content in ((model_dir / "confusion_matrix.png").read_bytes(), weights)
    ]
    assert fake_hub.uploaded == hashes[:1]
    assert fake_hub.repos["ann/birds"]["commits"] == []

    fake_hub.break_next = 0
    publish(model_dir, "ann/birds")
    assert fake_hub.uploaded == hashes
    assert sorted(fake_hub.repos["ann/birds"]["commits"][0]["files"]) == PUBLISHED


def test_a_licence_has_no_capitals_and_no_blanks():
    for name in (None, "mit", "cc-by-4.0", "openrail++", "creativeml-openrail-m"):
        check_license(name, "--license")
    for name in ("mit license", "CC-BY-4.0", ""):
        with pytest.raises(UserError, match=r"--license is .*: expected the name that the Hub has for the licence"):
            check_license(name, "--license")
