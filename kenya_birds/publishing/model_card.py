"""Fills the model card's template from the files that training left."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from kenya_birds.errors import UserError
from kenya_birds.training.summary import METRICS_FILE, SUMMARY_FILE, read_json

CONFUSION_MATRIX_FILE = "confusion_matrix.png"
METRIC_NAMES = {
    "macro_f1": ("f1", "Macro F1"),
    "weighted_f1": ("f1", "Weighted F1"),
    "accuracy": ("accuracy", "Accuracy"),
}


def render_model_card(model_dir: Path, model_id: str, template: Path) -> str:
    """The text of a model's README.md.

    Args:
        model_dir: Folder that training wrote.
        model_id: What a user passes to `pipeline(model=...)`: a repository's name or a folder.
        template: The card's Jinja template.

    Raises:
        UserError: If a file of the folder or the template is missing.
    """
    if not template.is_file():
        raise UserError(f"no model card template at {template}: it comes with the repository, at its top")
    config = read_json(model_dir / "config.json")
    summary = read_json(model_dir / SUMMARY_FILE)
    metrics = read_json(model_dir / METRICS_FILE)
    labels = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
    model_name = model_id.rpartition("/")[2]
    metadata = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=["bioacoustics", "birds", "soundscape", "timm", config["backbone"].split(".")[0]],
        model_name=model_name,
        # `owner/name@commit` where training started from a model of the Hub.
        base_model=summary["starting_point"].partition("@")[0] if "@" in summary["starting_point"] else None,
        eval_results=[
            EvalResult(
                task_type="audio-classification",
                dataset_type=summary["archive"]["name"],
                dataset_name=summary["archive"]["name"],
                dataset_split="test",
                metric_type=metric_type,
                metric_name=metric_name,
                metric_value=round(metrics["test"][key], 4),
            )
            for key, (metric_type, metric_name) in METRIC_NAMES.items()
        ],
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(template),
        model_id=model_id,
        model_name=model_name,
        config=config,
        extractor=read_json(model_dir / "preprocessor_config.json"),
        summary=summary,
        metrics=metrics,
        metric_names={key: name for key, (_, name) in METRIC_NAMES.items()},
        labels=labels,
        has_confusion_matrix=(model_dir / CONFUSION_MATRIX_FILE).is_file(),
    )
    return str(card)
