import matplotlib.image
import numpy as np
import pytest

from kenya_birds.evaluation.figures import save_confusion_matrix


@pytest.mark.parametrize("classes", [3, 40, 176])
def test_confusion_matrix_gives_every_class_room_to_be_read(tmp_path, classes):
    rng = np.random.default_rng(0)
    references = rng.integers(0, classes, 20 * classes)
    predictions = np.where(rng.random(len(references)) < 0.7, references, rng.integers(0, classes, len(references)))
    path = tmp_path / "confusion.png"
    save_confusion_matrix(references, predictions, [f"specie{index}" for index in range(classes)], path)
    height, width, _ = matplotlib.image.imread(path).shape
    # A name is legible from about ten pixels a line on.
    assert min(height, width) > 10 * classes
    assert max(height, width) < 5000


def test_confusion_matrix_shows_a_perfect_classifier_as_a_diagonal(tmp_path):
    path = tmp_path / "confusion.png"
    save_confusion_matrix(np.arange(60), np.arange(60), ["x"] * 60, path)
    image = matplotlib.image.imread(path)[..., :3]
    # The colour map's full value, dark blue, stands for a share of 1.
    dark = (np.abs(image - np.array([8, 48, 107]) / 255) < 0.02).all(axis=-1)
    rows, columns = np.nonzero(dark[:, : int(image.shape[1] * 0.85)])
    assert np.corrcoef(rows, columns)[0, 1] > 0.99


def test_a_class_without_clips_does_not_warn_or_fail(tmp_path):
    save_confusion_matrix(np.array([0, 0]), np.array([0, 2]), ["a", "b", "c"], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000
