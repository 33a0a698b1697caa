"""Processes of fmnist-search for tests, forked from a template process that has only imported its modules.

Importing torch takes seconds, and a search does it twice: in its own process, and in the server that forks its workers.
Here both are forked from one template. Otherwise they are like a user's: processes with their own descriptors,
environment, folder and signals, which can be killed. tests/search/run/test_local.py starts them as a user does.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import util
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
WIDTH = 20  # bytes of each number sent
LONGEST = 2**20  # bytes of a request: arguments and an environment
DESCRIPTORS = 16  # more than any request contains
IMPORTED = ("search.worker.loop", "search.run.search", "search.report.page", "search.dashboard.server", "rich.live")


class Process:
    """A `fmnist-search` process with the parts of subprocess.Popen's interface that tests need; pipes are text.

    Args:
        arguments: of the command.
        stdin, stdout, stderr: descriptors, or None for this process's; stdout and stderr may be subprocess.PIPE, stderr
            also subprocess.STDOUT.
    """

    def __init__(
        self,
        *arguments: str | Path,
        cwd: Path,
        env: Mapping[str, str],
        stdin: int | None = None,
        stdout: int | None = subprocess.PIPE,
        stderr: int | None = subprocess.PIPE,
        start_new_session: bool = False,
    ) -> None:
        self.returncode: int | None = None
        self._status, theirs = os.pipe()
        passed = [0 if stdin is None else stdin]
        mine: list[io.TextIOWrapper | None] = []
        ends = [theirs]
        for number, wanted in ((1, stdout), (2, stderr)):
            pipe = None
            if wanted == subprocess.PIPE:
                reader, wanted = os.pipe()
                ends.append(wanted)
                pipe = os.fdopen(reader, encoding="utf-8")
            elif wanted == subprocess.STDOUT:
                wanted = passed[1]
            passed.append(number if wanted is None else wanted)
            mine.append(pipe)
        self.stdout, self.stderr = mine
        call = {"arguments": [*map(str, arguments)], "cwd": str(cwd), "env": dict(env), "session": start_new_session}
        socket.send_fds(_template(), [json.dumps(call).encode()], [theirs, *passed])
        for end in ends:
            os.close(end)
        self.pid = int(os.read(self._status, WIDTH))

    def poll(self) -> int | None:
        return self._end(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._end(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("fmnist-search", timeout or 0)
        return status

    def communicate(self) -> tuple[str, str]:
        """Read both pipes to their ends and wait; "" for a stream that is closed or not a pipe."""
        pipes = [pipe for pipe in (self.stdout, self.stderr) if pipe and not pipe.closed]
        with ThreadPoolExecutor(2) as pool:
            read = dict(zip(pipes, pool.map(lambda pipe: pipe.read(), pipes), strict=True))
        for pipe in pipes:
            pipe.close()
        self.wait()
        return read.get(self.stdout, ""), read.get(self.stderr, "")  # type: ignore[call-overload, no-any-return]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _end(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(os.read(self._status, WIDTH))
            os.close(self._status)
        return self.returncode


@functools.cache
def _template() -> socket.socket:
    """The socket for requests to the template process, which ends with this process."""
    mine, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        call = [sys.executable, "-m", "tests.processes", str(theirs.fileno())]
        template = subprocess.Popen(call, cwd=ROOT, pass_fds=[theirs.fileno()])

    def end() -> None:
        mine.close()
        template.wait()

    atexit.register(end)
    return mine


def _serve(requests: socket.socket) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # garbage collection would write to all shared pages
    while True:
        content, descriptors, _, _ = socket.recv_fds(requests, LONGEST, DESCRIPTORS)
        if not content:
            return
        if os.fork() == 0:
            requests.close()
            _keep(json.loads(content), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _keep(call: dict[str, Any], descriptors: list[int]) -> None:
    """Fork the process, send its id, wait for it, and send its exit code."""
    status, *streams = descriptors
    pid = os.fork()
    if pid == 0:
        os.close(status)
        _become(call, streams)
    for descriptor in streams:
        os.close(descriptor)
    with contextlib.suppress(BrokenPipeError):  # the test has ended
        os.write(status, f"{pid:{WIDTH}}".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.write(status, f"{code:{WIDTH}}".encode())
    os._exit(0)


def _become(call: dict[str, Any], streams: list[int]) -> NoReturn:
    if call["session"]:
        os.setsid()
    for number, descriptor in enumerate(map(_out_of_the_way, streams)):
        os.dup2(descriptor, number)
    if call["session"] and os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C on it sends a signal
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.chdir(call["cwd"])
    _set_environment(call["env"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        errors = "backslashreplace" if number == 2 else "surrogateescape"
        stream = open(number, "w" if number else "r", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[attr-defined]
    _offer_a_server()
    sys.path[0] = call["cwd"]
    sys.argv[1:] = call["arguments"]
    _run_to_its_end(lambda: runpy.run_module("search", run_name="__main__", alter_sys=True))


def _run_to_its_end(program: Callable[[], object]) -> NoReturn:
    """Run and exit like the interpreter, but without tearing down modules, which would write to all shared pages."""
    code = 1
    try:
        program()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        traceback.print_exc()
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _offer_a_server() -> None:
    """Fork a server for workers, and let multiprocessing use it instead of starting one.

    If it is killed, multiprocessing starts the next one as usual.
    """
    requests, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    blocked = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # as when a user's search starts a server
    pid = os.fork()
    if pid == 0:
        requests.close()
        _be_a_server(theirs)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    spawn = util.spawnv_passfds

    def spawn_or_ask(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        code = args[-1]
        if "multiprocessing.forkserver" not in code:
            return spawn(path, args, passfds)
        if requests.fileno() == -1:  # ours was used and killed: start another as usual
            return spawn(path, args, passfds)
        call = {"code": code, "numbers": list(passfds), "env": dict(os.environ)}
        socket.send_fds(requests, [json.dumps(call).encode()], list(passfds))
        requests.close()
        return pid

    util.spawnv_passfds = spawn_or_ask


def _be_a_server(requests: socket.socket) -> NoReturn:
    content, descriptors, _, _ = socket.recv_fds(requests, LONGEST, DESCRIPTORS)
    if not content:
        os._exit(0)  # no workers were needed
    requests.close()
    call = json.loads(content)
    for descriptor, number in zip([*map(_out_of_the_way, descriptors)], call["numbers"], strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    _set_environment(call["env"])
    Path("/proc/self/comm").write_text("forkserver")  # tests find it by this name
    _run_to_its_end(lambda: exec(call["code"], {"__name__": "__main__"}))  # noqa: S102


def _set_environment(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _out_of_the_way(descriptor: int) -> int:
    """Duplicate a descriptor to a number that no other will get."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 512)
    os.close(descriptor)
    return moved


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
