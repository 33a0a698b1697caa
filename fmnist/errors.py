"""Errors that a user can fix. Their message is one line that says how."""


class ExpectedError(Exception):
    """Something outside the program is not as it must be; it ends a command with exit code 1."""

    exit_code = 1


class UsageError(ExpectedError):
    """What was asked for cannot be; it ends a command with exit code 2."""

    exit_code = 2


class NetworkError(UsageError):
    """A user's network cannot be used. The message names the place and the fix; frames of the user's code follow."""


class CheckpointError(ExpectedError):
    """A checkpoint is absent, damaged or not ours; the message names it."""


class DataError(ExpectedError):
    """The data set is absent, truncated or altered; the message says what to do."""


class DataAbsent(DataError):
    """The data set is nowhere on this machine and no mirror answers."""

    exit_code = 3
