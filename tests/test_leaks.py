"""Secrets, and places and names of this machine, are found in files before they are published."""

import getpass
import json
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kenya_birds.publishing.leaks import find_leaks

ROOT = Path(__file__).parents[1]
HF = "hf_" + "aBcDeFgHiJ" * 3


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine whose names are known and are nobody's word."""
    monkeypatch.setattr(socket, "gethostname", lambda: "quelea-lab.example.org")
    monkeypatch.setattr(getpass, "getuser", lambda: "wanjiku")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/wanjiku"))
    monkeypatch.setenv("HF_TOKEN", "a-token-of-another-form")


def found_in(text, name="training_summary.json", **options):
    return find_leaks({name: text.encode()}, **options)


@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        (HF, "a Hugging Face token"),
        ("sk-" + "a1B2" * 8, "an API key"),
        ("ghp_" + "a1B2" * 9, "a GitHub token"),
        ("AKIA" + "A1B2" * 4, "an AWS key"),
        ("-----BEGIN RSA PRIVATE KEY-----", "a private key"),
        ("https://ann:secret@hub.example.org/x", "a password in a URL"),
        ("a-token-of-another-form", "the value of HF_TOKEN"),
    ],
)
def test_a_secret_is_told_by_file_and_line_and_not_shown(secret, kind):
    leaks = found_in(f'{{\n  "a": "{secret}"\n}}', public=[secret])
    assert f"training_summary.json line 2: {kind}" in leaks
    assert not any(secret in leak for leak in leaks)


def test_secrets_of_the_environment_are_found_whatever_they_look_like(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("MY_PASSWORD", "correct horse")
    monkeypatch.setenv("TOKEN_COUNT", "7")
    told = sorted(found_in("0123456789abcdef, correct horse, 7 tokens", "README.md"))
    assert told == ["README.md line 1: the value of MY_PASSWORD", "README.md line 1: the value of WANDB_API_KEY"]


@pytest.mark.parametrize("secret", ["päss-wörd-123", 'quo"te-secret-9', "back\\slash-9999", "C:\\käys\\s3cret"])
def test_a_secret_is_found_in_json_however_it_is_written(monkeypatch, secret):
    monkeypatch.setenv("MY_PASSWORD", secret)
    for text in (secret, json.dumps({"a": secret}), json.dumps({"a": secret}, ensure_ascii=False)):
        assert "training_summary.json line 1: the value of MY_PASSWORD" in found_in(text)


@pytest.mark.parametrize(
    "place",
    [
        *("/home/ann/archive", "/Users/ann/birds.wav", "/tmp/run_3", "/root/.cache/huggingface", "/mnt/disk/x.flac"),
        *("/scratch/project/ann", str(ROOT / "setup.cfg"), f"{tempfile.gettempdir()}/x"),
        *(r"C:\Users\ann\birds", r"D:\\data\\birds.wav", "C:/Users/ann/birds", r"\\lab-server\share\ann"),
        r"\\\\lab-server\\share\\ann",
    ],
)
def test_a_place_on_a_machine_is_found(place):
    for text in (f'"data_dir": "{place}"', f"see {place}", f"recording,{place},train", f"at `{place}`"):
        assert found_in(text, "README.md") == [f"README.md line 1: {place}"]
    assert found_in(f"see {place}", public=[place]) == []
    assert found_in(f"see file://{place}") != []


@pytest.mark.parametrize(
    "text",
    [
        *("https://doi.org/10.5281/zenodo.10943500", "https://example.org/home/ann/x", "#!/usr/bin/env python"),
        *("m/s and/or 1/2", "data/train-*", "../tmp/x", "./home/x", "~ 3 / 4", "owner/name", "(batch, bands/2)"),
        *(r"r'[/\\]'", r"\n\t", "s3://bucket/x/y", "a:b/c", "at 10:/30/ and C:/x"),
        *("wanjikus", "sub-wanjiku-3", "a quelea sang", "commit 3d8f1c0e9a7b5d2c4f6e8a0b1c3d5e7f9a1b2c3d", "hf_hub"),
    ],
)
def test_what_tells_nothing_is_let_through(text):
    assert found_in(text, "README.md") == []


def test_names_of_user_and_machine_are_found_as_words():
    assert found_in("made by Wanjiku on quelea-lab", "README.md") == [
        "README.md line 1: quelea-lab",
        "README.md line 1: Wanjiku",
    ]
    assert found_in("made by Wanjiku on quelea-lab", "README.md", public=["quelea-lab", "wanjiku"]) == []


def test_names_that_many_machines_share_are_not_looked_for(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    monkeypatch.setattr(socket, "gethostname", lambda: "vm")
    monkeypatch.setattr(Path, "home", lambda: Path("/root"))
    assert found_in("the root of the vm", "README.md") == []


def test_a_user_without_a_name_is_no_trouble(monkeypatch):
    def nobody():
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    assert found_in("fine", "README.md") == []


def test_the_header_of_weights_is_read_and_their_numbers_are_not(tmp_path):
    save_file({"a": np.frombuffer(b"/home/ann/x " * 4, np.uint8)}, tmp_path / "model.safetensors")
    assert find_leaks({"model.safetensors": tmp_path / "model.safetensors"}) == []
    metadata = {"made_from": "/home/ann/timm.safetensors"}
    save_file({"a": np.zeros(3)}, tmp_path / "model.safetensors", metadata=metadata)
    (leak,) = find_leaks({"model.safetensors": tmp_path / "model.safetensors"})
    assert leak == "model.safetensors line 1: /home/ann/timm.safetensors"


def test_pictures_and_tables_are_searched_for_secrets_and_long_places():
    pixels = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
    assert find_leaks({"a.png": pixels}) == []
    told = find_leaks({"a.png": pixels + b"tEXtSource\0/home/wanjiku/plot.py" + HF.encode() + pixels})
    assert told == ["a.png: a Hugging Face token", "a.png: /home/wanjiku"]


def test_the_travelling_code_and_the_licence_are_clean():
    files = [*sorted((ROOT / "kenya_birds" / "model").glob("*.py")), ROOT / "LICENSE"]
    assert len(files) == 11
    assert find_leaks({path.name: path for path in files}) == []
    assert find_leaks({"x.json": json.dumps({"path": "/home/ann/x"}).encode()}) == ["x.json line 1: /home/ann/x"]
