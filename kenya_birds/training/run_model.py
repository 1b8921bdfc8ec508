"""The model of a run: made of the settings, restored when the run is resumed, saved at its end."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from kenya_birds.console import transformers_bars_hidden, user_errors
from kenya_birds.errors import UserError
from kenya_birds.files import file_sha256, read_json
from kenya_birds.model.configuration_kenya_birds import KenyaBirdsConfig
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import KenyaBirdsForAudioClassification
from kenya_birds.saved_models import SavedModel
from kenya_birds.training.arguments import ModelArguments
from kenya_birds.training.frozen_backbones import FrozenBackbone, is_frozen
from kenya_birds.training.frozen_training import audio_model_settings, copy_backbone, load_backbone, make_head

logger = logging.getLogger(__name__)


def make_model(
    settings: ModelArguments,
    backbone: FrozenBackbone | None,
    classes: Sequence[str],
    species: dict[str, dict[str, str]],
) -> KenyaBirdsForAudioClassification:
    """Builds the classifier of a run, with random weights.

    Args:
        settings: The backbone and the head.
        backbone: The frozen backbone; None if it is timm's.
        classes: eBird codes by class id.
        species: Names by eBird code.

    Raises:
        UserError: If the backbone or its head cannot be built.
    """
    head, outputs = None, None
    if is_frozen(settings):
        logger.info("The backbone is frozen: embeddings are computed once, and a head is trained on them")
        head, outputs = make_head(settings, backbone, classes, species)
    with user_errors(ValueError):
        model = KenyaBirdsForAudioClassification(
            KenyaBirdsConfig(
                backbone=settings.backbone if backbone is None else backbone.architecture,
                backbone_variant=settings.backbone_variant if backbone is None else backbone.variant,
                graph=None if backbone is None else backbone.graph,
                audio_model=audio_model_settings(backbone),
                head=head,
                drop_rate=settings.drop_rate,
                drop_path_rate=settings.drop_path_rate,
                problem_type=settings.problem_type,
                no_call_class=settings.window_loss == "softmax",
                id2label=dict(enumerate(classes)),
                label2id={code: index for index, code in enumerate(classes)},
                species=species,
            )
        )
    if outputs is not None:
        model.output_of_class = outputs
    return model


def restore_backbone(
    model: KenyaBirdsForAudioClassification,
    settings: ModelArguments,
    backbone: FrozenBackbone | None,
    checkpoint: Path | None,
) -> None:
    """Gives the model of a resumed run its frozen backbone; other weights are loaded when training resumes.

    Args:
        model: Result of `make_model`.
        settings: The backbone and the head.
        backbone: The frozen backbone; None if it is timm's.
        checkpoint: The checkpoint to resume from.

    Raises:
        UserError: If the run was started with another file of a published network.
    """
    if not is_frozen(settings) or checkpoint is None:
        return
    if model.config.graph is None:
        copy_backbone(model, SavedModel(str(checkpoint), checkpoint, "model"))
        return
    load_backbone(model, backbone)
    before = read_json(checkpoint / "config.json").get("graph") or {}
    if before.get("sha256") != model.config.graph["sha256"]:
        raise UserError(
            f"the run of {checkpoint} was started with another file of the network '{before.get('name')}': give "
            "that file, or start a new run in another --output_dir"
        )


def save_model(
    model: KenyaBirdsForAudioClassification,
    extractor: KenyaBirdsFeatureExtractor,
    folder: Path,
    *,
    with_network: bool,
) -> None:
    """Saves a model and its feature extractor.

    Args:
        model: The model.
        extractor: Its feature extractor.
        folder: The model's folder.
        with_network: Whether to copy the file of a published network into the folder.

    Raises:
        UserError: If another file has the name of the network.
    """
    graph = model.config.graph
    if graph is not None and with_network:
        source = Path(graph["file"])
        target = folder / source.name
        if not target.exists():
            shutil.copyfile(source, target)
        elif file_sha256(target) != graph["sha256"]:
            raise UserError(f"{target} is another file than the network: move it")
        model.config.graph = {**graph, "file": source.name}
    with transformers_bars_hidden():
        model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    model.config.graph = graph
