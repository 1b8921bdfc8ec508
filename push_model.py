"""Publishes a trained model folder on the Hugging Face Hub; `kenya-birds push` is the same command."""

import sys

from kenya_birds.console import one_line_errors, show_log
from kenya_birds.parsing import Parser
from kenya_birds.process import print_anything, use_utf8
from kenya_birds.publishing.push import AFTER_STOP, DESCRIPTION, add_push_options, push_model


def main(arguments: list[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Command line; by default the process's own.

    Raises:
        UserError: The folder, the name or the login cannot be used, a check fails, or the Hub cannot be reached.
    """
    push_model(_parser().parse_args(sys.argv[1:] if arguments is None else arguments))


def _parser() -> Parser:
    parser = Parser(
        prog="push_model.py",
        description=DESCRIPTION,
        example="python push_model.py --model_dir birds --repo_id birds-of-baringo --dry_run\n"
        "python push_model.py --model_dir birds --repo_id birds-of-baringo --private",
    )
    add_push_options(parser)
    return parser


if __name__ == "__main__":
    use_utf8()
    print_anything()
    show_log()
    with one_line_errors("push_model.py", AFTER_STOP):
        main()
