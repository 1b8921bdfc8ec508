"""What of a trained model's folder is published."""

import re
from pathlib import Path

from kenya_birds.errors import UserError
from kenya_birds.json_files import read_json
from kenya_birds.saved_models import WEIGHTS_FILE, WEIGHTS_INDEX

ALLOWED_SUFFIXES = (".safetensors", ".json", ".py", ".csv", ".png", ".parquet")
CARD = "README.md"
LICENSE = "LICENSE"
ALLOWED_NAMES = (CARD, LICENSE)
REQUIRED_NAMES = ("config.json", "preprocessor_config.json", CARD)

_RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import\b", re.MULTILINE)


def published_files(model_dir: Path) -> list[Path]:
    """Lists what is published of a model folder.

    Only files at its top level whose name is on the allow-list count, so checkpoints, pickles, logs, hidden files and
    links that lead out of the folder never do.

    Args:
        model_dir: Folder that training wrote.

    Returns:
        The files, sorted by name.

    Raises:
        UserError: The folder does not exist, or something that a published model cannot do without is missing.
    """
    if not model_dir.is_dir():
        raise UserError(f"model folder {model_dir} does not exist; give the folder that training wrote")
    files = {path.name: path for path in sorted(model_dir.iterdir()) if _is_publishable(path, model_dir)}
    missing = [name for name in REQUIRED_NAMES if name not in files]
    missing += _missing_weights(files)
    missing += _missing_code(files)
    if missing:
        named = ", ".join(
            f"{name} (a link that leads nowhere or out of it)" if (model_dir / name).is_symlink() else name
            for name in missing
        )
        raise UserError(f"{model_dir} cannot be published, it lacks: {named}; train again or put it there")
    return list(files.values())


def model_contents(
    model_dir: Path, *, readme: str | None = None, license_file: Path | None = None
) -> dict[str, Path | bytes]:
    """Gives what a published model consists of, by the name that it has in the repository.

    Args:
        model_dir: Folder that training wrote.
        readme: Text of the model card instead of the folder's README.md.
        license_file: Licence of the code, where the folder has no LICENSE.

    Raises:
        UserError: See `published_files`.
    """
    contents: dict[str, Path | bytes] = {path.name: path for path in published_files(model_dir)}
    if readme is not None:
        contents[CARD] = readme.encode()
    if license_file is not None:
        contents.setdefault(LICENSE, license_file)
    return dict(sorted(contents.items()))


def loading_line(model_dir: Path, repo_id: str, revision: str | None = None) -> str:
    """Writes the line of Python that loads the published model.

    Args:
        model_dir: Folder that was published.
        repo_id: `owner/name`.
        revision: Commit or branch to load; by default the main branch, whatever it holds at that time.

    Returns:
        A line to paste, imports included.

    Raises:
        UserError: config.json cannot be read.
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
    """Names the code files that the configurations ask for, by name or through another one's imports."""
    wanted: list[str] = []
    for name in ("config.json", "preprocessor_config.json"):
        auto_map = (read_json(files[name]).get("auto_map") or {}) if name in files else {}
        for reference in auto_map.values():
            for dotted in reference if isinstance(reference, list) else [reference]:
                # `owner/name--module.Class` is code that another repository holds.
                if dotted and "--" not in dotted:
                    wanted.append(f"{dotted.split('.')[0]}.py")
    for name in wanted:
        if name in files:
            code = files[name].read_text(encoding="utf-8", errors="replace")
            wanted += [f for module in _RELATIVE_IMPORT.findall(code) if (f := f"{module}.py") not in wanted]
    return sorted(set(wanted) - files.keys())
