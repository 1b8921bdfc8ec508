"""Pictures of a model on whole recordings."""

import numpy as np
from matplotlib.figure import Figure

from kenya_birds.evaluation.recording_figures import save_recall_by_false_reports


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
