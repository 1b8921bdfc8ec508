"""A program that loads a published model without this package, scores test sounds and prints the scores.

`python -I standalone_check.py MODEL [REVISION]` prints one JSON object. The file is run as a script. It imports only
torch, numpy and transformers.
"""

import importlib.metadata
import importlib.util
import json
import sys
from typing import Any


class NoKenyaBirds:
    """An import finder with which `import kenya_birds` fails, even if it is installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Raises an error for this package; other finders handle all other modules."""
        if name.split(".")[0] == "kenya_birds":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NoKenyaBirds())

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline  # noqa: E402


def sound(duration_s: float, sampling_rate: int) -> np.ndarray:
    """A rising whistle in noise, the same at every call: float32 from -1 to 1."""
    time_s = np.arange(round(duration_s * sampling_rate)) / sampling_rate
    whistle = np.sin(2 * np.pi * (2000 + 500 * time_s) * time_s) * (np.sin(2 * np.pi * 1.5 * time_s) > 0)
    noise = np.random.default_rng(3).standard_normal(len(time_s))
    return (0.3 * whistle + 0.02 * noise).astype(np.float32)


def answer(model_name: str, revision: str | None = None) -> dict[str, Any]:
    """Loads a model and scores four sounds with it.

    Args:
        model_name: A folder, or `owner/name` on the Hub.
        revision: Commit or branch on the Hub.

    Returns:
        `scores`: by sound, the pipeline's score of each label. `logits`: logits of the first sound from the Auto
        classes, in the order of the label ids. `multi_label`, and the `versions` of the libraries.
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
    if importlib.util.find_spec("torchaudio") is not None:  # the pipeline needs it to resample
        sounds["other rate"] = (sound(clip_s, 44_100), 44_100)
    multi_label = model.config.problem_type == "multi_label_classification"
    # Before transformers 5.23 the pipeline needs the argument for independent labels.
    arguments = {"top_k": None, **({"function_to_apply": "sigmoid"} if multi_label else {})}
    scores = {}
    for name, (waveform, sampling_rate) in sounds.items():
        guesses = classify({"array": waveform, "sampling_rate": sampling_rate}, **arguments)
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
