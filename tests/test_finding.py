import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kenya_birds.errors import UserError
from kenya_birds.inference.finding_settings import FindingSettings
from kenya_birds.inference.postprocessing import DetectionFinder
from kenya_birds.inference.species import SpeciesNames, read_species, species_names

RATE = 100
CLASSES = ["b", "a", "c"]


def windows(number, hop=300, length=300, end=None):
    starts = np.arange(number, dtype=np.int64) * hop
    ends = starts + length
    return starts, ends if end is None else np.minimum(ends, end)


def find(scores, starts=None, ends=None, thresholds=(0.5, 0.5, 0.5), parts=(), **settings):
    """(start_s, end_s, species, score) of the detections; `parts` are where calls of `add` end."""
    scores = np.array(scores, dtype=np.float32).reshape(-1, len(CLASSES))
    if starts is None:
        starts, ends = windows(len(scores))
    finder = DetectionFinder("x.wav", CLASSES, np.array(thresholds), FindingSettings(**settings), RATE)
    found = []
    for first, last in zip((0, *parts), (*parts, len(scores)), strict=True):
        found += finder.add(starts[first:last], ends[first:last], scores[first:last])
    found += finder.finish()
    assert all(one.recording == "x.wav" and one.sample_rate_hz == RATE for one in found)
    return [(one.start_s, one.end_s, one.species, one.score) for one in found]


def test_a_species_is_reported_from_its_own_threshold_on():
    assert find([0.5, 0.25, 0.75], thresholds=(0.5, 0.5, 0.8)) == [(0, 3, "b", 0.5)]


def test_a_species_that_abstains_is_not_reported_unless_one_threshold_is_set_for_all():
    thresholds = (0.5, np.inf, 0.5)
    assert find([0.75, 1, 0], thresholds=thresholds) == [(0, 3, "b", 0.75)]
    assert [row[2] for row in find([0.75, 1, 0], thresholds=thresholds, threshold=0.5)] == ["a", "b"]


def test_the_least_confidence_holds_besides_the_thresholds():
    assert find([0.5, 0.75, 0], min_confidence=0.6) == [(0, 3, "a", 0.75)]
    assert find([0.5, 0.75, 0], min_confidence=0.1) == [(0, 3, "a", 0.75), (0, 3, "b", 0.5)]


def test_detections_stand_in_the_order_of_start_then_score_then_code():
    found = find([[0.75, 0.75, 0.9], [0.5, 0.6, 0]])
    assert [(row[0], row[2]) for row in found] == [(0, "c"), (0, "a"), (0, "b"), (3, "a"), (3, "b")]


def test_only_the_best_of_those_reported_in_a_window_are_kept():
    # "c" scores highest and is below its own threshold: it takes no one's place.
    found = find([[0.7, 0.6, 0.8], [0.6, 0.6, 0.1]], thresholds=(0.5, 0.5, 0.9), top_k=1)
    assert [(row[0], row[2]) for row in found] == [(0, "b"), (3, "a")]


def test_the_best_are_kept_before_windows_are_joined():
    scores = [[0.9, 0.6, 0], [0.6, 0.9, 0], [0.9, 0.6, 0]]
    found = find(scores, top_k=1, merge=True)
    assert [row[:3] for row in found] == [(0, 3, "b"), (3, 6, "a"), (6, 9, "b")]


def test_only_the_species_asked_for_are_reported_and_the_best_are_among_them():
    assert find([0.9, 0.6, 0.7], species=("a", "c"), top_k=1)[0][2] == "c"


@pytest.mark.parametrize(("how", "score"), [("mean", 0.75), ("max", 1.0)])
def test_windows_that_touch_are_joined(how, score):
    found = find([[0.5, 0, 0], [1, 0, 0], [0.75, 0, 0], [0, 0, 0], [0.5, 0, 0]], merge=True, merge_score=how)
    assert found == [(0, 9, "b", score), (12, 15, "b", 0.5)]


