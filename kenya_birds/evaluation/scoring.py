"""Logits of clips, and what is known to be in them, in a model's classes."""

from collections.abc import Mapping

import numpy as np
import torch
from datasets import Dataset

from kenya_birds.data.audio import decode_wav
from kenya_birds.errors import UserError
from kenya_birds.model.feature_extraction_kenya_birds import KenyaBirdsFeatureExtractor
from kenya_birds.model.modeling_kenya_birds import MASKED, KenyaBirdsForAudioClassification


def score_clips(
    model: KenyaBirdsForAudioClassification,
    extractor: KenyaBirdsFeatureExtractor,
    clips: Dataset,
    *,
    batch_size: int = 64,
    time_shifts: int = 1,
) -> np.ndarray:
    """Logits of clips, as the model's `forward` gives them: calibrated where its config holds a calibration.

    Args:
        model: The classifier; it is set to evaluation mode, and works on the device that it is on.
        extractor: Its front end.
        clips: Rows of `load_clips`, all cut with the same context.
        batch_size: Clips at a time.
        time_shifts: The mean over so many crops of each clip, spread evenly from the beginning of what is stored to
            its end: with 3, the clip itself and those moved by its context to both sides. 1 is the clip itself.

    Returns:
        float32, shape `(clips, classes)`.

    Raises:
        UserError: If `time_shifts` or `batch_size` is below 1, or crops shall be shifted and clips have no context.
    """
    for name, number in (("time_shifts", time_shifts), ("batch_size", batch_size)):
        if number < 1:
            raise UserError(f"{name} is {number}: expected 1 or more")
    model.eval()
    scores = [np.zeros((0, model.config.num_labels), dtype=np.float32)]
    for first in range(0, len(clips), batch_size):
        audio = clips[first : first + batch_size]["audio"]
        waveform = torch.from_numpy(np.stack([decode_wav(clip["bytes"]) for clip in audio]))
        waveform = waveform.to(model.device)
        crops = _crops(waveform, extractor.clip_samples, time_shifts)
        total = torch.zeros(len(audio), model.config.num_labels)
        with torch.no_grad():
            for crop in crops:
                features = extractor(crop, sampling_rate=extractor.sampling_rate, return_tensors="pt")
                total += model(features["input_features"].to(model.dtype)).logits.float().cpu()
        scores.append((total / len(crops)).numpy())
    return np.concatenate(scores)


def clip_references(clips: Dataset, class_ids: Mapping[str, int], *, multi_label: bool) -> np.ndarray:
    """What is known to be in each clip, in the classes of a model.

    Args:
        clips: Rows of `load_clips`; other species than those of `class_ids` do not count.
        class_ids: By eBird code, from 0.
        multi_label: Whether every species in the clip counts, rather than the annotated one.

    Returns:
        Class ids of shape `(clips,)`, -1 where the species is another; or ones, zeros and, in clips with an unknown
        bird, -100 instead of zero, of shape `(clips, classes)`.
    """
    ids = np.array([class_ids.get(code, -1) for code in clips.features["label"].names])
    if not multi_label:
        return ids[np.asarray(clips["label"][:])]
    references = np.zeros((len(clips), len(class_ids)), dtype=np.int64)
    for row, labels, unknown in zip(references, clips["labels"][:], clips["unknown"][:], strict=True):
        row[:] = MASKED if unknown else 0
        present = ids[labels]
        row[present[present >= 0]] = 1
    return references


def _crops(waveform: torch.Tensor, samples: int, number: int) -> list[torch.Tensor]:
    if number == 1:
        return [waveform]  # the extractor hears the middle
    spare = waveform.shape[1] - samples
    if spare < 2:
        raise UserError(
            "the clips have no sound on either side, so that no crop can be shifted: cut them with context_s above 0"
        )
    return [waveform[:, start : start + samples] for start in np.linspace(0, spare, number).round().astype(int)]
