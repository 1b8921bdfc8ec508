"""Other runtimes give the scores of torch, are compared with it first, and are refused where they cannot run."""

import json
from contextlib import contextmanager
from importlib.util import find_spec

import filelock
import numpy as np
import pytest
import torch
from detecting import run_in_folder, save_model, write_recordings
from safetensors.torch import load_file, save_file

from kenya_birds import onnx_graphs
from kenya_birds.cli import main
from kenya_birds.errors import UserError
from kenya_birds.inference import backbone_runtimes, backends, pipeline, window_scorer
from kenya_birds.inference.audio_stream import Stopwatch
from kenya_birds.inference.backbone_runtimes import BackboneCheck, OnnxBackbone, check_bfloat16
from kenya_birds.inference.backends import choose_backend
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.pipeline import SoundscapePipeline
from kenya_birds.model_loading import load_model
from kenya_birds.saved_models import find_model

RUNTIMES = [
    "onnx",
    pytest.param("openvino", marks=pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is missing")),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "birds")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("sound") / "recordings", (7.3, 12.0))


@pytest.fixture(scope="module")
def of_torch(model, recordings, tmp_path_factory):
    return found(model, recordings, tmp_path_factory.mktemp("torch") / "output", backend="torch")


def found(model, recordings, output, **options):
    """Every score by recording, start and species, and run.json."""
    run_in_folder(model, [recordings], output, formats=("json",), settings={"threshold": 0.0}, **options)
    rows = json.loads((output / "detections.json").read_text())["detections"]
    scores = {(row["recording"], row["start_s"], row["code"]): row["score"] for row in rows}
    return scores, json.loads((output / "run.json").read_text())


@pytest.mark.parametrize("backend", RUNTIMES)
def test_a_runtime_gives_the_scores_of_torch_and_states_the_largest_difference(
    model, recordings, of_torch, tmp_path, backend
):
    scores, run = found(model, recordings, tmp_path / "output", backend=backend, batch_size=6)
    expected, run_of_torch = of_torch
    assert scores.keys() == expected.keys()
    differences = [abs(scores[key] - expected[key]) for key in scores]
    assert max(differences) < 1e-3
    check = run["this_run"]["backend_check"]
    windows = len({key[:2] for key in scores})
    assert (check["windows"], check["detections"], check["changed_detections"]) == (windows, 4 * windows, 0)
    assert check["largest_score_difference"] == pytest.approx(max(differences), abs=2e-6)
    assert (run["settings"]["backend"], run["settings"]["precision"]) == (backend, "float32")
    assert run_of_torch["this_run"]["backend_check"] is None
    assert run_of_torch["settings"]["backend"] == "torch"


def test_a_runtime_computes_any_number_of_clips(model):
    network, extractor = load_model(model)
    features = extractor.extract(torch.randn(5, extractor.clip_samples, generator=torch.Generator().manual_seed(1)))
    with torch.inference_mode():
        torch.testing.assert_close(OnnxBackbone(network, features)(features), network.embed(features))


def test_a_backend_whose_scores_differ_ends_with_one_line_and_no_table(
    model, recordings, tmp_path, monkeypatch, capsys
):
    def other(backend, precision, network, extractor, threads):
        return lambda features: network.head_input(features) + 1

    monkeypatch.setattr(window_scorer, "open_backbone", other)
    words = ["detect", str(model), str(recordings), "--output", str(tmp_path / "output"), "--backend", "onnx"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "embeddings of --backend onnx in float32 differ from torch in float32 by up to 1 " in said
    assert "give --backend torch" in said
    assert not (tmp_path / "output" / "detections.csv").exists()


def test_differences_and_changed_detections_worked_by_hand():
    check = BackboneCheck("torch", "bfloat16", np.array([0.5, np.inf]))
    assert check.start(60)
    check.add(np.array([[0.50, 0.9], [0.2, 0.1]]), np.array([[0.49, 0.9], [0.25, 0.1]]))
    assert check.start(60)
    assert not check.start(60), "64 windows are compared, in whole batches"
    assert BackboneCheck.describe_all([None, check]) == {
        "windows": 2,
        "largest_score_difference": pytest.approx(0.05),
        "allowed_score_difference": 0.25,
        "detections": 1,
        "changed_detections": 1,
    }
    with pytest.raises(UserError, match="differ from torch in float32 by up to inf"):
        check.add(np.array([[0.5]]), np.array([[np.nan]]))


@pytest.fixture
def graphs(tmp_path, monkeypatch):
    """A cache of its own, in which the graph is a few bytes, and how often it was made."""
    made = []

    def write(module, features, path, **_):
        made.append(path)
        path.write_bytes(b"graph")

    monkeypatch.setattr(onnx_graphs.constants, "HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(onnx_graphs, "write_graph", write)
    return made


def test_a_graph_is_made_once_and_again_if_it_is_damaged_or_of_another_model(model, tmp_path, graphs):
    network, _ = load_model(model)
    features = torch.zeros(2, 32, 63)
    path = onnx_graphs.backbone_graph(network, features)
    assert onnx_graphs.backbone_graph(network, features) == path
    assert len(graphs) == 1
    path.write_bytes(b"gra")
    assert onnx_graphs.backbone_graph(network, features).read_bytes() == b"graph"
    assert len(graphs) == 2
    other, _ = load_model(save_model(tmp_path / "other", seed=1))
    assert onnx_graphs.backbone_graph(other, features) != path
    assert onnx_graphs.backbone_graph(network, torch.zeros(2, 32, 64)) != path


def test_a_graph_that_cannot_be_written_whole_is_not_left_in_the_cache(model, graphs, tmp_path, monkeypatch):
    def fail(module, features, path, **_):
        path.write_bytes(b"gra")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_graphs, "write_graph", fail)
    with pytest.raises(UserError, match=r"kenya_birds_graphs cannot be written: .*No space left.*set HF_HOME"):
        onnx_graphs.backbone_graph(load_model(model)[0], torch.zeros(2, 32, 63))
    assert {path.suffix for path in (tmp_path / "cache" / "kenya_birds_graphs").iterdir()} == {".lock"}


def test_a_graph_that_another_process_never_finishes_ends_the_wait(model, graphs, monkeypatch, caplog):
    network, features = load_model(model)[0], torch.zeros(2, 32, 63)
    path = onnx_graphs.backbone_graph(network, features)
    path.unlink()
    monkeypatch.setattr(onnx_graphs, "LONGEST_WAIT_S", 0.3)
    with (
        caplog.at_level("INFO"),
        filelock.FileLock(path.with_suffix(".lock")),
        pytest.raises(UserError, match="another process has held"),
    ):
        onnx_graphs.backbone_graph(network, features)
    assert "Another process makes the graph" in caplog.text
    assert onnx_graphs.backbone_graph(network, features) == path


def test_embeddings_are_compared_where_scores_hide_differences():
    check = BackboneCheck("onnx", "float32", np.array([0.5]))
    embeddings = np.random.default_rng(0).normal(5, 2, (64, 8))
    check.add_inputs(embeddings, embeddings + 0.03)
    with pytest.raises(UserError, match=r"embeddings of --backend onnx .* expected at most 0.04"):
        check.add_inputs(embeddings, embeddings[::-1])
    check.add_inputs(embeddings[:0], embeddings[:0])


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_damaged_weights_end_detection_instead_of_finding_nothing(
    model, recordings, tmp_path, monkeypatch, capsys, backend
):
    damaged = save_model(tmp_path / "damaged")
    # Its backbone is that of the other model, which has a graph.
    whole, _ = load_model(model)
    monkeypatch.setattr(
        backbone_runtimes, "backbone_graph", lambda _, features: onnx_graphs.backbone_graph(whole, features)
    )
    weights = load_file(damaged / "model.safetensors")
    name = next(name for name in weights if name.startswith("classifier"))
    save_file({**weights, name: weights[name] * float("nan")}, damaged / "model.safetensors", {"format": "pt"})
    words = ["detect", str(damaged), str(recordings), "--output", str(tmp_path / "output"), "--backend", backend]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("scores that are not finite: its weights are damaged")


def test_a_runtime_that_cannot_be_loaded_is_an_error_and_auto_takes_torch(model, recordings, monkeypatch, caplog):
    def fail(*_):
        raise ImportError("DLL load failed while importing onnxruntime_pybind11_state")

    monkeypatch.setattr(backbone_runtimes, "OnnxBackbone", fail)
    with pytest.raises(UserError, match=r"--backend onnx cannot be used here \(ImportError: DLL load failed"):
        SoundscapePipeline(model, backend="onnx")
    with installed(monkeypatch, "onnx"):
        assert SoundscapePipeline(model, backend="auto").scorer.backend == "torch"
    assert "The backend is torch: --backend onnx cannot be used here" in caplog.text


def test_recordings_can_be_analysed_while_others_are(model, recordings):
    pipe = SoundscapePipeline(model, settings=FindingSettings(threshold=0.0))
    first, second = sorted(recordings.iterdir())[:2]
    alone = pipe(first), pipe(second)
    both = [(detection, pipe(second)) for detection in pipe.detect([first])]
    assert [detection for detection, _ in both] == alone[0]
    assert all(other == alone[1] for _, other in both)


@contextmanager
def installed(monkeypatch, *names):
    monkeypatch.setattr(backends, "has_extra", lambda extra: extra in names)
    yield


@pytest.mark.parametrize(
    ("extras", "precision", "device", "chosen"),
    [
        (("onnx", "openvino"), "float32", "cpu", "openvino"),
        (("onnx",), "float32", "cpu", "onnx"),
        ((), "float32", "cpu", "torch"),
        (("onnx",), "bfloat16", "cpu", "torch"),
        (("onnx", "openvino"), "bfloat16", None, "openvino"),
        (("onnx", "openvino"), "float32", "cuda:1", "torch"),
    ],
)
def test_auto_is_the_fastest_runtime_that_is_installed(model, monkeypatch, extras, precision, device, chosen):
    with installed(monkeypatch, *extras):
        assert choose_backend("auto", precision, find_model(str(model)), device) == chosen


def test_a_published_network_keeps_its_own_runtime(model, tmp_path):
    saved = find_model(str(save_model(tmp_path / "birds")))
    config = saved.config
    (saved.folder / "config.json").write_text(json.dumps({**config, "graph": {"name": "BirdNET"}}))
    assert choose_backend("auto", "float32", saved, "cpu") == "torch"
    with pytest.raises(UserError, match=r"published network \(BirdNET\), which has a runtime of its own"):
        choose_backend("onnx", "float32", saved, "cpu")


def test_what_a_backend_cannot_do_is_refused(model, monkeypatch):
    saved = find_model(str(model))
    with pytest.raises(UserError, match="--backend onnx runs on a CPU, and the device is cuda: give --device cpu"):
        choose_backend("onnx", "float32", saved, "cuda")
    with pytest.raises(UserError, match="--backend onnx computes in float32"):
        choose_backend("onnx", "bfloat16", saved, "cpu")
    monkeypatch.setattr("kenya_birds.extras.find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(UserError, match="--backend openvino needs openvino, which is not installed: run pip install"):
        choose_backend("openvino", "float32", saved, "cpu")


def test_bfloat16_needs_a_processor_that_has_it(monkeypatch):
    monkeypatch.setattr(backbone_runtimes.torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.raises(UserError, match="this processor has no instructions for bfloat16"):
        check_bfloat16()
    monkeypatch.setattr(backbone_runtimes.torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    check_bfloat16()


def test_bfloat16_in_torch_is_compared_with_float32(model, recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(backbone_runtimes.torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setitem(
        backbone_runtimes.LARGEST_DIFFERENCE, "bfloat16", 1.0
    )  # this model's logits are 40 times larger
    _, run = found(model, recordings, tmp_path / "output", precision="bfloat16")
    assert run["settings"]["precision"] == "bfloat16"
    assert run["this_run"]["backend_check"]["largest_score_difference"] > 0


class OnGpu(torch.Tensor):
    """A tensor that numpy cannot read, like one on a GPU."""

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def make_scorer(model, device, **options):
    network, extractor = load_model(model)
    options = {"backend": "torch", "thresholds": np.full(4, 0.5), **options}
    return window_scorer.WindowScorer(network, extractor, torch.device(device), 2, Stopwatch(), **options)


def test_on_a_gpu_the_default_is_float32_and_bfloat16_is_compared_with_it(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    asked = []
    monkeypatch.setattr(pipeline, "WindowScorer", lambda *args, **options: asked.append((args[2].type, options)))
    SoundscapePipeline(model, settings=FindingSettings(threshold=0.5))
    assert [(device, options["precision"]) for device, options in asked] == [("cuda", "float32")]
    assert make_scorer(model, "meta", precision="float32").check is None
    assert make_scorer(model, "meta", precision="bfloat16").check is not None

    scorer = make_scorer(model, "cpu", precision="float32")
    scorer.check = BackboneCheck("torch", "bfloat16", np.full(4, 0.5))
    backbone = scorer._backbone
    scorer._backbone = scorer._reference = lambda features: backbone(features).as_subclass(OnGpu)
    scorer._score(np.ones((2, scorer._extractor.clip_samples), dtype=np.float32))
    assert (scorer.check.windows, scorer.check.largest_difference) == (2, 0)
