"""Publishes a trained model folder on the Hugging Face Hub."""

import argparse
from pathlib import Path

from kenya_birds.console import one_line_errors
from kenya_birds.publishing.hub import check_repo_id, full_repo_id, loading_line, publish, published_files
from kenya_birds.publishing.model_card import render_model_card

TEMPLATE = Path(__file__).parent / "model_card.md"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Command line; by default the process's own.

    Raises:
        UserError: The folder, the name or the login cannot be used, or the Hub cannot be reached.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="The token is the one of `hf auth login` or of the HF_TOKEN variable."
    )
    parser.add_argument("--model_dir", type=Path, required=True, help="folder that training wrote")
    parser.add_argument("--repo_id", required=True, help="OWNER/NAME, or NAME under the account logged in")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--dry_run", action="store_true", help="only show what would be published; needs no network")
    options = parser.parse_args(arguments)

    check_repo_id(options.repo_id)
    files = published_files(options.model_dir)
    if options.dry_run:
        card = render_model_card(options.model_dir, options.repo_id, TEMPLATE)
        _show(options.repo_id, options.private, files, card)
        return
    repo_id = full_repo_id(options.repo_id)
    card = render_model_card(options.model_dir, repo_id, TEMPLATE)
    print(publish(options.model_dir, repo_id, readme=card, private=options.private))
    print(f"Load it with: {loading_line(options.model_dir, repo_id)}")


def _show(repo_id: str, private: bool, files: list[Path], card: str) -> None:
    owner = "" if "/" in repo_id else ", under the account logged in"
    print(f"Repository: {repo_id}{owner}")
    print(f"Visibility: {'private' if private else 'public, unless it exists and is private'}")
    sizes = {path.name: len(card.encode()) if path.name == "README.md" else path.stat().st_size for path in files}
    width = max(len(name) for name in sizes)
    for name, size in sizes.items():
        print(f"  {name:<{width}}  {size:>15,} bytes")
    print(f"  {f'{len(sizes)} files':<{width}}  {sum(sizes.values()):>15,} bytes")
    print("Dry run: nothing was sent.")


if __name__ == "__main__":
    with one_line_errors("push_model.py"):
        main()
