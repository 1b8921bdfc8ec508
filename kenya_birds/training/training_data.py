"""The data of training and of evaluation, prepared from clips: clean waveforms, features or embeddings."""

import logging

import numpy as np
import torch
from datasets import Dataset

from kenya_birds.errors import UserError
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.training.arguments import AugmentationArguments
from kenya_birds.training.augmentation import Augmentation
from kenya_birds.training.batches import FeatureClips, TrainingClips, rows_of
from kenya_birds.training.embedded_data import EmbeddedRows, EmbeddedTraining
from kenya_birds.training.frozen_training import FrozenEmbeddings
from kenya_birds.training.preparation import clean_clips, extract_features
from kenya_birds.training.training_arguments import KenyaBirdsTrainingArguments, training_team
from kenya_birds.training.window_training import EvaluationWindows, WindowPlan

logger = logging.getLogger(__name__)


def labels_per_clip(dataset: Dataset | WindowPlan, multi_label: bool) -> list[list[int]]:
    """Class ids of each training clip; of each call if windows of recordings are learned.

    Args:
        dataset: Training clips, or the plan of training on windows.
        multi_label: Whether clips have several labels.
    """
    if isinstance(dataset, WindowPlan):
        return dataset.labels
    columns = dataset.select_columns(["labels", "label"])
    pairs = zip(columns["labels"], columns["label"], strict=True)
    return [labels if multi_label else [label] for labels, label in pairs]


def training_clips(
    clean: Dataset, augmentation: Augmentation, multi_label: bool, args: KenyaBirdsTrainingArguments
) -> TrainingClips:
    """Training clips, on the device if they fit or this is asked for.

    Args:
        clean: Result of `clean_clips`.
        augmentation: Random changes.
        multi_label: Whether clips have several labels.
        args: The arguments of training.
    """
    clips = TrainingClips(clean, augmentation, multi_label)
    if args.clips_on_device == "yes" or (args.clips_on_device == "auto" and _fit(clips, args.device)):
        clips.move_to(args.device)
        logger.info("%.1f GB of training clips are kept on the device", clips.nbytes / 1e9)
    return clips


def embedded_data(
    frozen: FrozenEmbeddings,
    dataset: Dataset | WindowPlan,
    clean: Dataset | None,
    augmentation: Augmentation,
    multi_label: bool,
) -> EmbeddedTraining:
    """Embeds the training data, and freezes the backbone.

    Args:
        frozen: The frozen backbone.
        dataset: Training clips, or the plan of training on windows.
        clean: Result of `clean_clips`, if clips are augmented.
        augmentation: Random changes of clips.
        multi_label: Whether clips have several labels.
    """
    if isinstance(dataset, WindowPlan):
        data: EmbeddedTraining = frozen.training_windows(dataset, augmentation)
    else:
        prepared = None if clean is None else TrainingClips(clean, augmentation, multi_label)
        data = frozen.training_clips(dataset, multi_label, prepared)
    if frozen.model.backbone is not None:
        frozen.model.backbone.requires_grad_(False)
    frozen.model.classifier.standardize(data.inputs)
    return data


def feature_clips(
    clips: Dataset | FeatureClips | EvaluationWindows | EmbeddedRows,
    extractor: KenyaBirdsFeatureExtractor,
    args: KenyaBirdsTrainingArguments,
    multi_label: bool,
    frozen: FrozenEmbeddings | None,
) -> FeatureClips | EvaluationWindows | EmbeddedRows:
    """The features of evaluation clips, in the cache; embeddings if the backbone is frozen.

    Args:
        clips: Clips of `load_clips`; what is ready is returned as it is.
        extractor: The feature extractor.
        args: The arguments of training.
        multi_label: Whether clips have several labels.
        frozen: Embeds the clips; None if the backbone is trained.
    """
    if isinstance(clips, FeatureClips | EvaluationWindows | EmbeddedRows):
        return clips
    if frozen is not None:
        with training_team(args).one_first():
            return frozen.evaluation_clips(clips, multi_label)
    with training_team(args).one_first():
        features = extract_features(clips, extractor, args.device)
    return FeatureClips(features, extractor.feature_shape, multi_label)


def background_windows(
    augmentation: AugmentationArguments,
    background: Dataset | None,
    extractor: KenyaBirdsFeatureExtractor,
    device: torch.device,
) -> torch.Tensor | None:
    """Windows without a call, after noise reduction, for augmentation.

    Args:
        augmentation: The augmentation of training clips.
        background: Windows without a call, as long as a clip.
        extractor: The feature extractor.
        device: Device of the batches.

    Returns:
        int16, shape `(windows, samples)`; None if they are not used.

    Raises:
        UserError: If they are used and there are none.
    """
    if not augmentation.background_probability:
        return None
    if not background:
        raise UserError(
            "background_probability is above 0 and no window of the training recordings is free of calls: choose 0"
        )
    clean = clean_clips(background, extractor, device)
    return torch.from_numpy(np.stack(rows_of(clean, "waveform"))).to(device)


def _fit(clips: TrainingClips, device: torch.device) -> bool:
    """Whether the device is a GPU and the clips take at most a quarter of its free memory."""
    return device.type == "cuda" and 4 * clips.nbytes <= torch.cuda.mem_get_info(device)[0]
