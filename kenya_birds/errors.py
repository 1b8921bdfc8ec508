"""What a user can get wrong."""


class UserError(Exception):
    """Something the user gave cannot be used.

    The message says what was expected, what was found, where, and what to do. Library callers can catch it; commands
    print it as one line and exit with code 2.
    """


class UsageError(UserError):
    """A command line that cannot be parsed.

    Args:
        message: What is wrong.
        program: The program and command that were called.
    """

    def __init__(self, message: str, program: str) -> None:
        super().__init__(message)
        self.program = program
