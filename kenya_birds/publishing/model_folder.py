"""The published files of a model, and the checks before publishing."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kenya_birds.errors import UserError
from kenya_birds.files import link_or_copy, read_json
from kenya_birds.publishing.leaks import find_leaks, secret_variables
from kenya_birds.saved_models import WEIGHTS_FILE, WEIGHTS_INDEX
from kenya_birds.training.run_folder import RECORD_FILES, RESULT_FILES, SUMMARY_FILE

ALLOWED_SUFFIXES = (".safetensors", ".json", ".py", ".csv", ".png", ".parquet")
CARD = "README.md"
LICENSE = "LICENSE"
ALLOWED_NAMES = (CARD, LICENSE)
CONFIG = "config.json"
REQUIRED_NAMES = (CONFIG, "preprocessor_config.json", CARD)
# Patterns of files of an earlier model in a repository; thresholds of it, for example, would be used with a new one.
EARLIER_FILES = (*RESULT_FILES, *RECORD_FILES, WEIGHTS_INDEX, f"model-{'[0-9]' * 5}-of-{'[0-9]' * 5}.safetensors")

_RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import\b", re.MULTILINE)


def published_files(model_dir: Path) -> list[Path]:
    """Lists the files of a model folder that are published.

    Only files at its top level with a name on the allow-list are published: no checkpoints, pickles, logs, hidden
    files or links to files outside the folder.

    Args:
        model_dir: Output folder of training.

    Returns:
        The files, sorted by name.

    Raises:
        UserError: If the folder or a required file does not exist.
    """
    if not model_dir.is_dir():
        raise UserError(f"model folder {model_dir} does not exist; give the output folder of training")
    files = {path.name: path for path in sorted(model_dir.iterdir()) if _is_publishable(path, model_dir)}
    if (model_dir / CONFIG).is_file():
        network = network_file(model_dir)
        if network is not None and network.parent == model_dir:  # with --bundle_backbone
            files[network.name] = network
    missing = [name for name in REQUIRED_NAMES if name not in files]
    missing += _missing_weights(files)
    missing += _missing_code(files)
    if missing:
        named = ", ".join(
            f"{name} (a link to a missing file or a file outside the folder)"
            if (model_dir / name).is_symlink()
            else name
            for name in missing
        )
        raise UserError(f"{model_dir} cannot be published; missing files: {named}; train again, or add them")
    return list(files.values())


def model_contents(
    model_dir: Path, *, readme: str | None = None, license_file: Path | None = None
) -> dict[str, Path | bytes]:
    """Returns the content of a published model, by file name in the repository.

    Args:
        model_dir: Output folder of training.
        readme: Text of the model card instead of the folder's README.md.
        license_file: Licence of the code, used if the folder has no LICENSE.

    Raises:
        UserError: See `published_files`.
    """
    contents: dict[str, Path | bytes] = {path.name: path for path in published_files(model_dir)}
    network = network_file(model_dir)
    if network is not None:
        config = read_json(model_dir / CONFIG)
        config["graph"]["file"] = network.name  # without its local path
        contents[CONFIG] = json.dumps(config, indent=2, sort_keys=True).encode()
    if readme is not None:
        contents[CARD] = readme.encode()
    if license_file is not None:
        contents.setdefault(LICENSE, license_file)
    return dict(sorted(contents.items()))


def network_file(model_dir: Path) -> Path | None:
    """The file of a model's published network; None if the model has none, or the file does not exist."""
    graph = read_json(model_dir / CONFIG).get("graph")
    if graph is None:
        return None
    # It imports numpy.
    from kenya_birds.model.graph_kenya_birds import find_graph

    try:
        return find_graph(graph, model_dir)
    except OSError:
        return None


def loading_line(model_dir: Path, repo_id: str, revision: str | None = None) -> str:
    """Writes the line of Python that loads the published model.

    Args:
        model_dir: The published folder.
        repo_id: `owner/name`.
        revision: Commit or branch to load; by default the current main branch.

    Returns:
        One line, with imports.

    Raises:
        UserError: If config.json cannot be read.
    """
    auto_map = read_json(model_dir / "config.json").get("auto_map") or {}
    name = next((name for name in auto_map if name.startswith("AutoModelFor")), "AutoModelForAudioClassification")
    words = [f'"{repo_id}"', *([f'revision="{revision}"'] if revision else [])]
    words += ["trust_remote_code=True"] if auto_map else []
    return f"import transformers; model = transformers.{name}.from_pretrained({', '.join(words)})"


def _is_publishable(path: Path, model_dir: Path) -> bool:
    if path.name.startswith(".") or not (path.suffix in ALLOWED_SUFFIXES or path.name in ALLOWED_NAMES):
        return False
    return path.is_file() and path.resolve().is_relative_to(model_dir.resolve())


