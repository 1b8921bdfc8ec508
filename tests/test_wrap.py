"""A published network becomes a model folder: its scores stay its own, and every command takes it."""

import copy
import json
import logging
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import yaml
from fake_hub import FakeHub
from fresh_python import run_fresh
from huggingface_hub import constants
from networks import (
    BINS,
    CODES,
    FRAMES,
    QUANTIZATION,
    RATE,
    SAMPLES,
    SIZE,
    weights,
    write_labels,
    write_onnx,
    write_spectrogram_tflite,
    write_tflite,
)
from networks import write_free_onnx as write_free
from networks import write_spectrogram_onnx as write_spectrogram
from plain_librosa import librosa
from running import flags, run, settings_of
from scipy.special import expit, softmax
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from kenya_birds import load_model
from kenya_birds.cli import main
from kenya_birds.data.synthetic import synthesize_archive
from kenya_birds.errors import UserError
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.network_labels import NetworkLabel, read_labels, restrict_labels
from kenya_birds.model import graph_kenya_birds
from kenya_birds.model.graph_kenya_birds import find_graph
from kenya_birds.model.modeling_kenya_birds import HEAD_EPSILON, log_odds
from kenya_birds.model.network_input_kenya_birds import magnitude_spectrogram, with_peak
from kenya_birds.publishing.hub import upload_files
from kenya_birds.saved_models import THRESHOLDS_FILE
from kenya_birds.serving.analysis import Analyser
from kenya_birds.training.arguments import ModelArguments
from kenya_birds.training.frozen_backbones import find_backbone
from kenya_birds.waveform_networks import PRESETS

