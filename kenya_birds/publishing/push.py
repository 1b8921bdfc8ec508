"""Publishes a trained model, and if asked its clips and a Space: `kenya-birds push` and `push_model.py`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kenya_birds.errors import UserError
from kenya_birds.files import CARD_TEMPLATE, check_layout, shipped_file
from kenya_birds.parsing import Parser, add_general, add_option
from kenya_birds.publishing.model_folder import (
    EARLIER_FILES,
    loading_line,
    model_contents,
    network_file,
    published_files,
)
from kenya_birds.saved_models import SavedModel, check_ours, check_trained, runtime_extras
from kenya_birds.values import Count

DESCRIPTION = (
    "Publishes a trained model folder on the Hugging Face Hub, after checks: that the model answers in a process "
    "without this package, and that no secret and no local path is in the files. The token is that of `hf auth login` "
    "or of the variable HF_TOKEN."
)
AFTER_STOP = "run the same command again; files that are on the Hub already are not sent again"
LICENSE_FILE = "LICENSE"


def add_push_options(parser: Parser) -> None:
    """Adds the options of publishing to a parser."""
    model = parser.add_argument_group("Model and repository")
    add_option(
        model,
        "--model_dir",
        Path,
        required=True,
        metavar="FOLDER",
        help="folder that training wrote; its Python files are run in the check",
    )
    add_option(
        model,
        "--repo_id",
        str,
        required=True,
        metavar="NAME",
        help="OWNER/NAME, or NAME for the account that is logged in",
    )
    add_option(model, "--dry_run", bool, False, help="check, and show what would be sent; needs no network")
    add_option(model, "--private", bool, False, help="make the repository private")
    add_option(
        model,
        "--revision",
        str,
        metavar="BRANCH",
        help="branch to commit to, made if it does not exist; refs/pr/N: a pull request; by default main",
    )
    add_option(model, "--create_pr", bool, False, help="open a pull request instead of committing")
    _add_card_options(parser)
    _add_companion_options(parser)
    check = parser.add_argument_group("Check")
    add_option(
        check,
        "--allow",
        str,
        action="append",
        default=[],
        help="allow this text although it resembles a local name or path; can be repeated",
    )
    add_general(parser)


def _add_card_options(parser: Parser) -> None:
    card = parser.add_argument_group("Card")
    add_option(
        card,
        "--license",
        str,
        metavar="NAME",
        help="licence of the model's weights, as the Hub spells it; by default the card states none",
    )
    add_option(card, "--code_url", str, metavar="URL", help="address of the code that trained the model")
    add_option(
        card, "--data_license", str, metavar="NAME", help="licence of recordings and annotations, as the Hub spells it"
    )
    add_option(
        card,
        "--source",
        str,
        help="source of recordings and annotations to cite: a text, or kenya for Zenodo record 10943500",
    )


def _add_companion_options(parser: Parser) -> None:
    beside = parser.add_argument_group("Together with the model")
    add_option(
        beside,
        "--with_dataset",
        Path,
        metavar="ARCHIVE",
        help="publish the clips of the archive that it was trained on, as the data set NAME-clips",
    )
    add_option(
        beside,
        "--with_space",
        Path,
        metavar="FOLDER",
        help="write the demo into this folder (new, empty or written before), and publish it as the Space NAME-demo",
    )
    add_option(beside, "--num_proc", Count | None, help="processes that cut clips; by default 1")


def push_model(options: argparse.Namespace) -> None:
    """Checks a model folder and publishes it; with `options.dry_run`, shows what would be sent.

    Args:
        options: The options that `add_push_options` declares.

    Raises:
        UserError: If the folder, the name or the login cannot be used, a check fails, or the Hub cannot be reached.
    """
    _check_options(options)
    # These import torch, which takes seconds: mistakes in the command line have been reported before.
    from kenya_birds.publishing.clips_dataset import model_clips_builder, source_and_license
    from kenya_birds.publishing.hub import full_repo_id
    from kenya_birds.publishing.model_card import render_model_card
    from kenya_birds.publishing.model_folder import check_model

    source, data_license = source_and_license(options.source, options.data_license)
    builder = model_clips_builder(options.model_dir, options.with_dataset) if options.with_dataset else None
    repo_id = options.repo_id if options.dry_run else full_repo_id(options.repo_id)
    dataset_id = f"{repo_id}-clips" if builder is not None else None
    card = render_model_card(
        options.model_dir,
        repo_id,
        shipped_file(CARD_TEMPLATE),
        license=options.license,
        data_license=data_license,
        source=source,
        dataset_id=dataset_id,
        code_url=options.code_url,
    )
    contents = model_contents(options.model_dir, readme=card, license_file=shipped_file(LICENSE_FILE))
    check_model(contents, network=network_file(options.model_dir), public=[*options.allow, *repo_id.split("/")])
    print("Checked: the model answers in a clean process; no secret and no local path is in its files.")
    if options.dry_run:
        _show(options, contents, dataset_id, builder)
        if options.with_space:
            _write_space(options, repo_id, None)
        return
    if builder is not None:
        # First, because the model's card links to it.
        _push_clips(options, builder, repo_id, data_license, source)
    commit = _push_files(options, contents, repo_id)
    if options.with_space:
        _push_space(options, repo_id, commit)


def _push_clips(
    options: argparse.Namespace, builder: Any, repo_id: str, data_license: str | None, source: str | None
) -> None:
    from kenya_birds.data.dataset import build_clips
    from kenya_birds.publishing.clips_dataset import cutting_facts, push_clips

    address = push_clips(
        build_clips(builder, options.num_proc),
        f"{repo_id}-clips",
        title=f"Clips of {repo_id.partition('/')[2]}",
        private=options.private,
        revision=options.revision,
        **{**cutting_facts(builder), "license": data_license, "source": source},
    )
    print(address)


def _push_files(options: argparse.Namespace, contents: Mapping[str, Path | bytes], repo_id: str) -> str:
    """Uploads the model; returns the commit's id."""
    from kenya_birds.publishing.hub import upload_files

    commit = upload_files(
        contents,
        repo_id,
        message="Upload the trained model",
        replaced=EARLIER_FILES,
        private=options.private,
        revision=options.revision,
        create_pr=options.create_pr,
    )
    print(commit.pr_url or commit.commit_url)
    print(f"Load it with: {loading_line(options.model_dir, repo_id, commit.pr_revision or commit.oid)}")
    return str(commit.oid)


