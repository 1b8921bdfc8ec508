"""An exported graph gives the model's probabilities, to a program that has neither torch nor this package."""

import copy
import csv
import hashlib
import json
import logging
import subprocess
import sys
import wave
from logging.handlers import BufferingHandler

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kenya_birds.cli import main
from kenya_birds.data.audio import decode_wav
from kenya_birds.errors import UserError
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.model.signal_kenya_birds import stft
from kenya_birds.publishing.export import (
    PROGRAM,
    WaveformClassifier,
    compare_graph,
    export_onnx,
    render_readme,
    run_graph,
)
from kenya_birds.publishing.fourier_matrices import FourierMatrices
from kenya_birds.training.front_ends import PRESETS

LABELS = ["combul2", "gnbcam2", "hartur1"]
SPECIES = {"combul2": {"scientific_name": "Pycnonotus barbatus", "common_name": "Common Bulbul"}}

# Goes in front of a program that has onnxruntime and numpy alone.
STRANGER = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("kenya_birds", "torch", "transformers", "timm", "onnx", "scipy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
"""
IN_BATCHES = """
import numpy as np
import onnxruntime

answers = {}
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession("model.onnx", options)
for source, path in (("clips", sys.argv[1]), ("odd", sys.argv[2])):
    waveform = np.load(path)
    for batch in (1, 7):
        parts = [waveform[first : first + batch] for first in range(0, len(waveform), batch)]
        answers[f"{source}_{batch}"] = np.concatenate([session.run(None, {"waveform": part})[0] for part in parts])
np.savez("answers.npz", **answers)
"""
METADATA = """
import json
import logging
import onnxruntime

print(json.dumps(onnxruntime.InferenceSession("model.onnx").get_modelmeta().custom_metadata_map))
"""


def save_model(folder, problem_type="single_label_classification", **fields):
    """A model with random weights whose answers differ from clip to clip, calibrated."""
    torch.manual_seed(0)
    config = KenyaBirdsConfig(
        backbone="test_convnext2",
        problem_type=problem_type,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        species=SPECIES,
        logit_scale=0.5,
    )
    if problem_type == "multi_label_classification":
        config.logit_scale, config.logit_offset = [0.5, 1.0, 2.0], [1.0, 0.0, -1.0]
        config.no_call_class = True
    model = KenyaBirdsForAudioClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    extractor = KenyaBirdsFeatureExtractor(**fields)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return model, extractor


def expected(model, extractor, waveform):
    with torch.no_grad():
        logits = model(**extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")).logits
    multi_label = model.config.problem_type == "multi_label_classification"
    return (logits.sigmoid() if multi_label else logits.softmax(dim=-1)).numpy()


def run_stranger(program, folder, *words):
    result = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER + program, *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def waveforms(clips, tmp_path_factory):
    """Clips of every split and species of the small archive, and odd ones; saved for the other process."""
    folder = tmp_path_factory.mktemp("waveforms")
    ours = []
    for split in clips.values():
        labels = np.array(split["label"][:])
        rows = [row for label in np.unique(labels) for row in np.flatnonzero(labels == label)[:2]]
        ours += [decode_wav(clip["bytes"]) for clip in split.select(rows)["audio"]]
    ours = np.stack(ours)
    odd = np.zeros((8, ours.shape[1]))
    odd[1, 40_000] = 1.0
    odd[2] = np.sin(np.arange(ours.shape[1]) * 0.5)
    odd[3, :30_000] = ours[0, :30_000]
    odd[4] = 1e-4 * ours[1]
    odd[5] = 0.5
    odd[6] = np.clip(20 * ours[2], -1, 1)
    odd[7] = np.random.default_rng(0).uniform(-1, 1, ours.shape[1])
    saved = {"clips": ours.astype(np.float32), "odd": odd.astype(np.float32)}
    for name, waveform in saved.items():
        np.save(folder / f"{name}.npy", waveform)
    return folder, saved


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Exports a model with these settings."""

    def run(problem_type, **fields):
        folder = tmp_path_factory.mktemp("export")
        model, extractor = save_model(folder / "model", problem_type, **fields)
        thresholds = {"wanted_precision": None, "every_species": 0.4, "species": {"combul2": 0.3, "hartur1": None}}
        (folder / "model" / "thresholds.json").write_text(json.dumps(thresholds))
        log = BufferingHandler(capacity=10_000)
        logging.getLogger("onnxscript").addHandler(log)
        main(["export", str(folder / "model"), "--output", str(folder / "graph")])
        logging.getLogger("onnxscript").removeHandler(log)
        assert [record.getMessage() for record in log.buffer if record.levelno >= logging.WARNING] == []
        return model, extractor, folder / "graph"

    return run


@pytest.fixture(scope="module")
def single(export):
    return export("single_label_classification")


@pytest.fixture(scope="module")
def multi(export):
    return export("multi_label_classification", noise_reduction="none", high_pass_hz=0)


@pytest.mark.parametrize("exported", ["single", "multi"])
def test_the_graph_gives_the_models_probabilities_one_clip_or_seven_at_a_time(exported, waveforms, request):
    model, extractor, graph = request.getfixturevalue(exported)
    folder, waveform = waveforms
    run_stranger(IN_BATCHES, graph, folder / "clips.npy", folder / "odd.npy")
    with np.load(graph / "answers.npz") as answers:
        for source in ("clips", "odd"):
            wanted = expected(model, extractor, waveform[source])
            # It would be easy to agree on answers that are all alike.
            assert wanted.std(axis=0).max() > 0.02
            for batch in (1, 7):
                found = answers[f"{source}_{batch}"]
                np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)
                assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()
            if exported == "single":
                np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"noise_reduction": "nonstationary", "pre_emphasis": 0.97, "top_db": 60.0},
        {"noise_reduction": "spectrogram"},
        {"feature_type": "stft", "n_fft": 1000, "hop_length": 441, "f_max_hz": 8000.0, "clip_s": 2.5},
        # 1009 is prime, and odd.
        {"noise_reduction": "none", "n_fft": 1009, "hop_length": 300, "do_standardize": False},
        {"sampling_rate": 22_050, "f_max_hz": 7600.0, "high_pass_hz": 0},
        {**PRESETS["perch-2"].features, "clip_s": 2.5},
    ],
    ids=["default", "nonstationary", "spectrogram", "stft", "prime", "seed", "perch"],
)
def test_the_front_end_computes_the_same_with_matrices(waveforms, fields):
    extractor = KenyaBirdsFeatureExtractor(**fields)
    waveform = torch.from_numpy(np.concatenate([waveforms[1]["odd"], waveforms[1]["clips"][:8]]))
    waveform = waveform[:, : extractor.clip_samples]
    wanted = extractor.extract(waveform)
    with FourierMatrices():
        found = extractor.extract(waveform)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02)
    # Single bins on the edge of the gate go over it.
    assert (found - wanted).abs().mean() < 1e-4


