"""Pictures of recordings from folders of species, with the parts that were found to have signal."""

from pathlib import Path

import pandas as pd

from kenya_birds.data.archive import read_archive
from kenya_birds.defaults import PLOT_DURATION_S
from kenya_birds.inference.annotation_boxes import COLUMNS
from kenya_birds.inference.plots import draw_section
from kenya_birds.inference.table_reader import COLUMNS as DETECTION_COLUMNS
from kenya_birds.plot_style import save_picture

PICTURES = "pictures"


def draw_signal(data_dir: Path, number: int, channel: str | None = None) -> list[Path]:
    """Draws recordings of each species of an archive, with their annotations; files are written into `pictures`.

    Args:
        data_dir: The archive.
        number: Recordings of each species, the first ones by name.
        channel: See `RecordingReader`.

    Returns:
        The pictures: the first minute of each recording.

    Raises:
        UserError: If the archive cannot be read, or a picture cannot be written.
    """
    archive = read_archive(data_dir)
    calls = archive.annotations.rename(columns={"species": "label"})
    (data_dir / PICTURES).mkdir(exist_ok=True)
    detections = pd.DataFrame(columns=list(DETECTION_COLUMNS))
    pictures = []
    for _, of_species in calls.groupby("label"):
        for recording in sorted(of_species["recording"].unique())[:number]:
            annotations = calls.loc[calls["recording"] == recording, list(COLUMNS)]
            path = archive.recording_path(recording)
            figure, _ = draw_section(
                path, detections, 0.0, PLOT_DURATION_S, {}, annotations=annotations, channel=channel
            )
            name = "".join(letter if letter.isalnum() or letter in "-. " else "_" for letter in recording)
            pictures.append(data_dir / PICTURES / f"{name}.png")
            save_picture(figure, pictures[-1])
    return pictures
