"""The README.md of an exported model, with a program that runs it."""

from kenya_birds.saved_models import THRESHOLDS_FILE

# Needs onnxruntime and numpy alone. The tests run it as it stands.
PROGRAM = '''\
"""Says what is heard in each clip of a mono 16-bit WAV file: python listen.py recording.wav"""

import json
import sys
import wave

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
labels = json.loads(about["labels"])
sampling_rate_hz, clip_samples = int(about["sampling_rate_hz"]), int(about["clip_samples"])

with wave.open(sys.argv[1]) as file:
    if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, sampling_rate_hz):
        sys.exit(f"expected a mono 16-bit WAV file at {sampling_rate_hz} Hz: convert it first")
    recording = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768

missing = clip_samples - len(recording)
if missing > 0.75 * clip_samples:
    sys.exit(f"expected {clip_samples / 4 / sampling_rate_hz:g} s of sound or more: less says too little")
if missing > 0:  # mirrored at both ends, which changes probabilities less than zeros
    recording = np.pad(recording, (missing // 2, missing - missing // 2), mode="symmetric")
last_start = len(recording) - clip_samples
starts = [*range(0, last_start, clip_samples), last_start]  # the last clip ends with the recording
for first in range(0, len(starts), 4):  # a few clips at a time: their spectra stay in the processor's cache
    batch = np.stack([recording[start : start + clip_samples] for start in starts[first : first + 4]])
    (probabilities,) = session.run(["probabilities"], {"waveform": batch})  # (n, samples) -> (n, classes)
    for start, row in zip(starts[first:], probabilities):
        best = int(row.argmax())
        print(f"{start / sampling_rate_hz:.1f} s\\t{labels[best]}\\t{row[best]:.4f}")
'''


def _link(name: str) -> str:
    """The model's name; on the Hub, with a link to the commit."""
    repo_id, _, commit = name.partition("@")
    if not commit:
        return f"`{name}`"
    return f"[`{repo_id}`](https://huggingface.co/{repo_id}/tree/{commit}) (commit `{commit[:12]}`)"


def render_readme(name: str, metadata: dict[str, str], *, classes: int, has_thresholds: bool) -> str:
    """The text.

    Args:
        name: What the model is called in public: `owner/name@commit`, or its folder's name.
        metadata: The graph's.
        classes: Their number.
        has_thresholds: Whether the thresholds stand beside the graph.
    """
    rate_hz, samples = int(metadata["sampling_rate_hz"]), int(metadata["clip_samples"])
    if metadata["problem_type"] == "multi_label_classification":
        meaning = "Each class has a probability of its own: several can be in one clip, or none."
    else:
        meaning = "The probabilities of a clip sum to 1: it is taken to hold one of the classes."
    thresholds = (
        f"- `{THRESHOLDS_FILE}`: decision threshold of each species, chosen on validation; null: never report it\n"
        if has_thresholds
        else ""
    )
    return f"""\
# {name.partition("@")[0].rpartition("/")[2]}: a bird classifier as an ONNX graph

Exported by `kenya-birds export` from the model {_link(name)}: a `{metadata["backbone"]}` with {classes} classes.
A clip is {samples / rate_hz:g} s of mono sound at {rate_hz} Hz.

- `model.onnx`: from `waveform`, float32 `(n, {samples})` in [-1, 1], to `probabilities`, float32 `(n, {classes})`.
  The front end, the classifier and its calibration are inside; labels, names, rate, length and the SHA-256 of the
  weights are in its metadata.
- `labels.csv`: code and names of each class, in the order of the output
{thresholds}
{meaning}

Where a sample is NaN or infinite, the clip's probabilities are NaN: look at a recording before you trust it. Clips
are independent of each other, so a batch may hold any number of them; a few at a time are fastest.

```bash
pip install onnxruntime numpy
```

```python
{PROGRAM}```
"""