def test_windows_are_joined_across_the_gap_and_no_wider():
    scores = [[1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert [row[:2] for row in find(scores, merge=True, merge_gap_s=3)] == [(0, 9), (15, 18)]
    assert [row[:2] for row in find(scores, merge=True, merge_gap_s=2.99)] == [(0, 3), (6, 9), (15, 18)]
    assert [row[:2] for row in find(scores, merge=True, merge_gap_s=6)] == [(0, 18)]


def test_a_joined_detection_ends_with_the_recording():
    starts, ends = windows(3, end=701)
    assert find([[1, 0, 0]] * 3, starts, ends, merge=True) == [(0, 7.01, "b", 1)]


def test_a_species_that_goes_on_does_not_hold_back_what_began_before_it():
    finder = DetectionFinder("x", CLASSES, np.full(3, 0.5), FindingSettings(merge=True), RATE)
    starts, ends = windows(5)
    early = finder.add(starts, ends, np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 1, 0], [0, 1, 0]], np.float32))
    assert [one.species for one in early] == ["b"]
    assert [one.species for one in finder.finish()] == ["a", "c"]


def test_scores_are_averaged_over_a_centred_window_shorter_at_the_ends():
    scores = np.zeros((5, 3))
    scores[:, 0] = [0, 0.75, 0, 0.375, 0]
    found = find(scores, thresholds=(0, 1, 1), smoothing=3)
    assert [row[3] for row in found] == [0.375, 0.25, 0.375, 0.125, 0.1875]


def test_scores_are_not_averaged_across_missing_sound():
    starts, ends = windows(4)
    starts[2:] += 50
    ends[2:] += 50
    found = find([[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]], starts, ends, thresholds=(0, 1, 1), smoothing=3)
    assert [row[3] for row in found] == [0, 0, 1, 1]


@given(
    data=st.data(),
    hop=st.integers(10, 400),
    smoothing=st.sampled_from([1, 3, 5, 9]),
    merge=st.booleans(),
    gap_s=st.floats(0, 8),
    how=st.sampled_from(["mean", "max"]),
    top_k=st.sampled_from([None, 1, 2]),
)
def test_how_windows_are_divided_among_calls_changes_nothing(data, hop, smoothing, merge, gap_s, how, top_k):
    number = data.draw(st.integers(0, 25))
    parts = sorted(data.draw(st.lists(st.integers(0, number), max_size=8)))
    scores = np.random.default_rng(data.draw(st.integers(0, 99))).random((number, 3)).astype(np.float32)
    starts, ends = windows(number, hop, end=number * hop)
    settings = {"smoothing": smoothing, "merge": merge, "merge_score": how, "top_k": top_k}
    settings |= {"merge_gap_s": gap_s} if merge else {}
    whole = find(scores, starts, ends, **settings)
    assert find(scores, starts, ends, parts=parts, **settings) == whole
    assert find(scores, starts, ends, parts=range(1, number), **settings) == whole
    assert whole == sorted(whole, key=lambda row: (row[0], -row[3], row[2]))
    assert all(0 <= row[0] < row[1] <= number * hop / RATE for row in whole)


def test_no_more_windows_are_kept_than_smoothing_needs():
    finder = DetectionFinder("x", CLASSES, np.full(3, 0.5), FindingSettings(smoothing=5), RATE)
    starts, ends = windows(1000)
    for first in range(0, 1000, 50):
        part = slice(first, first + 50)
        finder.add(starts[part], ends[part], np.zeros((50, 3), np.float32))
        assert len(finder._scores) <= 4
    assert finder.finish() == []


