"""Commands that publish: push, push-clips, export."""

import argparse
from pathlib import Path
from typing import Any, Literal

from kenya_birds.commands.common import MODEL, add_archive, log_loading
from kenya_birds.defaults import MIN_ANNOTATIONS
from kenya_birds.parsing import add_general, add_option, new_command
from kenya_birds.publishing.push import AFTER_STOP, DESCRIPTION, add_push_options, push_model
from kenya_birds.values import Count, Seconds


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_push, _add_push_clips, _add_export):
        add(commands)


def _add_push(commands: Any) -> None:
    command = new_command(
        commands,
        "push",
        "check a trained model and publish it on the Hugging Face Hub",
        DESCRIPTION,
        "kenya-birds push --model_dir birds --repo_id birds-of-baringo --dry_run",
    )
    add_push_options(command)
    command.set_defaults(run=push_model, after_stop=AFTER_STOP)


def _add_push_clips(commands: Any) -> None:
    command = new_command(
        commands,
        "push-clips",
        "publish an archive's clips on the Hugging Face Hub, as Parquet",
        "Cuts an archive's clips and publishes them on the Hugging Face Hub as a data set that load_dataset reads. "
        "The token is that of `hf auth login` or of the variable HF_TOKEN.",
        "kenya-birds push-clips archive --repo_id clips-of-baringo --source kenya --private",
    )
    add_archive(command)
    repository = command.add_argument_group("Repository")
    add_option(
        repository,
        "--repo_id",
        str,
        required=True,
        metavar="NAME",
        help="OWNER/NAME, or NAME for the account that is logged in",
    )
    add_option(repository, "--private", bool, False, help="make the repository private")
    add_option(
        repository,
        "--output",
        Path,
        metavar="FOLDER",
        help="write the data set to this folder instead of publishing it; needs no network",
    )
    card = command.add_argument_group("Card")
    add_option(card, "--title", str, help="title; by default the repository's name")
    add_option(card, "--source", str, help="source to cite: a text, or kenya for Zenodo record 10943500")
    add_option(
        card,
        "--license",
        str,
        metavar="NAME",
        help="licence of recordings and annotations, as the Hub spells it; needed to publish, but not with --source "
        "kenya, whose licence is cc-by-4.0",
        aliases=("--data_license",),
    )
    clips = command.add_argument_group("Clips")
    add_option(clips, "--min_annotations", Count, MIN_ANNOTATIONS, help="drop species with fewer annotations")
    add_option(clips, "--context_s", Seconds, 0.0, help="extra sound on each side of a clip")
    add_option(clips, "--num_proc", Count | None, help="processes that cut clips; by default 1")
    add_general(command)
    command.set_defaults(run=_push_clips, after_stop=AFTER_STOP)


def _push_clips(options: argparse.Namespace) -> None:
    from kenya_birds.errors import UserError
    from kenya_birds.files import check_layout
    from kenya_birds.folders import check_new_folder
    from kenya_birds.publishing.hub import check_license, check_repo_id

    if options.output is None:
        check_license(options.license, "--license")
    check_repo_id(options.repo_id, "dataset")
    check_layout(options.data_dir)
    if options.output is not None:
        check_new_folder(options.output)
    elif not options.license and options.source != "kenya":
        raise UserError("publishing needs the licence of the recordings: --license NAME, or --source kenya")
    from kenya_birds.data.dataset import build_clips, clips_builder
    from kenya_birds.publishing.clips_dataset import (
        cutting_facts,
        push_clips,
        save_clips,
        source_and_license,
    )

    builder = clips_builder(options.data_dir, min_annotations=options.min_annotations, context_s=options.context_s)
    clips = build_clips(builder, options.num_proc)
    source, license = source_and_license(options.source, options.license)
    card = {
        "title": options.title or options.repo_id.rpartition("/")[2],
        "source": source,
        "license": license,
        **cutting_facts(builder),
    }
    if options.output is None:
        print(push_clips(clips, options.repo_id, private=options.private, **card))
    else:
        folder = save_clips(clips, options.output, repo_id=options.repo_id, **card)
        print(f"The clips are in {folder}; nothing was published.")


def _add_export(commands: Any) -> None:
    command = new_command(
        commands,
        "export",
        "write a model as one ONNX graph from waveforms to probabilities",
        "Writes a trained model as an ONNX graph, feature extractor and calibration included, that onnxruntime runs "
        "without PyTorch; with labels, decision thresholds and an example program. Needs onnx, onnxscript and "
        "onnxruntime.",
        "kenya-birds export birds --output graph",
    )
    add_option(command, "model", str, help=MODEL)
    output = command.add_argument_group("Output")
    add_option(output, "--output", Path, required=True, metavar="FOLDER", help="folder to write: new or empty")
    add_option(output, "--formats", Literal["onnx"], "onnx", help="format of the model", aliases=("--format",))
    add_general(command)
    command.set_defaults(run=_export, after_stop="nothing was written; run the same command again")


def _export(options: argparse.Namespace) -> None:
    from kenya_birds.extras import check_extra
    from kenya_birds.folders import check_new_folder
    from kenya_birds.saved_models import check_model

    check_extra("onnx", "export")
    check_new_folder(options.output)
    check_model(options.model, ours=True)
    log_loading(options.model)
    from kenya_birds.publishing.export import export_onnx

    print(f"The graph is in {export_onnx(options.model, options.output)}.")
