"""Commands that serve a model to others: demo."""

import argparse
from pathlib import Path
from typing import Any

from kenya_birds.commands.parsing import new_command
from kenya_birds.errors import UserError


def add_commands(commands: Any) -> None:
    """Adds these commands to the parser."""
    for add in (_add_demo,):
        add(commands)


def _add_demo(commands: Any) -> None:
    command = new_command(
        commands,
        "demo",
        "serve a web page that hears recordings with a model",
        "Serves a page on which a recording is dropped, or recorded, and its birds are shown and can be downloaded as "
        "tables. What visitors send is removed when they leave.",
    )
    command.add_argument("model", help="the model's folder, or OWNER/NAME[@REVISION] on the Hub")
    command.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all of this machine's")
    command.add_argument("--port", type=int, default=7860, help="port to listen on")
    command.add_argument("--max_upload_mb", type=float, default=400.0, help="largest file, in millions of bytes")
    command.add_argument("--max_hours", type=float, default=2.0, help="longest recording")
    command.add_argument("--concurrency", type=int, default=1, help="recordings that are heard at a time")
    command.add_argument(
        "--example", type=Path, metavar="FILE", help="recording that visitors can try; by default invented birds"
    )
    command.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    try:
        from kenya_birds.serving.demo import serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError("the demo needs Gradio: pip install 'kenya_birds[demo]'") from None

    serve(
        options.model,
        host=options.host,
        port=options.port,
        max_upload_mb=options.max_upload_mb,
        max_hours=options.max_hours,
        concurrency=options.concurrency,
        example=options.example,
    )
