"""A network of the user's own: a class, or a function that makes one, in a file or an importable module.

Its constructor's parameters are its hyperparameters. Its code runs where the user names it, or where a file has the
content that a checkpoint has on record; a name that is on record alone imports nothing.
"""

import contextlib
import difflib
import hashlib
import importlib
import inspect
import linecache
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from fmnist.choices import in_file
from fmnist.errors import NetworkError
from fmnist.hyperparameters import OWN, RESERVED, TRAINING
from fmnist.user_code import line_of, running

PATIENCE = 10  # seconds
KINDS = (bool, int, float, str)  # of a hyperparameter
LARGEST = 2**18  # bytes of a file: its text goes into checkpoints, whose plain values are bounded

log = logging.getLogger("search.own_network")  # the name under which commands show what is logged


@dataclass(frozen=True)
class Source:
    """A file's content: its SHA-256, and its text, to be compared and read, never run."""

    sha256: str
    text: str


@dataclass(frozen=True)
class Named:
    """A network that the user named in one process, to be loaded in others: its file need not be there.

    source: of its file, at that path; None of an importable module.
    """

    architecture: str
    source: Source | None = None
    path: str = ""


@dataclass(frozen=True)
class OwnNetwork:
    """A network that was loaded.

    make: the class or function. module: in which it was found. arguments: types of the constructor's parameters.
    defaults: of those that have one. named: the user's name for it, with the content of its file.
    """

    make: Callable[..., Any]
    module: str
    arguments: Mapping[str, Any]
    defaults: Mapping[str, Any]
    named: Named

    @property
    def architecture(self) -> str:
        return self.named.architecture

    @property
    def source(self) -> Source | None:
        """Of its file; None of an importable module."""
        return self.named.source

    @property
    def required(self) -> list[str]:
        """The constructor's parameters without a default."""
        return [name for name in self.arguments if name not in self.defaults]

    def build(self, given: Mapping[str, Any]) -> nn.Module:
        """Make the network.

        Raises:
            NetworkError: the constructor does not take what is given, or fails.
        """
        values = {name: self.checked(name, value) for name, value in given.items()}
        if missing := [name for name in self.required if name not in values]:
            raise NetworkError(f"{self.constructor}: needs {missing[0]}; give it with --set {missing[0]}=VALUE")
        with running(self.architecture):
            network = self.make(**values)
        if not isinstance(network, nn.Module):
            raise NetworkError(f"{self.constructor}: makes a {type(network).__name__}; let it return an nn.Module")
        return network

    def parsed(self, assignments: Iterable[str]) -> dict[str, Any]:
        """Arguments from texts NAME=VALUE.

        Raises:
            NetworkError: the constructor has none of that name, or not with that value.
        """
        parsed: dict[str, Any] = {}
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals:
                raise NetworkError(f"--set {assignment}: has no value; write NAME=VALUE")
            kind = self._kind(name)
            try:
                if get_origin(kind) is Literal:  # its choices need not be texts
                    text = next((choice for choice in get_args(kind) if text in _written(choice)), text)
                    parsed[name] = self.checked(name, text)
                else:
                    parsed[name] = _adapter(kind).validate_strings(text, strict=False)
            except ValidationError as error:
                raise NetworkError(f"--set {assignment}: {_rule(error)}; change it") from None
        return parsed

    def checked(self, name: str, value: object) -> Any:
        """A value as the constructor takes it: 0 for a parameter of fractions is 0.0.

        Raises:
            NetworkError: it takes none of that name, or not with that value.
        """
        try:
            return _adapter(self._kind(name)).validate_python(value)
        except ValidationError as error:
            default = self.defaults.get(name)
            if self._kind(name) is int and isinstance(value, float) and default in (0, 1):
                fix = f"write its default {default} as {float(default)}, or annotate it as {name}: float"
                raise NetworkError(f"{self.constructor}: {name} is a whole number, not {value!r}; {fix}") from None
            raise NetworkError(f"{self.constructor}: {name} {_rule(error)}, not {value!r}; change either") from None

    def as_taken(self, name: str, value: object) -> Any:
        """A value as the constructor takes it, or unchanged if it takes no such value."""
        try:
            return self.checked(name, value)
        except NetworkError:
            return value

    @property
    def constructor(self) -> str:
        """File and line of it."""
        return line_of(self.make.__init__ if inspect.isclass(self.make) else self.make, self.architecture)

    def _kind(self, name: str) -> Any:
        if name not in self.arguments:
            close = difflib.get_close_matches(name, self.arguments, n=1)
            known = f"did you mean {close[0]}?" if close else f"it takes {', '.join(self.arguments) or 'none'}"
            if name in TRAINING:
                known = f"that is the training's: --{name.replace('_', '-')}"
            raise NetworkError(f"{self.constructor}: takes no {name}; {known}")
        return self.arguments[name]


