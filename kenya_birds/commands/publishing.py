"""Commands that publish: push-clips."""

import argparse
from pathlib import Path
from typing import Any

from kenya_birds.commands.parsing import new_command


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_push_clips,):
        add(commands)


def _add_push_clips(commands: Any) -> None:
    command = new_command(
        commands,
        "push-clips",
        "put an archive's clips on the Hugging Face Hub, as Parquet",
        "Cuts an archive's clips and puts them on the Hugging Face Hub as a data set that load_dataset reads. The "
        "token is the one of `hf auth login` or of the HF_TOKEN variable.",
    )
    command.add_argument("data_dir", type=Path, help="the archive")
    command.add_argument("--repo_id", required=True, help="OWNER/NAME, or NAME under the account logged in")
    command.add_argument("--private", action="store_true", help="make the repository private")
    command.add_argument("--output", type=Path, metavar="FOLDER", help="only save there; needs no network")
    command.add_argument("--title", help="title of the card; by default the repository's name")
    command.add_argument("--source", help="whom to cite: a text for the card, or `kenya` for Zenodo 10943500")
    command.add_argument("--license", default="cc-by-4.0", help="licence of the clips, as the Hub spells it")
    command.add_argument("--min_annotations", type=int, default=10, help="drop species with fewer annotations")
    command.add_argument("--context_s", type=float, default=0.0, help="sound to keep on both sides of a clip")
    command.add_argument("--num_proc", type=int, help="processes that cut")
    command.set_defaults(run=_push_clips)


def _push_clips(options: argparse.Namespace) -> None:
    from kenya_birds.data.dataset import build_clips, clips_builder
    from kenya_birds.publishing.clips import cutting_facts, push_clips, save_clips
    from kenya_birds.publishing.clips_card import KENYAN_SOURCE
    from kenya_birds.publishing.hub import check_repo_id

    check_repo_id(options.repo_id, "dataset")
    builder = clips_builder(options.data_dir, min_annotations=options.min_annotations, context_s=options.context_s)
    clips = build_clips(builder, options.num_proc)
    card = {
        "title": options.title or options.repo_id.rpartition("/")[2],
        "source": KENYAN_SOURCE if options.source == "kenya" else options.source,
        "license": options.license,
        **cutting_facts(builder),
    }
    if options.output is None:
        print(push_clips(clips, options.repo_id, private=options.private, **card))
    else:
        folder = save_clips(clips, options.output, repo_id=options.repo_id, **card)
        print(f"The clips are in {folder}; nothing was sent.")
