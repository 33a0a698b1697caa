"""Keep descriptors 0, 1 and 2 for standard input, output and error."""

import os
import sys

NAMES = ("stdin", "stdout", "stderr")  # of descriptors 0, 1 and 2


def occupy() -> None:
    """Open the null device for each closed standard stream, also for child processes.

    Otherwise the next file opened gets the descriptor, and output of libraries is written into it. SQLite moves a
    database off 0 to 2 by opening and closing it, which drops all of the process's locks on that file
    (sqlite.org/howtocorrupt.html, 2.2): other processes can then write to the database, or delete its log, while it
    is in use.
    """
    for descriptor in range(len(NAMES)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free one, this
    for name in NAMES:
        if getattr(sys, name) is None:  # Python started with the descriptor closed
            mode = "r" if name == "stdin" else "w"
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(null, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115
