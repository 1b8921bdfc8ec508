import matplotlib.image
import numpy as np
import pytest
from matplotlib.text import Text
from predicting import predictions_of
from sklearn.metrics import confusion_matrix

from kenya_birds.evaluation.figures import (
    confusion_order,
    save_confusions,
    save_f1_by_training,
    save_precision_recall,
    save_reliability,
)
from kenya_birds.evaluation.metrics import calibration_points


@pytest.mark.parametrize("classes", [3, 176])
def test_confusion_matrix_gives_every_class_room_to_be_read(tmp_path, classes):
    rng = np.random.default_rng(0)
    references = rng.integers(0, classes, 20 * classes)
    predictions = np.where(rng.random(len(references)) < 0.7, references, rng.integers(0, classes, len(references)))
    path = tmp_path / "confusion.png"
    save_confusions(confusion_matrix(references, predictions), [f"specie{index}" for index in range(classes)], path)
    height, width, _ = matplotlib.image.imread(path).shape
    # A name is legible from about ten pixels a line on.
    assert min(height, width) > 10 * classes
    assert max(height, width) < 5000


def test_confusion_matrix_shows_a_perfect_classifier_as_a_diagonal(tmp_path):
    path = tmp_path / "confusion.png"
    save_confusions(np.eye(45, dtype=int), ["x"] * 45, path)
    image = matplotlib.image.imread(path)[..., :3]
    # The colour map's full value, dark blue, stands for a share of 1.
    dark = (np.abs(image - np.array([8, 48, 107]) / 255) < 0.02).all(axis=-1)
    rows, columns = np.nonzero(dark[:, : int(image.shape[1] * 0.85)])
    assert np.corrcoef(rows, columns)[0, 1] > 0.99


