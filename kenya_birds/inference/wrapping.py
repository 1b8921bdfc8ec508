"""Model folders of published networks, for `kenya-birds wrap`."""

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from kenya_birds import __version__
from kenya_birds.console import transformers_bars_hidden, user_errors
from kenya_birds.errors import UserError
from kenya_birds.evaluation.thresholds import Thresholds
from kenya_birds.files import link_or_copy, write_json
from kenya_birds.folders import check_new_folder, users_folder
from kenya_birds.inference.network_labels import as_species
from kenya_birds.inference.published_networks import NetworkPlan
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import WAVEFORM, KenyaBirdsFeatureExtractor
from kenya_birds.model.graph_kenya_birds import is_elsewhere, open_graph
from kenya_birds.model.modeling_kenya_birds import MULTI_LABEL, KenyaBirdsForAudioClassification
from kenya_birds.model.network_input_kenya_birds import network_input
from kenya_birds.model_loading import load_model
from kenya_birds.saved_models import THRESHOLDS_FILE
from kenya_birds.waveform_networks import graph_settings, license_terms, spectrogram_shape

# Scores of model and network may differ by rounding.
TOLERANCE = 1e-5


def wrap_network(plan: NetworkPlan, output_dir: str | Path, *, bundle: bool = False) -> float:
    """Writes a published network as a model folder, and compares the scores of both on one window of noise.

    The folder is written completely or not at all.

    Args:
        plan: The network (see `plan_network`).
        output_dir: A new or empty folder.
        bundle: Whether to copy the network's file into the folder. Otherwise, the folder has its path and SHA-256.

    Returns:
        The largest difference between the scores of the model and of the network.

    Raises:
        UserError: If the folder cannot be written, the network needs other files besides its own, or the scores of
            the model differ from those of the network.
    """
    output_dir = Path(output_dir).resolve()
    check_new_folder(output_dir)
    if not bundle and is_elsewhere(str(plan.path.absolute())):
        raise UserError(
            f"{plan.path} is on another computer, where the model would not open it: give --bundle, or its path with "
            "a drive letter"
        )
    with users_folder(output_dir, f"the model {output_dir}") as partial:
        _write(plan, partial, bundle=bundle)
        copy = partial / plan.path.name
        (shutil.copyfile if bundle else link_or_copy)(plan.path, copy)
        _check_alone(copy)
        difference = _compare(plan, partial)
        gc.collect()  # closes the networks: Windows renames no folder with an open file
        if not bundle:
            copy.unlink()
    return difference


def _write(plan: NetworkPlan, folder: Path, *, bundle: bool) -> None:
    settings, labels = plan.settings, list(plan.labels.values())
    codes = [label.code for label in labels]
    graph = graph_settings(
        plan.path,
        settings,
        plan.tensor,
        plan.samples,
        outputs=plan.outputs,
        embedding_size=plan.embedding_size,
    )
    if bundle:
        graph["file"] = plan.path.name
    config = KenyaBirdsConfig(
        id2label=dict(enumerate(codes)),
        label2id={code: index for index, code in enumerate(codes)},
        species=as_species(labels),
        problem_type=MULTI_LABEL,
        graph=graph,
    )
    model = KenyaBirdsForAudioClassification(config)
    model.output_of_class = torch.tensor(list(plan.labels))
    with transformers_bars_hidden():
        model.save_pretrained(folder)
    with user_errors(ValueError):
        KenyaBirdsFeatureExtractor(feature_type=WAVEFORM, **settings.front_end()).save_pretrained(folder)
    if settings.threshold is not None:
        thresholds = Thresholds(None, settings.threshold, dict.fromkeys(codes, settings.threshold), by_hand=True)
        write_json(thresholds.to_json(), folder / THRESHOLDS_FILE)
    (folder / "README.md").write_text(render_card(plan, graph), encoding="utf-8")


def _check_alone(copy: Path) -> None:
    """Raises `UserError` if a network does not open without the other files of its folder, which no hash covers."""
    try:
        open_graph(copy)
    except ValueError as error:
        raise UserError(
            f"{copy.name} does not open without other files of its folder: save the network as one file, for example "
            f"with onnx.save(onnx.load(FILE), NEW_FILE) ({error})"
        ) from None


def _compare(plan: NetworkPlan, folder: Path) -> float:
    """The largest difference between the scores of a model folder and of its network, for a window of noise."""
    settings = plan.settings
    noise = np.random.default_rng(1).uniform(-0.1, 0.1, (1, plan.samples)).astype(np.float32)
    model, extractor = load_model(folder)
    with torch.no_grad():
        found = model(extractor.extract(torch.from_numpy(noise))).logits.double().sigmoid()[0].numpy()
    values = network_input(noise, settings.peak, spectrogram_shape(plan.tensor))
    scores = torch.from_numpy(open_graph(plan.path).run(values, plan.tensor.name, [str(settings.scores)])[0]).double()
    own = {"sigmoid": scores.sigmoid(), "softmax": scores.softmax(dim=1), "none": scores}[str(settings.activation)]
    difference = float(np.abs(found - own[0].numpy()[list(plan.labels)]).max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"the model's scores differ from those of {plan.path.name} by {difference:.2g}, expected at most "
            f"{TOLERANCE:g}: the network gives other scores for the same window"
        )
    return difference


def render_card(plan: NetworkPlan, graph: dict[str, object]) -> str:
    """The text of the model's README.md.

    Args:
        plan: The network.
        graph: `graph` of the model's config.
    """
    settings = plan.settings
    terms = license_terms(settings.license, "this folder")
    if settings.threshold is None:
        threshold = "It has no decision threshold: give one with `--threshold`."
    else:
        threshold = (
            f"The decision threshold of all species is {settings.threshold:g}. It was set by hand and was not checked "
            "on recordings: check a sample of the detections by ear."
        )
    # JSON values are valid YAML.
    license_line = f"license: {json.dumps(settings.license, ensure_ascii=False)}\n" if settings.license else ""
    of_all = "" if len(plan.labels) == plan.outputs else f" of its {plan.outputs:,}"
    return f"""---
{license_line}pipeline_tag: audio-classification
tags: [bioacoustics, birds]
---

# {settings.name}

This model is the published network {settings.name}. `kenya-birds wrap` (kenya_birds {__version__}) turned it into a
model folder; nothing was trained. It scores {len(plan.labels):,}{of_all} classes in windows of {settings.clip_s:g} s
at {settings.sampling_rate} Hz.

- File: `{plan.path.name}`, SHA-256 `{graph["sha256"]}`
- Source: {settings.source or "not stated"}
- {terms}

The scores are those of the network. They are not calibrated probabilities. {threshold}

```bash
kenya-birds detect FOLDER recordings --output found
```

Code in this folder is under Apache-2.0. Cite the network's authors when you publish its detections.

```json
{json.dumps({name: value for name, value in graph.items() if name != "file"}, indent=2, ensure_ascii=False)}
```
"""
