"""A study in the database: made or resumed, with its definition, sampler and pruner."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection

from fmnist.errors import UsageError
from fmnist.seeds import derive
from search.definition import StudyDefinition, differences

if TYPE_CHECKING:
    from fmnist.data import DataSet

# A report's step counts hundredths of an epoch, so that a rung inside an epoch is a whole number.
STEPS_PER_EPOCH = 100

# User attributes: of a study, and of a trial that did not complete.
DEFINITION, DATA, FOLDER = "definition", "data", "folder"
REASON = "reason"


class StudyError(UsageError):
    """A study is absent or not the one that was meant; the message says what to do."""


def open_study(
    storage: RDBStorage, name: str, definition: StudyDefinition, data: "DataSet", folder: Path
) -> optuna.Study:
    """Make the study, or resume the one of that name if it has the same definition and data.

    Call it under the storage's lock.

    Raises:
        StudyError: a study of that name has another definition or another data set.
    """
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
    maximizes = study.directions == [StudyDirection.MAXIMIZE]
    if DEFINITION not in study.user_attrs and maximizes and not study.get_trials(deepcopy=False):
        # new, or left behind by a process that died here; the definition comes last, as the mark of a whole study
        study.set_user_attr(DATA, {"name": data.name, "fingerprint": data.fingerprint})
        study.set_user_attr(FOLDER, str(folder.resolve()))
        study.set_user_attr(DEFINITION, definition.model_dump(mode="json"))
        return study
    study = load_study(storage, name)
    if changed := differences(definition_of(study).identity(), definition.identity()):
        raise StudyError(
            f"study {name!r} exists with another definition ({'; '.join(changed)}). "
            "Give the new one a name with --name, or repeat what it was started with."
        )
    if study.user_attrs[DATA]["fingerprint"] != data.fingerprint:
        raise StudyError(
            f"study {name!r} was started on {study.user_attrs[DATA]['name']}, this is {data.name}. "
            "Give the new one a name with --name, or name the old data with --data-dir."
        )
    study.set_user_attr(FOLDER, str(folder.resolve()))
    return study


def load_study(storage: RDBStorage | BaseStorage, name: str) -> optuna.Study:
    """Open an existing study, to read it.

    Raises:
        StudyError: there is none of that name, or it was not made by fmnist-search.
    """
    names = optuna.get_all_study_names(storage)
    if name not in names:
        known = f"there are {', '.join(sorted(names))}" if names else "there are none yet"
        raise StudyError(f"no study named {name!r} in this database; {known}")
    study = optuna.load_study(storage=storage, study_name=name)
    if DEFINITION not in study.user_attrs:
        raise StudyError(f"study {name!r} was not made by fmnist-search; choose another name with --name")
    return study


def definition_of(study: optuna.Study) -> StudyDefinition:
    """The definition that the study was made with."""
    return StudyDefinition.model_validate(study.user_attrs[DEFINITION])


def folder_of(study: optuna.Study) -> Path:
    """Where the last `run` of the study put checkpoints and report."""
    return Path(study.user_attrs[FOLDER])


def checkpoint_path(folder: Path, number: int) -> Path:
    """The checkpoint file of a trial."""
    return folder / "checkpoints" / f"trial-{number:05d}.pt"


def sampler(definition: StudyDefinition, number: int) -> BaseSampler:
    """A sampler for one trial. Two workers never share a sequence of random numbers."""
    seed = derive(definition.seed, "sampler", number) % 2**32
    if definition.sampler == "tpe":
        return TPESampler(seed=seed)
    if definition.sampler == "gp":
        return GPSampler(seed=seed, warn_independent_sampling=False)
    return RandomSampler(seed=seed)  # unused: a ticket of these samplers holds its parameters


def pruner(definition: StudyDefinition) -> BasePruner:
    """The pruner. Its first verdict falls after a quarter of an epoch, the first report."""
    first = STEPS_PER_EPOCH // 4
    longest = definition.longest_epochs() * STEPS_PER_EPOCH
    pruners: dict[str, Any] = {
        "halving": lambda: SuccessiveHalvingPruner(min_resource=first, reduction_factor=4),
        "hyperband": lambda: HyperbandPruner(min_resource=first, max_resource=longest, reduction_factor=3),
        "median": lambda: MedianPruner(n_startup_trials=5),
        "percentile": lambda: PercentilePruner(25.0, n_startup_trials=5),
        "none": NopPruner,
    }
    made: BasePruner = pruners[definition.pruner]()
    return made
