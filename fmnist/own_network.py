"""The user's own network: a class, or a function that returns a network, in a file or an importable module.

Its constructor's parameters are its hyperparameters. Its code runs only if the user names it, or if its file has the
content that a checkpoint or a study records; a recorded name alone imports nothing.
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
KINDS = (bool, int, float, str)  # types of a hyperparameter
LARGEST = 2**18  # bytes of a file: checkpoints store its text, and their plain values are bounded

log = logging.getLogger("search.own_network")  # commands show the loggers below `search`


@dataclass(frozen=True)
class Source:
    """A file's content: SHA-256 and text. A recorded text is compared and shown, never run."""

    sha256: str
    text: str


@dataclass(frozen=True)
class Named:
    """A network that the user named in one process, to load in other processes, even without its file.

    source: content of the file at `path`; None for an importable module.
    """

    architecture: str
    source: Source | None = None
    path: str = ""


@dataclass(frozen=True)
class OwnNetwork:
    """A loaded network.

    make: the class or function. module: name of the module that holds it. arguments: types of the constructor's
    parameters. defaults: their default values, if any. named: the user's name for it, with its file's content.
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
        """Content of its file; None for an importable module."""
        return self.named.source

    @property
    def required(self) -> list[str]:
        """The constructor's parameters without a default."""
        return [name for name in self.arguments if name not in self.defaults]

    def build(self, given: Mapping[str, Any]) -> nn.Module:
        """Build the network.

        Raises:
            NetworkError: the constructor rejects the arguments, or fails.
        """
        values = {name: self.checked(name, value) for name, value in given.items()}
        if missing := [name for name in self.required if name not in values]:
            raise NetworkError(f"{self.constructor}: needs {missing[0]}; set it with --set {missing[0]}=VALUE")
        with running(self.architecture):
            network = self.make(**values)
        if not isinstance(network, nn.Module):
            raise NetworkError(f"{self.constructor}: returns a {type(network).__name__}; return an nn.Module")
        return network

    def parsed(self, assignments: Iterable[str]) -> dict[str, Any]:
        """Parse arguments written as NAME=VALUE.

        Raises:
            NetworkError: the constructor has no such parameter, or rejects the value.
        """
        parsed: dict[str, Any] = {}
        for assignment in assignments:
            name, equals, text = assignment.partition("=")
            if not equals:
                raise NetworkError(f"--set {assignment}: has no value; write NAME=VALUE")
            kind = self._kind(name)
            try:
                if get_origin(kind) is Literal:  # choices may have other types than str
                    text = next((choice for choice in get_args(kind) if text in _spellings(choice)), text)
                    parsed[name] = self.checked(name, text)
                else:
                    parsed[name] = _adapter(kind).validate_strings(text, strict=False)
            except ValidationError as error:
                raise NetworkError(f"--set {assignment}: {_rule(error)}; change it") from None
        return parsed

    def checked(self, name: str, value: object) -> Any:
        """Validate a value and convert it to the parameter's type: 0 becomes 0.0 for a float.

        Raises:
            NetworkError: the constructor has no such parameter, or rejects the value.
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
        """Convert a value as `checked` does; returned unchanged if the constructor rejects it."""
        try:
            return self.checked(name, value)
        except NetworkError:
            return value

    @property
    def constructor(self) -> str:
        """Its file and line."""
        return line_of(self.make.__init__ if inspect.isclass(self.make) else self.make, self.architecture)

    def _kind(self, name: str) -> Any:
        if name not in self.arguments:
            close = difflib.get_close_matches(name, self.arguments, n=1)
            hint = f"did you mean {close[0]}?" if close else f"its parameters are {', '.join(self.arguments) or 'none'}"
            if name in TRAINING:
                hint = f"to set that of the training run, use --{name.replace('_', '-')}"
            raise NetworkError(f"{self.constructor}: has no parameter {name}; {hint}")
        return self.arguments[name]


def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))


def _spellings(choice: object) -> tuple[str, ...]:
    # Python writes True, a study file true.
    return (str(choice), str(choice).lower()) if isinstance(choice, bool) else (str(choice),)


def _rule(error: ValidationError) -> str:
    return error.errors()[0]["msg"].removeprefix("Input ")


_loaded: dict[str, OwnNetwork] = {}
_named: set[str] = set()  # by the user, in this process or its parent
_folders: list[Path] = []


def trust(architecture: str) -> None:
    """Register a network as named by the user: it may then be imported, or called if it is not a class of its file.

    Raises:
        NetworkError: it is not a valid name.
    """
    if not re.fullmatch(OWN, architecture):
        raise NetworkError(
            f"{architecture}: is not a network; write FILE.py:CLASS (a file below this folder) or MODULE:CLASS"
        )
    _named.add(architecture)


@contextlib.contextmanager
def found_in(folder: Path) -> Iterator[None]:
    """Inside this context, look for files in `folder` instead of the working directory."""
    _folders.append(folder)
    try:
        yield
    finally:
        _folders.pop()


def load(architecture: str, recorded: Source | None = None, *, beside: Path | None = None) -> OwnNetwork:
    """Load a network that the user names; its code runs once per process, and again if its file has changed.

    Args:
        architecture: FILE.py:NAME, or MODULE:NAME.
        recorded: content that the file must have; a file with other content is not run.
        beside: folder of the file, unless inside `found_in`; the working directory if None.

    Raises:
        NetworkError: it is missing, has other content, or is not a network.
    """
    trust(architecture)
    return _load(architecture, recorded, beside)


def _load(architecture: str, recorded: Source | None, beside: Path | None = None) -> OwnNetwork:
    file = architecture.partition(":")[0]
    loaded = _loaded.get(architecture)
    if not in_file(architecture):
        return loaded or _register(Named(architecture), _import(file))
    if loaded and loaded.source == recorded:  # already run in this process, even if the file has changed since
        return loaded
    path = (_folders[-1] if _folders else beside or Path.cwd()) / file
    content = _content(path)
    try:
        source = Source(hashlib.sha256(content).hexdigest(), content.decode())
    except UnicodeDecodeError as error:
        raise NetworkError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    if recorded and recorded != source:
        raise NetworkError(
            f"{path}: differs from the recorded file, so it was not run; restore it, or name the folder of a copy with "
            f"--network-dir\n{difference(recorded, source, file)}"
        )
    if loaded and loaded.source == source:
        return loaded
    return _register(Named(architecture, source, str(path)), _execute(path, content))


def adopt(named: Named) -> OwnNetwork:
    """Load a network that the user named in another process, with the file content it had there.

    Raises:
        NetworkError: as `load`.
    """
    trust(named.architecture)
    loaded = _loaded.get(named.architecture)
    if loaded and loaded.source == named.source:
        return loaded
    if named.source is None:
        return _load(named.architecture, None)
    return _register(named, _execute(Path(named.path), named.source.text.encode()))


def of_record(architecture: str, recorded: Source | None) -> OwnNetwork:
    """Load the network that a checkpoint or a study records.

    Raises:
        NetworkError: as `load`; or it is in a module, or not a class that its file defines, and the user has not
            named it in this process.
    """
    if in_file(architecture) and recorded is None:
        raise NetworkError(f"{architecture}: its file's content is not recorded, so it was not run; restore the record")
    if not in_file(architecture) and architecture not in _named:
        raise NetworkError(
            f"{architecture}: is imported only if you name it; add --architecture {architecture}, or pass it to "
            "fmnist.own_network.trust"
        )
    own = _load(architecture, recorded)
    # The name and the arguments come from the record too, so an attacker must not reach other callables in the file.
    if architecture not in _named and not (inspect.isclass(own.make) and own.make.__module__ == own.module):
        raise NetworkError(
            f"{architecture}: is not a class that the file defines, so it runs only if you name it; add --architecture "
            f"{architecture}, or pass it to fmnist.own_network.trust"
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
        raise NetworkError(f"{path}: is larger than {LARGEST // 1024} KiB; keep only the network in it")
    return content


def _register(named: Named, module: ModuleType) -> OwnNetwork:
    architecture = named.architecture
    where, _, name = architecture.partition(":")
    make = vars(module).get(name)
    if make is None:
        own = [each for each, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        classes = [each for each in own if _is_module(vars(module)[each])]
        close = difflib.get_close_matches(name, own, n=1) or classes
        raise NetworkError(f"{where}: has no {name}; {f'did you mean {close[0]}?' if close else 'name a class in it'}")
    if inspect.isclass(make) and not _is_module(make):
        raise NetworkError(f"{where}: class {name} is not a torch.nn.Module; derive it from torch.nn.Module")
    if isinstance(make, nn.Module) or not callable(make):
        raise NetworkError(
            f"{where}: {name} is a {type(make).__name__} instance; name a class, or a function that returns a network"
        )
    _loaded[architecture] = OwnNetwork(make, module.__name__, *_schema(architecture, make), named)
    return _loaded[architecture]


def _is_module(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def _execute(path: Path, content: bytes) -> ModuleType:
    # Runs the content that was verified, not the file or a compiled copy, which may have changed.
    module = ModuleType(f"own_network_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and annotations look it up there
    # Tracebacks show this text, even if the file has changed or is on another machine.
    lines = content.decode().splitlines(keepends=True)
    linecache.cache[str(path)] = (len(content), None, lines, str(path))
    # fork_rng, because seeding or drawing in the file must not change the weights that are drawn next.
    with running(path.name, path.parent), torch.random.fork_rng([]), _warn_if_slow(path.name):
        exec(compile(content, path, "exec"), vars(module))  # noqa: S102  # the file is the user's
    return module


@contextlib.contextmanager
def _warn_if_slow(name: str) -> Iterator[None]:
    warning = '%s has been running for %d s; move code that trains below `if __name__ == "__main__":`'
    timer = Timer(PATIENCE, log.warning, (warning, name, PATIENCE))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _import(name: str) -> ModuleType:
    with running(name, Path.cwd()), torch.random.fork_rng([]), _warn_if_slow(name):
        return importlib.import_module(name)


def _schema(architecture: str, make: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    # Types of the constructor's parameters (from the annotation, else from the default), and their defaults.
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
            raise NetworkError(f"{where} has the name of a training setting; rename it")
        required = parameter.default is parameter.empty
        kind = hints.get(name, None if required else type(parameter.default))
        if kind not in KINDS and get_origin(kind) is not Literal:
            if required:
                raise NetworkError(f"{where} needs a type: bool, int, float, str or Literal; annotate it")
            continue  # not searchable: it keeps its default
        kinds[name] = kind
        try:
            if not required:
                defaults[name] = _adapter(kind).validate_python(parameter.default)
        except ValidationError as error:
            raise NetworkError(f"{where}: its default {_rule(error)}, not {parameter.default!r}; correct it") from None
    return kinds, defaults


def difference(recorded: Source, found: Source, file: str) -> str:
    """Unified diff of a file's two contents, without control characters."""
    lines = [
        *difflib.unified_diff(
            recorded.text.splitlines(), found.text.splitlines(), f"{file} (recorded)", f"{file} (now)", lineterm="", n=1
        )
    ]
    rest = [f"... and {len(lines) - 40} more lines"] if len(lines) > 40 else []
    lines = lines[:40] or ["(only line endings differ)"]
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in [*lines, *rest])