@pytest.mark.parametrize(("n_fft", "hop_length", "samples"), [(1024, 256, 96_000), (600, 250, 5001), (46, 46, 460)])
def test_transforms_of_frames_are_torchs(n_fft, hop_length, samples):
    waveform = torch.randn(3, samples, generator=torch.Generator().manual_seed(0))
    window = torch.hann_window(n_fft)
    wanted = stft(waveform, window, hop_length).transpose(1, 2)
    with FourierMatrices():
        found = stft(waveform, window, hop_length).transpose(1, 2)
        back = torch.fft.irfft(found, n=n_fft)
    torch.testing.assert_close(found.real, wanted.real, rtol=0, atol=2e-5 * n_fft**0.5)
    torch.testing.assert_close(found.imag, wanted.imag, rtol=0, atol=2e-5 * n_fft**0.5)
    torch.testing.assert_close(back, torch.fft.irfft(wanted, n=n_fft), rtol=0, atol=1e-5)


@settings(max_examples=60)
@given(n=st.integers(2, 2000))
def test_transforms_of_any_length_are_numpys_and_go_back(n):
    values = np.random.default_rng(n).standard_normal((2, n))
    waveform = torch.from_numpy(values.astype(np.float32))
    with FourierMatrices():
        spectrum = torch.fft.rfft(waveform, n=n)
        back = torch.fft.irfft(spectrum, n=n)
    wanted = np.fft.rfft(values)
    np.testing.assert_allclose(spectrum.real.numpy(), wanted.real, atol=1e-5 * n**0.5)
    np.testing.assert_allclose(spectrum.imag.numpy(), wanted.imag, atol=1e-5 * n**0.5)
    torch.testing.assert_close(back, waveform, rtol=0, atol=1e-5)


def test_what_the_matrices_do_not_do_is_refused():
    with FourierMatrices(), pytest.raises(NotImplementedError, match="centred frames"):
        torch.stft(torch.zeros(1, 4096), 1024, 256, window=torch.ones(1024), center=False, return_complex=True)


