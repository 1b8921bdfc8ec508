"""The model card: a template that is filled with the results of training."""

import logging
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from kenya_birds.errors import UserError
from kenya_birds.evaluation.evaluation_report import (
    CONFUSION_FILE,
    F1_FILE,
    METRICS_FILE,
    PRECISION_RECALL_FILE,
    RELIABILITY_FILE,
    SPECIES_TABLE_FILE,
    WHOLE_RECORDINGS,
)
from kenya_birds.evaluation.unknown_species import UNKNOWN_SPECIES
from kenya_birds.experiments.results import OUT_OF_FOLD
from kenya_birds.experiments.score import DESCRIPTIONS
from kenya_birds.experiments.whole_recordings import RECALL_FILE, TIMELINE_FILE, WINDOWS_RELIABILITY_FILE
from kenya_birds.files import CARD_TEMPLATE, read_json, shipped_file
from kenya_birds.model.graph_kenya_birds import RUNTIMES
from kenya_birds.publishing.clips_dataset import markdown_cell
from kenya_birds.saved_models import THRESHOLDS_FILE
from kenya_birds.serving.command_line import command_line
from kenya_birds.training.run_folder import CARD_FILE, SUMMARY_FILE, writing_results
from kenya_birds.waveform_networks import license_terms

logger = logging.getLogger(__name__)

METRIC_NAMES = {
    "macro_f1": ("f1", "Macro F1"),
    "weighted_f1": ("f1", "Weighted F1"),
    "top1_accuracy": ("accuracy", "Top-1 accuracy"),
    "top5_accuracy": ("accuracy", "Top-5 accuracy"),
    "cmap": ("mean_average_precision", "cmAP"),
    "auroc": ("roc_auc", "Macro AUROC"),
    "ece": ("expected_calibration_error", "Expected calibration error"),
}
# Of whole recordings, for the header of the card.
WHOLE_METRIC_NAMES = {
    "cmap": ("mean_average_precision", "Mean average precision over windows of whole recordings"),
    "f1": ("f1", "F1 of events in whole recordings"),
}
# Of clips, at a score of 0.5 if the model is multi-label.
AT_HALF = ("macro_f1", "weighted_f1")
PICTURES = {
    TIMELINE_FILE: "One test recording: annotated and detected calls",
    RECALL_FILE: "Recall against false detections per hour",
    WINDOWS_RELIABILITY_FILE: "Reliability of the scores in all windows of whole recordings",
    CONFUSION_FILE: "Confusion matrix",
    PRECISION_RECALL_FILE: "Precision and recall by species",
    RELIABILITY_FILE: "Reliability on clips: share of correct predictions by score",
    F1_FILE: "F1 against training clips",
}


def write_card(output_dir: Path) -> None:
    """Writes the model card of an output folder of training.

    Args:
        output_dir: The folder.

    Raises:
        UserError: If it has another card than that of training.
    """
    with writing_results(output_dir):
        card = render_model_card(output_dir, output_dir, shipped_file(CARD_TEMPLATE))
        (output_dir / CARD_FILE).write_text(card, encoding="utf-8")
    logger.info("Model, card (README.md), metrics, tables and pictures are in %s", output_dir)


