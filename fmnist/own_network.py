"""A network of the user's own: a class, or a function that makes one, in a file or an importable module.

Its constructor's parameters are its hyperparameters. Its code runs where the user names it, or where a file has the
content that a checkpoint has on record; a name that is on record alone imports nothing.
"""

import contextlib
import difflib
import hashlib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from fmnist.classes import CLASSES
from fmnist.errors import ExpectedError, UsageError
from fmnist.hyperparameters import OWN, TRAINING

SIDE = 28  # pixels of an image
KINDS = (bool, int, float, str)  # of a hyperparameter
RESERVED = {*TRAINING, "seed", "network"}  # names with a meaning of their own
LARGEST = 2**18  # bytes of a file: its text goes into checkpoints, whose plain values are bounded
SEED = 20_170_825_001  # of the trial before a training; nobody sets this one by accident

Value = TypeVar("Value")


class NetworkError(UsageError):
    """A user's network cannot be used. The message names the place and the fix; frames of the user's code follow."""


@dataclass(frozen=True)
class Source:
    """A file's content: its SHA-256, and its text, to be compared and read, never run."""

    sha256: str
    text: str


@dataclass(frozen=True)
class OwnNetwork:
    """A network that was loaded.

    make: the class or function. arguments: types of the constructor's parameters. required: those without a default.
    source: of its file; None of an importable module.
    """

    architecture: str
    make: Callable[..., Any]
    arguments: Mapping[str, Any]
    required: frozenset[str]
    source: Source | None

    def build(self, given: Mapping[str, Any]) -> nn.Module:
        """Make the network.

        Raises:
            NetworkError: the constructor does not take what is given, or fails.
        """
        values = {name: self._checked(name, value) for name, value in given.items()}
        if missing := sorted(self.required - values.keys()):
            raise NetworkError(f"{self._constructor}: needs {missing[0]}; give it with --set {missing[0]}=VALUE")
        with running(self.architecture):
            network = self.make(**values)
        if not isinstance(network, nn.Module):
            raise NetworkError(f"{self._constructor}: makes a {type(network).__name__}; let it return an nn.Module")
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
                    text = next((choice for choice in get_args(kind) if str(choice) == text), text)
                    parsed[name] = self._checked(name, text)
                else:
                    parsed[name] = _adapter(kind).validate_strings(text, strict=False)
            except ValidationError as error:
                raise NetworkError(f"--set {assignment}: {_rule(error)}; change it") from None
        return parsed

    @property
    def _constructor(self) -> str:
        return _line_of(self.make.__init__ if inspect.isclass(self.make) else self.make, self.architecture)

    def _kind(self, name: str) -> Any:
        if name not in self.arguments:
            close = difflib.get_close_matches(name, self.arguments, n=1)
            known = f"did you mean {close[0]}?" if close else f"it takes {', '.join(self.arguments) or 'none'}"
            raise NetworkError(f"{self._constructor}: takes no {name}; {known}")
        return self.arguments[name]

    def _checked(self, name: str, value: object) -> Any:
        try:
            return _adapter(self._kind(name)).validate_python(value)
        except ValidationError as error:
            raise NetworkError(f"{self._constructor}: {name} {_rule(error)}, not {value!r}; change either") from None


def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))


def _rule(error: ValidationError) -> str:
    return error.errors()[0]["msg"].removeprefix("Input ")


_loaded: dict[str, OwnNetwork] = {}
_folders: list[Path] = []


def is_own(architecture: str) -> bool:
    return ":" in architecture


@contextlib.contextmanager
def found_in(folder: Path) -> Iterator[None]:
    """Look for files in that folder; outside of this in the working directory."""
    _folders.append(folder)
    try:
        yield
    finally:
        _folders.pop()


