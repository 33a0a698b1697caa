"""A study's definition: read from TOML, validated, compared, and stored in the database.

All mistakes in a file are reported at once, one line each: the file, the key and what to do.
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

# Keys that may change when a study is resumed: they set its extent, not what a trial is.
MAY_CHANGE = {"description", "minutes", "trials", "seeds", "finalists", "reference", "grid"}

TRIALS_OF_A_SEARCH = 50  # the default


class DefinitionError(UsageError):
    """A study definition is missing or invalid; the message has one line per mistake: file, key, what to do."""


class StudyDefinition(Strict):
    """What a study searches, and how.

    For a user's own network, the parameters of its constructor are hyperparameters too. They are checked against the
    constructor if the network is loaded; reading a definition from a database runs no code.
    """

    description: str = Field("", description="one line: the question that the study answers")
    minutes: int | None = Field(None, ge=1, description="expected time on two cores, shown in the list of studies")
    trials: int | None = Field(None, ge=1, description="number of finished trials; by default 50, or the whole grid")
    sampler: SamplerName = Field(
        "tpe",
        description="how values are chosen: tpe and gp learn from earlier trials, random and qmc (Sobol) do not, "
        "grid takes all combinations",
    )
    pruner: PrunerName = Field(
        "freeze",
        description="which trials stop early: freeze pauses trials and prunes those that are outperformed when the "
        "search ends; slack prunes trials too far behind the best one at the same epoch; none prunes none; the others "
        "are Optuna's",
    )
    audit: float = Field(0.0, ge=0, le=1, description="fraction of pruned trials that are trained to the end anyway")
    score_on: ScoreOn = Field(
        "test", description="images that score a trial: test, or validation, a sixth of the training set"
    )
    tta: Tta = Field(
        "auto",
        description="test-time augmentation of every score and of saved networks: mirror adds the softmax of the "
        "mirrored image, auto does so if the training's augmentation flips, none never",
    )
    seed: int = Field(0, ge=0, description="seed of every random choice in the study")
    seeds: int = Field(1, ge=1, description="training runs per configuration of a grid, each with its own seed")
    finalists: int = Field(
        TOP, ge=0, le=100, description="number of best configurations that `run` trains again with fresh seeds"
    )
    reference: Literal["write-up"] | None = Field(
        None, description="published results on Fashion-MNIST with which the report compares the study"
    )
    defaults: Hyperparameters = Field(
        default_factory=lambda: Hyperparameters(),
        description="hyperparameters of trial 0, and of every trial where they are not searched",
    )
    start: list[dict[str, Value]] = Field(
        default_factory=list,
        description="configurations to try right after trial 0, one `[[start]]` each: values of searched "
        "hyperparameters; others as in defaults",
    )
    space: dict[str, Tables] = Field(
        default_factory=dict,
        description="search space: hyperparameters by name, each with a range or choices, or with several tables "
        "under different conditions, one `[[space.NAME]]` each",
    )
    grid: list[dict[str, Values]] = Field(
        default_factory=list,
        description="parts of a grid, one `[[grid]]` each: values to combine, others as in defaults; "
        "by default the grid covers all of space",
    )

    _own: "OwnNetwork | None" = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any, info: ValidationInfo) -> Any:
        return _space_of_grid(_with_arguments(given, info.context)) if isinstance(given, dict) else given

    @field_validator("space")
    @classmethod
    def _fractions(cls, space: dict[str, list[Parameter]], info: ValidationInfo) -> dict[str, list[Parameter]]:
        # Make the bounds of every range for a float hyperparameter floats, so that a table alone tells int from float.
        if "defaults" not in info.data:
            return space  # [defaults] is invalid
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
        """Whether this study searches a user's own network."""
        return is_own(self.defaults.architecture)

    @property
    def own(self) -> "OwnNetwork | None":
        """The user's own network, None if it is not loaded."""
        return self._own

    def loaded(self) -> Self:
        """This definition with the user's own network, if it has one, loaded and validated.

        Raises:
            NetworkError: the network cannot be loaded.
            DefinitionError: the definition does not fit the network's constructor.
        """
        if not self.is_own or self._own:
            return self
        from fmnist import own_network

        return self.of_network(own_network.load(self.defaults.architecture))

    def of_network(self, own: "OwnNetwork") -> Self:
        """This definition, validated against the constructor of the user's own network.

        Raises:
            DefinitionError: it does not fit.
        """
        content = self.model_dump(include=self.model_fields_set)  # keeps `model_fields_set` the same
        try:
            return type(self).model_validate(content, context=own)
        except ValidationError as error:
            mistakes = explain(error, type(self), content)
            raise DefinitionError("\n".join(mistake.line for mistake in mistakes)) from error

    @property
    def default_values(self) -> dict[str, Any]:
        """The default configuration: all hyperparameters by name, including those of a user's own network."""
        values = self.defaults.model_dump()
        arguments: dict[str, Any] = values.pop("network")
        return values | arguments

    @property
    def defaults_known(self) -> bool:
        """Whether every searched hyperparameter has a known default; a constructor's are known once it is loaded."""
        return not self.is_own or self._own is not None or self.space.keys() <= self.default_values.keys()

    @property
    def ranges(self) -> dict[str, Parameter]:
        """All values of each searched hyperparameter under any condition."""
        return {name: merged(tables) for name, tables in self.space.items()}

    def longest_epochs(self) -> int:
        """The largest number of epochs in the search space."""
        ends = [end for table in self.space.get("epochs", ()) for end in table.ends()]
        return int(max([*ends, self.defaults.epochs]))

    def identity(self) -> dict[str, Any]:
        """The part that must not change when the study is resumed, as plain values."""
        return self.model_dump(mode="json", exclude=MAY_CHANGE)


