"""Standard input, output and error: descriptors 0, 1 and 2, which never become another file's."""

import os
import sys

NAMES = ("stdin", "stdout", "stderr")  # of descriptors 0, 1 and 2


def occupy() -> None:
    """Open the null device in the place of each standard stream that is closed, for child processes too.

    A file opened while one is closed gets its descriptor. SQLite moves a database off 0 to 2 by opening and closing it,
    which drops all of the process's locks on that file (sqlite.org/howtocorrupt.html, 2.2): other processes then write
    to the database, or delete its log, while it is in use. And what a library prints would be written into the file.
    """
    for descriptor in range(len(NAMES)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest that is free, so this one
    for name in NAMES:
        if getattr(sys, name) is None:  # as Python leaves it if it starts with the descriptor closed
            mode = "r" if name == "stdin" else "w"
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(null, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115
