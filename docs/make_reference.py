"""Writes docs/reference.md from the docstrings of what users call: `make reference`."""

import re
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parent.parent
WIDTH = 100
PAGE = ROOT / "docs" / "reference.md"
HEAD = """# Reference

What one calls from Python, from the docstrings; made by `make reference`, so change the docstrings, not this page.
A wrong argument or file raises `kenya_birds.errors.UserError`, whose message says what to do.
"""
# What users call, by what they want to do.
CONTENTS = {
    "Archives": [
        "data.archive.read_archive",
        "data.archive.Archive",
        "data.archive.select_classes",
        "data.check.check_archive",
        "data.download.download_record",
        "data.synthetic.synthesize_archive",
        "data.recording_name.parse_recording_name",
        "exploration.report.write_report",
    ],
    "Sound": ["data.audio.read_header", "data.audio.RecordingReader", "data.audio.decode_wav"],
    "Splits": [
        "data.balanced_split.make_splits",
        "data.splits.read_splits",
        "data.splits.write_splits",
        "data.split_audit.audit_split",
        "data.split_audit.format_audit",
    ],
    "Clips": [
        "data.dataset.load_clips",
        "data.dataset.clips_builder",
        "data.dataset.build_clips",
        "data.dataset.load_no_call",
        "data.builders.ClipsConfig",
        "data.builders.KenyaBirds",
    ],
    "Model": [
        "model.feature_extraction_kenya_birds.KenyaBirdsFeatureExtractor",
        "model.modeling_kenya_birds.KenyaBirdsForAudioClassification",
        "model.configuration_kenya_birds.KenyaBirdsConfig",
        "saved_models.find_model",
        "saved_models.load_classifier",
    ],
    "Training": [
        "training.run.Settings",
        "training.run.Run",
        "training.trainer.KenyaBirdsTrainer",
        "training.augmentation.Augmentation",
        "training.estimate.estimate",
        "training.tuning.tune",
        "experiments.single_run.train_and_evaluate",
    ],
    "Evaluation": [
        "experiments.reevaluation.evaluate_model",
        "evaluation.predictions.Predictions",
        "evaluation.predictions.read_predictions",
        "evaluation.metrics.evaluation_metrics",
        "evaluation.intervals.metric_intervals",
        "evaluation.calibration.fit_calibration",
        "evaluation.thresholds.Thresholds",
        "evaluation.thresholds.choose_thresholds",
    ],
    "Detection": [
        "inference.finding.FindingSettings",
        "inference.detection.SoundscapePipeline",
        "inference.detections.Detection",
        "inference.detection.detect",
        "inference.reading.read_detections",
    ],
    "Embeddings": [
        "inference.embedders.load_embedder",
        "inference.embedders.Embedder",
        "inference.embedding.embed_recordings",
        "inference.embedding.read_about",
        "inference.search.search_embeddings",
        "inference.search.Hit",
        "experiments.probe.probe",
        "experiments.probe.ProbeSettings",
    ],
}


def make_reference() -> str:
    """The text of the page."""
    package = griffe.load("kenya_birds", search_paths=[ROOT], submodules=True, allow_inspection=False)
    parts = [HEAD, "\n".join(f"- [{title}](#{title.lower()})" for title in CONTENTS)]
    for title, names in CONTENTS.items():
        parts += [f"## {title}", *(_entry(package[name]) for name in names)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _entry(thing: Any) -> str:
    parts = [f"### {thing.name}", f"```python\nfrom {thing.parent.path} import {thing.name}\n```"]
    parts += [_signature(thing), *_docstring(thing)]
    for member in thing.members.values() if thing.is_class else ():
        if member.is_function and member.docstring and (member.name == "__call__" or _is_for_users(member)):
            name = "a call" if member.name == "__call__" else member.name
            parts += [f"#### {thing.name}: {name}", _signature(member), *_docstring(member)]
    return "\n\n".join(part for part in parts if part)


def _is_for_users(method: Any) -> bool:
    """Whether a method says what it takes or gives; the others are called by transformers and datasets."""
    return not method.name.startswith("_") and len(_sections(method)) > 1


def _signature(thing: Any) -> str:
    """The signature in a block, with a line for each parameter where it is long."""
    signature = thing.signature()
    if len(signature) <= WIDTH:
        return f"```py\n{signature}\n```" if signature else ""
    lines, depth = "", 0
    for character in signature:
        closes, opens = character in ")]", character in "(["
        depth -= closes
        lines += "\n" * (closes and depth == 0 and character == ")")
        lines += character
        depth += opens
        if depth == 1 and (character == "," or (opens and character == "(")):
            lines += "\n   "
            lines += " " * (character == "(")
    return f"```py\n{lines}\n```"


def _sections(thing: Any) -> list[Any]:
    return griffe.parse_google(thing.docstring, warnings=False)


def _docstring(thing: Any) -> list[str]:
    parts = []
    for section in _sections(thing):
        title = section.title or section.kind.value.capitalize()
        if section.kind is griffe.DocstringSectionKind.text:
            parts.append(section.value)
        elif section.kind is griffe.DocstringSectionKind.admonition:
            parts.append(f"{title}:\n\n{_items(section.value.description)}")
        elif isinstance(section.value, list):
            rows = [f"- {_named(item)}{' '.join(item.description.split())}" for item in section.value]
            parts.append(f"{title}:\n\n" + "\n".join(rows))
        else:
            raise ValueError(f"{thing.path}: a section of kind {section.kind.value} has no form on the page")
    return parts


def _items(text: str) -> str:
    """Items `name: what it is` of a section that griffe does not know, lines that go on being indented."""
    joined = re.sub(r"\n\s+", " ", text)
    return re.sub(r"^(\w+): ", r"- `\1`: ", joined, flags=re.M)


def _named(item: Any) -> str:
    is_raised = isinstance(item, griffe.DocstringRaise)
    name = item.annotation if is_raised else getattr(item, "name", "")
    return f"`{name}`: " if name else ""


if __name__ == "__main__":
    PAGE.write_text(make_reference(), encoding="utf-8")
    print(f"Written: {PAGE}")
