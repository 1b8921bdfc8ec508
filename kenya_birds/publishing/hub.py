"""Puts files on the Hugging Face Hub, in one commit: a trained model's folder, or what another module made."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from kenya_birds.errors import UserError
from kenya_birds.json_files import read_json
from kenya_birds.saved_models import TransportError

ALLOWED_SUFFIXES = (".safetensors", ".json", ".py", ".csv", ".png", ".parquet")
ALLOWED_NAMES = ("README.md", "LICENSE")
REQUIRED_NAMES = ("config.json", "preprocessor_config.json", "README.md")
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
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


def full_repo_id(repo_id: str, *, repo_type: str = "model", token: str | None = None) -> str:
    """Completes a repository's name with its owner.

    Args:
        repo_id: `owner/name`, or `name` alone for the account that is logged in.
        repo_type: `model` or `dataset`.
        token: Access token; by default the one of the Hub's login or of HF_TOKEN.

    Returns:
        `owner/name`. The Hub is only asked where the owner is left out.

    Raises:
        UserError: The name cannot be used, or the Hub does not say who is logged in.
    """
    check_repo_id(repo_id, repo_type)
    if "/" in repo_id:
        return repo_id
    api = _api(token)
    with _one_line_hub_errors(repo_id, api, repo_type):
        return f"{api.whoami()['name']}/{repo_id}"


def check_repo_id(repo_id: str, repo_type: str = "model") -> None:
    """Checks a repository's name without the network.

    Args:
        repo_id: `owner/name` or `name`.
        repo_type: `model` or `dataset`.

    Raises:
        UserError: The Hub would not take the name.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id!r} cannot be a {repo_type}'s name, give NAME or OWNER/NAME: {error}") from None


def publish(
    model_dir: Path, repo_id: str, *, readme: str | None = None, private: bool = False, token: str | None = None
) -> str:
    """Uploads a model folder to a model repository, which is made if need be, in one commit.

    Files that the repository has already, byte for byte, are not sent again. Other files in it are left alone.

    Args:
        model_dir: Folder that training wrote.
        repo_id: `owner/name`, or `name` alone for the account that is logged in.
        readme: Text of the model card to upload instead of the folder's README.md.
        private: Whether the repository is made private.
        token: Access token; by default the one of the Hub's login or of HF_TOKEN.

    Returns:
        The address of the commit.

    Raises:
        UserError: The folder is incomplete, the name or the token is refused, the Hub cannot be reached, or the
            repository is public where a private one was asked for.
    """
    contents: dict[str, str | bytes] = {path.name: str(path) for path in published_files(model_dir)}
    if readme is not None:
        contents["README.md"] = readme.encode()
    return upload_files(contents, repo_id, message="Upload the trained model", private=private, token=token)


