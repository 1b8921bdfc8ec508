"""The demo as a Space: a folder that starts by itself, and its way to the Hub."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
import yaml
from demo_server import Visitor
from detecting import RATE, chirps, save_model
from fake_hub import FakeHub
from fresh_python import run_fresh
from packaging.requirements import Requirement
from running import free_port

from kenya_birds.errors import UserError
from kenya_birds.publishing import space
from kenya_birds.publishing.space import publish_space, requirements, write_space

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def header(folder):
    return yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def test_the_folder_says_what_it_is_and_which_model_it_hears_with(tmp_path):
    import gradio

    files = write_space(tmp_path / "space", "ann/birds", revision=COMMIT, license="cc-by-4.0")
    said = header(tmp_path / "space")
    assert (said["sdk"], said["sdk_version"], said["app_file"]) == ("gradio", gradio.__version__, "app.py")
    assert (said["models"], said["license"]) == (["ann/birds"], "cc-by-4.0")
    assert isinstance(said["python_version"], str)
    assert f'"ann/birds@{COMMIT}"' in (tmp_path / "space" / "app.py").read_text()
    assert "own repository, at the revision in `app.py`." in (tmp_path / "space" / "README.md").read_text()
    assert {path.suffix for path in files} <= {".py", ".txt", ".md", ".jinja", ".typed"}
    assert not list((tmp_path / "space").rglob("__pycache__"))


def test_the_folder_speaks_of_no_revision_that_it_does_not_have(tmp_path):
    write_space(tmp_path / "space", "ann/birds")
    assert "from its own repository. If" in (tmp_path / "space" / "README.md").read_text(encoding="utf-8")


def test_its_requirements_are_the_packages_and_gradio(tmp_path):
    names = {Requirement(line).name: Requirement(line) for line in requirements()}
    assert {"torch", "transformers", "soundfile", "gradio"} <= set(names)
    assert not {"pytest", "optuna", "ruff"} & set(names)
    assert str(names["torch"].specifier)


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        write_space(tmp_path, "ann/birds")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_earlier_space_is_replaced_unless_something_in_it_is_the_users(tmp_path):
    folder = tmp_path / "space"
    write_space(folder, "ann/birds")
    (folder / "kenya_birds/__pycache__").mkdir()
    (folder / "kenya_birds/__pycache__/x.pyc").write_bytes(b"x")
    (folder / "kenya_birds/.DS_Store").touch()
    (folder / "kenya_birds/errors.py").unlink()
    files = write_space(folder, "ann/birds", revision=COMMIT)
    assert f'"ann/birds@{COMMIT}"' in (folder / "app.py").read_text()
    assert {path for path in folder.rglob("*") if path.is_file()} == {*files, folder / space.DIGESTS_FILE}
    assert [path.name for path in tmp_path.iterdir()] == ["space"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        write_space(folder, "ann/other")
    (folder / "notes.txt").unlink()
    (folder / "notes").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is not empty"):
        write_space(folder, "ann/other")
    (folder / "notes").unlink()
    (folder / "app.py").write_text("# mine")
    with pytest.raises(UserError, match="is not empty"):
        write_space(folder, "ann/other")
    assert (folder / "app.py").read_text() == "# mine"


def test_an_earlier_space_stays_whole_when_the_next_cannot_be_written(tmp_path):
    folder = tmp_path / "space"
    files = write_space(folder, "ann/birds")
    with pytest.raises(UserError, match="cannot be written"):
        write_space(folder, "ann/other", code_license=tmp_path / "missing")
    assert "ann/birds" in (folder / "app.py").read_text()
    assert all(path.is_file() for path in files)


def test_the_folder_starts_in_a_process_that_knows_nothing_of_this_repository(tmp_path):
    """Only the folder's copy of the package is there to be imported."""
    import soundfile

    write_space(tmp_path / "space", "ann/birds", revision=COMMIT)
    page = tmp_path / "space/kenya_birds/serving/demo.py"
    page.write_text(page.read_text().replace("Who sings here?", "From a copy of the code"))
    model, port = save_model(tmp_path / "model"), free_port()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SPACE_ID")}
    environment |= {"KENYA_BIRDS_MODEL": str(model), "GRADIO_SERVER_PORT": str(port), "MAX_HOURS": "0.1"}
    started = []
    address = f"http://127.0.0.1:{port}"
    with ThreadPoolExecutor(1) as pool, ExitStack() as stopped, httpx.Client(base_url=address, timeout=5) as http:
        running = pool.submit(run_fresh, "app.py", cwd=tmp_path / "space", env=environment, started=started.append)
        stopped.callback(lambda: running.done() or os.kill(started[0], signal.SIGTERM))
        deadline = time.monotonic() + 120
        while True:
            try:
                http.get("/config").raise_for_status()
                break
            except httpx.HTTPError:
                assert not running.done(), running.result().stderr
                assert time.monotonic() < deadline
                time.sleep(0.3)
        recording = tmp_path / "song.wav"
        soundfile.write(recording, chirps(10), RATE)
        visitor = Visitor(address)
        visitor.open(visitor.upload(recording).json()[0])
        assert "song.wav: 00:10.0, 16 kHz" in visitor.ask("analyse", 0.5)[0]
        assert "From a copy of the code" in http.get("/config").text
    ended = running.result()
    assert "The page is at http://127.0.0.1" in ended.stdout + ended.stderr
    assert ended.returncode == 0, ended.stderr


def test_a_space_is_published_in_one_commit_and_old_code_goes(tmp_path, monkeypatch):
    write_space(tmp_path / "space", "ann/birds", revision=COMMIT)
    (tmp_path / "space/kenya_birds/__pycache__").mkdir()
    (tmp_path / "space/kenya_birds/__pycache__/x.pyc").write_bytes(b"x")
    with FakeHub() as hub:
        hub.redirect(monkeypatch, tmp_path / "home")
        publish_space(tmp_path / "space", "ann/birds-demo", message="The demo", private=True)
        (tmp_path / "space/kenya_birds/serving/guard.py").rename(tmp_path / "space/kenya_birds/serving/gate.py")
        publish_space(tmp_path / "space", "birds-demo", message="Again", private=True)
        repo = hub.repos["spaces/ann/birds-demo"]
    assert repo["private"]
    first, second = (set(commit["tree"]) for commit in repo["commits"])
    assert {"app.py", "README.md", "requirements.txt", "kenya_birds/serving/guard.py"} <= first
    assert not any("pycache" in name or name.startswith(".") for name in first)
    assert second - first == {"kenya_birds/serving/gate.py"}
    assert first - second == {"kenya_birds/serving/guard.py"}


def test_without_gradio_no_space_is_written(tmp_path, monkeypatch):
    def version(name):
        raise space.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(space.importlib.metadata, "version", version)
    with pytest.raises(UserError, match='run pip install "gradio'):
        write_space(tmp_path / "space", "ann/birds")
    assert not (tmp_path / "space").exists()