def render_model_card(
    model_dir: Path,
    model_id: str | PurePath,
    template: Path,
    *,
    license: str | None = None,
    data_license: str | None = None,
    source: str | None = None,
    dataset_id: str | None = None,
    code_url: str | None = None,
) -> str:
    """The text of a model's README.md.

    Args:
        model_dir: Output folder of training.
        model_id: Value for `pipeline(model=...)`: a repository's name or a folder.
        template: The card's Jinja template.
        license: Licence of the weights, by its identifier on the Hub; None if none has been chosen.
        data_license: Licence of the recordings and annotations of the training; None if unknown.
        source: Credit and citation for them.
        dataset_id: `owner/name` of the data set with the archive's clips, if it is published.
        code_url: URL of the code that trained the model.

    Raises:
        UserError: If a file of the folder or the template is missing.
    """
    if not template.is_file():
        raise UserError(f"there is no model card template {template}: it is at the top level of the repository")
    config = read_json(model_dir / "config.json")
    summary = read_json(model_dir / SUMMARY_FILE)
    metrics = read_json(model_dir / METRICS_FILE)
    cross_validated = OUT_OF_FOLD in metrics
    results = metrics[OUT_OF_FOLD if cross_validated else "test"]
    fold_s = summary["cross_validation"]["train_runtime_s"] if cross_validated else 0.0
    labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
    if isinstance(model_id, PurePath):
        model_id = model_id.as_posix()  # backslashes are escapes in Python
    model_name = model_id.rpartition("/")[2]
    network = config.get("graph")
    if network is not None and license is None and "-sa" in (network["license"] or "").lower():
        license = network["license"]  # what is derived from the network has its licence
    audio_model = config.get("audio_model")
    extractor = read_json(model_dir / "preprocessor_config.json")
    thresholds = read_json(model_dir / THRESHOLDS_FILE) if (model_dir / THRESHOLDS_FILE).is_file() else {}
    overlap_s = thresholds.get("overlap_s")
    of_recordings = summary.get("train_on") == "recordings"
    species = _species_rows(model_dir / SPECIES_TABLE_FILE)
    # Tables of earlier versions have no F1 at the thresholds.
    at_thresholds = of_recordings and bool(thresholds) and all("f1_at_threshold" in row for row in species)
    timm_tags = [] if network or audio_model else ["timm", config["backbone"].split(".")[0]]
    metadata = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["bioacoustics", "birds", "soundscape", *timm_tags],
        model_name=model_name,
        datasets=[dataset_id] if dataset_id else None,
        base_model=_base_models(summary, config["backbone"]),
        eval_results=_eval_results(
            _header_metrics(results, of_recordings), summary["archive"]["name"], dataset_id, cross_validated
        ),
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(template),
        model_id=model_id,
        model_name=model_name,
        license=license,
        data_license=data_license,
        source=source,
        dataset_id=dataset_id,
        code_url=code_url,
        shell_id=command_line([model_id]),
        thresholds=thresholds,
        hop_s=round(extractor["clip_s"] - (extractor["clip_s"] / 2 if overlap_s is None else overlap_s), 6),
        config=config,
        network=network and _network(model_dir, network),
        audio_model=audio_model and {**audio_model, "terms": license_terms(None, "this model")},
        head=config.get("head"),
        extractor=extractor,
        summary=summary,
        metrics=metrics,
        cross_validated=cross_validated,
        results=results,
        chosen=metrics.get("validation", {}),
        device_hours=(_device_s(summary) + summary["processes"] * fold_s) / 3600,
        fold_hours=summary["processes"] * fold_s / 3600,
        chosen_by=_chosen_by(summary["result"]),
        whole=results.get(WHOLE_RECORDINGS),
        unknown=results.get(UNKNOWN_SPECIES),
        whole_names=DESCRIPTIONS,
        metric_names={key: name for key, (_, name) in METRIC_NAMES.items() if results[key] is not None},
        labels=labels,
        epochs=_epochs,
        figure=_figure,
        cell=markdown_cell,
        interval=_interval,
        species=species,
        of_recordings=of_recordings,
        suffix="_at_threshold" if at_thresholds else "",
        pictures=_pictures(model_dir, is_calibrated=results["ece_before_calibration"] is not None),
    )
    return str(card)


def _pictures(model_dir: Path, *, is_calibrated: bool) -> dict[str, str]:
    """Captions of the pictures that the folder has, by file name."""
    captions = {name: caption for name, caption in PICTURES.items() if (model_dir / name).is_file()}
    if is_calibrated and RELIABILITY_FILE in captions:
        captions[RELIABILITY_FILE] += ", before and after calibration"
    return captions


def _training_s(summary: Mapping[str, Any]) -> float:
    """Seconds that training took, with its first stage and its rounds of self-training."""
    stages = [summary["result"], summary.get("first_stage", {}), *summary.get("self_training", [])]
    return float(sum(stage.get("train_runtime_s", 0.0) for stage in stages))


