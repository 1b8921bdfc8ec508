"""The description of a saved model for `kenya-birds info`, from its JSON and CSV files; the model is not loaded."""

import csv
from pathlib import Path
from typing import Any

from kenya_birds.files import read_json
from kenya_birds.saved_models import THRESHOLDS_FILE, SavedModel

# Files that training writes.
SUMMARY_FILE, METRICS_FILE, SPECIES_TABLE_FILE = "training_summary.json", "metrics.json", "per_species.csv"
OUT_OF_FOLD = "out_of_fold"
# Problem type of a config without one (see `classification_loss`).
DEFAULT_PROBLEM_TYPE = "single_label_classification"
FIGURES = {
    "macro_f1": "Macro F1",
    "cmap": "cmAP",
    "auroc": "Macro AUROC",
    "top1_accuracy": "Top-1 accuracy",
    "ece": "Expected calibration error",
}


def describe_model(saved: SavedModel) -> dict[str, Any]:
    """Species, decision thresholds, data and metrics of a model of this package; unknown values are None.

    Args:
        saved: The model.

    Raises:
        UserError: If one of its JSON files is damaged.
    """
    config = saved.config
    labels = config.get("id2label") or {}
    codes = [str(labels[label]) for label in sorted(labels, key=int)]
    extractor = _json(saved.folder / "preprocessor_config.json")
    summary, metrics = _json(saved.folder / SUMMARY_FILE), _json(saved.folder / METRICS_FILE)
    thresholds = _json(saved.folder / THRESHOLDS_FILE)
    split = OUT_OF_FOLD if OUT_OF_FOLD in metrics else "test"
    names, of_species = config.get("species") or {}, thresholds.get("species", {})
    table = _species_table(saved.folder / SPECIES_TABLE_FILE)
    return {
        "model": saved.name,
        "backbone": (config.get("graph") or config.get("audio_model") or {}).get("name") or config.get("backbone"),
        "networks": config.get("backbone_members", 1),
        "published_network": config.get("graph"),
        "head": config.get("head"),
        "problem_type": config.get("problem_type") or DEFAULT_PROBLEM_TYPE,
        "calibrated": config.get("logit_scale") not in (None, 1.0) or config.get("logit_offset") not in (None, 0.0),
        "clip_s": extractor.get("clip_s"),
        "sampling_rate_hz": extractor.get("sampling_rate"),
        "frequencies_hz": [extractor.get("f_min_hz"), extractor.get("f_max_hz")],
        "data": {
            name: summary.get("archive", {}).get(name) for name in ("name", "recordings", "hours", "annotations")
        },
        "clips": summary.get("clips_per_split"),
        "versions": summary.get("versions"),
        "evaluated_on": split if split in metrics else None,
        "figures": {name: metrics[split].get(name) for name in FIGURES} if split in metrics else None,
        "intervals": metrics.get(split, {}).get("intervals"),
        "species": [
            {
                "code": code,
                "common_name": names.get(code, {}).get("common_name"),
                "scientific_name": names.get(code, {}).get("scientific_name"),
                "threshold": of_species.get(code),
                "train_clips": summary.get("clips_per_species", {}).get(code, {}).get("train"),
                "f1": _number(table.get(code, {}).get("f1")),
                "f1_at_threshold": _number(table.get(code, {}).get("f1_at_threshold")),
            }
            for code in codes
        ],
        "has_thresholds": bool(thresholds),
    }


def format_model(about: dict[str, Any]) -> str:
    """The description as text.

    Args:
        about: The result of `describe_model`.
    """
    low_hz, high_hz = about["frequencies_hz"]
    lines = [
        f"{about['model']}: {about['backbone']}, {len(about['species'])} species, {about['problem_type']}",
        f"Clips of {_shown(about['clip_s'])} s at {_shown(about['sampling_rate_hz'])} Hz; frequencies from "
        f"{_shown(low_hz)} to {_shown(high_hz)} Hz; scores are {'' if about['calibrated'] else 'not '}calibrated",
    ]
    if about["networks"] > 1:
        lines.append(f"It combines {about['networks']} networks, which were trained apart: their logits are averaged")
    network = about["published_network"]
    if network is not None:
        lines.append(
            f"A published network: {Path(network['file']).name}, licence {network.get('license') or 'not stated'}, "
            f"from {network.get('source') or 'an unknown source'}"
        )
    head = about["head"]
    if head is not None:
        hidden = f"one hidden layer of {head['hidden_size']} units" if head["hidden_size"] else "linear"
        scores = ", with the network's own scores as inputs" if head["network_scores"] else ""
        lines.append(f"Only its head was trained ({hidden}{scores}): the backbone is frozen")
    data, clips = about["data"], about["clips"]
    if data["recordings"] is not None:
        parts = "" if not clips else ": " + ", ".join(f"{n:,} {split}" for split, n in clips.items()) + " clips"
        lines.append(
            f"Trained on '{data['name']}', {data['recordings']} recordings, {data['hours']:.1f} h, "
            f"{data['annotations']:,} annotations{parts}"
        )
    at_half = about["problem_type"] != DEFAULT_PROBLEM_TYPE
    if about["figures"]:
        lines += ["", f"Metrics ({about['evaluated_on'].replace('_', '-')}, with 95% intervals):"]
        for name, title in FIGURES.items():
            value, interval = about["figures"][name], (about["intervals"] or {}).get(name)
            if value is not None:
                title += " at 0.5" if name == "macro_f1" and at_half else ""
                ends = f"  {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
                lines.append(f"  {title:<27}{value:.3f}{ends}")
    # Tables of older versions have no F1 at the thresholds.
    has_f1 = any(bird["f1_at_threshold"] is not None for bird in about["species"])
    f1 = "f1_at_threshold" if at_half and has_f1 else "f1"
    shown_f1 = "F1 at threshold" if f1 == "f1_at_threshold" else "F1 at 0.5" if at_half else "F1"
    titles = ("code", "decision threshold", shown_f1, "training clips", "name")
    rows = [
        (
            bird["code"],
            _threshold(bird["threshold"]) if about["has_thresholds"] else "",
            "" if bird[f1] is None else f"{bird[f1]:.3f}",
            "" if bird["train_clips"] is None else f"{bird['train_clips']:,}",
            " ".join(filter(None, (bird["common_name"], bird["scientific_name"] and f"({bird['scientific_name']})"))),
        )
        for bird in about["species"]
    ]
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles) - 1)]
    lines.append("")
    for code, *numbers, name in (titles, *rows):
        aligned = "  ".join(f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=True))
        lines.append(f"{code:<{widths[0]}}  {aligned}  {name}".rstrip())
    return "\n".join(lines)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _species_table(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row.get("code", ""): row for row in csv.DictReader(file)}


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _shown(value: float | None) -> str:
    return "?" if value is None else f"{value:g}"


def _threshold(value: float | None) -> str:
    """A species with threshold null is never reported."""
    return "never reported" if value is None else f"{value:.3f}"
