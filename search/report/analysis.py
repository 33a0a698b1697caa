"""All numbers of a report in one typed record."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna

from fmnist import source
from fmnist.data import DataSet, fingerprint_of
from fmnist.errors import DataError
from search.database.url import Location
from search.report.cost import Cost, costs
from search.report.findings import Evidence, Finding, findings
from search.report.history import (
    Spell,
    TrialRecord,
    audit,
    beginning,
    epochs_of,
    pruning,
    records,
    spells,
    without_pauses,
)
from search.report.importance import Importances, Landscape, foremost, importances, landscape
from search.report.network import BestNetwork, best_network
from search.report.provenance import Provenance, provenance
from search.report.writeup import Comparison, compare
from search.results.finalists import Standings, standings_of
from search.results.ranking import Configuration, rank
from search.results.summary import Summary, summarize
from search.study import space
from search.study.definition import StudyDefinition
from search.study.parameters import SPACE, Parameter, has_conditions, point_of
from search.study.store import DATA, definition_of, finalists_name, finalists_of


@dataclass(frozen=True)
class Chosen:
    """The search trial of the selected configuration, and its title in legends."""

    trial: TrialRecord
    title: str

    @property
    def name(self) -> str:
        """Legend entry: trial 27, the winner."""
        return f"trial {self.trial.label}, {self.title}"


@dataclass(frozen=True)
class Analysis:
    """All numbers of a report.

    epochs: trained over all trials, including finalists. epochs_retrained: trained by the finalists. paused: seconds
    without any worker, which all other times exclude. missing: why `network` is None. training: the command that
    trains the selected configuration without the study's database; None before there is one, or if the location of
    its data set is unknown.
    """

    summary: Summary
    description: str
    data: str
    definition: dict[str, Any]
    trials: list[TrialRecord]
    spells: list[Spell]
    epochs: float
    epochs_retrained: float
    paused: float
    findings: list[Finding]
    standings: Standings | None
    ranking: list[Configuration]
    comparison: Comparison | None
    importances: Importances | None
    landscape: Landscape | None
    costs: list[Cost]
    network: BestNetwork | None
    missing: str | None
    provenance: Provenance
    training: str | None = None

    @property
    def repeated(self) -> bool:
        """Whether the study trains each configuration with several seeds."""
        return bool(self.definition["seeds"] > 1)

    @cached_property
    def space(self) -> dict[str, list[Parameter]]:
        """The tables of each searched hyperparameter."""
        return SPACE.validate_python(self.definition["space"])

    @property
    def default(self) -> dict[str, Any]:
        """The searched hyperparameters of the default configuration."""
        defaults = self.definition["defaults"]
        return point_of(self.space, defaults | defaults["network"])

    def conditions(self, name: str) -> str:
        """The conditions of a hyperparameter in words; empty if it has none."""
        return " or where ".join(filter(None, (table.condition for table in self.space[name])))

    @property
    def conditional(self) -> bool:
        """Whether some hyperparameters have conditions."""
        return has_conditions(self.space)

    @property
    def epochs_trained(self) -> str:
        """The epochs in words: 62.5 in the search, 60 in the finalists."""
        if not self.epochs_retrained:
            return f"{self.epochs:g}"
        return f"{self.epochs - self.epochs_retrained:g} in the search, {self.epochs_retrained:g} in the finalists"

    @property
    def seconds(self) -> float:
        """Wall time from the first start of a trial to the last end, finalists included, without pauses."""
        return max((spell.end for spell in self.spells), default=0.0)

    @property
    def answer(self) -> Configuration | None:
        """The selected configuration, if retrained or repeated; None before that, and if it is a single trial."""
        if self.standings:
            return self.standings.winner.retrained if self.standings.winner else None
        return self.ranking[0] if self.repeated and self.ranking and self.ranking[0].whole else None

    @property
    def chosen(self) -> Chosen | None:
        """The search trial of the selected configuration, which figures and tables highlight."""
        standings, best = self.standings, self.summary.best
        if standings and standings.winner:
            title, number = "the winner" if standings.final else "ahead so far", standings.winner.trial
            if number is not None:
                return self._trial(number, title)
            # None of its trials in the search is complete: take the first.
            pruned = [trial.number for trial in self.trials if trial.params == standings.winner.retrained.params]
            return self._trial(pruned[0], title) if pruned else None
        if self.answer:
            return self._trial(self.answer.trials[0], "of the best configuration")
        return self._trial(best.number, "the best single training run") if best else None

    def _trial(self, number: int | None, title: str) -> Chosen | None:
        trial = next((trial for trial in self.trials if trial.number == number), None)
        return Chosen(trial, title) if trial else None

    @property
    def answer_cost(self) -> Cost | None:
        """Cost of the selected configuration, with its accuracy in the search; None before there is one."""
        places = [place for place, one in enumerate(self.ranking) if self.best and one.params == self.best]
        return self.costs[places[0]] if places and self.costs else None

    @property
    def best(self) -> dict[str, Any]:
        """The searched hyperparameters of the selected configuration; empty before there is one."""
        if self.answer:
            return self.answer.params
        return self.summary.best.params if self.summary.best else {}

    @property
    def reproduction(self) -> str | None:
        """The command that repeats the (first) training run of the selected configuration and compares the weights;
        None before there is one."""
        name = finalists_name(self.summary.study) if self.standings and self.answer else self.summary.study
        if self.answer:
            return self.provenance.command("reproduce", name, self.answer.trials[0])
        return self.provenance.command("reproduce", name, self.summary.best.number) if self.summary.best else None

    def as_json(self) -> dict[str, Any]:
        """The record of `report --format json`."""
        plain = asdict(self) | {
            "summary": self.summary.as_json(self.standings) | {"score_on": self.summary.score_on},
            "standings": self.standings.as_json() if self.standings else None,
            "costs": [asdict(cost) | {"fronts": sorted(cost.fronts)} for cost in self.costs],
        }
        if self.comparison:  # JSON keys are strings
            differences = {f"{a}, {b}": asdict(found) for (a, b), found in self.comparison.differences.items()}
            plain["comparison"] |= {"differences": differences}
        answer = {
            "trial": self.chosen.trial.number if self.chosen else None,
            "params": self.best,
            "reproduce": self.reproduction,
        }
        return plain | {"answer": answer | {"train": plain.pop("training")}}


def analyse(study: optuna.Study, folder: Path, data: Callable[[], DataSet], usual: Location | None = None) -> Analysis:
    """Gather the numbers of a study; usual: as in `options_for`."""
    folder = folder.resolve()
    definition, summary = definition_of(study), summarize(study, folder)
    trials, finalists = study.get_trials(deepcopy=False), finalists_of(study)
    began = beginning(trials)
    loaded, missing = _load(study, data)
    standings = standings_of(study, folder)
    network = None
    if loaded:
        network, missing = best_network(study, folder, summary, standings, loaded)
    found = importances(trials) if definition.seeds == 1 else None
    finalist_trials = finalists.get_trials(deepcopy=False) if finalists else []
    done = [*spells(trials, began, retrained=False), *spells(finalist_trials, began, retrained=True)]
    finished, done, paused = without_pauses(records(definition, trials, began), done)
    origin = provenance(study, definition, folder, [*trials, *finalist_trials], loaded, usual)
    evidence = Evidence(
        definition=definition,
        trials=trials,
        importances=found,
        ranking=rank(definition, trials),
        standings=standings,
        pruning=pruning(definition, trials),
        audit=audit(definition, trials),
        comparison=compare(definition, trials) if definition.reference and _is_fashion_mnist(study) else None,
        finalists=origin.command("finalists", study.study_name),
    )
    analysis = Analysis(
        summary=summary,
        description=definition.description,
        data=study.user_attrs[DATA]["name"],
        definition=definition.model_dump(mode="json"),
        trials=finished,
        spells=done,
        epochs=epochs_of([*trials, *finalist_trials]),
        epochs_retrained=epochs_of(finalist_trials),
        paused=paused,
        findings=findings(evidence),
        standings=standings,
        ranking=evidence.ranking,
        comparison=evidence.comparison,
        importances=found,
        landscape=landscape(definition, foremost(definition.ranges, found), trials),
        costs=costs(definition, evidence.ranking, trials),
        network=network,
        missing=missing,
        provenance=origin,
    )
    known_data = loaded is not None or _is_fashion_mnist(study)  # the folder of any other is unknown
    return replace(analysis, training=_training(analysis, definition, finalists) if known_data else None)


def _training(analysis: Analysis, definition: StudyDefinition, finalists: optuna.Study | None) -> str | None:
    answer, best = analysis.answer, analysis.summary.best
    if answer is None and best is None:
        return None
    of = definition_of(finalists) if answer and analysis.standings and finalists else definition
    number = answer.trials[0] if answer else best.number  # type: ignore[union-attr]
    hyperparameters = space.hyperparameters_of(definition, analysis.best)
    seed = space.training_seed(of, number)
    return analysis.provenance.training(hyperparameters, seed, definition.score_on, definition.tta)


def _is_fashion_mnist(study: optuna.Study) -> bool:
    # By checksum: a folder of that name or format may hold other data.
    return bool(study.user_attrs[DATA]["fingerprint"] == fingerprint_of(source.CHECKSUMS))


def _load(study: optuna.Study, data: Callable[[], DataSet]) -> tuple[DataSet | None, str | None]:
    """The study's data set; None and the reason if it is not available here."""
    try:
        loaded = data()
    except DataError as error:
        return None, str(error)
    if loaded.fingerprint != study.user_attrs[DATA]["fingerprint"]:
        where = f"{loaded.name} in {loaded.folder}"
        return None, f"{where} is not the data set of the study; pass the right folder with --data-dir."
    return loaded, None
