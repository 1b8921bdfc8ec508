"""A program that loads a published model as a stranger does, without this package, and tells what it answers.

`python -I standalone_check.py MODEL [REVISION]` prints one JSON object. It is a separate file so that nothing of this
package is imported with it, and it asks for no more than torch, numpy and transformers.
"""

import importlib.metadata
import importlib.util
import json
import sys
from typing import Any


class NoKenyaBirds:
    """Makes `import kenya_birds` fail, wherever it is installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Says of no other module where it is."""
        if name.split(".")[0] == "kenya_birds":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NoKenyaBirds())

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline  # noqa: E402


def sound(duration_s: float, sampling_rate: int) -> np.ndarray:
    """A rising whistle in noise, always the same one: float32 in -1 to 1."""
    time_s = np.arange(round(duration_s * sampling_rate)) / sampling_rate
    whistle = np.sin(2 * np.pi * (2000 + 500 * time_s) * time_s) * (np.sin(2 * np.pi * 1.5 * time_s) > 0)
    noise = np.random.default_rng(3).standard_normal(len(time_s))
    return (0.3 * whistle + 0.02 * noise).astype(np.float32)


def answer(model_name: str, revision: str | None = None) -> dict[str, Any]:
    """Loads a model and scores four sounds with it.

    Args:
        model_name: A folder, or `owner/name` on the Hub.
        revision: Commit or branch of the Hub.

    Returns:
        `scores`: by sound, the score of each label by the pipeline. `logits`: of the first sound, in the order of the
        label ids, by the Auto classes. `multi_label`, and `versions` of what answered.
    """
    options = {"revision": revision, "trust_remote_code": True}
    extractor = AutoFeatureExtractor.from_pretrained(model_name, **options)
    model = AutoModelForAudioClassification.from_pretrained(model_name, **options)
    classify = pipeline("audio-classification", model=model_name, **options)
    rate, clip_s = extractor.sampling_rate, extractor.clip_s
    sounds = {
        "clip": (sound(clip_s, rate), rate),
        "short": (sound(clip_s / 3, rate), rate),
        "long": (sound(3 * clip_s, rate), rate),
    }
    if importlib.util.find_spec("torchaudio") is not None:  # the pipeline resamples with it
        sounds["other rate"] = (sound(clip_s, 44_100), 44_100)
    multi_label = model.config.problem_type == "multi_label_classification"
    # Before 5.23 the pipeline has to be told that the labels are independent.
    told = {"top_k": None, **({"function_to_apply": "sigmoid"} if multi_label else {})}
    scores = {}
    for name, (waveform, sampling_rate) in sounds.items():
        guesses = classify({"array": waveform, "sampling_rate": sampling_rate}, **told)
        scores[name] = {guess["label"]: guess["score"] for guess in guesses}
    with torch.no_grad():
        logits = model(**extractor(sounds["clip"][0], sampling_rate=rate, return_tensors="pt")).logits[0]
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "transformers", "huggingface_hub", "timm", "numpy")
    }
    return {"scores": scores, "logits": logits.tolist(), "multi_label": multi_label, "versions": versions}


if __name__ == "__main__":
    print(json.dumps(answer(*sys.argv[1:])))