NETWORK = ("--sampling_rate", str(RATE), "--activation", "sigmoid", "--embedding", "embedding", "--threshold", "0.5")


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """int16 noise whose level changes."""
    rng = np.random.default_rng(seed)
    level = np.repeat(rng.uniform(0.01, 0.3, round(2 * seconds) + 1), RATE // 2)[: round(seconds * RATE)]
    return ((level * rng.standard_normal(len(level))).clip(-1, 1) * 32767).astype(np.int16)


def own_scores(windows: np.ndarray) -> np.ndarray:
    """The scores before the activation, by numpy."""
    first, second = weights()
    return windows @ first @ second


def wrap(folder, *more, network=None, labels=None):
    network = network or write_onnx(folder / "network.onnx")
    labels = labels or write_labels(folder / "labels.txt")
    main(["wrap", str(network), "--labels", str(labels), "--output", str(folder / "model"), *map(str, more)])
    return folder / "model"


def refusal(capsys, *arguments) -> str:
    """The line with which a command refuses."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, arguments)))
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


@pytest.fixture(scope="module")
def wrapped(tmp_path_factory):
    """A wrapped ONNX graph, with a copy of it in the folder."""
    return wrap(tmp_path_factory.mktemp("wrapped"), *NETWORK, "--bundle")


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recordings") / "KEN_001_20211207_153852.wav"
    soundfile.write(path, sound(20), RATE)
    return path


@pytest.mark.parametrize("write", [write_onnx, write_tflite])
def test_detections_have_the_scores_of_the_network_on_the_same_windows(write, recording, tmp_path):
    suffix = ".onnx" if write is write_onnx else ".tflite"
    network = write(tmp_path / f"network{suffix}")
    inner = "embedding" if write is write_onnx else "POOL"
    model = wrap(tmp_path, *NETWORK[:4], "--embedding", inner, "--threshold", "0.3", network=network)
    with pytest.raises(SystemExit, match="0"):
        main(["detect", str(model), str(recording), "--output", str(tmp_path / "x")])
    found = pd.read_csv(tmp_path / "x" / "detections.csv")
    windows = sound(20).reshape(-1, SAMPLES).astype(np.float32) / 32768
    expected = expit(own_scores(windows).astype(np.float64))
    rows = {(round(row.start_s * RATE) // SAMPLES, row.code): row.score for row in found.itertuples()}
    assert len(rows) == len(found) == (expected >= 0.3).sum() > 10
    for (window, code), score in rows.items():
        assert score == pytest.approx(expected[window, CODES.index(code)], abs=1e-5)
    assert set(found["common_name"]) <= {"Common Bulbul", "Little Rush Warbler", "Engine"}


def test_a_network_that_takes_one_window_at_a_time_gives_the_same_scores(wrapped, tmp_path):
    one = wrap(tmp_path, *NETWORK, network=write_onnx(tmp_path / "one.onnx", batch=1))
    windows = torch.from_numpy(sound(5).reshape(-1, SAMPLES).astype(np.float32) / 32768)
    scores = [load_model(folder)[0](windows).logits for folder in (one, wrapped)]
    assert torch.allclose(*scores, atol=1e-5)


def test_probabilities_and_a_softmax_stay_what_they_are(tmp_path):
    windows = sound(5).reshape(-1, SAMPLES).astype(np.float32) / 32768
    expected = softmax(own_scores(windows).astype(np.float64), axis=1)
    for activation, network in (("none", "Softmax"), ("softmax", "")):
        folder = tmp_path / activation
        folder.mkdir()
        path = write_onnx(folder / "network.onnx", activation=network)
        # The share of a softmax is over all scores of the network, not over the chosen species.
        chosen = write_labels(folder / "chosen.txt", [CODES[2], CODES[0]])
        settings = ("--sampling_rate", RATE, "--activation", activation, "--species", chosen)
        model, extractor = load_model(wrap(folder, *settings, network=path))
        features = extractor(list(windows), sampling_rate=RATE, return_tensors="pt")
        found = model(**features).logits.sigmoid().detach().numpy()
        np.testing.assert_allclose(found, expected[:, [0, 2]], atol=1e-5)
        assert list(model.config.id2label.values()) == [CODES[0], CODES[2]]


def test_windows_are_centred_and_scaled_to_a_peak():
    windows = np.array([[1.0, 2.0, 5.0], [7.0, 7.0, 7.0]], dtype=np.float32)
    # Means 8/3 and 7; the largest distances 7/3 and 0.
    np.testing.assert_allclose(with_peak(windows, 0.25), [[-5 / 28, -2 / 28, 0.25], [0, 0, 0]], atol=1e-6)


def test_a_peak_is_part_of_the_model(tmp_path):
    model, extractor = load_model(wrap(tmp_path, *NETWORK, "--peak", "0.25"))
    windows = sound(3).reshape(-1, SAMPLES).astype(np.float32) / 32768
    logits = model(**extractor(list(windows), sampling_rate=RATE, return_tensors="pt")).logits
    centred = windows - windows.mean(axis=1, keepdims=True)
    expected = own_scores(0.25 * centred / np.abs(centred).max(axis=1, keepdims=True))
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("samples", [66_150, 8_000])
def test_magnitude_spectrograms_are_those_of_librosa_bit_by_bit(samples):
    for window in (sound(samples / RATE)[:samples].astype(np.float32) / 32768, np.zeros(samples, dtype=np.float32)):
        magnitude = np.abs(librosa.stft(window, n_fft=512, hop_length=samples // 256))[:, :256]
        spread = magnitude.max() - magnitude.min()
        expected = (magnitude - magnitude.min()) / (spread + 1e-10)
        np.testing.assert_array_equal(magnitude_spectrogram(window, 257, 256), expected)


def test_a_network_of_8_bits_that_takes_spectrograms_gives_its_own_scores_and_embeddings(tmp_path):
    network = write_spectrogram_tflite(tmp_path / "network.tflite")
    settings = ("--sampling_rate", RATE, "--clip_s", 1, "--activation", "none", "--spectrogram", "magnitude")
    model, extractor = load_model(wrap(tmp_path, *settings, "--embedding", "POOL", "--bundle", network=network))
    windows = sound(4).reshape(-1, RATE).astype(np.float32) / 32768
    sounds = extractor(list(windows), sampling_rate=RATE, return_tensors="pt")["input_features"]
    first, second = weights(samples=BINS * FRAMES)
    spectrograms = np.stack([magnitude_spectrogram(window, BINS, FRAMES).ravel() for window in windows])
    scale, zero = QUANTIZATION
    steps = np.clip(np.round(spectrograms @ first / scale) + zero, -128, 127)
    with torch.no_grad():
        np.testing.assert_allclose(model.embed(sounds), (steps - zero) * scale, atol=1e-6)
        np.testing.assert_allclose(model(sounds).logits.sigmoid(), expit((steps - zero) * scale @ second), atol=1e-5)


def test_a_head_gets_finite_numbers_of_a_network_that_is_sure():
    scores = torch.tensor([[0.0, 0.5, 1.0]])
    assert log_odds(scores, "none", HEAD_EPSILON)[0].tolist() == pytest.approx([-8, 0, 8], abs=0.02)


def test_a_network_of_windows_of_any_length_needs_one(tmp_path, capsys):
    network = write_onnx(tmp_path / "any.onnx", samples="samples")
    command = ("wrap", network, "--labels", write_labels(tmp_path / "l.txt"), "--output", tmp_path / "model")
    assert "--clip_s SECONDS" in refusal(capsys, *command, *NETWORK)
    main([*map(str, command), *NETWORK, "--clip_s", str(SAMPLES / RATE)])
    assert load_model(tmp_path / "model")[1].clip_samples == SAMPLES


def test_embeddings_are_those_of_the_network(wrapped, recording, tmp_path, capsys):
    output = tmp_path / "embeddings.parquet"
    with pytest.raises(SystemExit, match="0"):
        main(["embed", str(wrapped), str(recording), "--output", str(output)])
    found = np.stack(pq.read_table(output)["embedding"].to_numpy())
    windows = sound(20).reshape(-1, SAMPLES).astype(np.float32) / 32768
    assert found.shape == (20, SIZE)
    np.testing.assert_allclose(found, windows @ weights()[0], atol=1e-4)
    without = wrap(tmp_path, *NETWORK[:4])
    message = refusal(capsys, "embed", without, recording, "--output", tmp_path / "none.parquet")
    assert "--embedding TENSOR" in message


def test_the_folder_says_what_it_is(wrapped, capsys):
    main(["info", str(wrapped)])
    text = capsys.readouterr().out
    assert text.startswith(f"{wrapped}: network, 3 species, multi_label_classification")
    assert "A published network: network.onnx, licence not stated" in text
    assert "scores are not calibrated" in text
    assert "0.500" in text
    thresholds = json.loads((wrapped / THRESHOLDS_FILE).read_text())
    assert thresholds["by_hand"] is True
    assert thresholds["species"] == dict.fromkeys(CODES, 0.5)
    assert "set by hand" in (wrapped / "README.md").read_text()


def test_the_card_says_what_a_licence_excludes(tmp_path):
    folder = wrap(tmp_path, *NETWORK, "--license", "cc-by-nc-sa-4.0", "--name", "Owl net", "--source", "a paper")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-nc-sa-4.0"
    assert all(words in card for words in ("# Owl net", "excludes commercial use", "a paper", "same licence"))


def test_any_licence_leaves_the_header_of_the_card_readable(tmp_path):
    folder = wrap(tmp_path, *NETWORK, "--license", "BY-NC: see #2")
    header = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert yaml.safe_load(header)["license"] == "BY-NC: see #2"


def test_without_a_threshold_detect_asks_for_one(recording, tmp_path, capsys):
    folder = wrap(tmp_path, *NETWORK[:4])
    assert "needs --threshold" in capsys.readouterr().out
    assert "--threshold" in refusal(capsys, "detect", folder, recording, "--output", tmp_path / "found")


def test_an_archive_is_evaluated_with_its_own_codes(tmp_path, blank_figures):
    archive = synthesize_archive(tmp_path / "archive", recordings=3, duration_s=20, species=3, annotations=24, seed=1)
    species = pd.read_csv(archive / "species.csv")
    labels = write_labels(tmp_path / "labels.txt", [*species["Scientific Name"].iloc[::-1], "Engine_Engine"])
    network = write_onnx(tmp_path / "network.onnx", classes=len(species) + 1)
    folder = wrap(tmp_path, *NETWORK, "--species", archive / "species.csv", network=network, labels=labels)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert set(config["id2label"].values()) == set(species["Species eBird Code"])
    settings = ["--split", "all", "--min_annotations", "1", "--cache_dir", str(tmp_path / "cache")]
    main(["evaluate", str(folder), str(archive), "--output", str(tmp_path / "evaluated"), *settings])
    metrics = json.loads((tmp_path / "evaluated" / "metrics.json").read_text(encoding="utf-8"))["all"]
    assert metrics["clips"] > 10
    assert metrics["whole_recordings"]["calls"] == 24


def test_the_page_in_the_browser_finds_what_detect_finds(wrapped, recording):
    found = Analyser(wrapped, device="cpu").analyse(recording, overlap_s=0.0).detections(FindingSettings())
    windows = sound(20).reshape(-1, SAMPLES).astype(np.float32) / 32768
    expected = np.argwhere(expit(own_scores(windows)) >= 0.5)
    assert len(expected) > 5
    assert {(detection.start_s, detection.species) for detection in found} == {
        (window * SAMPLES / RATE, CODES[label]) for window, label in expected.tolist()
    }


def test_transformers_loads_the_folder(wrapped):
    model = AutoModelForAudioClassification.from_pretrained(wrapped)
    extractor = AutoFeatureExtractor.from_pretrained(wrapped)
    windows = sound(1).reshape(-1, SAMPLES).astype(np.float32) / 32768
    logits = model(**extractor(list(windows), sampling_rate=RATE, return_tensors="pt")).logits
    np.testing.assert_allclose(logits, own_scores(windows), atol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301  (our own)
def test_a_copy_of_a_loaded_model_gives_the_same_scores(wrapped, copied):
    model, extractor = load_model(wrapped)
    features = extractor(np.ones(SAMPLES, "f4"), sampling_rate=RATE, return_tensors="pt")
    torch.testing.assert_close(copied(model)(**features).logits, model(**features).logits, rtol=0, atol=0)


@pytest.mark.parametrize("is_bundled", [True, False])
def test_a_loaded_model_is_saved_with_the_network_that_it_came_with(tmp_path, is_bundled):
    model, _ = load_model(wrap(tmp_path, *NETWORK, *(["--bundle"] if is_bundled else [])))
    for _ in range(2):
        model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "network.onnx").is_file() == is_bundled
    again = AutoModelForAudioClassification.from_pretrained(tmp_path / "saved")
    clips = torch.ones(1, SAMPLES)
    torch.testing.assert_close(again(clips).logits, model(clips).logits, rtol=0, atol=0)


STRANGER = """
import json
import sys
from pathlib import Path

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "kenya_birds":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
import numpy, transformers
classify = transformers.pipeline("audio-classification", model=sys.argv[1], trust_remote_code=True)
clip = {"array": numpy.full(8000, 0.01, "f4"), "sampling_rate": 8000}
print(json.dumps({guess["label"]: guess["score"] for guess in classify(clip, top_k=None)}))
"""


def test_the_pipeline_of_transformers_runs_the_folder_without_this_package(wrapped, tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = run_fresh("-I", "-c", STRANGER, wrapped, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    expected = expit(own_scores(np.full((1, SAMPLES), 0.01, np.float32)))[0]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == pytest.approx(dict(zip(CODES, expected, strict=True)), abs=1e-5)


def test_the_network_of_a_private_model_is_found_with_the_token_that_is_given(wrapped, tmp_path, monkeypatch):
    with FakeHub() as hub:
        hub.redirect(monkeypatch, tmp_path / "home")
        contents = {f"owls/{path.name}": path for path in wrapped.iterdir()}
        upload_files(contents, "ann/birds", message="Upload", private=True)
        monkeypatch.delenv("HF_TOKEN")
        place = {"subfolder": "owls", "cache_dir": tmp_path / "cache"}
        model = AutoModelForAudioClassification.from_pretrained("ann/birds", token=hub.token, **place)
    again = AutoModelForAudioClassification.from_pretrained("ann/birds", local_files_only=True, **place)
    beside = AutoModelForAudioClassification.from_pretrained(wrapped.parent, subfolder=wrapped.name)
    windows = torch.zeros(1, SAMPLES)
    logits = model(windows).logits
    assert torch.equal(logits, again(windows).logits)
    assert torch.equal(logits, beside(windows).logits)


@pytest.mark.parametrize("is_there", [True, False])
def test_the_network_of_a_model_on_the_hub_is_downloaded(wrapped, is_there, tmp_path, monkeypatch):
    with FakeHub() as hub:
        hub.redirect(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        contents = {path.name: path for path in wrapped.iterdir() if is_there or path.suffix != ".onnx"}
        contents |= {"other.onnx": b"not of this model", "malware.py": b""}
        upload_files(contents, "ann/birds", message="Upload")
        if not is_there:
            with pytest.raises(
                UserError, match=r"network\.onnx, is not there.*download a model on the Hub to a folder"
            ):
                load_model("ann/birds")
            return
        model, _ = load_model("ann/birds")
    windows = torch.zeros(1, SAMPLES)
    assert torch.equal(model(windows).logits, load_model(wrapped)[0](windows).logits)
    fetched = {path.name for path in (tmp_path / "cache").rglob("*") if path.suffix in (".onnx", ".py")}
    assert fetched == {"network.onnx"}


@pytest.mark.usefixtures("no_private_folders")
def test_a_reference_to_the_network_follows_it_into_the_folder(tmp_path, capsys):
    folder = wrap(tmp_path, *NETWORK)
    assert not (folder / "network.onnx").exists()
    (tmp_path / "network.onnx").rename(tmp_path / "moved.onnx")
    assert "network.onnx, is not there or at" in refusal(
        capsys, "detect", folder, tmp_path, "--output", tmp_path / "x"
    )
    (tmp_path / "moved.onnx").rename(folder / "network.onnx")
    load_model(folder)


def test_another_file_than_the_hash_says_is_refused(tmp_path, capsys):
    folder = wrap(tmp_path, *NETWORK)
    write_onnx(tmp_path / "network.onnx", gain=2.0)
    message = refusal(capsys, "detect", folder, tmp_path, "--output", tmp_path / "x")
    assert "is another file than the model was made with: expected the SHA-256" in message


@pytest.mark.parametrize(
    ("network", "settings", "said"),
    [
        (write_spectrogram, NETWORK, "takes no waveform"),
        (write_free, NETWORK, "no scores of a fixed number"),
        (lambda path: write_onnx(path, classes=4), NETWORK, "has 3 labels, but network.onnx has 5 or 4 scores"),
        (lambda path: write_onnx(path, batch=4), NETWORK, "takes no waveform"),
        (write_onnx, NETWORK[2:], "give --sampling_rate HZ"),
        (write_onnx, NETWORK[:2], "give --activation sigmoid|softmax|none"),
        (write_onnx, (*NETWORK[:3], "none"), "are no probabilities"),
        (write_onnx, (*NETWORK, "--clip_s", "3"), "takes 8,000 samples, which are 1 s at 8000 Hz"),
        (write_onnx, ("--preset", "birdnet-2.4"), "the preset's window needs 144,000"),
        (write_onnx, (*NETWORK[:4], "--embedding", "pool"), "no tensor 'pool'"),
        (write_onnx, (*NETWORK, "--scores", "logits"), "no output 'logits'"),
        (write_onnx, (*NETWORK, "--f_min_hz", "7999"), "f_min_hz"),
        (lambda path: path.write_bytes(b"no graph") and path, NETWORK, "cannot open network.onnx"),
        (lambda path: path, NETWORK, "there is no file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_network_that_does_not_fit_is_refused_in_one_line(network, settings, said, tmp_path, capsys):
    path = network(tmp_path / "network.onnx")
    labels = write_labels(tmp_path / "labels.txt")
    message = refusal(capsys, "wrap", path, "--labels", labels, "--output", tmp_path / "model", *settings)
    assert said in message
    assert not (tmp_path / "model").exists()


def test_a_network_in_several_files_is_refused(tmp_path, capsys):
    network = onnx.load(write_onnx(tmp_path / "whole.onnx"))
    path = tmp_path / "parts.onnx"
    onnx.save(network, path, save_as_external_data=True, location="weights", size_threshold=1)
    labels = write_labels(tmp_path / "labels.txt")
    message = refusal(capsys, "wrap", path, "--labels", labels, "--output", tmp_path / "model", *NETWORK)
    assert "parts.onnx does not open without other files of its folder: save the network as one file" in message
    assert not (tmp_path / "model").exists()


def test_a_missing_runtime_is_named_before_torch_is_imported(wrapped, tmp_path, capsys, monkeypatch):
    network, labels = write_tflite(tmp_path / "network.tflite"), write_labels(tmp_path / "labels.txt")
    command = ("wrap", network, "--labels", labels, "--output", tmp_path / "model", *NETWORK)
    program = (
        "import sys, importlib.util as u, kenya_birds.extras as e\n"
        "e.find_spec = lambda name: None\n"
        "from kenya_birds.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as ended:\n    print(ended.code, 'torch' in sys.modules)\n"
    )
    done = run(sys.executable, "-c", program, *map(str, command))
    assert done.stdout.split() == ["2", "False"]
    assert "network.tflite needs ai_edge_litert, which is not installed: run pip install" in done.stderr
    monkeypatch.setattr("kenya_birds.extras.find_spec", lambda name: None)
    message = refusal(capsys, "detect", wrapped, tmp_path, "--output", tmp_path / "x")
    assert "needs onnxruntime, which is not installed" in message


def test_what_needs_a_trained_model_refuses_a_published_network(wrapped, tmp_path, capsys):
    for command in (
        ("export", wrapped, "--output", tmp_path / "graph"),
        ("push", "--model_dir", wrapped, "--repo_id", "ann/birds", "--dry_run"),
    ):
        assert "has a published network (network), which was not trained here" in refusal(capsys, *command)
    archive = synthesize_archive(tmp_path / "archive", recordings=1, duration_s=5, species=2, annotations=2, seed=1)
    with pytest.raises(UserError, match="cannot be the start of a training"):
        settings_of(flags(archive, tmp_path / "trained", tmp_path / "cache", init_from=wrapped))


def test_labels_are_read_from_the_files_of_birdnet_and_perch(tmp_path):
    birdnet = write_labels(tmp_path / "birdnet.txt")
    assert read_labels(birdnet)[0] == NetworkLabel("Pycnonotus barbatus", "Pycnonotus barbatus", "Common Bulbul")
    third = tmp_path / "v3.csv"
    third.write_text("id;sci_name;com_name;class\n7;Otus senegalensis;African Scops-Owl;Aves\n", encoding="utf-8")
    assert read_labels(third) == [NetworkLabel("Otus senegalensis", "Otus senegalensis", "African Scops-Owl")]
    perch = tmp_path / "perch.csv"
    perch.write_text("inat2024_fsd50k\nOtus senegalensis\nGurgling\n", encoding="utf-8")
    assert read_labels(perch) == [
        NetworkLabel("Otus senegalensis", "Otus senegalensis", ""),
        NetworkLabel("Gurgling", "", ""),
    ]


@pytest.mark.parametrize(
    ("name", "header"),
    [("labels.csv", True), ("labels.txt", True), ("labels.txt", False)],
    ids=lambda value: str(value),
)
def test_perchs_classes_of_sound_keep_their_underscores(name, header, tmp_path):
    names = ["Female_singing", "Female_speech_and_woman_speaking", "Otus senegalensis"]
    path = tmp_path / name
    path.write_text("\n".join(["inat2024_fsd50k"] * header + names), encoding="utf-8")
    assert [label.code for label in read_labels(path)] == names
    assert [label.common_name for label in read_labels(path)] == ["", "", ""]


def test_one_column_of_a_csv_file_may_have_birdnets_labels(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("label\nApus apus_Common Swift\nDog_Dog\nNoise_Larm\n", encoding="utf-8")
    assert read_labels(path) == [
        NetworkLabel("Apus apus", "Apus apus", "Common Swift"),
        NetworkLabel("Dog", "Dog", "Dog"),
        NetworkLabel("Noise", "Noise", "Larm"),
    ]


def test_one_word_that_several_labels_begin_with_is_no_species(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("Dog_bark\nDog_growl\nNoise_Larm\n", encoding="utf-8")
    assert [label.code for label in read_labels(path)] == ["Dog_bark", "Dog_growl", "Noise"]


@pytest.mark.parametrize(
    ("encoding", "first"), [("utf-8-sig", ""), ("utf-16", "sep=;\r\n"), ("utf-16-le", ""), ("cp1252", "sep=;\r\n")]
)
def test_labels_are_read_as_spreadsheets_save_them(tmp_path, encoding, first):
    table = f'{first}idx;sci_name;com_name\r\n0;Corvus albus;"Corbeau ""pie"""\r\n\r\n1;Apus apus;Mauersegler \xfc\r\n'
    (tmp_path / "labels.csv").write_bytes(table.encode(encoding))
    (tmp_path / "labels.txt").write_bytes("Apus apus_Mauersegler \xfc\r\n".encode(encoding))
    swift = NetworkLabel("Apus apus", "Apus apus", "Mauersegler \xfc")
    assert read_labels(tmp_path / "labels.csv") == [
        NetworkLabel("Corvus albus", "Corvus albus", 'Corbeau "pie"'),
        swift,
    ]
    assert read_labels(tmp_path / "labels.txt") == [swift]


def test_an_archives_species_are_found_by_scientific_name_and_others_are_counted(tmp_path, caplog):
    table = tmp_path / "species.csv"
    table.write_text(
        "Scientific Name,Species eBird Code,Common Name\n"
        "pycnonotus  barbatus,combul2,\n"
        "Corvus albus,piecro1,Pied Crow\n",
        encoding="utf-8",
    )
    labels = read_labels(write_labels(tmp_path / "labels.txt"))
    with caplog.at_level(logging.WARNING):
        found = restrict_labels(labels, table)
    assert found == {0: NetworkLabel("combul2", "pycnonotus  barbatus", "Common Bulbul")}
    assert "1 of the 2 species" in caplog.text
    assert "Corvus albus" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.txt", "", "has no labels"),
        ("l.txt", "a\nb\na\n", "labels 1 and 3 of"),
        ("l.csv", "x,y\n1,2\n", "expected columns such as code"),
        ("l.csv", "idx;sci_name\n0;Aa bb\n10;Cc dd\n2;Ee ff\n", "not in the order of its column 'idx': sort them"),
    ],
)
def test_labels_that_name_no_classes_are_refused(name, text, said, tmp_path, capsys):
    (tmp_path / name).write_text(text, encoding="utf-8")
    command = ("wrap", write_onnx(tmp_path / "n.onnx"), "--labels", tmp_path / name, "--output", tmp_path / "m")
    assert said in refusal(capsys, *command, *NETWORK)


