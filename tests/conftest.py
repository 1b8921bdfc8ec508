"""What all tests share: caches of their own, no network, and one small archive with its clips."""

import functools
import gc
import logging
import os
import sys
import tempfile
from pathlib import Path

import filelock
import hypothesis
import pytest
from drawing import leave_figures_blank

# These files take longest, the longest first. They start first, so that no process is left alone with one in the end.
SLOW_FILES = (
    "test_probe.py",
    "test_push_model.py",
    "test_trainer.py",
    "test_train_journey.py",
    "test_estimate.py",
    "test_cross_validation.py",
    "test_docs.py",
    "test_tuning.py",
    "test_benchmarks.py",
    "test_notebook.py",
    "test_detect.py",
    "test_wrap.py",
    "test_demo_browser.py",
    "test_train_recordings.py",
    "test_demo.py",
    "test_publishing_docs.py",
    "test_resume.py",
    "test_evaluate.py",
    "test_dataset.py",
    "test_space.py",
    "test_compatibility.py",
    "test_processes.py",
    "test_heads.py",
    "test_hub.py",
    "test_travelling.py",
)

# Hugging Face's libraries read these when they are imported: here nothing has, and the fixtures import ours late.
_home = tempfile.TemporaryDirectory(prefix="kenya_birds_tests_")
os.environ["HF_HOME"] = _home.name
os.environ["HF_DATASETS_CACHE"] = f"{_home.name}/datasets"
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads that wait for each other make small tensors slow on a busy machine, and many times so.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The time of an example says more about the machine than about the code.
hypothesis.settings.register_profile("any speed", deadline=None)
hypothesis.settings.load_profile("any speed")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """In a new environment one process imports and compiles alone, which the others would do as well, for a minute."""
    compiled = Path(__file__).parent / "__pycache__"
    if "PYTEST_XDIST_WORKER" not in os.environ or sys.dont_write_bytecode or any(compiled.glob("test_wrap.*.pyc")):
        return (yield)  # there is code of the last file, or none is kept
    compiled.mkdir(exist_ok=True)
    lock = filelock.FileLock(compiled / "collection.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        with lock:
            pass
    try:
        return (yield)
    finally:
        lock.release()


def pytest_collection_modifyitems(items):
    """Slow files first; the order within a file stays."""
    place = {name: number for number, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="module", autouse=True)
def _older_objects_are_no_garbage():
    """Garbage collection leaves out what there is before a file of tests: training collects often."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_values_for_weights_without_memory():
    """Loading a model fills weights on the meta device first, which took a twentieth of the time of all tests."""
    from timm.layers import weight_init

    fill = getattr(weight_init, "_trunc_normal_", None)  # private: another version of timm may not have it

    def fill_memory(tensor, *args):
        return tensor if tensor.is_meta else fill(tensor, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_init, "_trunc_normal_", fill_memory, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _forks_can_train():
    """Fake CUDA tensors before the first backward pass make torch start threads for it, and then no fork can train."""
    import torch

    torch.zeros((), requires_grad=True).backward()


@pytest.fixture(scope="session", autouse=True)
def _templates_are_compiled_once():
    """Every training renders a model card from the same template, which takes longer to compile than to fill in."""
    import jinja2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2, "Template", functools.cache(jinja2.Template))
        yield


@pytest.fixture(autouse=True)
def _log_as_libraries_have_it():
    """Undoes what a command that ran before in this process did to the package's log: `caplog` would see nothing."""
    logger = logging.getLogger("kenya_birds")
    logger.handlers, logger.propagate = [], True
    if logger.level:  # setting it empties the caches of all libraries' loggers
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def no_private_folders(tmp_path, monkeypatch):
    """Fails where a folder is made for its maker alone: on Windows, it and all that is in it stay so when moved."""
    mkdir = os.mkdir

    def make(path, mode=0o777, **options):
        assert mode != 0o700 or not Path(path).is_relative_to(tmp_path), path
        mkdir(path, mode, **options)

    monkeypatch.setattr(os, "mkdir", make)


@pytest.fixture(scope="module")
def blank_figures():
    """No figure is drawn, for files that do not look at them."""
    with pytest.MonkeyPatch.context() as patch:
        leave_figures_blank(patch)
        yield


@pytest.fixture
def blank_pictures(monkeypatch):
    """No figure is drawn, for single tests."""
    leave_figures_blank(monkeypatch)


@pytest.fixture
def forked_check(monkeypatch):
    """The check before publishing runs its program in a fork, which has imported torch already."""
    from fresh_python import fork_check

    fork_check(monkeypatch)


@pytest.fixture(scope="session")
def small_archive(tmp_path_factory):
    """8 recordings of 20 s and 6 species, 5 of them with 10 annotations or more; copy it to change it."""
    from kenya_birds.data.synthetic import synthesize_archive

    folder = tmp_path_factory.mktemp("shared") / "archive"
    return synthesize_archive(folder, recordings=8, duration_s=20, species=6, annotations=140, scene="quiet", seed=1)


@pytest.fixture(scope="session")
def clips(small_archive, tmp_path_factory):
    """The clips of the small archive by split: 135 of 5 species."""
    from kenya_birds.data.dataset import load_clips

    return load_clips(small_archive, cache_dir=tmp_path_factory.mktemp("clips"), min_annotations=8)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where trainings on the small archive find the clips that an earlier one of another file has cut."""
    return tmp_path_factory.mktemp("cache")