def load(architecture: str, recorded: Source | None = None) -> OwnNetwork:
    """Load a network; its code is run once a process, and once more when its file has other content.

    Args:
        architecture: FILE.py:NAME, or MODULE:NAME.
        recorded: the content that its file must have; nothing else of it is run.

    Raises:
        NetworkError: there is none, it has other content, or it cannot be one.
    """
    if not re.fullmatch(OWN, architecture):
        raise NetworkError(f"{architecture}: is no FILE.py:CLASS below this folder, and no MODULE:CLASS; write one")
    file = architecture.partition(":")[0]
    known = _loaded.get(architecture)
    if not file.endswith(".py"):
        return known or _keep(architecture, _imported(file), None)
    path = (_folders[-1] if _folders else Path.cwd()) / file
    content = _content(path)
    try:
        source = Source(hashlib.sha256(content).hexdigest(), content.decode())
    except UnicodeDecodeError as error:
        raise NetworkError(f"{path}: is no text in UTF-8; save it as such") from error
    if recorded and recorded != source:
        raise NetworkError(
            f"{path}: is not what is on record, so it is not run; restore it, or name the folder of a copy with "
            f"--network-dir\n{_difference(recorded.text, source.text, file)}"
        )
    if known and known.source == source:
        return known
    return _keep(architecture, _executed(path, content), source)


def of_record(architecture: str, recorded: Source | None) -> OwnNetwork:
    """The network of a checkpoint.

    Raises:
        NetworkError: as `load`; or nothing but a name is on record, and the user has not given it in this process.
    """
    if recorded is None and architecture not in _loaded:
        raise NetworkError(
            f"{architecture}: is imported only if you name it; add --architecture {architecture}, or load it with "
            "fmnist.own_network.load"
        )
    return load(architecture, recorded)


def _content(path: Path) -> bytes:
    fix = "put it there, or name its folder with --network-dir"
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise NetworkError(f"{path}: is no file; {fix}")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise NetworkError(f"{path}: {error.strerror}; {fix}") from error
    if len(content) > LARGEST:
        raise NetworkError(f"{path}: is larger than {LARGEST // 1024} KiB; keep nothing but the network in it")
    return content


def _keep(architecture: str, module: ModuleType, source: Source | None) -> OwnNetwork:
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
            f"{where}: {name} is a {type(make).__name__} and no class; name a class, or a function that makes a network"
        )
    _loaded[architecture] = OwnNetwork(architecture, make, *_schema(architecture, make), source)
    return _loaded[architecture]


