"""Pictures of a model on whole recordings."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kenya_birds.evaluation.recording_figures import save_recall_by_false_reports, save_recording_timeline


def test_false_detections_have_plain_numbers_at_their_axis(tmp_path, monkeypatch):
    drawn = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: (drawn.append(self), real(self, *args, **more)))
    save_recall_by_false_reports(
        np.array([0.0, 3.0, 30.0, 300.0]), np.array([0.1, 0.4, 0.6, 0.9]), tmp_path / "recall.png", own=(80.0, 0.5)
    )
    (axes,) = drawn[0].axes
    texts = [label.get_text() for label in axes.get_xticklabels() if label.get_text()]
    assert {"0.1", "1", "10", "100"} <= set(texts)
    assert not any("$" in text for text in texts)
    assert (tmp_path / "recall.png").stat().st_size > 0


def test_species_that_have_no_row_in_the_timeline_are_counted(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: drawn.append(self))
    for species in (60, 61):
        codes = [f"bird{number}" for number in range(species)]
        calls = pd.DataFrame({"species": codes, "start_s": 1.0, "end_s": 2.0, "is_found": False})
        detections = calls.assign(is_right=True, is_ignored=False).iloc[:0]
        save_recording_timeline("a.wav", detections, calls, tmp_path / "timeline.png", duration_s=9.0)
    complete, cut = (figure.axes[0].get_title(loc="left") for figure in drawn)
    assert "Shown" not in complete
    assert "Shown: 60 of 61 species" in cut
