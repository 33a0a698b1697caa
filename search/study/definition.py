"""A study's definition: read from TOML, validated, compared, and kept in the database.

All mistakes in a file are said at once, each in one line with the file, the key and what to do.
"""

import re
import tomllib
from functools import reduce
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator

from fmnist.choices import Tta, is_own
from fmnist.errors import UsageError
from fmnist.files import expand
from fmnist.hyperparameters import OWN, TRAINING, Hyperparameters, ScoreOn, check_batch_size
from search.choices import TOP, PrunerName, SamplerName
from search.formatting import did_you_mean
from search.study import validation
from search.study.mistakes import Mistake, Place, explain
from search.study.parameters import Parameter, Strict, Tables, Value, Values, merged

if TYPE_CHECKING:
    from fmnist.own_network import OwnNetwork

# What a study may be given anew: how far it goes, not what one of its trials is.
MAY_CHANGE = {"description", "minutes", "trials", "seeds", "finalists", "reference", "grid"}

TRIALS_OF_A_SEARCH = 50  # where nobody says how many


class DefinitionError(UsageError):
    """A study definition is missing or invalid; the message has a line for each mistake: file, key, remedy."""


class StudyDefinition(Strict):
    """What a study searches, and how.

    Parameters of the constructor of a user's own network are hyperparameters beside the training's. They are checked
    against it where it was loaded; a definition that comes out of a database runs no code.
    """

    description: str = Field("", description="one line on the question that the study answers")
    minutes: int | None = Field(None, ge=1, description="expected time on two cores, for the list of studies")
    trials: int | None = Field(None, ge=1, description="finished trials to reach; 50, or all of a grid, if not given")
    sampler: SamplerName = Field(
        "tpe",
        description="how parameters are chosen: tpe and gp learn from earlier trials, random and qmc (Sobol) do not, "
        "grid takes all combinations",
    )
    pruner: PrunerName = Field(
        "freeze",
        description="which trials end early: with freeze those that others outdo when the search is over, as they are "
        "paused until then; with slack those too far behind the best one at the same epoch; with none no trial; the "
        "others are Optuna's",
    )
    audit: float = Field(0.0, ge=0, le=1, description="share of pruned trials that are trained to the end all the same")
    score_on: ScoreOn = Field("test", description="images that score a trial; validation: a sixth of the training set")
    tta: Tta = Field(
        "auto",
        description="test-time augmentation of every score, and of the saved networks: with mirror the softmax of the "
        "mirrored image is added, with auto where the training's augmentation flips, with none nowhere",
    )
    seed: int = Field(0, ge=0, description="decides every random choice of the study")
    seeds: int = Field(1, ge=1, description="trainings of each configuration of a grid, each with its own seed")
    finalists: int = Field(
        TOP, ge=0, le=100, description="best configurations that `run` trains again with fresh seeds"
    )
    reference: Literal["write-up"] | None = Field(
        None, description="published results on Fashion-MNIST that the report compares a study of it with"
    )
    defaults: Hyperparameters = Field(
        default_factory=lambda: Hyperparameters(),
        description="trial 0, and the value of what is not searched: hyperparameters by name",
    )
    start: list[dict[str, Value]] = Field(
        default_factory=list,
        description="configurations to try right after trial 0, a `[[start]]` each: searched hyperparameters by name, "
        "others as in defaults",
    )
    space: dict[str, Tables] = Field(
        default_factory=dict,
        description="what is searched: hyperparameters by name, each with a range or choices, or with several tables, "
        "a `[[space.NAME]]` each, of different conditions",
    )
    grid: list[dict[str, Values]] = Field(
        default_factory=list,
        description="parts of a grid, a `[[grid]]` each: values to combine, others as in defaults; "
        "without parts it has all of space",
    )

    _own: "OwnNetwork | None" = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any, info: ValidationInfo) -> Any:
        return _space_of_grid(_with_arguments(given, info.context)) if isinstance(given, dict) else given

    @field_validator("space")
    @classmethod
    def _fractions(cls, space: dict[str, list[Parameter]], info: ValidationInfo) -> dict[str, list[Parameter]]:
        """Ranges of hyperparameters that take fractions have fractional ends, so that a table tells its kind."""
        if "defaults" not in info.data:
            return space  # they are wrong
        kinds: dict[str, Any] = {name: field.annotation for name, field in Hyperparameters.model_fields.items()}
        if is_own(info.data["defaults"].architecture):
            kinds = {name: kinds[name] for name in TRAINING} | (dict(info.context.arguments) if info.context else {})
        return {
            name: [table.of_fractions() for table in tables] if kinds.get(name) is float else tables
            for name, tables in space.items()
        }

    @model_validator(mode="after")
    def _is_consistent(self, info: ValidationInfo) -> Self:
        if is_own(self.defaults.architecture):
            self._own = info.context
        validation.check(self)
        return self

    @property
    def is_own(self) -> bool:
        """Whether the network is the user's own."""
        return is_own(self.defaults.architecture)

    @property
    def own(self) -> "OwnNetwork | None":
        """The user's own network, where it was loaded."""
        return self._own

    def loaded(self) -> Self:
        """The same with the user's own network, if it has one, and checked against that.

        Raises:
            NetworkError: it cannot be loaded.
            DefinitionError: the definition does not fit its constructor.
        """
        if not self.is_own or self._own:
            return self
        from fmnist import own_network

        return self.of_network(own_network.load(self.defaults.architecture))

    def of_network(self, own: "OwnNetwork") -> Self:
        """The same, checked against its network, which is the user's own.

        Raises:
            DefinitionError: it does not fit its constructor.
        """
        content = self.model_dump(include=self.model_fields_set)  # so that what was not given is still told apart
        try:
            return type(self).model_validate(content, context=own)
        except ValidationError as error:
            mistakes = explain(error, type(self), content)
            raise DefinitionError("\n".join(mistake.line for mistake in mistakes)) from error

    @property
    def default_values(self) -> dict[str, Any]:
        """The default configuration: hyperparameters by name, those of a user's own network among them."""
        values = self.defaults.model_dump()
        arguments: dict[str, Any] = values.pop("network")
        return values | arguments

    @property
    def defaults_known(self) -> bool:
        """Whether each searched hyperparameter has its default: those of a constructor are known once it is loaded."""
        return not self.is_own or self._own is not None or self.space.keys() <= self.default_values.keys()

    @property
    def ranges(self) -> dict[str, Parameter]:
        """All values of each searched hyperparameter, whatever the conditions."""
        return {name: merged(tables) for name, tables in self.space.items()}

    def longest_epochs(self) -> int:
        """The most epochs that a trial can have."""
        ends = [end for table in self.space.get("epochs", ()) for end in table.ends()]
        return int(max([*ends, self.defaults.epochs]))

    def identity(self) -> dict[str, Any]:
        """What must stay the same for as long as the study lives, as plain values."""
        return self.model_dump(mode="json", exclude=MAY_CHANGE)


