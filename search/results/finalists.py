"""The finalists: a study's best configurations and its default, trained again with fresh seeds.

The best of many noisy results is partly luck, so it usually scores lower when it is trained again. The finalists
form a study of their own in the same database, a grid of the chosen points with several seeds, so their trials
are queued, interrupted and resumed like any others.
"""

import sys
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import optuna
from optuna.trial import FrozenTrial, TrialState

from fmnist.seeds import derive
from search.database.optuna_schema import FIXED_PARAMETERS
from search.outputs import BEST, ENSEMBLE
from search.queue.tickets import counts, is_done
from search.results.intervals import Estimate, estimate
from search.results.ranking import Configuration, accuracies_of, by_configuration, rank
from search.study import space
from search.study.definition import StudyDefinition
from search.study.parameters import is_complete
from search.study.places import ARTIFACTS, Place, folder_of, location_of
from search.study.record import FINISHED
from search.study.store import ELIMINATED, definition_of, finalists_name, finalists_of

# A user attribute that records the publication: the winner's `trials`; their `test` accuracies if validation images
# chose it; the search results it was based on (`found`, see SearchResults); the `single` network in BEST (see
# Published); and for the `ensemble` its `members`, then what was `published` or the reason for being `without`.
SETTLED = "settled"


@dataclass(frozen=True)
class Finalist:
    """One configuration that was trained again.

    trial: number of its first trial in the search. search: its mean accuracy there over complete trials; None if it
    has none. retrained: its trials among the finalists.
    """

    trial: int | None
    search: float | None
    retrained: Configuration

    @property
    def is_default(self) -> bool:
        return self.retrained.is_default

    @property
    def mark(self) -> str | None:
        return self.retrained.mark

    @property
    def change(self) -> float | None:
        """Mean of its fresh trainings minus its accuracy in the search; usually negative, as the search chose it."""
        return None if self.search is None else self.retrained.accuracy.mean - self.search


@dataclass(frozen=True)
class Unscored:
    """One configuration all of whose trainings so far, `diverged` in number, diverged."""

    trial: int | None
    search: float | None
    params: space.Point
    mark: str | None
    diverged: int

    @property
    def is_default(self) -> bool:
        return self.mark == "default"


@dataclass(frozen=True)
class Scored:
    """A network's accuracy on a set of images, with the 95 % interval for sampling of images (Wilson, 1927)."""

    accuracy: float
    correct: int
    total: int
    low: float
    high: float


@dataclass(frozen=True)
class Published:
    """A network that is ready for use.

    trials: of the finalists' study that trained it. digest: the checksum at the end of its file. megabytes: file size
    in millions of bytes. milliseconds: per image, on one thread of the machine that published it, in batches of
    `fmnist.evaluation.BATCH`. scores: by split: the one that scored the finalists, and the test images if that differs.
    """

    trials: list[int]
    digest: str | None
    megabytes: float
    milliseconds: float
    scores: dict[str, Scored]

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Self:
        """Inverse of `asdict`."""
        return cls(**record | {"scores": {images: Scored(**scores) for images, scores in record["scores"].items()}})

    @property
    def scored_on(self) -> str:
        """The split that played no part in choosing it, if there is one."""
        return "test" if "test" in self.scores else next(iter(self.scores))

    @property
    def score(self) -> Scored:
        """Its score on that split."""
        return self.scores[self.scored_on]