def _with_arguments(given: dict[str, Any], own: "OwnNetwork | None") -> dict[str, Any]:
    # In [defaults], the constructor's arguments of a user's own network stand beside the training's hyperparameters.
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
    # A grid in parts needs no [space]: it follows from the values in the parts and the defaults.
    parts, defaults = given.get("grid") if "space" not in given else None, given.get("defaults", {})
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return given
    known_defaults = {name: field.default for name, field in Hyperparameters.model_fields.items()}
    if isinstance(defaults, dict):
        if is_own(_architecture(given)):  # its `hidden`, for example, has nothing to do with ours
            known_defaults = {name: known_defaults[name] for name in TRAINING}
        known_defaults |= defaults | (defaults["network"] if isinstance(defaults.get("network"), dict) else {})
    choices: dict[str, list[Any]] = {}
    for name, values in (item for part in parts for item in part.items()):
        known = choices.setdefault(name, [known_defaults[name]] if name in known_defaults else [])
        known += [value for value in values if value not in known] if isinstance(values, list) else []
    return {**given, "space": {name: {"choices": values} for name, values in choices.items()}}


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Each difference between two identities as `key: stored -> given`."""
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
            value = {f"#{index}": each for index, each in enumerate(value, start=1)}
        leaves |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return leaves


def bundled() -> list[Path]:
    """The definition files in the package, sorted by name."""
    installed = Path(str(files("search"))) / "studies"
    folder = installed if installed.is_dir() else Path(str(files("search"))).parent / "studies"
    return sorted(folder.glob("*.toml"))


def known() -> dict[str, Path]:
    """Definition files by name: those in ./studies, and the package's others."""
    return {path.stem: path for path in [*bundled(), *sorted(Path("studies").glob("*.toml"))]}


def locate(study: str) -> Path:
    """The file of a study given by path, or by name in ./studies or in the package.

    Raises:
        DefinitionError: no study has that name.
    """
    if study.endswith(".toml") or "/" in study:
        return expand(study)
    named = known()
    if study not in named:
        raise DefinitionError(f"no study named {study!r}; {did_you_mean(study, named)}, or name a .toml file")
    return named[study]


def read(study: Path | str, **overrides: Any) -> StudyDefinition:
    """Read and validate a definition; overrides that are not None replace its values.

    A user's own network is loaded, from a file beside the study file unless `own_network.found_in` gives a folder.

    Args:
        study: its file, or a name or path as in `locate`.

    Raises:
        DefinitionError: the file is missing, is not TOML, or is invalid.
        NetworkError: the network cannot be loaded.
    """
    path = locate(study) if isinstance(study, str) else study
    content = _content(path) | {name: value for name, value in overrides.items() if value is not None}
    architecture, own = _architecture(content), None
    if re.fullmatch(OWN, architecture):
        from fmnist import own_network

        own = own_network.load(architecture, beside=path.parent)
    return _validated(path, content, own)


def describe(path: Path) -> StudyDefinition:
    """Read a definition without loading the user's own network.

    Raises:
        DefinitionError: as in `read`.
    """
    return _validated(path, _content(path), None)


def _architecture(content: dict[str, Any]) -> str:
    # The architecture in [defaults], valid or not; "" if it is not text.
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
    assert found  # valid, as there are no mistakes
    return found


def _checked(content: dict[str, Any], own: "OwnNetwork | None") -> tuple[StudyDefinition | None, list[Mistake]]:
    # Remove what is invalid and validate the rest again until it is valid, so that no mistake hides another.
    mistakes: list[Mistake] = []
    removed: set[Place] = set()
    # The kind of network decides which hyperparameters exist, so without its architecture nothing else can be checked.
    is_of_ours = re.search(r":|\.py$", _architecture(content)) is None
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
    # For a missing key, the table that lacks it: that is what can be removed.
    inner: Any = content
    for depth, part in enumerate(place):
        if isinstance(inner, dict) and part not in inner:
            return place[:depth] or place
        inner = inner[part] if isinstance(inner, dict) else None
    return place


def _without(content: dict[str, Any], place: Place) -> dict[str, Any]:
    # A list is removed whole: without one entry the others would change their numbers.
    first, *rest = place or ("",)
    if first not in content:
        return content
    inner = content[first]
    if rest and isinstance(inner, dict) and isinstance(rest[0], str) and rest[0] in inner:
        return content | {first: _without(inner, tuple(rest))}
    return {key: value for key, value in content.items() if key != first}


def _of_batches(definition: StudyDefinition) -> list[Mistake]:
    # Not part of the model's validation: studies of 0.2.0 may have batches that are too small for new ones.
    sizes = [end for table in definition.space.get("batch_size", ()) for end in table.ends()]
    try:
        check_batch_size(int(min(sizes or [definition.defaults.batch_size])))
    except UsageError as error:
        return [Mistake((), str(error), (("space", "batch_size"), ("defaults", "batch_size")))]
    return []
