"""Errors that a user can fix; the message is one line that says how."""


class ExpectedError(Exception):
    """Something outside the program is wrong; ends a command with exit code 1."""

    exit_code = 1


class UsageError(ExpectedError):
    """The request is invalid; ends a command with exit code 2."""

    exit_code = 2


class NetworkError(UsageError):
    """A user's network cannot be used. The message gives place and fix; frames of the user's code follow."""


class CheckpointError(ExpectedError):
    """A checkpoint is missing, damaged or not ours; the message names it."""


class DataError(ExpectedError):
    """The data set is missing, truncated or altered; the message says what to do."""


class DataNotFound(DataError):
    """The data set is not on this machine and could not be downloaded."""

    exit_code = 3
