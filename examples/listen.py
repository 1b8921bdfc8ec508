"""Classifies one clip of a recording: `python examples/listen.py MODEL RECORDING --center_s 12`.

It uses only transformers, like a user who found the model on the Hub.
"""

import argparse

import soundfile
from transformers import pipeline

parser = argparse.ArgumentParser(description="Prints the best predictions of a model for one clip of a recording.")
parser.add_argument("model", help="folder or Hub name of the model; its code is run")
parser.add_argument("recording", help="sound file")
parser.add_argument("--center_s", type=float, default=1.5, help="middle of the clip in seconds")
options = parser.parse_args()

classifier = pipeline("audio-classification", model=options.model, trust_remote_code=True)
clip_s = classifier.feature_extractor.clip_s
with soundfile.SoundFile(options.recording) as file:
    sampling_rate = file.samplerate
    file.seek(max(round((options.center_s - clip_s / 2) * sampling_rate), 0))
    waveform = file.read(round(clip_s * sampling_rate), dtype="float32", always_2d=True).mean(axis=1)

print(f"{options.recording}, {clip_s} s round {options.center_s} s:")
for guess in classifier({"array": waveform, "sampling_rate": sampling_rate}, top_k=5):
    names = classifier.model.config.species[guess["label"]]
    print(f"  {guess['score']:.2f}  {guess['label']:8}  {names['common_name']} ({names['scientific_name']})")
