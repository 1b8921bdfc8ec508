"""Leaves the figures of runs blank, for tests that do not look at them."""

import functools
import inspect
from pathlib import Path


def leave_figures_blank(patch):
    """Figures of runs and evaluations are not drawn, which takes a third of the time of a small run."""
    from kenya_birds.evaluation import evaluation_report
    from kenya_birds.experiments import whole_recordings

    for module in (evaluation_report, whole_recordings):
        for name in [name for name in vars(module) if name.startswith("save_")]:
            patch.setattr(module, name, _blank(getattr(module, name)))
    from matplotlib.figure import Figure

    def blank(self, file, **_):
        self.clear()
        Path(file).write_bytes(b"no picture")

    patch.setattr(Figure, "savefig", blank)


def _blank(draw):
    """What writes the file of a figure without drawing it."""
    signature = inspect.signature(draw)

    @functools.wraps(draw)
    def write(*args, **kwargs):
        Path(signature.bind(*args, **kwargs).arguments["path"]).write_bytes(b"no picture")

    return write