@dataclass(frozen=True)
class Standings:
    """All configurations that were ever finalists, the best first.

    trained, wanted: finished trainings, and how many there will be. diverged: how many of the finished diverged.
    outdated: whether the search has since found a better configuration. checkpoint: of the winner's first training;
    checkpoint_accuracy: its score. test: the winner's test accuracy, if another split chose it. unfinished: whether the
    search has trials left, so that it may find better ones. unscored: configurations without an accuracy.
    searched: number of finished trials of the search. single: the network in `checkpoint`. ensemble: the network of all
    trainings of the winner and of the configurations tied with it, in `ensemble_file`; None until it is published.
    without_ensemble: why there is none. hyperparameters: all of the winner's. removed: whether the checkpoint of the
    winner's first training was deleted.
    """

    study: str
    score_on: str
    trained: int
    wanted: int
    diverged: int
    outdated: bool
    finalists: list[Finalist]
    checkpoint: Path | None
    checkpoint_accuracy: float | None
    test: Estimate | None
    unfinished: bool = False
    unscored: list[Unscored] = field(default_factory=list)
    searched: int = 0
    single: Published | None = None
    ensemble: Published | None = None
    ensemble_file: Path | None = None
    without_ensemble: str | None = None
    hyperparameters: dict[str, Any] | None = None
    removed: bool = False

    @property
    def winner(self) -> Finalist | None:
        """The best configuration; None if each has a training that diverged."""
        first = self.finalists[0] if self.finalists else None
        return first if first and first.retrained.whole else None

    @property
    def decided(self) -> bool:
        """Whether all finalists are trained."""
        return self.trained == self.wanted

    @property
    def final(self) -> bool:
        """Whether there is a winner that no further training is going to change."""
        return self.winner is not None and self.decided and not self.outdated and not self.unfinished

    @property
    def title(self) -> str:
        """What to call the best configuration."""
        return "winner" if self.final else "ahead so far"

    @property
    def members(self) -> list[int]:
        """Trials of the ensemble: all of the winner's, then those of each configuration tied with it."""
        if self.winner is None:
            return []
        tied = [self.winner, *(finalist for finalist in self.finalists if finalist.retrained.ties)]
        return [number for finalist in tied for number in finalist.retrained.trials]

    @property
    def unsettled(self) -> bool:
        """Whether the winner or its ensemble remains to be published."""
        if self.winner is None or not self.decided:
            return False
        if self.removed:
            return False
        return self.checkpoint is None or (self.ensemble is None and self.without_ensemble is None)

    def winner_as_json(self) -> dict[str, Any] | None:
        """The winner in `status --json` and `best --json`; None unless it is final."""
        if not self.final or self.winner is None:
            return None
        accuracy, made = self.winner.retrained.accuracy, self.ensemble
        return {
            "trial": self.winner.trial,
            "params": self.hyperparameters,
            "mean": accuracy.mean,
            "low": accuracy.low,
            "high": accuracy.high,
            "seeds": accuracy.n,
            "score_on": self.score_on,
            "checkpoint": str(self.checkpoint) if self.checkpoint else None,
            "ensemble": made
            and {
                "accuracy": made.scores[self.score_on].accuracy,
                "members": len(made.trials),
                "checkpoint": str(self.ensemble_file),
            },
        }

    def as_json(self) -> dict[str, Any]:
        """The output of `finalists --json`."""
        finalists = [asdict(each) | {"change": each.change} for each in self.finalists]
        files = {"checkpoint": self.checkpoint, "ensemble_file": self.ensemble_file}
        paths = {name: str(path) if path else None for name, path in files.items()}
        return asdict(self) | {"finalists": finalists, **paths, "final": self.final}


@dataclass(frozen=True)
class SearchResults:
    """The finalists' results in the search, recorded at publication because reading all trials takes long.

    complete: number of complete trials. points: the finalists. best: whether the search's best configuration is among
    them. results: for each finalist the number of its first trial and its mean accuracy in the search, or twice None.
    """

    complete: int
    points: list[space.Point]
    best: bool
    results: list[tuple[int | None, float | None]]


def define(study: optuna.Study, top: int, seeds: int) -> StudyDefinition | None:
    """The finalists' study: the `top` best configurations and the default; None if no trial is complete.

    Earlier finalists stay, and all have equally many seeds, so that no training is lost and all are comparable. Returns
    the existing definition if it covers everything.
    """
    definition = definition_of(study)
    ranked = _eligible(definition, study.get_trials(deepcopy=False))
    if not ranked:
        return None
    chosen = [*(best.params for best in ranked[:top]), space.default_point(definition)]
    former = finalists_of(study)
    before = points_of(definition_of(former), former.get_trials(deepcopy=False)) if former else []
    points = {space.key(point): point for point in [*before, *chosen]}
    if former:
        known = definition_of(former)
        seeds = max(seeds, known.seeds)
        if known.seeds == seeds and points.keys() == set(map(space.key, space.grid(known))):
            return known
    given = definition.model_dump(mode="json") | {
        "description": f"The finalists of study {study.study_name}, trained again with fresh seeds",
        "sampler": "grid",
        "pruner": "none",
        "audit": 0.0,
        "trials": None,
        "seed": derive(definition.seed, "finalists"),
        "seeds": seeds,
        "finalists": 0,
        "reference": None,
        "start": [],
        "grid": [{name: [value] for name, value in point.items()} for point in points.values()],
    }
    return StudyDefinition.model_validate(given)


def _eligible(definition: StudyDefinition, trials: list[FrozenTrial]) -> list[Configuration]:
    """The ranking without trials that another program enqueued outside the space: a grid cannot hold those."""
    return [each for each in rank(definition, trials) if is_complete(definition.space, each.params)]


def points_of(definition: StudyDefinition, trials: list[FrozenTrial]) -> list[space.Point]:
    """All configurations of the finalists' study: its grid, and those that earlier versions removed from it."""
    there = [trial for trial in trials if trial.state != TrialState.FAIL]
    trained = [trial.system_attrs.get(FIXED_PARAMETERS) or trial.params for trial in there]
    return list({space.key(point): point for point in [*space.grid(definition), *trained]}.values())


def names_of(study: optuna.Study) -> dict[int, str]:
    """The trials of a finalists' study by number: finalist 1, seed 2 of 3. Finalists are counted best first."""
    definition, trials = definition_of(study), study.get_trials(deepcopy=False)
    default = space.key(space.default_point(definition))
    others = [point for point in map(space.key, points_of(definition, trials)) if point != default]
    finalists = {default: "default", **{point: f"finalist {place}" for place, point in enumerate(others, start=1)}}
    names, seeds = dict[int, str](), Counter[space.Key]()
    for trial in trials:
        point = space.key(trial.system_attrs.get(FIXED_PARAMETERS) or trial.params)
        names[trial.number] = f"{finalists[point]}, seed {seeds[point] + 1} of {definition.seeds}"
        seeds[point] += trial.state != TrialState.FAIL  # the next trial replaces a failed one
    return names


