"""Uploads to the Hugging Face Hub, in one commit to the main branch, another branch or a pull request."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from kenya_birds.errors import UserError
from kenya_birds.saved_models import transport_error

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def full_repo_id(repo_id: str, repo_type: str = "model") -> str:
    """Adds the owner to a repository's name, if it has none.

    Args:
        repo_id: `owner/name`, or `name` for the logged-in account.
        repo_type: `model`, `dataset` or `space`.

    Returns:
        `owner/name`. The Hub is contacted only if the owner is missing.

    Raises:
        UserError: If the name is not valid, or the Hub does not return the logged-in account.
    """
    check_repo_id(repo_id, repo_type)
    if "/" in repo_id:
        return repo_id
    api = _api()
    with _one_line_hub_errors(repo_id, api, repo_type):
        return f"{api.whoami()['name']}/{repo_id}"


def check_repo_id(repo_id: str, repo_type: str = "model") -> None:
    """Checks a repository's name, without network access.

    Args:
        repo_id: `owner/name` or `name`.
        repo_type: `model`, `dataset` or `space`.

    Raises:
        UserError: If the name is not valid on the Hub.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"{repo_id!r} is not a valid name of a {repo_type}, give NAME or OWNER/NAME: {error}"
        ) from None


def check_license(name: str | None, flag: str) -> None:
    """Checks that a licence has the form of the Hub's identifiers.

    Args:
        name: The licence, or None.
        flag: The option that gave it.

    Raises:
        UserError: If it has capitals or blanks.
    """
    if name is not None and not re.fullmatch(r"[^\sA-Z]+", name):
        raise UserError(
            f"{flag} is {name!r}: expected the name that the Hub has for the licence, without capitals and blanks, "
            "such as mit, cc-by-4.0 or other"
        )


def upload_files(
    contents: Mapping[str, Path | bytes],
    repo_id: str,
    *,
    message: str,
    repo_type: str = "model",
    replaced: Sequence[str] = (),
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Uploads files to a repository in one commit. Repository and branch are created if they do not exist.

    Files that the repository already has with the same content are not sent again. The same call resumes an
    interrupted upload of large files. Other files in the repository stay, except those that match `replaced`.

    Args:
        contents: A path or bytes, by file name in the repository.
        repo_id: `owner/name`, or `name` for the logged-in account.
        message: The commit's title.
        repo_type: `model`, `dataset` or `space`.
        replaced: Patterns of file names; the commit deletes matching files that are not in `contents`.
        private: Whether a new repository is private.
        revision: Branch to commit to (a new one starts from the main branch), or `refs/pr/N` for an open pull request.
        create_pr: Whether to open a pull request to the main branch of an existing repository.

    Returns:
        The commit: `commit_url`, `oid`, and `pr_url` and `pr_revision` of a new pull request. If nothing has changed,
        it is the last commit of the branch.

    Raises:
        UserError: If the Hub refuses the name or the token, if it cannot be reached, or if `private` is True and the
            repository exists and is public.
    """
    repo_id = full_repo_id(repo_id, repo_type)
    api = _api()
    with _one_line_hub_errors(repo_id, api, repo_type):
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()
        ]
        # A pull request needs no right to write to the repository.
        if not create_pr:
            sdk = "gradio" if repo_type == "space" else None
            api.create_repo(repo_id, repo_type=repo_type, space_sdk=sdk, private=private, exist_ok=True)
        # An existing repository keeps its visibility.
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise UserError(f"{repo_id} exists and is public; make it private in its settings or give another name")
        if revision not in (None, "main") and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        if replaced:
            for name in api.list_repo_files(repo_id, repo_type=repo_type, revision=revision):
                if name not in contents and any(fnmatchcase(name, pattern) for pattern in replaced):
                    operations.append(CommitOperationDelete(path_in_repo=name))
        with warnings.catch_warnings():
            # The client warns of Parquet files in a model repository; these are predictions.
            warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
            return api.create_commit(
                repo_id,
                operations,
                repo_type=repo_type,
                commit_message=message,
                revision=revision,
                create_pr=create_pr,
            )


def _api() -> HfApi:
    """The Hub's client, with the token of the Hub's login or of HF_TOKEN."""
    token = (get_token() or "").strip()
    if not token:
        raise UserError(f"no Hugging Face token found; {_LOG_IN}")
    # The HTTP client would show such a token in its error.
    if not re.fullmatch(r"[!-~]+", token):
        raise UserError(f"the Hugging Face token has invalid characters; {_LOG_IN}")
    return HfApi(token=token)


@contextmanager
def _one_line_hub_errors(repo_id: str, api: HfApi, repo_type: str) -> Iterator[None]:
    """Converts errors of the Hub's client to a `UserError` without the token."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, transport_error()) as error:
        message = " ".join(_explain(error, repo_id, api, repo_type).split())
        # Not chained: the client's message may contain the token.
        raise UserError(message.replace(str(api.token), "***")) from None


def _explain(error: BaseException, repo_id: str, api: HfApi, repo_type: str) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return f"no Hugging Face token found; {_LOG_IN}"
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hub's client is in offline mode; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"
    if isinstance(error, HfHubHTTPError):
        return _explain_answer(error, repo_id, repo_type)
    if isinstance(error, transport_error()):
        host = urlsplit(api.endpoint).netloc.rpartition("@")[2] or "the Hub"
        kind = type(error).__name__
        return f"cannot reach {host} ({kind}); check the network, the proxy and HF_ENDPOINT, then run this again"
    if isinstance(error, json.JSONDecodeError):
        return "the Hub's response is not valid; it may be down, or HF_ENDPOINT may be wrong: try again later"
    # The client wraps errors of large uploads.
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return _explain(error.__cause__, repo_id, api, repo_type)
    return f"publishing to {repo_id} failed: {error or type(error).__name__}"


def _explain_answer(error: HfHubHTTPError, repo_id: str, repo_type: str) -> str:
    status = error.response.status_code
    if status == 401:
        return f"the Hub refused the token (HTTP 401); {_LOG_IN} to a valid token (HF_TOKEN has priority)"
    if status == 403:
        return (
            f"the token may not write to {repo_id} (HTTP 403); give a name under your own account, or log in with a "
            "token that has write access (https://huggingface.co/settings/tokens)"
        )
    if status == 404:
        if isinstance(error, RevisionNotFoundError):
            return f"{repo_id} has no such revision (HTTP 404); give a branch, or refs/pr/N of an open pull request"
        return (
            f"the Hub has no {repo_type} repository {repo_id}, or the token has no access to it (HTTP 404); check its "
            "name and type"
        )
    if status in (408, 429) or status >= 500:
        return f"the Hub is not available now (HTTP {status}); run this again later: uploaded files are not sent again"
    return f"the Hub refused to publish to {repo_id} (HTTP {status}): {error.server_message or 'no reason given'}"
