"""A terminal for tests: the screen that results from a program's output, and programs on a real pseudo-terminal."""

import codecs
import fcntl
import os
import re
import select
import struct
import termios
from pathlib import Path

from tests.processes import Process

_TOKENS = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x00-\x1f\x7f])|(.)", re.DOTALL)


class Screen:
    """The lines that an output leaves on a terminal, including those scrolled away.

    It supports the control sequences that rich uses; any other fails the test.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.lines = [""]
        self.row = self.column = 0
        self.cursor_shown = True

    @property
    def text(self) -> str:
        """The text on the screen, without trailing spaces and empty lines."""
        return "\n".join(line.rstrip() for line in self.lines).rstrip()

    def feed(self, output: str) -> "Screen":
        for arguments, letter, control, character, unknown in _TOKENS.findall(output):
            assert not unknown, f"{unknown!r} in {output!r}"
            if letter:
                self._command(arguments, letter)
            elif control == "\r":
                self.column = 0
            elif control == "\n":
                self.column = 0
                self._down()
            else:
                self._put(character)
        return self

    def _command(self, arguments: str, letter: str) -> None:
        if (arguments, letter) in (("?25", "l"), ("?25", "h")):
            self.cursor_shown = letter == "h"
        elif letter == "A":
            self.row = max(self.row - int(arguments), len(self.lines) - self.rows, 0)
        elif (arguments, letter) == ("2", "K"):
            self.lines[self.row] = ""
        else:
            assert letter == "m", f"CSI {arguments} {letter}"

    def _put(self, character: str) -> None:
        if self.column == self.columns:  # a full line wraps only at the next character
            self.column = 0
            self._down()
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append("")


class Terminal:
    """A process of fmnist-search with its own pseudo-terminal for input, output and signals."""

    def __init__(self, *arguments: str, cwd: Path, columns: int, rows: int = 24, **environment: str) -> None:
        self.size = columns, rows
        self.output, self.decoder = "", codecs.getincrementaldecoder("utf-8")()
        self.master, self.slave = os.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.settings = termios.tcgetattr(self.slave)
        self.process = Process(
            *arguments,
            cwd=cwd,
            env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "TERM": "xterm", **environment},
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_until(self, seen: str) -> None:
        """Wait until the output contains `seen`."""
        while seen not in self.output:
            assert self._read(1.0) or self.process.poll() is None, self.output

    def wait(self) -> tuple[int, Screen]:
        """Wait for the process to end; return its exit code and the final screen."""
        while self.process.poll() is None:
            self._read(0.1)
        while self._read(0.0):
            pass
        assert termios.tcgetattr(self.slave) == self.settings, "the terminal's settings were not restored"
        os.close(self.slave)
        os.close(self.master)
        return self.process.returncode, Screen(*self.size).feed(self.output)

    def _read(self, timeout: float) -> bool:
        readable, _, _ = select.select([self.master], [], [], timeout)
        if readable:
            self.output += self.decoder.decode(os.read(self.master, 65536))
        return bool(readable)
