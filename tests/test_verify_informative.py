"""`kenya-birds verify sample --choose uncertain` and `diverse`: what is drawn, and what is not read from it."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from detecting import save_model
from verifying import answer, read_table, truthful, write_run

from kenya_birds.cli import main
from kenya_birds.data.archive import read_archive
from kenya_birds.errors import UserError
from kenya_birds.inference.detect import hash_model
from kenya_birds.saved_models import find_model
from kenya_birds.verification import informative
from kenya_birds.verification.informative import choose_candidates, draw_informative, farthest_first, points_of
from kenya_birds.verification.reading import read_checks
from kenya_birds.verification.sampling import SampleSettings, draw_sample
from kenya_birds.verification.strata import Stratum


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def table(run):
    """Embeddings of all seconds of the recordings: two numbers that grow with time."""
    detections = pd.read_parquet(run / "detections.parquet")
    rows = detections[["recording", "start_s", "end_s"]].astype({"recording": str}).drop_duplicates()
    return write_embeddings(run.parent / "embeddings.parquet", rows)


def write_embeddings(path, rows):
    turn = rows["start_s"].to_numpy() * np.pi / 200
    vectors = pa.array(np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32).ravel())
    arrays = pa.Table.from_pandas(rows, preserve_index=False).append_column(
        "embedding", pa.FixedSizeListArray.from_arrays(vectors, 2)
    )
    about = json.dumps({"embedding_size": 2})
    pq.write_table(arrays.replace_schema_metadata({"kenya_birds.embeddings": about}), path)
    return path


def draw(run, output, choose="uncertain", clips=12, **options):
    return draw_sample(run, output, SampleSettings(per_species=clips, pictures=False, choose=choose), **options)


def test_points_that_cover_a_line_are_its_ends_and_then_its_middle():
    line = np.array([[0.0], [1.0], [5.0], [9.0], [10.0]])
    assert farthest_first(line, 3).tolist() == [0, 4, 2]
    assert farthest_first(line, 9)[:3].tolist() == [0, 4, 2]  # a larger choice begins with a smaller one
    assert sorted(farthest_first(line, 9)) == [0, 1, 2, 3, 4]
    assert sorted(farthest_first(np.zeros((4, 2)), 3)) == sorted(
        {*farthest_first(np.zeros((4, 2)), 3)}
    )  # no one twice


def test_uncertain_candidates_have_the_scores_nearest_a_half():
    scores = np.array([0.02, 0.45, 0.97, 0.6, 0.3])
    chosen = choose_candidates(np.arange(10, 15), scores, "abcde1/0", seed=0, most=3, choose="uncertain")
    assert chosen.tolist() == [11, 13, 14]


def test_certain_detections_are_near_each_other_for_uncertain_and_not_for_diverse():
    embeddings, scores = np.array([[2.0, 0.0], [0.0, 3.0]]), np.array([0.01, 0.98])
    assert points_of(embeddings, scores, "uncertain") == pytest.approx(np.array([[0.01, 0], [0, 0.02]]))
    assert points_of(embeddings, scores, "diverse") == pytest.approx(np.eye(2))


def test_detections_without_an_embedding_are_not_drawn():
    stratum = Stratum("abcde1/0", "abcde1", "", 0, 0.0, 4)
    embeddings = np.array([[1.0, 0], [np.nan, np.nan], [0, 1], [1, 1]])
    rows = np.arange(4)
    (drawn,) = draw_informative([(stratum, rows)], np.full(4, 0.5), 4, 0, "diverse", lambda rows: embeddings[rows])
    assert sorted(drawn.rows) == [0, 2, 3]


def test_uncertain_detections_of_each_species_are_drawn(run, table, tmp_path):
    draw(run, tmp_path / "check", embeddings=table)
    drawn = read_table(tmp_path / "check")
    assert drawn.groupby("species").size().to_dict() == {"abcde1": 12, "bcdef1": 12}
    every = pd.read_parquet(run / "detections.parquet")
    mean = (every["score"] - 0.5).abs().mean()
    assert (drawn["score"].astype(float) - 0.5).abs().mean() < mean / 2
    assert (drawn["weight"].astype(float) == 0).all()  # they stand for no other detections


def test_diverse_detections_are_spread_over_the_embeddings(run, table, tmp_path):
    draw(run, tmp_path / "check", "diverse", embeddings=table)
    for _, its in read_table(tmp_path / "check").groupby("species"):
        starts_s = np.sort(its["start_s"].astype(float))
        assert np.diff(starts_s).min() >= 4  # 12 of 100 s, and no two of them near each other
        assert starts_s[-1] - starts_s[0] > 85


def test_the_sample_resumes_and_grows_without_the_embeddings_and_another_seed_draws_others(run, table, tmp_path):
    check = tmp_path / "check"
    draw(run, check, "diverse", embeddings=table)
    first = answer(check, truthful)
    draw(run, check, "diverse")
    drawing = draw(run, check, "diverse", 20)
    assert (drawing.clips, drawing.new, drawing.answered) == (40, 16, 24)
    assert set(first.index) < set(read_table(check).index)
    rows = pd.DataFrame({"recording": ["other.wav"], "start_s": [0.0], "end_s": [1.0]})
    with pytest.raises(UserError, match="has other embeddings: omit --embeddings"):
        draw(run, check, "diverse", 20, embeddings=write_embeddings(tmp_path / "other.parquet", rows))
    other = SampleSettings(per_species=12, pictures=False, choose="diverse", seed=1)
    draw_sample(run, tmp_path / "other", other, embeddings=table)
    assert set(read_table(tmp_path / "other").index) != set(first.index)


def test_the_model_of_the_run_embeds_the_candidates_once(tmp_path, monkeypatch):
    model = save_model(tmp_path / "model")
    found = write_run(tmp_path, model=hash_model(find_model(str(model))))
    content = json.loads((found / "run.json").read_text("utf-8"))
    (found / "run.json").write_text(json.dumps({**content, "model": str(model)}), "utf-8")
    monkeypatch.setattr(informative, "CANDIDATES", 6)
    draw(found, tmp_path / "check", clips=3)
    assert len(read_table(tmp_path / "check")) == 6
    candidates = pq.read_table(tmp_path / "check" / "candidates.parquet")
    assert len(candidates) <= 12
    vectors = np.stack(candidates["embedding"].to_numpy())
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors, axis=0)) > 1
    shutil.rmtree(model)
    draw(found, tmp_path / "check", clips=5)
    with pytest.raises(UserError, match=r"model of the detections cannot be used .* --embeddings"):
        draw(found, tmp_path / "new", clips=3)


def test_a_draw_that_fails_can_be_repeated(run, table, tmp_path):
    with pytest.raises(UserError, match="model of the detections cannot be used"):
        draw(run, tmp_path / "check")
    draw(run, tmp_path / "check", embeddings=table)
    assert len(read_table(tmp_path / "check")) == 24


@pytest.mark.parametrize("choose", ["uncertain", "diverse"])
def test_their_answers_are_annotated_and_no_precision_is_read_from_them(run, table, tmp_path, capsys, choose):
    check = tmp_path / "check"
    draw(run, check, choose, embeddings=table)
    answers = answer(check, truthful)["answer"].value_counts()
    main(["verify", "annotate", str(check), "--archive", str(tmp_path / "archive")])
    assert f"24 checked detections ({answers['right']} right, {answers['wrong']} wrong" in capsys.readouterr().out
    archive = read_archive(tmp_path / "archive")
    assert (len(archive.annotations), len(archive.absent)) == (answers["right"], answers["wrong"])
    with pytest.raises(UserError, match="not drawn at random"):
        read_checks([check], tmp_path / "verified", pictures=False)
    with pytest.raises(SystemExit) as ended:
        main(["verify", "read", str(check), "--output", str(tmp_path / "verified")])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "verify annotate" in said
    assert not (tmp_path / "verified").exists()


def test_another_model_too_many_clips_and_other_recordings_are_refused(run, table, tmp_path):
    model = save_model(tmp_path / "model")
    found = shutil.copytree(run, tmp_path / "found")
    content = json.loads((found / "run.json").read_text("utf-8"))
    (found / "run.json").write_text(json.dumps({**content, "model": str(model)}), "utf-8")
    with pytest.raises(UserError, match="is not the model that made the detections any more"):
        draw(found, tmp_path / "check")
    with pytest.raises(UserError, match="per_species is 250: expected at most 200 with --choose uncertain"):
        draw(run, tmp_path / "check", clips=250, embeddings=table)
    rows = pd.DataFrame({"recording": ["other.wav"], "start_s": [0.0], "end_s": [1.0]})
    with pytest.raises(UserError, match="has no window at"):
        draw(run, tmp_path / "check", embeddings=write_embeddings(tmp_path / "other.parquet", rows))
    (tmp_path / "bad.parquet").write_text("no table", "utf-8")
    with pytest.raises(UserError, match="cannot be read as embeddings"):
        draw(run, tmp_path / "check", embeddings=tmp_path / "bad.parquet")


def test_embeddings_are_for_the_two_choices_that_use_them(run, table, tmp_path, capsys):
    words = ["verify", "sample", str(run), "--output", str(tmp_path / "check"), "--embeddings", str(table)]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "--embeddings is for --choose uncertain or diverse" in capsys.readouterr().err
