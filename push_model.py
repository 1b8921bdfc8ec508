"""Publishes a trained model folder on the Hugging Face Hub."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kenya_birds.console import one_line_errors
from kenya_birds.publishing.clips_card import KENYAN_LICENSE, KENYAN_SOURCE
from kenya_birds.publishing.folder_check import check_model
from kenya_birds.publishing.hub import check_repo_id, full_repo_id, upload_files
from kenya_birds.publishing.model_card import render_model_card
from kenya_birds.publishing.model_folder import loading_line, model_contents, published_files

TEMPLATE = Path(__file__).parent / "model_card.md"
LICENSE_FILE = Path(__file__).parent / "LICENSE"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Command line; by default the process's own.

    Raises:
        UserError: The folder, the name or the login cannot be used, a check fails, or the Hub cannot be reached.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.create_pr and (options.private or options.revision or options.with_dataset or options.with_space):
        parser.error("--create_pr goes to the main branch of a repository that is there: leave out the other flags")
    kenyan = options.source == "kenya"
    source = KENYAN_SOURCE if kenyan else options.source
    data_license = options.data_license or (KENYAN_LICENSE if kenyan else None)
    if options.with_dataset and data_license is None:
        parser.error("--with_dataset needs --data_license: under which licence the recordings may be published")

    check_repo_id(options.repo_id)
    published_files(options.model_dir)
    if options.with_space:
        from kenya_birds.publishing.space import check_space

        check_repo_id(f"{options.repo_id}-demo", "space")
        check_space(options.with_space)
    builder = None
    if options.with_dataset:
        from kenya_birds.publishing.clips import model_clips_builder

        check_repo_id(f"{options.repo_id}-clips", "dataset")
        builder = model_clips_builder(options.model_dir, options.with_dataset)
    repo_id = options.repo_id if options.dry_run else full_repo_id(options.repo_id)
    dataset_id = f"{repo_id}-clips" if builder is not None else None
    card = render_model_card(
        options.model_dir,
        repo_id,
        TEMPLATE,
        license=options.license,
        data_license=data_license,
        source=source,
        dataset_id=dataset_id,
    )
    contents = model_contents(options.model_dir, readme=card, license_file=LICENSE_FILE)
    check_model(contents, public=[*options.allow, *repo_id.split("/")])
    print("Checked: the model answers in a clean process; no secret and no local path is in its files.")
    if options.dry_run:
        _show(options, contents, dataset_id, builder)
        if options.with_space:
            print(_write_space(options, repo_id, None))
        return
    if builder is not None:
        from kenya_birds.data.dataset import build_clips
        from kenya_birds.publishing.clips import cutting_facts, push_clips

        facts = {**cutting_facts(builder), "license": data_license, "source": source}
        # First, as the model's card links to it.
        address = push_clips(
            build_clips(builder, options.num_proc),
            f"{repo_id}-clips",
            title=f"Clips of {repo_id.partition('/')[2]}",
            private=options.private,
            revision=options.revision,
            **facts,
        )
        print(address)
    commit = upload_files(
        contents,
        repo_id,
        message="Upload the trained model",
        private=options.private,
        revision=options.revision,
        create_pr=options.create_pr,
    )
    print(commit.pr_url or commit.commit_url)
    print(f"Load it with: {loading_line(options.model_dir, repo_id, commit.pr_revision or commit.oid)}")
    if options.with_space:
        from kenya_birds.publishing.space import publish_space

        print(_write_space(options, repo_id, commit.oid))
        message = f"The demo of {repo_id} at {commit.oid[:12]}"
        print(
            publish_space(options.with_space, f"{repo_id}-demo", message=message, private=options.private).commit_url
        )


def _write_space(options: argparse.Namespace, repo_id: str, revision: str | None) -> str:
    from kenya_birds.publishing.space import write_space

    files = write_space(
        options.with_space, repo_id, revision=revision, license=options.license, code_license=LICENSE_FILE
    )
    return f"Space: {repo_id}-demo, {len(files)} files, written to {options.with_space}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="The token is the one of `hf auth login` or of the HF_TOKEN variable."
    )
    parser.add_argument("--model_dir", type=Path, required=True, help="folder that training wrote; its code is run")
    parser.add_argument("--repo_id", required=True, help="OWNER/NAME, or NAME under the account logged in")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument(
        "--revision", metavar="BRANCH", help="branch to commit to, made if it is not there; refs/pr/N: a pull request"
    )
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--dry_run", action="store_true", help="check, and show what would be sent; needs no network")
    parser.add_argument(
        "--with_dataset",
        type=Path,
        metavar="ARCHIVE",
        help="publish the clips of the archive that it was trained on, as the data set NAME-clips",
    )
    parser.add_argument(
        "--with_space",
        type=Path,
        metavar="FOLDER",
        help="write the demo into this folder (new or empty), and publish it as the Space NAME-demo",
    )
    parser.add_argument("--license", default="apache-2.0", help="the model's licence, as the Hub spells it")
    parser.add_argument("--data_license", help="licence of the recordings and annotations, as the Hub spells it")
    parser.add_argument("--source", help="whom to cite for them: a text, or `kenya` for Zenodo 10943500")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="TEXT",
        help="a path or a name that may be told although it looks like one of this machine; can be repeated",
    )
    parser.add_argument("--num_proc", type=int, help="processes that cut clips")
    return parser


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


if __name__ == "__main__":
    with one_line_errors("push_model.py"):
        main()