def _is_module(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def _executed(path: Path, content: bytes) -> ModuleType:
    """Run what was read and compared, and not what the file, or a compiled copy of it, may hold by now."""
    module = ModuleType(f"own_network_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # as dataclasses and annotations in it ask for
    # A seed that it sets, or numbers that it draws, are not to change the weights that are drawn next.
    with running(path.name, path.parent), torch.random.fork_rng([]):
        exec(compile(content, path, "exec"), vars(module))  # noqa: S102  # the file is the user's
    return module


def _imported(name: str) -> ModuleType:
    with running(name, Path.cwd()), torch.random.fork_rng([]):
        return importlib.import_module(name)


@contextlib.contextmanager
def running(where: str, folder: Path | None = None) -> Iterator[None]:
    """Run code of the user's; what it prints goes to standard error, as standard output may be JSON.

    Args:
        where: an architecture, a file or a module; nothing is done for an architecture of ours.
        folder: where the code looks for what it imports.

    Raises:
        NetworkError: it raised, or asked to end the process; with its own frames and none of ours.
    """
    if folder is None and not is_own(where):
        yield
        return
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except ExpectedError:
        raise
    except SyntaxError as error:
        file = Path(error.filename).name if error.filename else where
        line = f", line {error.lineno}" if error.lineno else ""
        raise NetworkError(f"{file}{line}: {error.msg}; correct it") from error
    except SystemExit as error:
        raise NetworkError(f"{_place(error, where)}: asks to end the process; remove that") from error
    except ImportError as error:
        raise NetworkError(f"{_place(error, where)}: {_said(error)}; {_of_import(error, where, folder)}") from error
    except Exception as error:  # whatever the user's code raises
        frames = "".join(traceback.StackSummary.from_list(_frames(error)).format())
        raise NetworkError(f"{_place(error, where)}: {_said(error)}; correct it\n{frames}".rstrip()) from error


def each(architecture: str, values: Iterator[Value]) -> Iterator[Value]:
    """The same for each value that the user's code takes part in, and not for what is done with it."""
    while True:
        with running(architecture):
            try:
                value = next(values)
            except StopIteration:
                return
        yield value


def _of_import(error: ImportError, where: str, folder: Path | None) -> str:
    name = (error.name or "").partition(".")[0]
    if folder and name and (folder / f"{name}.py").exists():
        if name == where:
            return f"name the file, as {name}.py:CLASS"
        return f"{name}.py lies beside it: make them a package on PYTHONPATH and name PACKAGE.MODULE:CLASS"
    if not name and not isinstance(error, ModuleNotFoundError):  # an import of a sibling as from .layers
        return "a single file has no siblings: make them a package on PYTHONPATH and name PACKAGE.MODULE:CLASS"
    return "install it, or correct the name"


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Those of the user's code: neither of this project, nor of Python's or an installed one's."""
    ours = [str(Path(__file__).parent.parent / name) for name in ("fmnist", "search")]
    libraries = [sys.prefix, str(Path(traceback.__file__).parent), *(path for path in sys.path if "-packages" in path)]
    others = (*ours, *libraries, "<frozen")
    return [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(others)]


def _place(error: BaseException, where: str) -> str:
    frames = _frames(error)
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else where


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _line_of(function: Any, otherwise: str) -> str:
    """File and line at which a function begins."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or "-packages" in code.co_filename:  # inherited, from torch
        return otherwise
    return f"{Path(code.co_filename).name}, line {code.co_firstlineno}"


def _schema(architecture: str, make: Callable[..., Any]) -> tuple[dict[str, Any], frozenset[str]]:
    """Types of the parameters of a constructor, by annotation, else by default; and those without a default."""
    constructor = make.__init__ if inspect.isclass(make) else make
    with running(architecture):
        hints, parameters = get_type_hints(constructor), inspect.signature(make).parameters
    if constructor is nn.Module.__init__:
        return {}, frozenset()
    kinds: dict[str, Any] = {}
    for name, parameter in parameters.items():
        where = f"{_line_of(constructor, architecture)}: parameter {name}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise NetworkError(f"{where} takes nothing by its name; name each parameter instead")
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
                _adapter(kind).validate_python(parameter.default)
        except ValidationError as error:
            raise NetworkError(f"{where}: its default {_rule(error)}, not {parameter.default!r}; correct it") from None
    return kinds, frozenset(name for name in kinds if parameters[name].default is inspect.Parameter.empty)


def _difference(recorded: str, found: str, file: str) -> str:
    """What differs, without what a terminal would take for commands."""
    lines = [
        *difflib.unified_diff(
            recorded.splitlines(), found.splitlines(), f"{file} on record", f"{file} here", lineterm="", n=1
        )
    ]
    rest = [f"... and {len(lines) - 40} more lines"] if len(lines) > 40 else []
    lines = lines[:40] or ["(they differ in the ends of their lines)"]
    return "\n".join("".join(c if c.isprintable() else " " for c in line) for line in [*lines, *rest])


def try_out(network: OwnNetwork, given: Mapping[str, Any]) -> None:
    """Do once, on noise, what a training does with a network, so that it fails before the training and not in it.

    Args:
        given: arguments of the constructor.

    Raises:
        NetworkError: it cannot be trained, scored or saved as it is.
    """
    where = network.architecture
    with torch.random.fork_rng([]):
        first, again = _seeded(network, given), _seeded(network, given)
        in_forward = _line_of(type(first).forward, where)
        _check_state(where, first, again)
        parameters = dict(first.named_parameters())
        images, labels = torch.randn(2, 1, SIDE, SIDE), torch.tensor([0, 1])
        with running(where):
            logits = first.train()(images)
        if torch.initial_seed() != SEED:
            raise NetworkError(f"{in_forward}: sets torch's seed, so that its randomness repeats itself; remove that")
        _check_logits(in_forward, logits, 2)
        if added := [name for name, _ in first.named_parameters() if name not in parameters]:
            raise NetworkError(f"{in_forward}: makes the parameter {added[0]}; make it in the constructor")
        if not logits.requires_grad:
            raise NetworkError(f"{in_forward}: its logits have no gradient; compute them with its parameters")
        with running(where):
            F.cross_entropy(logits.float(), labels).backward()
        gradients = [each.grad for each in parameters.values() if each.grad is not None]
        if not all(torch.isfinite(gradient).all() for gradient in gradients):
            raise NetworkError(f"{in_forward}: its gradients are not finite; look for a division or logarithm of 0")
        with torch.no_grad(), running(where):
            again.load_state_dict(first.state_dict())
            alone, repeated, other = (each.eval()(images[:1]) for each in (first, first, again))
        _check_logits(in_forward, alone, 1)
        if not torch.equal(alone, repeated):
            raise NetworkError(
                f"{in_forward}: is random in evaluation mode; write F.dropout(x, p, self.training), or nn.Dropout"
            )
        if not torch.equal(alone, other):
            raise NetworkError(
                f"{where}: scores another way once its state is saved and loaded; keep all of it in "
                "parameters and buffers"
            )


def _seeded(network: OwnNetwork, given: Mapping[str, Any]) -> nn.Module:
    torch.manual_seed(SEED)
    made = network.build(given)
    if torch.initial_seed() != SEED:
        place = _line_of(type(made).__init__, network.architecture)
        raise NetworkError(f"{place}: sets torch's seed, so that every seed has the same weights; remove that")
    return made


def _check_state(where: str, first: nn.Module, again: nn.Module) -> None:
    where = _line_of(type(first).__init__, where)
    parameters = dict(first.named_parameters())
    if any(isinstance(each, UninitializedParameter | UninitializedBuffer) for each in first.state_dict().values()):
        raise NetworkError(f"{where}: has lazy layers, whose size is not known before an image; give it to them")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise NetworkError(f"{where}: has no parameter to train; assign its layers to attributes of self")
    if wrong := next((name for name, each in parameters.items() if each.dtype != torch.float32), None):
        raise NetworkError(f"{where}: {wrong} is not float32; leave the precision to the training")
    if len({each.data_ptr() for each in parameters.values() if each.numel()}) < sum(
        each.numel() > 0 for each in parameters.values()
    ):
        raise NetworkError(f"{where}: two parameters share their memory; assign the same nn.Parameter to both")
    states = [network.state_dict() for network in (first, again)]
    if strange := next((name for name, each in states[0].items() if not isinstance(each, Tensor)), None):
        raise NetworkError(f"{where}: {strange} of its state is no tensor; keep it in parameters and buffers")
    if states[0].keys() != states[1].keys() or not all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    ):
        raise NetworkError(f"{where}: makes other weights with the same seed; draw them from torch's generator")


def _check_logits(where: str, logits: object, images: int) -> None:
    expected = f"logits of shape ({images}, {len(CLASSES)}) for images of shape ({images}, 1, {SIDE}, {SIDE})"
    if not isinstance(logits, Tensor):
        raise NetworkError(f"{where}: returns a {type(logits).__name__}; return {expected}")
    if logits.shape != (images, len(CLASSES)) or not logits.is_floating_point():
        kind = str(logits.dtype).removeprefix("torch.")
        raise NetworkError(f"{where}: returns {kind} of shape {tuple(logits.shape)}; return {expected}")
    if not torch.isfinite(logits).all():
        raise NetworkError(f"{where}: returns infinity or NaN; look for a division or logarithm of 0")