def test_presets_are_those_that_the_command_offers(capsys):
    with pytest.raises(SystemExit):
        main(["wrap", "--help"])
    assert f"one of {', '.join(PRESETS)}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "file", ["//attacker/share/network.onnx", "\\\\attacker\\share\\network.onnx", "\\??\\UNC\\attacker\\network.onnx"]
)
def test_a_network_on_another_computer_is_not_asked_for(file, wrapped, tmp_path, monkeypatch):
    monkeypatch.setattr(graph_kenya_birds, "IS_WINDOWS", True)
    asked = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: asked.append(path) or is_file(path))
    with pytest.raises(FileNotFoundError, match=r"is not there, and a file on another computer .* is not opened"):
        find_graph({"file": file}, tmp_path)
    assert all(path.is_relative_to(tmp_path) for path in asked)
    shutil.copy(wrapped / "network.onnx", tmp_path)
    assert find_graph({"file": "//attacker/share/network.onnx"}, tmp_path) == tmp_path / "network.onnx"


def test_a_network_on_another_computer_is_bundled(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(graph_kenya_birds, "IS_WINDOWS", True)  # an absolute path without a drive letter
    network, labels = write_onnx(tmp_path / "network.onnx"), write_labels(tmp_path / "labels.txt")
    words = ("wrap", network, "--labels", labels, "--output", tmp_path / "model", *NETWORK)
    assert "is on another computer, where the model would not open it: give --bundle" in refusal(capsys, *words)
    assert not (tmp_path / "model").exists()


def test_a_network_behind_a_relative_link_is_wrapped_and_gets_a_head(tmp_path):
    """As in the cache of the Hub, where a link leads to a file without a suffix."""
    (tmp_path / "blobs").mkdir()
    write_onnx(tmp_path / "network.onnx").rename(tmp_path / "blobs" / "0123")
    (tmp_path / "network.onnx").symlink_to(Path("blobs") / "0123")
    model = wrap(tmp_path, *NETWORK, network=tmp_path / "network.onnx")
    graph = json.loads((model / "config.json").read_text())["graph"]
    assert graph["file"] == (tmp_path / "network.onnx").as_posix()
    backbone = find_backbone(ModelArguments(backbone=str(model)), {})
    assert backbone.graph["file"] == graph["file"]
