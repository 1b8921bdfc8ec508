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
try:
    with soundfile.SoundFile(options.recording) as file:
        sampling_rate, duration_s = file.samplerate, file.frames / file.samplerate
        if not 0 <= options.center_s <= duration_s:
            parser.error(f"--center_s is {options.center_s:g}: {options.recording} has 0 to {duration_s:g} s")
        file.seek(max(round((options.center_s - clip_s / 2) * sampling_rate), 0))
        waveform = file.read(round(clip_s * sampling_rate), dtype="float32", always_2d=True).mean(axis=1)
except soundfile.LibsndfileError as error:
    parser.error(str(error))

# Before version 5.23, transformers takes the softmax for multi-label models too.
is_multi_label = classifier.model.config.problem_type == "multi_label_classification"
function = "sigmoid" if is_multi_label else None
print(f"{options.recording}, {clip_s} s round {options.center_s} s:")
clip = {"array": waveform, "sampling_rate": sampling_rate}
for guess in classifier(clip, top_k=5, function_to_apply=function):
    names = classifier.model.config.species[guess["label"]]
    print(f"  {guess['score']:.2f}  {guess['label']:8}  {names['common_name']} ({names['scientific_name']})")