def _with_arguments(given: dict[str, Any], own: "OwnNetwork | None") -> dict[str, Any]:
    """Of a user's own network, [defaults] has the arguments of the constructor by name, beside the training's."""
    defaults = given.get("defaults")
    if not isinstance(defaults, dict) or not is_own(_architecture(given)):
        return given
    arguments = defaults.get("network")
    if arguments is None:
        arguments = {name: value for name, value in defaults.items() if name not in TRAINING}
        defaults = {name: value for name, value in defaults.items() if name in TRAINING}
    if own and isinstance(arguments, dict):
        arguments = {**own.defaults, **{name: own.as_taken(name, value) for name, value in arguments.items()}}
    return {**given, "defaults": {**defaults, "network": arguments}}


def _space_of_grid(given: dict[str, Any]) -> dict[str, Any]:
    """A grid that is given in parts needs no space beside it: it is their values, and the default's."""
    parts, defaults = given.get("grid") if "space" not in given else None, given.get("defaults", {})
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return given
    known_defaults = {name: field.default for name, field in Hyperparameters.model_fields.items()}
    if isinstance(defaults, dict):
        if is_own(_architecture(given)):  # whose `hidden` is not ours
            known_defaults = {name: known_defaults[name] for name in TRAINING}
        known_defaults |= defaults | (defaults["network"] if isinstance(defaults.get("network"), dict) else {})
    choices: dict[str, list[Any]] = {}
    for name, values in (item for part in parts for item in part.items()):
        known = choices.setdefault(name, [known_defaults[name]] if name in known_defaults else [])
        known += [value for value in values if value not in known] if isinstance(values, list) else []
    return {**given, "space": {name: {"choices": values} for name, values in choices.items()}}


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Each difference of two identities as `key: stored -> given`."""
    before, after = _flatten(stored), _flatten(given)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before | after)
        if before.get(key) != after.get(key)
    ]


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list) and any(isinstance(each, dict) for each in value):
            value = {f"#{place}": each for place, each in enumerate(value, start=1)}
        leaves |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def bundled() -> list[Path]:
    """The definitions that come with the package, by name."""
    installed = Path(str(files("search"))) / "studies"
    folder = installed if installed.is_dir() else Path(str(files("search"))).parent / "studies"
    return sorted(folder.glob("*.toml"))


def known() -> dict[str, Path]:
    """The definitions that have a name: those in ./studies, and of the package's those that are not there too."""
    return {path.stem: path for path in [*bundled(), *sorted(Path("studies").glob("*.toml"))]}