def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))


def _written(choice: object) -> tuple[str, ...]:
    """A choice as Python and as a study file have it."""
    return (str(choice), str(choice).lower()) if isinstance(choice, bool) else (str(choice),)


def _rule(error: ValidationError) -> str:
    return error.errors()[0]["msg"].removeprefix("Input ")


_loaded: dict[str, OwnNetwork] = {}
_named: set[str] = set()  # by the user, in this process or in the one that started it
_folders: list[Path] = []


def trust(architecture: str) -> None:
    """Let a name on record be imported, or called though it is no class of its file, as the user has named it too."""
    if not re.fullmatch(OWN, architecture):
        raise NetworkError(f"{architecture}: is no FILE.py:CLASS below this folder, and no MODULE:CLASS; write one")
    _named.add(architecture)


@contextlib.contextmanager
def found_in(folder: Path) -> Iterator[None]:
    """Look for files in that folder; outside of this in the working directory."""
    _folders.append(folder)
    try:
        yield
    finally:
        _folders.pop()


def load(architecture: str, recorded: Source | None = None, *, beside: Path | None = None) -> OwnNetwork:
    """Load a network that the user names; its code runs once a process, and again when its file has other content.

    Args:
        architecture: FILE.py:NAME, or MODULE:NAME.
        recorded: the content that its file must have; nothing else of it is run.
        beside: where its file is unless `found_in` says so; the working directory if None.

    Raises:
        NetworkError: there is none, it has other content, or it cannot be one.
    """
    trust(architecture)
    return _load(architecture, recorded, beside)


def _load(architecture: str, recorded: Source | None, beside: Path | None = None) -> OwnNetwork:
    file = architecture.partition(":")[0]
    known = _loaded.get(architecture)
    if not in_file(architecture):
        return known or _keep(Named(architecture), _imported(file))
    if known and known.source == recorded:  # its code has run in this process, whatever the file holds by now
        return known
    path = (_folders[-1] if _folders else beside or Path.cwd()) / file
    content = _content(path)
    try:
        source = Source(hashlib.sha256(content).hexdigest(), content.decode())
    except UnicodeDecodeError as error:
        raise NetworkError(f"{path}: is no text in UTF-8; save it as such") from error
    if recorded and recorded != source:
        raise NetworkError(
            f"{path}: is not what is on record, so it is not run; restore it, or name the folder of a copy with "
            f"--network-dir\n{difference(recorded, source, file)}"
        )
    if known and known.source == source:
        return known
    return _keep(Named(architecture, source, str(path)), _executed(path, content))


def adopt(named: Named) -> OwnNetwork:
    """Load what the user named in another process: what its file held there, whatever it holds by now.

    Raises:
        NetworkError: as `load`.
    """
    trust(named.architecture)
    known = _loaded.get(named.architecture)
    if known and known.source == named.source:
        return known
    if named.source is None:
        return _load(named.architecture, None)
    return _keep(named, _executed(Path(named.path), named.source.text.encode()))


def of_record(architecture: str, recorded: Source | None) -> OwnNetwork:
    """The network that a checkpoint or a study names.

    Raises:
        NetworkError: as `load`; or it is importable, or anything but a class that its file defines, and the user has
            not named it in this process.
    """
    if in_file(architecture) and recorded is None:
        raise NetworkError(f"{architecture}: what its file held is not on record, so it is not run; restore the record")
    if not in_file(architecture) and architecture not in _named:  # whatever else is on record
        raise NetworkError(
            f"{architecture}: is imported only if you name it; add --architecture {architecture}, or call "
            "fmnist.own_network.trust with that"
        )
    own = _load(architecture, recorded)
    # The name and the arguments come from the record too, so an attacker must not reach other callables in the file.
    if architecture not in _named and not (inspect.isclass(own.make) and own.make.__module__ == own.module):
        raise NetworkError(
            f"{architecture}: is not a class that the file defines, so it runs only if you name it; add --architecture "
            f"{architecture}, or call fmnist.own_network.trust with that"
        )
    return own