def test_labels_thresholds_and_metadata_tell_of_the_model(single, waveforms):
    graph = single[2]
    metadata = json.loads(run_stranger(METADATA, graph))
    assert json.loads(metadata["labels"]) == LABELS
    assert json.loads(metadata["species"]) == SPECIES
    assert (metadata["sampling_rate_hz"], metadata["clip_samples"]) == ("32000", "96000")
    assert (metadata["problem_type"], metadata["backbone"]) == ("single_label_classification", "test_convnext2")
    weights = graph.parent / "model" / "model.safetensors"
    assert metadata["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert metadata["model_id"] == "model"  # of a folder nothing is told
    readme = (graph / "README.md").read_text()
    assert str(graph.parent) not in readme
    assert readme.startswith(
        "# model: a bird classifier as an ONNX graph\n\nExported by `kenya-birds export` from the model `model`"
    )
    with open(graph / "labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["code"] for row in rows] == LABELS
    assert rows[0] == {"class_id": "0", "code": "combul2", **SPECIES["combul2"]}
    assert (graph / "thresholds.json").read_text() == (graph.parent / "model" / "thresholds.json").read_text()


def test_the_readme_links_a_model_of_the_hub():
    metadata = {"sampling_rate_hz": "32000", "clip_samples": "96000", "problem_type": "", "backbone": "test_convnext"}
    text = render_readme(f"ann/birds@{'0123456789' * 4}", metadata, classes=3, has_thresholds=False)
    assert text.startswith("# birds: a bird classifier as an ONNX graph\n")
    assert f"[`ann/birds`](https://huggingface.co/ann/birds/tree/{'0123456789' * 4}) (commit `012345678901`)" in text


def test_the_readmes_program_says_what_is_heard(single, waveforms):
    model, extractor, graph = single
    recording = (32768 * np.clip(waveforms[1]["clips"][:6].ravel()[: 5 * 96_000 + 20_000], -1, 0.999)).astype("<i2")
    with wave.open(str(graph / "recording.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(32_000)
        file.writeframes(recording.tobytes())
    program = (graph / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert program == PROGRAM
    rows = [line.split("\t") for line in run_stranger(program, graph, "recording.wav").splitlines()]
    starts = [*range(0, 5 * 96_000, 96_000), 4 * 96_000 + 20_000]
    clips = np.stack([recording[start : start + 96_000] for start in starts]).astype(np.float32) / 32768
    wanted = expected(model, extractor, clips)
    assert [row[0] for row in rows] == ["0.0 s", "3.0 s", "6.0 s", "9.0 s", "12.0 s", "12.6 s"]
    assert [row[1] for row in rows] == [LABELS[index] for index in wanted.argmax(axis=1)]
    np.testing.assert_allclose([float(row[2]) for row in rows], wanted.max(axis=1), atol=2e-3)


@pytest.mark.parametrize("words", [[], ["a.wav", "b.wav"]])
def test_the_readmes_program_says_how_it_is_used(tmp_path, words):
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "usage: python listen.py recording.wav\n")


def test_the_readmes_program_says_in_one_line_that_there_is_no_file(single):
    words = [sys.executable, "-c", PROGRAM, "none.wav"]
    done = subprocess.run(words, cwd=single[2], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "none.wav cannot be read: No such file or directory\n")


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_24", None])
def test_the_readmes_program_says_which_files_it_reads(single, capfd, subtype):
    path = single[2] / "other.wav"
    path.write_bytes(b"no sound")
    if subtype is not None:
        soundfile.write(path, np.zeros(96_000), 32_000, subtype=subtype)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path.name], cwd=single[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "expected a mono 16-bit WAV file at 32000 Hz: convert it first\n"


def test_damaged_samples_give_no_number(single):
    waveform = np.zeros((2, 96_000), dtype=np.float32)
    waveform[0, 100] = np.nan
    damaged, silent = run_graph(single[2] / "model.onnx", waveform, threads=1)
    assert np.isnan(damaged).all()
    assert silent.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "words", "text"),
    [
        (None, [], "there is no model 'MODEL'"),
        ({}, ["--format", "tflite"], "--formats is 'tflite': expected onnx"),
        ({"feature_type": "reassigned"}, [], "reassigned features, which cannot be exported"),
    ],
    ids=["no model", "format", "reassigned"],
)
def test_what_cannot_be_exported_is_said_in_one_line_and_leaves_nothing(tmp_path, capsys, fields, words, text):
    folder = tmp_path / "model"
    if fields is not None:
        save_model(folder, **fields)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["export", str(folder), "--output", str(tmp_path / "graph"), *words])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert text.replace("MODEL", str(folder)) in error
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if fields is not None else [])


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    save_model(tmp_path / "model")
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "model"), "--output", str(tmp_path / "model")])
    assert "is not an empty folder: give another --output" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("kenya_birds.extras.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(
        UserError, match=r'export needs onnxscript, which is not installed: run pip install "onnx.*" "onnxruntime'
    ):
        export_onnx(str(tmp_path), tmp_path / "graph")


@pytest.mark.usefixtures("no_private_folders")
def test_the_folder_is_for_everybody_who_may_read_the_one_above(tmp_path, monkeypatch):
    save_model(tmp_path / "model")
    monkeypatch.setattr(
        "kenya_birds.publishing.export.write_classifier", lambda classifier, path, metadata: path.touch()
    )
    monkeypatch.setattr("kenya_birds.publishing.export.compare_graph", lambda classifier, path: 0.0)
    export_onnx(str(tmp_path / "model"), tmp_path / "graph")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "graph"}
    assert {path.name for path in (tmp_path / "graph").iterdir()} >= {"model.onnx", "labels.csv", "README.md"}


def test_a_graph_of_another_model_is_noticed(single):
    model, extractor, graph = single
    assert compare_graph(WaveformClassifier(model, extractor), graph / "model.onnx") < 1e-3
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.classifier.bias[0] += 0.5
    with pytest.raises(UserError, match="the exported graph differs from the model: probabilities differ by"):
        compare_graph(WaveformClassifier(other, extractor), graph / "model.onnx")
