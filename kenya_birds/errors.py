"""Errors that a user can correct."""


class UserError(Exception):
    """Error in the user's input, such as a file, a setting or a model.

    The message says what was expected, what was found, where, and what to do. Library callers can catch it. Commands
    print it as one line and exit with code 2.
    """


class WriteError(UserError):
    """Error of a folder that cannot be written to, because its disk is full for example."""


class LostProcessError(UserError):
    """Error of a process whose run cannot go on, because another process of it has ended."""


class DivergedError(UserError):
    """Error of a training whose scores or weights are no longer numbers."""


class DeviceMemoryError(UserError):
    """Error of a device that has too little memory for a computation."""


class UsageError(UserError):
    """Error in a command line.

    Args:
        message: The message.
        program: Program and command.
    """

    def __init__(self, message: str, program: str) -> None:
        super().__init__(message)
        self.program = program
