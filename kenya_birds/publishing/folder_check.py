"""Checks a model before it is published: that it answers without this package, gives nothing away, and is dated."""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kenya_birds.errors import UserError
from kenya_birds.json_files import read_json
from kenya_birds.publishing.leaks import find_leaks, secret_variables
from kenya_birds.training.run_folder import SUMMARY_FILE

# Not imported: it makes this package impossible to import.
PROGRAM = Path(__file__).with_name("answer_alone.py")
VERSIONS = ("kenya_birds", "torch", "timm", "transformers")
SHOWN_LEAKS = 5
TIMEOUT_S = 600


def check_model(contents: Mapping[str, Path | bytes], *, public: Sequence[str] = ()) -> None:
    """Checks what is about to be published; nothing is sent.

    The code among it is run, in a process of its own: do not check a folder whose code you would not run.

    Args:
        contents: What `model_contents` gives.
        public: See `find_leaks`.

    Raises:
        UserError: A file holds a secret or tells of this machine, the summary of the training does not say with which
            versions it was trained, or the model does not load in a process that knows nothing of this package, or its
            scores there are no probabilities.
    """
    if leaks := find_leaks(contents, public=public):
        more = f", and {len(leaks) - SHOWN_LEAKS} more" if len(leaks) > SHOWN_LEAKS else ""
        raise UserError(
            f"what must not be published is in the files: {'; '.join(leaks[:SHOWN_LEAKS])}{more}; remove it from "
            "them, or pass --allow TEXT for a name or a path that may be told"
        )
    with tempfile.TemporaryDirectory(prefix="kenya_birds_") as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        for name, content in contents.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.copyfile(content, folder / name)
        _check_versions(folder)
        _check_answer(folder, Path(temporary))


def _check_versions(folder: Path) -> None:
    if not (folder / SUMMARY_FILE).is_file():
        raise UserError(f"the folder has no {SUMMARY_FILE}, which says how the model was trained; train again")
    versions = read_json(folder / SUMMARY_FILE).get("versions")
    missing = [name for name in VERSIONS if not (isinstance(versions, dict) and versions.get(name))]
    if missing:
        raise UserError(f"{SUMMARY_FILE} does not say with which version it was trained of: {', '.join(missing)}")


def _check_answer(folder: Path, home: Path) -> None:
    answer = answer_in_clean_process(folder, home)
    labels = read_json(folder / "config.json").get("id2label", {}).values()
    for name, scores in answer["scores"].items():
        told = f"in a clean process, the model's scores of a test sound ({name})"
        if sorted(scores) != sorted(labels):
            raise UserError(f"{told} are of {len(scores)} labels, expected the {len(labels)} of config.json")
        if not all(math.isfinite(score) and 0 <= score <= 1 for score in scores.values()):
            raise UserError(f"{told} are no numbers from 0 to 1: {dict(list(scores.items())[:3])}; train again")
        if not answer["multi_label"] and not math.isclose(sum(scores.values()), 1, abs_tol=1e-3):
            raise UserError(f"{told} sum to {sum(scores.values()):.4f} and not to 1; train again")


def answer_in_clean_process(folder: Path, home: Path) -> dict[str, Any]:
    """Runs `answer_alone` on a folder, in a process that cannot import this package, stays offline and has no secret.

    Args:
        folder: The model.
        home: Folder for its caches, where it runs.

    Returns:
        See `answer_alone.answer`.

    Raises:
        UserError: If it fails, or takes longer than 10 minutes.
    """
    secret = {name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_", "TRANSFORMERS_"))}
    secret |= secret_variables().keys()
    environment = {name: value for name, value in os.environ.items() if name not in secret}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "home"), "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            # -I: neither this folder nor PYTHONPATH are looked in for modules.
            [sys.executable, "-I", "-X", "utf8", str(PROGRAM), str(folder)],
            cwd=home,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"in a clean process, the model did not answer within {TIMEOUT_S} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"in a clean process without kenya_birds, the model does not load and answer: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