@pytest.mark.parametrize(
    ("starts", "ends"), [([0, 0], [300, 300]), ([300, 0], [600, 300]), ([0, 100], [300, 200]), ([0, 1], [300, 1])]
)
def test_windows_out_of_order_are_refused(starts, ends):
    with pytest.raises(ValueError, match="windows are empty or out of order"):
        find(np.zeros((2, 3)), np.array(starts), np.array(ends))
    with pytest.raises(ValueError, match="windows are empty or out of order"):
        find(np.zeros((2, 3)), np.array(starts), np.array(ends), parts=[1])


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 1.1},
        {"threshold": float("nan")},
        {"min_confidence": -0.1},
        {"top_k": 0},
        {"species": ()},
        {"merge": True, "merge_gap_s": -1.0},
        {"merge_gap_s": 1.0},
        {"merge_score": "median"},
        {"smoothing": 2},
        {"smoothing": -1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(UserError, match=list(settings)[-1]):
        FindingSettings(**settings)


def test_a_species_that_the_model_does_not_know_is_refused():
    with pytest.raises(UserError, match="the model has no species d"):
        find(np.zeros((1, 3)), species=("a", "d"))


KNOWN = {
    "combul2": SpeciesNames("Common Bulbul", "Pycnonotus barbatus"),
    "spewea1": SpeciesNames("Speckle-fronted Weaver", "Sporopipes frontalis"),
    "y00475": SpeciesNames("Chough", "Pyrrhocorax sp."),
    "y00476": SpeciesNames("Chough", "Corcorax sp."),
    "rare1": SpeciesNames("rare1", ""),
}


def read(tmp_path, text):
    path = tmp_path / "species.txt"
    path.write_bytes(text.encode())
    return read_species(path, KNOWN)


@pytest.mark.parametrize(
    "line",
    [
        "combul2",
        "COMMON bulbul",
        "Pycnonotus  barbatus",
        "Pycnonotus barbatus_Common Bulbul",
        "Pycnonotus barbatus_Graubülbül",
        "Turdus barbatus_Common Bulbul",
        "  combul2 # the one with the yellow vent",
    ],
)
def test_a_species_is_listed_by_code_or_any_of_its_names(tmp_path, line):
    assert read(tmp_path, f"\ufeff# mine\r\n\r\n{line}\r\n") == ("combul2",)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_lists_that_other_programs_saved_are_read(tmp_path, encoding):
    """PowerShell writes UTF-16, and Excel Windows-1252."""
    path = tmp_path / "species.txt"
    path.write_bytes("# für mich\r\nCommon Bulbul\r\n".encode(encoding))
    assert read_species(path, KNOWN) == ("combul2",)


def test_listed_species_stand_in_the_model_s_order_and_once(tmp_path):
    assert read(tmp_path, "rare1\ncombul2\nCommon Bulbul\n") == ("combul2", "rare1")


def test_an_unknown_species_is_refused_with_close_ones_and_its_line(tmp_path):
    with pytest.raises(UserError, match=r"'Comon Bulbull' \(line 2 of .*mean combul2 \(Common Bulbul\)"):
        read(tmp_path, "rare1\nComon Bulbull\n")
    with pytest.raises(UserError, match="it has 5 species, such as combul2"):
        read(tmp_path, "zzzzzzzzz\n")


@pytest.mark.parametrize("line", ["chough", "Pycnonotus barbatus_Speckle-fronted Weaver"])
def test_a_name_of_two_species_is_refused(tmp_path, line):
    with pytest.raises(UserError, match="may be any of"):
        read(tmp_path, line)


def test_two_names_decide_where_one_would_not(tmp_path):
    assert read(tmp_path, "Corcorax sp._Chough") == ("y00476",)


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_a_list_without_species_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="has no species: expected one per line"):
        read(tmp_path, text)


def test_a_list_that_is_not_there_or_not_text_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"there is no file .*none\.txt: expected a text file with one species per line"
    ):
        read_species(tmp_path / "none.txt", KNOWN)
    for content in (b"\xff\xfeK", b"a\0b"):
        (tmp_path / "damaged.txt").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            read_species(tmp_path / "damaged.txt", KNOWN)


def test_a_species_that_the_config_does_not_name_goes_by_its_code():
    said = {"a": {"common_name": "Avis", "scientific_name": "Avis avis"}, "b": {"common_name": ""}}
    assert species_names(["b", "a", "c"], said) == {
        "b": ("b", ""),
        "a": ("Avis", "Avis avis"),
        "c": ("c", ""),
    }
    assert species_names(["a"], None) == {"a": ("a", "")}