def _content(path: Path) -> bytes:
    fix = "put it there, or name its folder with --network-dir"
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise NetworkError(f"{path}: is not a file; {fix}")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise NetworkError(f"{path}: {error.strerror}; {fix}") from error
    if len(content) > LARGEST:
        raise NetworkError(f"{path}: is larger than {LARGEST // 1024} KiB; keep nothing but the network in it")
    return content


def _keep(named: Named, module: ModuleType) -> OwnNetwork:
    architecture = named.architecture
    where, _, name = architecture.partition(":")
    make = vars(module).get(name)
    if make is None:
        own = [known for known, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        classes = [known for known in own if _is_module(vars(module)[known])]
        close = difflib.get_close_matches(name, own, n=1) or classes
        raise NetworkError(f"{where}: has no {name}; {f'did you mean {close[0]}?' if close else 'name a class in it'}")
    if inspect.isclass(make) and not _is_module(make):
        raise NetworkError(f"{where}: {name} is a class, but no torch.nn.Module; derive it from that")
    if isinstance(make, nn.Module) or not callable(make):
        raise NetworkError(
            f"{where}: {name} is an instance of {type(make).__name__}; name a class, or a function that makes a network"
        )
    _loaded[architecture] = OwnNetwork(make, module.__name__, *_schema(architecture, make), named)
    return _loaded[architecture]


def _is_module(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def _executed(path: Path, content: bytes) -> ModuleType:
    """Run what was read and compared, and not what the file, or a compiled copy of it, may hold by now."""
    module = ModuleType(f"own_network_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # as dataclasses and annotations in it ask for
    # For tracebacks: of this text, where the file has another, or is on another machine.
    lines = content.decode().splitlines(keepends=True)
    linecache.cache[str(path)] = (len(content), None, lines, str(path))
    # A seed that it sets, or numbers that it draws, are not to change the weights that are drawn next.
    with running(path.name, path.parent), torch.random.fork_rng([]), _patience(path.name):
        exec(compile(content, path, "exec"), vars(module))  # noqa: S102  # the file is the user's
    return module


@contextlib.contextmanager
def _patience(name: str) -> Iterator[None]:
    """Say so if a module runs for long, as one with a training of its own at its end does."""
    advice = '%s has run for %d s; keep what trains below `if __name__ == "__main__":`'
    slow = Timer(PATIENCE, log.warning, (advice, name, PATIENCE))
    slow.daemon = True
    slow.start()
    try:
        yield
    finally:
        slow.cancel()


def _imported(name: str) -> ModuleType:
    with running(name, Path.cwd()), torch.random.fork_rng([]), _patience(name):
        return importlib.import_module(name)


def _schema(architecture: str, make: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Types of the parameters of a constructor, by annotation, else by default; and their defaults."""
    constructor = make.__init__ if inspect.isclass(make) else make
    with running(architecture):
        hints, parameters = get_type_hints(constructor), inspect.signature(make).parameters
    if constructor is nn.Module.__init__:
        return {}, {}
    kinds: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for name, parameter in parameters.items():
        where = f"{line_of(constructor, architecture)}: parameter {name}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise NetworkError(
                f"{where}: *args, **kwargs and positional-only parameters are not supported; list each parameter"
            )
        if name in RESERVED:
            raise NetworkError(f"{where} has the name of a setting of the training; rename it")
        required = parameter.default is parameter.empty
        kind = hints.get(name, None if required else type(parameter.default))
        if kind not in KINDS and get_origin(kind) is not Literal:
            if required:
                raise NetworkError(f"{where} needs a type: bool, int, float, str or Literal; annotate it")
            continue  # its default is what it is
        kinds[name] = kind
        try:
            if not required:
                defaults[name] = _adapter(kind).validate_python(parameter.default)
        except ValidationError as error:
            raise NetworkError(f"{where}: its default {_rule(error)}, not {parameter.default!r}; correct it") from None
    return kinds, defaults


def difference(recorded: Source, found: Source, file: str) -> str:
    """What differs in a file, without what a terminal would take for commands."""
    lines = [
        *difflib.unified_diff(
            recorded.text.splitlines(), found.text.splitlines(), f"{file} on record", f"{file} here", lineterm="", n=1
        )
    ]
    rest = [f"... and {len(lines) - 40} more lines"] if len(lines) > 40 else []
    lines = lines[:40] or ["(they differ in the ends of their lines)"]
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in [*lines, *rest])