def _missing_weights(files: dict[str, Path]) -> list[str]:
    if WEIGHTS_FILE in files:
        return []
    if WEIGHTS_INDEX not in files:
        return [WEIGHTS_FILE]
    shards = set(read_json(files[WEIGHTS_INDEX]).get("weight_map", {}).values())
    return sorted(shards - files.keys()) if shards else [WEIGHTS_FILE]


def _missing_code(files: dict[str, Path]) -> list[str]:
    """Missing code files that the configurations need, directly or through imports."""
    wanted: list[str] = []
    for name in ("config.json", "preprocessor_config.json"):
        auto_map = (read_json(files[name]).get("auto_map") or {}) if name in files else {}
        for reference in auto_map.values():
            for dotted in reference if isinstance(reference, list) else [reference]:
                # `owner/name--module.Class` is code in another repository.
                if dotted and "--" not in dotted:
                    wanted.append(f"{dotted.split('.')[0]}.py")
    for name in wanted:
        if name in files:
            code = files[name].read_text(encoding="utf-8", errors="replace")
            wanted += [f for module in _RELATIVE_IMPORT.findall(code) if (f := f"{module}.py") not in wanted]
    return sorted(set(wanted) - files.keys())


# It runs in a separate process, because it blocks imports of this package.
PROGRAM = Path(__file__).with_name("standalone_check.py")
VERSIONS = ("kenya_birds", "torch", "timm", "transformers")
SHOWN_LEAKS = 5
TIMEOUT_S = 600


def check_model(
    contents: Mapping[str, Path | bytes], *, network: Path | None = None, public: Sequence[str] = ()
) -> None:
    """Checks a model before it is published. Nothing is sent.

    The model's code runs in a separate process: only check folders with trusted code.

    Args:
        contents: The result of `model_contents`.
        network: The file of its published network, which is needed for the check and may not be published.
        public: See `find_leaks`.

    Raises:
        UserError: If a file contains a secret or a local path or name, if the training summary lacks the versions of
            libraries, if the model does not load in a process without this package, or if its scores are not
            probabilities.
    """
    if leaks := find_leaks(contents, public=public):
        more = f", and {len(leaks) - SHOWN_LEAKS} more" if len(leaks) > SHOWN_LEAKS else ""
        raise UserError(
            f"the files contain text that must not be published: {'; '.join(leaks[:SHOWN_LEAKS])}{more}; remove it, "
            "or pass --allow TEXT for a name or a path that may be published"
        )
    with tempfile.TemporaryDirectory(prefix="kenya_birds_") as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        for name, content in contents.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            else:
                shutil.copyfile(content, folder / name)
        if network is not None and not (folder / network.name).exists():
            link_or_copy(network, folder / network.name)
        _check_versions(folder)
        _check_answer(folder, Path(temporary))


def _check_versions(folder: Path) -> None:
    if not (folder / SUMMARY_FILE).is_file():
        raise UserError(f"the folder has no {SUMMARY_FILE}, which describes the training; train again")
    versions = read_json(folder / SUMMARY_FILE).get("versions")
    missing = [name for name in VERSIONS if not (isinstance(versions, dict) and versions.get(name))]
    if missing:
        raise UserError(f"{SUMMARY_FILE} lacks the versions of: {', '.join(missing)}; train again")


def _check_answer(folder: Path, home: Path) -> None:
    answer = answer_in_clean_process(folder, home)
    labels = read_json(folder / "config.json").get("id2label", {}).values()
    for name, scores in answer["scores"].items():
        found = f"in a process without kenya_birds, the model's scores of a test sound ({name})"
        if sorted(scores) != sorted(labels):
            raise UserError(
                f"{found} have {len(scores)} labels, expected the {len(labels)} of config.json; train again"
            )
        if not all(math.isfinite(score) and 0 <= score <= 1 for score in scores.values()):
            raise UserError(f"{found} are not from 0 to 1: {dict(list(scores.items())[:3])}; train again")
        if not answer["multi_label"] and not math.isclose(sum(scores.values()), 1, abs_tol=1e-3):
            raise UserError(f"{found} sum to {sum(scores.values()):.4f}, expected 1; train again")


def answer_in_clean_process(folder: Path, home: Path) -> dict[str, Any]:
    """Runs `standalone_check` on a model, in a process without this package, network access or secrets.

    Args:
        folder: The model.
        home: Working folder of the process, also for its caches.

    Returns:
        See `standalone_check.answer`.

    Raises:
        UserError: If it fails, or takes longer than 10 minutes.
    """
    secret = {name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_", "TRANSFORMERS_"))}
    secret |= secret_variables().keys()
    environment = {name: value for name, value in os.environ.items() if name not in secret}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "home"), "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            # -I: modules are not imported from this folder or PYTHONPATH.
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
        raise UserError(f"in a process without kenya_birds, the model gave no result within {TIMEOUT_S} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"in a process without kenya_birds, the model cannot be loaded and run: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
