"""The demo as a Hugging Face Space: writing its folder and uploading it. The model stays in its own repository."""

import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitInfo

import kenya_birds
from kenya_birds.errors import UserError
from kenya_birds.extras import install_line, requirements_of
from kenya_birds.files import file_sha256, read_json, write_json
from kenya_birds.folders import contents_of, has_to_stay, is_system_file, users_folder
from kenya_birds.publishing.hub import upload_files

PACKAGE = Path(kenya_birds.__file__).parent
SOURCES = (".py", ".jinja", ".typed")
PYTHON = "3.11"
# SHA-256 of the written files, so that a folder without changes can be replaced. It is not published.
DIGESTS_FILE = ".space.json"

APP = '''"""A web page that detects birds in recordings with {repo_id}."""

import os

from kenya_birds.console import one_line_errors, show_log
from kenya_birds.serving.demo import serve

# For a local test, this may be a folder.
MODEL = os.environ.get("KENYA_BIRDS_MODEL", "{model}")

if __name__ == "__main__":
    show_log()
    with one_line_errors("app.py"):
        serve(
            MODEL,
            # A Space has to accept connections from outside.
            host="0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1",
            port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
            max_upload_mb=float(os.environ.get("MAX_UPLOAD_MB", "400")),
            max_hours=float(os.environ.get("MAX_HOURS", "2")),
        )
'''

TEXT = """
# Who sings here?

A web page that detects birds in recordings with [{repo_id}](https://huggingface.co/{repo_id}). Drop a recording, look
at the detected birds, and download tables for Raven, Audacity and spreadsheets. Uploaded recordings are deleted when
the page is closed.

`app.py` starts the page; `kenya_birds/` is a copy of the package's code, under Apache-2.0. The model is downloaded
from its own repository{at_revision}. If that repository is private, add a secret `HF_TOKEN` with read
access to the Space. The variables `MAX_UPLOAD_MB` (400) and `MAX_HOURS` (2) limit the size of a recording.

To run it on your own machine: `pip install -r requirements.txt`, then `python app.py`. With another model:
`KENYA_BIRDS_MODEL=FOLDER python app.py`.
"""


def write_space(
    folder: Path,
    repo_id: str,
    *,
    revision: str | None = None,
    license: str = "apache-2.0",
    code_license: Path | None = None,
    extras: Sequence[str] = (),
) -> list[Path]:
    """Writes a Space's folder: `app.py`, `requirements.txt`, `README.md` and this package's code.

    The code is copied, because the package is not on PyPI and the Space should run the tested code. The Space gets the
    installed version of Gradio.

    Args:
        folder: Output folder: new, empty, or that of an earlier call without changes, which is replaced.
        repo_id: `owner/name` of the model on the Hub.
        revision: The model's commit; None: the main branch at the start of the Space.
        license: Licence of the Space's files, by its identifier on the Hub; by default that of this package.
        code_license: File with the code's licence.
        extras: Extras of this package that the model needs; see `runtime_extras`.

    Returns:
        The files, sorted.

    Raises:
        UserError: If the folder has other files or cannot be written to, or Gradio or this package is not installed.
    """
    check_space(folder)
    model = f"{repo_id}@{revision}" if revision else repo_id
    texts = {
        "app.py": APP.format(repo_id=repo_id, model=model),
        "requirements.txt": "".join(f"{line}\n" for line in requirements(extras)),
        "README.md": _header(repo_id, license)
        + TEXT.format(repo_id=repo_id, at_revision=", at the revision in `app.py`" if revision else ""),
    }
    sources = {f"{PACKAGE.name}/{path.relative_to(PACKAGE).as_posix()}": path for path in package_files()}
    if code_license is not None:
        sources["LICENSE"] = code_license
    with users_folder(folder, f"the Space's folder {folder}", overwrite=True) as partial:
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        for name, path in sources.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(path.read_bytes())
        write_json({name: file_sha256(partial / name) for name in (*texts, *sources)}, partial / DIGESTS_FILE)
    return [folder / name for name in sorted([*texts, *sources])]


def _header(repo_id: str, license: str) -> str:
    """The YAML header of the Space's README.md."""
    values = {
        "title": f"Who sings here? {repo_id.rpartition('/')[2]}",
        "emoji": "🐦",
        "colorFrom": "green",
        "colorTo": "blue",
        "sdk": "gradio",
        "sdk_version": _gradio(),
        "python_version": PYTHON,
        "app_file": "app.py",
        "pinned": False,
        "license": license,
        "models": [repo_id],
    }
    # JSON values are valid YAML.
    lines = "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())
    return f"---\n{lines}---\n"


def check_space(folder: Path) -> None:
    """Raises `UserError` if no Space can be written to this folder; called before a model is published."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a new folder for the Space")
    if folder.is_dir() and contents_of(folder) and not _is_replaceable(folder):
        raise UserError(
            f"{folder} is not empty, and not the unchanged folder of an earlier Space: give a new folder for the Space"
        )
    requirements()


def _is_replaceable(folder: Path) -> bool:
    """Returns True if a folder has only files that `write_space` wrote, and files that programs make there unasked."""
    if not (folder / DIGESTS_FILE).is_file() or has_to_stay(folder):
        return False
    digests = read_json(folder / DIGESTS_FILE)
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not _is_unseen(path, folder)}
    paths.pop(DIGESTS_FILE)
    return not any(path.is_symlink() for path in paths.values()) and all(
        path.is_dir() or (path.is_file() and digests.get(name) == file_sha256(path)) for name, path in paths.items()
    )


def _is_unseen(path: Path, folder: Path) -> bool:
    """Returns True for Python's caches and for files of Finder and Explorer."""
    return is_system_file(path.name) or "__pycache__" in path.relative_to(folder).parts


def publish_space(folder: Path, space_id: str, *, message: str, private: bool = False) -> CommitInfo:
    """Uploads a Space's folder in one commit; it replaces the code of an earlier commit.

    Args:
        folder: Folder of `write_space`.
        space_id: `owner/name`, or `name` for the logged-in account.
        message: The commit's title.
        private: Whether a new Space is private.

    Returns:
        The commit.

    Raises:
        UserError: See `upload_files`.
    """
    contents: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _is_unseen(path, folder) and path.name != DIGESTS_FILE
    }
    return upload_files(
        contents,
        space_id,
        message=message,
        repo_type="space",
        replaced=(f"{PACKAGE.name}/*",),
        private=private,
    )


def package_files() -> list[Path]:
    """Source files of this package."""
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in SOURCES and path.is_file())


def requirements(extras: Sequence[str] = ()) -> list[str]:
    """Requirements of this package and of the demo, in pip's format.

    Args:
        extras: Further extras of this package.

    Raises:
        UserError: If the package is not installed, so that they are unknown.
    """
    try:
        needed = importlib.metadata.requires(PACKAGE.name) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "the requirements of the Space are unknown: install this package first (pip install -e .)"
        ) from None
    own = [line for line in needed if not re.search(r";.*\bextra\b", line)]
    return [*sorted(own), *(line for extra in extras for line in requirements_of(extra)), f"gradio=={_gradio()}"]


def _gradio() -> str:
    try:
        return importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"a Space needs the installed version of Gradio: run {install_line('demo')}") from None