def locate(study: str) -> Path:
    """The file of a study given as a path, or as a name in ./studies or in the package.

    Raises:
        DefinitionError: there is none.
    """
    if study.endswith(".toml") or "/" in study:
        return expand(study)
    named = known()
    if study not in named:
        raise DefinitionError(f"no study named {study!r}; {did_you_mean(study, named)}, or name a .toml file")
    return named[study]


def read(study: Path | str, **overrides: Any) -> StudyDefinition:
    """Read and validate a definition; overrides that are not None replace its own values.

    A network of the user's own is loaded, from a file beside the study's unless `own_network.found_in` says otherwise.

    Args:
        study: its file, or what `locate` finds.

    Raises:
        DefinitionError: the file is absent, no TOML, or wrong somewhere.
        NetworkError: its network cannot be loaded.
    """
    path = locate(study) if isinstance(study, str) else study
    content = _content(path) | {name: value for name, value in overrides.items() if value is not None}
    architecture, own = _architecture(content), None
    if re.fullmatch(OWN, architecture):
        from fmnist import own_network

        own = own_network.load(architecture, beside=path.parent)
    return _validated(path, content, own)


def describe(path: Path) -> StudyDefinition:
    """Read a definition for a list of studies, which runs no code of a network.

    Raises:
        DefinitionError: as `read`.
    """
    return _validated(path, _content(path), None)


def _architecture(content: dict[str, Any]) -> str:
    """What [defaults] of a definition names as the network, right or wrong; "" if that is no text."""
    defaults = content.get("defaults")
    architecture = defaults.get("architecture") if isinstance(defaults, dict) else None
    return architecture if isinstance(architecture, str) else ""


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DefinitionError(f"{path}: {error.strerror}; name a study or a .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DefinitionError(f"{path}: not TOML: {error}") from error


def _validated(path: Path, content: dict[str, Any], own: "OwnNetwork | None") -> StudyDefinition:
    found, mistakes = _checked(content, own)
    if mistakes:
        raise DefinitionError("\n".join(f"{path}: {mistake.line}" for mistake in mistakes))
    assert found  # what has no mistake is valid
    return found


def _checked(content: dict[str, Any], own: "OwnNetwork | None") -> tuple[StudyDefinition | None, list[Mistake]]:
    """The definition, and all mistakes in it.

    What is wrong by itself is taken out, and what is left is looked at again, so that one mistake hides no other.
    """
    mistakes: list[Mistake] = []
    removed: set[Place] = set()
    is_of_ours = re.search(r":|\.py$", _architecture(content)) is None  # it decides which hyperparameters there are
    while True:
        try:
            found = StudyDefinition.model_validate(content, context=own)
        except ValidationError as error:
            wrong = explain(error, StudyDefinition, content)
        else:
            return found, mistakes + [each for each in _of_batches(found) if not each.follows_from(removed)]
        mistakes += [each for each in wrong if not each.follows_from(removed)]
        removed |= {place for each in wrong for place in (_present(content, each.place), *each.others)}
        before, content = content, reduce(_without, {each.place for each in wrong}, content)
        if content == before or not (is_of_ours or _architecture(content)):
            return None, mistakes


def _present(content: dict[str, Any], place: Place) -> Place:
    """The place, or for a key that is missing the table that lacks it, which is what is taken out then."""
    inner: Any = content
    for depth, part in enumerate(place):
        if isinstance(inner, dict) and part not in inner:
            return place[:depth] or place
        inner = inner[part] if isinstance(inner, dict) else None
    return place


def _without(content: dict[str, Any], place: Place) -> dict[str, Any]:
    """A table without what is at a place; from a list on all of that goes, as its other entries keep their numbers."""
    first, *rest = place or ("",)
    if first not in content:
        return content
    inner = content[first]
    if rest and isinstance(inner, dict) and isinstance(rest[0], str) and rest[0] in inner:
        return content | {first: _without(inner, tuple(rest))}
    return {key: value for key, value in content.items() if key != first}


def _of_batches(definition: StudyDefinition) -> list[Mistake]:
    """Batches too small for a new study; those of 0.2.0 may have them."""
    sizes = [end for table in definition.space.get("batch_size", ()) for end in table.ends()]
    try:
        check_batch_size(int(min(sizes or [definition.defaults.batch_size])))
    except UsageError as error:
        return [Mistake((), str(error), (("space", "batch_size"), ("defaults", "batch_size")))]
    return []
