"""Writes pictures to files."""

from pathlib import Path

from matplotlib.figure import Figure

from kenya_birds.errors import UserError
from kenya_birds.output_files import check_output, users_file
from kenya_birds.plot_style import styled

# What the formats would say of program and time: same picture, same bytes.
METADATA = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def check_picture(path: str | Path, overwrite: bool) -> None:
    """Raises `UserError` if a picture cannot be written there; to be known before long work."""
    if Path(path).suffix not in METADATA:
        raise UserError(f"{path} is no picture by its name: expected one of {', '.join(METADATA)}")
    check_output(path, overwrite)


@styled(**{"svg.hashsalt": "kenya_birds"})
def save_picture(figure: Figure, path: str | Path) -> None:
    """Writes a figure, whole or not at all.

    Raises:
        UserError: If it cannot be written.
    """
    path = Path(path)
    with users_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], metadata=METADATA[path.suffix])