def place_of(study: optuna.Study, folder: Path) -> Place:
    """The finalists' folder, beside the study's; every checkpoint is kept."""
    artifacts = location_of(study) if study.user_attrs[ARTIFACTS] else None
    return Place(folder.parent / finalists_name(study.study_name), artifacts, keep=sys.maxsize)


def standings_of(study: optuna.Study, folder: Path | None = None) -> Standings | None:
    """The standings of a study's finalists; None before the first of their trainings is finished.

    Args:
        folder: the study's folder, which holds BEST; by default the one of the last `run`.
    """
    finalist_study = finalists_of(study)
    if finalist_study is None:
        return None
    folder = folder or folder_of(study)
    definition, trials = definition_of(finalist_study), finalist_study.get_trials(deepcopy=False)
    points = points_of(definition, trials)
    settlement = finalist_study.user_attrs.get(SETTLED, {})
    recorded = settlement.get("found", {})
    search = SearchResults(**recorded) if "results" in recorded else None  # earlier versions recorded other names
    state = counts(study)
    if search is None or (search.complete, search.points) != (state[TrialState.COMPLETE], points):
        search = search_results(study, points)
    finished = Counter(space.key(trial.params) for trial in trials if trial.state in FINISHED)
    if not finished:
        return None
    eliminated = {space.key(point) for point in finalist_study.user_attrs.get(ELIMINATED, [])}
    searched = definition_of(study)
    finalists = _finalists(search, searched, definition, trials)
    winner = finalists[0] if finalists and finalists[0].retrained.whole else None
    settled = winner is not None and settlement.get("trials") == winner.retrained.trials
    checkpoint = folder / BEST if settled and (folder / BEST).is_file() else None
    standings = Standings(
        study=study.study_name,
        score_on=definition.score_on,
        trained=sum(min(number, definition.seeds) for number in finished.values()),
        wanted=sum(finished[key] if key in eliminated else definition.seeds for key in map(space.key, points)),
        diverged=finished.total() - sum(len(finalist.retrained.trials) for finalist in finalists),
        outdated=not search.best,
        finalists=finalists,
        checkpoint=checkpoint,
        checkpoint_accuracy=winner.retrained.accuracies[0] if winner else None,
        test=estimate(settlement["test"]) if settled and settlement["test"] else None,
        unfinished=not is_done(study),
        unscored=_unscored(search, searched, trials),
        searched=sum(state[each] for each in FINISHED),
        hyperparameters={**searched.default_values, **winner.retrained.params} if winner else None,
        removed=settled and checkpoint is None and settlement.get("removed", False),
        single=Published.of_record(settlement["single"]) if checkpoint and "single" in settlement else None,
    )
    return _with_ensemble(standings, settlement.get("ensemble"), folder / ENSEMBLE) if settled else standings


def _with_ensemble(standings: Standings, recorded: dict[str, Any] | None, file: Path) -> Standings:
    if recorded is None or recorded["members"] != standings.members:
        return standings  # another configuration is tied since, or an earlier version published it
    if "published" not in recorded:
        return replace(standings, without_ensemble=recorded.get("without"))
    if not file.is_file():
        return standings
    return replace(standings, ensemble=Published.of_record(recorded["published"]), ensemble_file=file)


def search_results(study: optuna.Study, points: list[space.Point]) -> SearchResults:
    """The results of the finalists in the search, from all its trials."""
    trials = study.get_trials(deepcopy=False)
    searched, ranked = by_configuration(trials), _eligible(definition_of(study), trials)
    beside = [searched.get(space.key(point), []) for point in points]
    return SearchResults(
        complete=sum(trial.state == TrialState.COMPLETE for trial in trials),
        points=points,
        best=bool(ranked) and ranked[0].params in points,
        results=[(each[0].number, fmean(accuracies_of(each))) if each else (None, None) for each in beside],
    )


def _finalists(
    search: SearchResults, searched: StudyDefinition, definition: StudyDefinition, trials: list[FrozenTrial]
) -> list[Finalist]:
    # Those with a complete training, the best first. Marks come from the search: only it knows its starting points.
    results = dict(zip(map(space.key, search.points), search.results, strict=True))
    marks = space.marks(searched)
    ranked = [replace(each, mark=marks.get(space.key(each.params))) for each in rank(definition, trials)]
    return [Finalist(*results[space.key(configuration.params)], configuration) for configuration in ranked]


def _unscored(search: SearchResults, searched: StudyDefinition, trials: list[FrozenTrial]) -> list[Unscored]:
    # Those with finished trainings of which none is complete.
    scored, marks = by_configuration(trials), space.marks(searched)
    lost = Counter(space.key(trial.params) for trial in trials if trial.state == TrialState.PRUNED)
    return [
        Unscored(*result, point, marks.get(space.key(point)), lost[space.key(point)])
        for point, result in zip(search.points, search.results, strict=True)
        if lost[space.key(point)] and space.key(point) not in scored
    ]
