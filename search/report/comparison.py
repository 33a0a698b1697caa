"""Several studies side by side: how fast each got how far, and how good its answer is."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.finalists import standings_of
from search.ranking import rank
from search.report.pruning import last
from search.statistics import Difference, Estimate, difference, estimate
from search.study import DATA, definition_of, history_of
from search.text import points


@dataclass(frozen=True)
class Progress:
    """The best complete trial so far, at each that was better than all before it.

    epochs: trained by then over all trials. seconds: of wall time since the first trial began.
    """

    epochs: list[float]
    seconds: list[float]
    best: list[float]


@dataclass(frozen=True)
class Answer:
    """What a study came to.

    answer: the configuration in words. accuracies: of its trainings. again: whether they are fresh ones;
    if not, it was chosen for these very numbers.
    """

    study: str
    score_on: str
    data: str
    finished: int
    progress: Progress
    answer: str
    accuracies: list[float]
    accuracy: Estimate
    again: bool


@dataclass(frozen=True)
class Comparison:
    """Studies side by side. differences: of each but the first from the first, corrected; None without two seeds."""

    answers: list[Answer]
    differences: list[Difference | None]

    @property
    def words(self) -> str:
        """What can be said of the differences."""
        first, *others = self.answers
        return " ".join(_sentence(first, other, found) for other, found in zip(others, self.differences, strict=True))


def compare(studies: list[tuple[optuna.Study, Path]]) -> Comparison:
    """Gather the numbers of studies and their folders; those without a complete trial are left out."""
    answers = [answer for study, folder in studies if (answer := _answer(study, folder))]
    differences = [difference(each.accuracies, answers[0].accuracies, len(answers) - 1) for each in answers[1:]]
    return Comparison(answers, differences)


def _answer(study: optuna.Study, folder: Path) -> Answer | None:
    trials, definition = study.get_trials(deepcopy=False), definition_of(study)
    ranked = rank(definition, trials)
    if not ranked:
        return None
    standings = standings_of(study, folder)
    best = standings.winner.again if standings else ranked[0]
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    return Answer(
        study=study.study_name,
        score_on=definition.score_on,
        data=study.user_attrs[DATA]["name"],
        finished=len(ended),
        progress=_progress(ended),
        answer=best.label,
        accuracies=best.accuracies,
        accuracy=estimate(best.accuracies),
        again=standings is not None,
    )


def _progress(trials: list[FrozenTrial]) -> Progress:
    """Of trials in the order in which they ended; it goes on to the last of them."""
    ordered = sorted(trials, key=_end)
    began = min(trial.datetime_start for trial in ordered if trial.datetime_start)
    epochs, best, rows = 0.0, 0.0, []
    for trial in ordered:
        epochs += last(trial) if history_of(trial) else 0.0
        seconds = (_end(trial) - began).total_seconds()
        better = trial.state == TrialState.COMPLETE and (trial.value or 0.0) > best
        if better:
            best = trial.value or 0.0
        if best and (better or trial is ordered[-1]):
            rows.append((epochs, seconds, best))
    return Progress(*map(list, zip(*rows, strict=True)))


def _end(trial: FrozenTrial) -> datetime:
    assert trial.datetime_complete is not None  # it has ended
    return trial.datetime_complete


def _sentence(first: Answer, other: Answer, found: Difference | None) -> str:
    if (first.data, first.score_on) != (other.data, other.score_on):
        return f"{other.study} was scored on other images than {first.study}: their accuracies are not comparable."
    if found is None:
        return f"{other.study} and {first.study} cannot be told apart without two trainings of each answer."
    by = f"{points(found.mean)} points ({points(found.low)} to {points(found.high)})"
    if found.is_noise:
        return f"Too close to call between {first.study} and {other.study}: they differ by {by}."
    return f"{other.study} {'is better' if found.mean > 0 else 'is worse'} than {first.study} by {by}."
