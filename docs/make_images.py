"""Draws docs/images from the output of `make demo`: `python docs/make_images.py` (or `make images`)."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageColor

from kenya_birds.inference.activity import plot_activity
from kenya_birds.inference.plots import plot_recording
from kenya_birds.plot_style import COLOURS

IMAGES = Path(__file__).parent / "images"
GREYS = 16  # of a spectrogram: files are to be small
MIX = (1.0, 0.7, 0.28)  # how much of a species' colour is in its edges, lines and bars
WIDTH = 1250
START_S, DURATION_S = 30.0, 45.0


def make_images(demo: Path) -> None:
    """Draws the pictures, and makes their files small."""
    detections = demo / "found" / "detections.csv"
    splits = pd.read_csv(demo / "model" / "splits.csv")
    unheard = splits.loc[splits["split"] == "test", "recording"].iloc[0]
    recording = demo / "archive" / "soundscape_data" / unheard
    made = [IMAGES / "detections.png", IMAGES / "activity.png"]
    plot_recording(recording, detections, made[0], start_s=START_S, duration_s=DURATION_S, overwrite=True)
    plot_activity(detections, made[1], overwrite=True)
    image = Image.open(made[0]).convert("RGB")
    image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    image.quantize(palette=_palette(), dither=Image.Dither.NONE).save(made[0], optimize=True)
    for path in made:
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def _palette() -> Image.Image:
    """Greys, and the colours of species as bars and lines have them on white."""
    values = [value for grey in np.linspace(0, 255, GREYS).round() for value in [int(grey)] * 3]
    for colour in COLOURS:
        rgb = ImageColor.getrgb(colour)
        values += [round(255 + share * (value - 255)) for share in MIX for value in rgb]
    palette = Image.new("P", (1, 1))
    palette.putpalette(values)
    return palette


if __name__ == "__main__":
    make_images(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