def upload_files(
    contents: Mapping[str, str | bytes],
    repo_id: str,
    *,
    message: str,
    repo_type: str = "model",
    replaced: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Uploads files to a repository, which is made if need be, in one commit.

    Files that the repository has already, byte for byte, are not sent again. Other files in it are left alone, except
    those that `replaced` matches.

    Args:
        contents: What to upload: by the name in the repository, a path or the file's bytes.
        repo_id: `owner/name`, or `name` alone for the account that is logged in.
        message: The commit's title.
        repo_type: `model` or `dataset`.
        replaced: Pattern of names; what the repository has of them that is not in `contents` is deleted by the commit.
        private: Whether the repository is made private.
        token: Access token; by default the one of the Hub's login or of HF_TOKEN.

    Returns:
        The address of the commit.

    Raises:
        UserError: The name or the token is refused, the Hub cannot be reached, or the repository is public where a
            private one was asked for.
    """
    repo_id = full_repo_id(repo_id, repo_type=repo_type, token=token)
    api = _api(token)
    with _one_line_hub_errors(repo_id, api, repo_type):
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()
        ]
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        # An existing repository keeps its visibility, so asking for a private one is not enough to get it.
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise UserError(f"{repo_id} exists and is public; make it private in its settings or give another name")
        if replaced is not None:
            for name in api.list_repo_files(repo_id, repo_type=repo_type):
                if fnmatchcase(name, replaced) and name not in contents:
                    operations.append(CommitOperationDelete(path_in_repo=name))
        commit = api.create_commit(repo_id, operations, repo_type=repo_type, commit_message=message)
    return str(commit.commit_url)


def loading_line(model_dir: Path, repo_id: str) -> str:
    """Writes the line of Python that loads the published model.

    Args:
        model_dir: Folder that was published.
        repo_id: `owner/name`.

    Returns:
        A line to paste, imports included.

    Raises:
        UserError: config.json cannot be read.
    """
    auto_map = read_json(model_dir / "config.json").get("auto_map") or {}
    name = next((name for name in auto_map if name.startswith("AutoModelFor")), "AutoModelForAudioClassification")
    trust = ", trust_remote_code=True" if auto_map else ""
    return f'import transformers; model = transformers.{name}.from_pretrained("{repo_id}"{trust})'


def _is_publishable(path: Path, model_dir: Path) -> bool:
    if path.name.startswith(".") or not (path.suffix in ALLOWED_SUFFIXES or path.name in ALLOWED_NAMES):
        return False
    return path.is_file() and path.resolve().is_relative_to(model_dir.resolve())


def _missing_weights(files: dict[str, Path]) -> list[str]:
    if WEIGHTS in files:
        return []
    if WEIGHTS_INDEX not in files:
        return [WEIGHTS]
    shards = set(read_json(files[WEIGHTS_INDEX]).get("weight_map", {}).values())
    return sorted(shards - files.keys()) if shards else [WEIGHTS]


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


def _api(token: str | None) -> HfApi:
    token = (token or get_token() or "").strip()
    if not token:
        raise UserError(f"no Hugging Face token found; {_LOG_IN}")
    # The HTTP client would quote such a token in its error.
    if not re.fullmatch(r"[!-~]+", token):
        raise UserError(f"the Hugging Face token has characters that no token has; {_LOG_IN}")
    return HfApi(token=token)


@contextmanager
def _one_line_hub_errors(repo_id: str, api: HfApi, repo_type: str) -> Iterator[None]:
    """Turns what the Hub's client raises into a `UserError` that never holds the token."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, TransportError) as error:
        message = " ".join(_explain(error, repo_id, api, repo_type).split())
        # Not chained: what the client says could hold the token.
        raise UserError(message.replace(str(api.token), "***")) from None


def _explain(error: BaseException, repo_id: str, api: HfApi, repo_type: str) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return f"no Hugging Face token found; {_LOG_IN}"
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub's client is told to stay offline; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, repo_id, repo_type)
    if isinstance(error, TransportError):
        host = urlsplit(api.endpoint).netloc.rpartition("@")[2] or "the Hub"
        kind = type(error).__name__
        return f"cannot reach {host} ({kind}); check the network, the proxy and HF_ENDPOINT, then run this again"
    if isinstance(error, json.JSONDecodeError):
        return "the Hub's answer cannot be understood; it may be down or HF_ENDPOINT may be wrong, try again later"
    # The client wraps what goes wrong while a large file is sent.
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return _explain(error.__cause__, repo_id, api, repo_type)
    return f"publishing to {repo_id} failed: {error or type(error).__name__}"


def _explain_answer(error: HfHubHTTPError, repo_id: str, repo_type: str) -> str:
    status = error.response.status_code
    if status == 401:
        return f"the Hub refused the token (HTTP 401); {_LOG_IN} to one that is valid (HF_TOKEN goes first)"
    if status == 403:
        return (
            f"the token may not write to {repo_id} (HTTP 403); give a name under your own account, or log in with a "
            "token that has write access (https://huggingface.co/settings/tokens)"
        )
    if status == 404:
        return (
            f"the Hub has no {repo_type} repository {repo_id} to write to (HTTP 404); one of another type will not do"
        )
    if status in (408, 429) or status >= 500:
        return f"the Hub cannot do this now (HTTP {status}); run this again later, what it has is not sent twice"
    return f"the Hub refused to publish to {repo_id} (HTTP {status}): {error.server_message or 'it does not say why'}"