def _device_s(summary: Mapping[str, Any]) -> float:
    """Seconds that training took, times processes; of all models if several were combined."""
    return sum(each["processes"] * _training_s(each) for each in summary.get("members", [summary]))


def _header_metrics(results: Mapping[str, Any], of_recordings: bool) -> list[tuple[str, str, float]]:
    """Type, name and value of the header's metrics; of a model of recordings, those of whole recordings are first."""
    clips = [(key, *names, results[key]) for key, names in METRIC_NAMES.items() if results[key] is not None]
    if not of_recordings:
        return [(kind, name, value) for _, kind, name, value in clips]
    whole = results.get(WHOLE_RECORDINGS, {}).get("metrics", {})
    values = [(kind, name, whole.get(key, {}).get("value")) for key, (kind, name) in WHOLE_METRIC_NAMES.items()]
    return [
        *((kind, name, value) for kind, name, value in values if value is not None),
        *(
            (kind, f"{name} on clips{', at a score of 0.5' if key in AT_HALF else ''}", value)
            for key, kind, name, value in clips
        ),
    ]


def _eval_results(
    metrics: list[tuple[str, str, float]], archive: str, dataset_id: str | None, cross_validated: bool
) -> list[EvalResult]:
    """The metrics for the header of the card, which the Hub shows beside it."""
    return [
        EvalResult(
            task_type="audio-classification",
            dataset_type=dataset_id or archive,
            dataset_name=archive,
            # In cross-validation every recording is a test recording.
            dataset_split="all" if cross_validated else "test",
            metric_type=metric_type,
            metric_name=f"{metric_name} (cross-validation)" if cross_validated else metric_name,
            metric_value=round(value, 4),
        )
        for metric_type, metric_name, value in metrics
    ]


def _network(model_dir: Path, network: Mapping[str, Any]) -> dict[str, Any]:
    """What the card says about the published network of a model."""
    file = Path(network["file"])
    return {
        **network,
        "file": file.name,
        "is_bundled": (model_dir / file.name).is_file(),
        "runtime": RUNTIMES[file.suffix][1],
        "terms": license_terms(network["license"], "this model"),
    }


def _base_models(summary: Mapping[str, Any], backbone: str) -> str | list[str] | None:
    """The Hub's names of the models that training started from; None if none is on the Hub."""
    starts = [each["starting_point"] for each in summary.get("members", [summary])]
    names = sorted({name for start in starts if (name := _base_model(start, backbone)) is not None})
    return names if len(names) > 1 else next(iter(names), None)


def _base_model(starting_point: str, backbone: str) -> str | None:
    """The Hub's name of the model that training started from; None if it is not on the Hub."""
    if "@" in starting_point:  # `owner/name@commit`
        return starting_point.partition("@")[0]
    if starting_point != "pretrained":
        return None
    weights = timm.get_pretrained_cfg(backbone)
    return None if weights is None or not weights.hf_hub_id else str(weights.hf_hub_id)


def _chosen_by(result: Mapping[str, Any]) -> str | None:
    """The metric by which the best epoch was chosen; None if the last epoch was kept."""
    if "best_epoch" not in result:
        return None
    metric = str(result.get("chosen_by", "macro_f1")).removeprefix("eval_")  # older runs did not record it
    names = {"macro_f1": "macro F1", "weighted_f1": "weighted F1", "cmap": "mean average precision over windows"}
    return names.get(metric, metric)


def _species_rows(path: Path) -> list[dict[str, str]]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: expected the table that training writes ({error})") from None
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _epochs(numbers: float | list[float]) -> str:
    """One or more epochs, without a point where they are whole."""
    return ", ".join(f"{number:.10g}" for number in np.atleast_1d(numbers))


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else f"{_figure(ends[0])} to {_figure(ends[1])}"


def _figure(value: float | str | None) -> str:
    """A number with three decimals; empty if there is none."""
    return "" if value is None or value == "" else f"{float(value):.3f}"