def _push_space(options: argparse.Namespace, repo_id: str, commit: str) -> None:
    from kenya_birds.publishing.space import publish_space

    _write_space(options, repo_id, commit)
    message = f"The demo of {repo_id} at {commit[:12]}"
    print(publish_space(options.with_space, f"{repo_id}-demo", message=message, private=options.private).commit_url)


def _write_space(options: argparse.Namespace, repo_id: str, revision: str | None) -> None:
    from kenya_birds.publishing.space import write_space

    files = write_space(
        options.with_space,
        repo_id,
        revision=revision,
        code_license=shipped_file(LICENSE_FILE),
        extras=runtime_extras(SavedModel(str(options.model_dir), options.model_dir, "model")),
    )
    print(f"Space: {repo_id}-demo, {len(files)} files, written to {options.with_space}")
    if "/" not in repo_id:
        print("The Space does not find its model without an owner: give OWNER/NAME to get one that can be uploaded.")


def _check_options(options: argparse.Namespace) -> None:
    """Raises `UserError` if options contradict each other, or what they name is not there."""
    if options.create_pr and (options.private or options.revision or options.with_dataset or options.with_space):
        raise UserError(
            "--create_pr goes to the main branch of a repository that exists: omit --private, --revision, "
            "--with_dataset and --with_space"
        )
    if options.with_dataset and not options.data_license and options.source != "kenya":
        raise UserError("--with_dataset needs the licence of the recordings: --data_license NAME, or --source kenya")
    if (options.model_dir / "config.json").is_file():
        saved = SavedModel(str(options.model_dir), options.model_dir, "model")
        if saved.config.get("head") is None:
            check_trained(saved, "its authors publish it; share the command that made the folder instead")
        if saved.config.get("graph") is not None:
            check_ours(saved)  # that its network is there, for the check
    published_files(options.model_dir)
    from kenya_birds.publishing.hub import check_license, check_repo_id

    check_license(options.license, "--license")
    check_license(options.data_license, "--data_license")
    check_repo_id(options.repo_id)
    if options.with_dataset:
        check_repo_id(f"{options.repo_id}-clips", "dataset")
        check_layout(options.with_dataset)
    if options.with_space:
        from kenya_birds.publishing.space import check_space

        check_repo_id(f"{options.repo_id}-demo", "space")
        check_space(options.with_space)
        network = network_file(options.model_dir)
        if network is not None and network.parent != options.model_dir:
            raise UserError(
                f"--with_space needs a model with its network, but {network.name} is not in {options.model_dir}: "
                "train with --bundle_backbone, or omit --with_space"
            )


def _show(
    options: argparse.Namespace, contents: Mapping[str, Path | bytes], dataset_id: str | None, builder: Any
) -> None:
    owner = "" if "/" in options.repo_id else ", under the account logged in"
    print(f"Repository: {options.repo_id}{owner}")
    print(f"Visibility: {'private' if options.private else 'public, unless it exists and is private'}")
    print(f"Revision: {'a new pull request' if options.create_pr else options.revision or 'main'}")
    if builder is not None:
        print(f"Data set: {dataset_id}, {len(builder.clips):,} clips of {len(builder.classes)} species")
    sizes = {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in contents.items()
    }
    width = max(len(name) for name in sizes)
    for name, size in sizes.items():
        print(f"  {name:<{width}}  {size:>15,} bytes")
    print(f"  {f'{len(sizes)} files':<{width}}  {sum(sizes.values()):>15,} bytes")
    print("Dry run: nothing was sent.")
