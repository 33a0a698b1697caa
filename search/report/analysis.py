"""The numbers of a report, gathered into one typed record. Nothing here draws."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna

from fmnist import source
from fmnist.data import DataSet, fingerprint_of
from fmnist.errors import DataError
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
    """The trial of the search whose configuration is the answer, and in words what it is."""

    trial: TrialRecord
    title: str

    @property
    def name(self) -> str:
        """Trial 27, the winner."""
        return f"trial {self.trial.label}, {self.title}"


@dataclass(frozen=True)
class Analysis:
    """All numbers of a report. Where `network` is None, `missing` says why.

    epochs: trained over all trials, those of the finalists included. epochs_again: of these, those of the finalists.
    paused: seconds in which nobody worked, which no other time holds. training: the command that trains the answer
    without the study's database; None before there is one, or where its data set is not to be found.
    """

    summary: Summary
    description: str
    data: str
    definition: dict[str, Any]
    trials: list[TrialRecord]
    spells: list[Spell]
    epochs: float
    epochs_again: float
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
        """Whether the study's question is about configurations that are trained several times each."""
        return bool(self.definition["seeds"] > 1)

    @cached_property
    def space(self) -> dict[str, list[Parameter]]:
        """The tables of each hyperparameter that is searched."""
        return SPACE.validate_python(self.definition["space"])

    @property
    def default(self) -> dict[str, Any]:
        """The searched hyperparameters of the default configuration."""
        defaults = self.definition["defaults"]
        return point_of(self.space, defaults | defaults["network"])

    def conditions(self, name: str) -> str:
        """Where a hyperparameter is searched, in words; empty if that is everywhere."""
        return " or where ".join(filter(None, (table.condition for table in self.space[name])))

    @property
    def conditional(self) -> bool:
        """Whether a trial may lack a hyperparameter that others have."""
        return has_conditions(self.space)

    @property
    def epochs_trained(self) -> str:
        """The epochs in words, search and finalists apart: 62.5 in the search, 60 in the finalists."""
        if not self.epochs_again:
            return f"{self.epochs:g}"
        return f"{self.epochs - self.epochs_again:g} in the search, {self.epochs_again:g} in the finalists"

    @property
    def seconds(self) -> float:
        """Wall time from the first start of a trial to the last end, that of the finalists included, without pauses."""
        return max((spell.end for spell in self.spells), default=0.0)

    @property
    def answer(self) -> Configuration | None:
        """The configuration that is the answer, where that is a mean; None where it is a single trial, or not yet."""
        if self.standings:
            return self.standings.winner.again if self.standings.winner else None
        return self.ranking[0] if self.repeated and self.ranking and self.ranking[0].whole else None

    @property
    def chosen(self) -> Chosen | None:
        """What figures and tables highlight: the answer, by its trial in the search."""
        standings, best = self.standings, self.summary.best
        if standings and standings.winner:
            title, number = "the winner" if standings.final else "ahead so far", standings.winner.trial
            if number is not None:
                return self._trial(number, title)
            # No trial of it came to its end in the search.
            alike = [trial.number for trial in self.trials if trial.params == standings.winner.again.params]
            return self._trial(alike[0], title) if alike else None
        if self.answer:
            return self._trial(self.answer.trials[0], "of the best configuration")
        return self._trial(best.number, "the best single training") if best else None

    def _trial(self, number: int | None, title: str) -> Chosen | None:
        trial = next((trial for trial in self.trials if trial.number == number), None)
        return Chosen(trial, title) if trial else None

    @property
    def answer_cost(self) -> Cost | None:
        """What the answer costs, and its accuracy in the search; None before there is one."""
        places = [place for place, one in enumerate(self.ranking) if self.best and one.params == self.best]
        return self.costs[places[0]] if places and self.costs else None

    @property
    def best(self) -> dict[str, Any]:
        """The searched hyperparameters of the answer; none before there is one."""
        if self.answer:
            return self.answer.params
        return self.summary.best.params if self.summary.best else {}

    @property
    def reproduction(self) -> str | None:
        """The command that trains the answer again, of a mean its first training, and holds that against the record;
        None before there is one."""
        name = finalists_name(self.summary.study) if self.standings and self.answer else self.summary.study
        if self.answer:
            return self.provenance.command("reproduce", name, self.answer.trials[0])
        return self.provenance.command("reproduce", name, self.summary.best.number) if self.summary.best else None

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        plain = asdict(self) | {
            "summary": self.summary.as_json(self.standings) | {"score_on": self.summary.score_on},
            "standings": self.standings.as_json() if self.standings else None,
            "costs": [asdict(cost) | {"fronts": sorted(cost.fronts)} for cost in self.costs],
        }
        if self.comparison:  # pairs of epochs are no keys of JSON
            differences = {f"{a}, {b}": asdict(found) for (a, b), found in self.comparison.differences.items()}
            plain["comparison"] |= {"differences": differences}
        answer = {
            "trial": self.chosen.trial.number if self.chosen else None,
            "params": self.best,
            "reproduce": self.reproduction,
        }
        return plain | {"answer": answer | {"train": plain.pop("training")}}


def analyse(study: optuna.Study, folder: Path, data: Callable[[], DataSet]) -> Analysis:
    """Gather a study's numbers as they are now."""
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
    again = finalists.get_trials(deepcopy=False) if finalists else []
    done = [*spells(trials, began, again=False), *spells(again, began, again=True)]
    finished, done, paused = without_pauses(records(definition, trials, began), done)
    origin = provenance(study, definition, folder, [*trials, *again], loaded)
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
        epochs=epochs_of([*trials, *again]),
        epochs_again=epochs_of(again),
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
    known_data = loaded is not None or _is_fashion_mnist(study)  # any other is in a folder that nobody names
    return replace(analysis, training=_training(analysis, definition, finalists) if known_data else None)


def _training(analysis: Analysis, definition: StudyDefinition, finalists: optuna.Study | None) -> str | None:
    """The command that trains the answer without the study's database, of a mean its first training; None before
    there is one."""
    answer, best = analysis.answer, analysis.summary.best
    if answer is None and best is None:
        return None
    of = definition_of(finalists) if answer and analysis.standings and finalists else definition
    number = answer.trials[0] if answer else best.number  # type: ignore[union-attr]
    hyperparameters = space.hyperparameters_of(definition, analysis.best)
    seed = space.training_seed(of, number)
    return analysis.provenance.training(hyperparameters, seed, definition.score_on, definition.tta)


def _is_fashion_mnist(study: optuna.Study) -> bool:
    """Whether the study's data is what the write-up was trained on, not merely a folder of that format or name."""
    return bool(study.user_attrs[DATA]["fingerprint"] == fingerprint_of(source.CHECKSUMS))


def _load(study: optuna.Study, data: Callable[[], DataSet]) -> tuple[DataSet | None, str | None]:
    """The study's data set; None and the reason if it cannot be had here."""
    try:
        loaded = data()
    except DataError as error:
        return None, str(error)
    if loaded.fingerprint != study.user_attrs[DATA]["fingerprint"]:
        where = f"{loaded.name} in {loaded.folder}"
        return None, f"{where} is not what the study was trained on; name that with --data-dir."
    return loaded, None
