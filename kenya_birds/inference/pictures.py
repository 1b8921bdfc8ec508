"""Writes pictures to files."""

from pathlib import Path

from matplotlib.figure import Figure

from kenya_birds.output_files import PICTURE_METADATA, check_picture, users_file
from kenya_birds.plot_style import styled

__all__ = ["check_picture", "save_picture"]


@styled(**{"svg.hashsalt": "kenya_birds"})
def save_picture(figure: Figure, path: str | Path) -> None:
    """Writes a figure, whole or not at all.

    Raises:
        UserError: If it cannot be written.
    """
    path = Path(path)
    with users_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], metadata=PICTURE_METADATA[path.suffix])