def test_a_class_without_clips_does_not_warn_or_fail(tmp_path):
    save_confusions(np.array([[1, 0, 1], [0, 0, 0], [0, 0, 0]]), ["a", "b", "c"], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_classes_that_are_taken_for_each_other_stand_side_by_side():
    # Three groups of four, scattered over the class ids, confused within themselves only.
    group = np.random.default_rng(0).permutation(np.arange(12) % 3)
    counts = np.where(group[:, None] == group, 3, 0) + 10 * np.eye(12, dtype=int)
    order = confusion_order(counts)
    assert sorted(order) == list(range(12))
    assert (np.diff(group[order]) != 0).sum() == 2


def test_classes_without_a_clip_come_last_in_the_order():
    counts = np.array([[0, 0, 0, 0], [0, 5, 1, 0], [1, 1, 5, 0], [0, 0, 1, 5]])
    assert confusion_order(counts)[-1] == 0
    np.testing.assert_array_equal(confusion_order(np.diag([0, 2, 0])), [1, 0, 2])


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("classes", [2, 60])
def test_every_picture_can_be_drawn(tmp_path, classes, multi_label):
    predictions = predictions_of(multi_label=multi_label, classes=classes, clips=200)
    points = calibration_points(predictions.scores, predictions.references)
    n = (predictions.targets == 1).sum(axis=0)
    f1 = np.where(n > 0, np.linspace(0, 1, classes), np.nan)
    names = [f"Bird $ {index}" for index in range(classes)]
    save_precision_recall(predictions.scores, predictions.targets, names, tmp_path / "pr.png")
    save_reliability({"before": points, "after": points}, tmp_path / "reliability.png")
    save_f1_by_training(f1, np.arange(classes), n, names, tmp_path / "f1.png")
    for path in tmp_path.iterdir():
        height, width, _ = matplotlib.image.imread(path).shape
        assert 400 < width < 1200
        assert 400 < height < 1200


def test_the_area_under_the_mean_curve_is_cmap(tmp_path, monkeypatch):
    from kenya_birds.evaluation import figures
    from kenya_birds.evaluation.metrics import evaluation_metrics

    labels = []
    monkeypatch.setattr(
        figures, "_save", lambda figure, path: labels.extend(figure.axes[0].get_legend_handles_labels()[1])
    )
    predictions = predictions_of(classes=6)
    save_precision_recall(predictions.scores, predictions.targets, predictions.classes, tmp_path / "pr.png")
    cmap = evaluation_metrics(predictions.scores, predictions.references)["cmap"]
    assert float(labels[-1].split("cmAP ")[1].rstrip(")")) == pytest.approx(cmap, abs=0.011)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, in order."""
    from kenya_birds.evaluation import figures

    kept = []
    monkeypatch.setattr(figures, "_save", lambda figure, path: kept.append(figure))
    return kept


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_every_picture_says_what_it_shows_of_what_and_how_to_read_it(drawn):
    predictions = predictions_of(classes=5, clips=100)
    points = calibration_points(predictions.scores, predictions.references)
    n, names = (predictions.targets == 1).sum(axis=0), [f"Bird {index}" for index in range(5)]
    about = "test: 100 clips of 10 recordings"
    save_confusions(predictions.confusions(), names, "x.png", about)
    save_precision_recall(predictions.scores, predictions.targets, names, "x.png", about)
    save_reliability({"scores": points}, "x.png", about)
    save_f1_by_training(np.full(5, 0.5), np.arange(5), n, names, "x.png", about)
    for figure, heading in zip(drawn, ("Confusion matrix", "Precision", "Reliability", "F1"), strict=True):
        title = " ".join(figure.get_suptitle().split())
        assert title.startswith(heading)
        assert title.endswith(about)
        assert figure.axes[0].get_title(loc="left")
    assert "Confused species are next to each other." in " ".join(texts(drawn[0])).replace("\n", " ")


def test_of_very_many_species_the_most_confused_are_shown(drawn):
    classes, names = 260, [f"Bird {index}" for index in range(260)]
    counts = 4 * np.eye(classes, classes + 1, dtype=int)
    counts[np.arange(0, 100), np.arange(100, 200)] = 1  # each of the first 200 is confused
    counts[259, classes] = 4  # not reported in half of its clips
    save_confusions(counts, names, "x.png")
    axes = drawn[0].axes[0]
    shown = {label.get_text() for label in axes.get_xticklabels()}
    assert shown == {*names[:200], "nothing reported instead"}
    assert {label.get_text() for label in axes.get_yticklabels()} >= {"Bird 0 (5)", "Bird 150 (4)"}
    assert "Shown: the 200 of 260 species with the most confusions." in " ".join(axes.get_title(loc="left").split())


def test_bins_of_fewer_than_ten_scores_are_hollow_and_bear_their_number(drawn):
    scores = np.concatenate([np.full(9, 0.05), np.full(10, 0.5), np.full(3, 0.95)])
    save_reliability({"scores": (scores, np.ones(len(scores)))}, "x.png")
    upper, _ = drawn[0].axes
    filled, hollow = upper.collections
    assert filled.get_offsets()[:, 0].tolist() == pytest.approx([0.5])
    assert hollow.get_offsets()[:, 0].tolist() == pytest.approx([0.05, 0.95])
    assert len(hollow.get_facecolor()) == 0
    assert {"9", "3"} <= set(texts(drawn[0]))


@pytest.mark.parametrize("names", [["scores"], ["before calibration", "after calibration"]])
def test_the_legend_of_the_reliability_covers_nothing(drawn, names):
    scores = np.linspace(0, 1, 300)
    save_reliability({name: (scores, np.ones(300)) for name in names}, "x.png")  # points at the upper left
    (figure,) = drawn
    figure.canvas.draw()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == len(names) + 1
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes)


@pytest.mark.parametrize(("classes", "has_trend"), [(10, False), (29, False), (30, True)])
def test_a_few_species_have_no_trend_and_all_have_names(drawn, classes, has_trend):
    f1 = np.linspace(0, 1, classes)
    names = [f"Bird {index}" for index in range(classes)]
    save_f1_by_training(f1, np.arange(classes) * 3 + 1, np.full(classes, 5), names, "x.png")
    assert ("trend" in texts(drawn[0])) == has_trend
    assert len(drawn[0].axes[0].lines) == has_trend
    if classes == 10:
        assert set(names) <= set(texts(drawn[0]))


@pytest.mark.parametrize("classes", [20, 60])
def test_a_name_stands_nearest_to_its_own_dot_and_not_on_the_legend(drawn, classes):
    rng = np.random.default_rng(1)
    train = rng.integers(10, 200, classes)
    f1 = np.clip(0.1 * np.log10(train) + 0.2 * rng.standard_normal(classes), 0, 1)
    names = [f"Species number {index}" for index in range(classes)]
    save_f1_by_training(f1, train, np.full(classes, 5), names, "x.png")
    (figure,) = drawn
    figure.canvas.draw()
    axes = figure.axes[0]
    dots = axes.transData.transform(np.column_stack([train, f1]))
    assert len(axes.texts) > 2
    for text in axes.texts:
        box = text.get_window_extent()
        distance = np.linalg.norm(dots - np.clip(dots, box.min, box.max), axis=1)
        assert names[int(distance.argmin())] == text.get_text()
        assert axes.get_legend() is None or not axes.get_legend().get_window_extent().overlaps(box)


def test_pictures_of_an_evaluation_have_names_where_there_are_some(drawn, tmp_path):
    from kenya_birds.evaluation.evaluation_report import EvaluationContext, write_report

    predictions = predictions_of(classes=3, clips=60)
    names = {predictions.classes[0]: "Common $Bulbul", predictions.classes[1]: ""}
    write_report(tmp_path, predictions, context=EvaluationContext(names, [9, 20, 4], split="validation", resamples=2))
    for figure in (drawn[0], drawn[1], drawn[3]):
        assert any("Common $Bulbul" in text for text in texts(figure))
        assert any(predictions.classes[1] in text for text in texts(figure))
    assert "validation: 60 clips of" in " ".join(drawn[0].get_suptitle().split())
