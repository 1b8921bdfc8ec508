"""The command that serves a web page: demo."""

import argparse
from pathlib import Path
from typing import Any

from kenya_birds.commands.common import MODEL, log_loading
from kenya_birds.defaults import DEMO_HOST, DEMO_PORT, MAX_HOURS, MAX_UPLOAD_MB
from kenya_birds.parsing import add_general, add_option, new_command
from kenya_birds.values import Count, Port, Positive


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_demo,):
        add(commands)


def _add_demo(commands: Any) -> None:
    command = new_command(
        commands,
        "demo",
        "serve a web page that detects birds in recordings",
        "Serves a web page on which visitors upload or record sound, see the detected birds and download tables. "
        "Uploaded sound is deleted when a visitor leaves. Needs gradio.",
        "kenya-birds demo birds",
    )
    add_option(command, "model", str, help=MODEL)
    page = command.add_argument_group("Page")
    add_option(page, "--host", str, DEMO_HOST, help="address to listen on; 0.0.0.0: all addresses of this machine")
    add_option(page, "--port", Port, DEMO_PORT, help="port to listen on")
    add_option(
        page,
        "--example",
        Path,
        metavar="FILE",
        help="example recording on the page; by default a synthetic one",
    )
    limits = command.add_argument_group("Limits")
    add_option(limits, "--max_upload_mb", Positive, MAX_UPLOAD_MB, help="largest file, in MB (10^6 bytes)")
    add_option(limits, "--max_hours", Positive, MAX_HOURS, help="longest recording, in hours")
    add_option(limits, "--concurrency", Count, 1, help="number of recordings that are analysed at the same time")
    add_general(command)
    command.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    from kenya_birds.extras import check_extra
    from kenya_birds.files import check_file
    from kenya_birds.saved_models import check_model

    check_file(options.example, "a recording (--example)")
    check_extra("demo", "the demo")
    check_model(options.model, ours=True)
    log_loading(options.model)
    from kenya_birds.serving.demo import serve

    serve(
        options.model,
        host=options.host,
        port=options.port,
        max_upload_mb=options.max_upload_mb,
        max_hours=options.max_hours,
        concurrency=options.concurrency,
        example=options.example,
    )
