"""Comparison of several studies: search progress, and the accuracy of each selected configuration."""

import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.formatting import points
from search.report.history import beginning, last
from search.results.finalists import standings_of
from search.results.intervals import Difference, Estimate, Pooled
from search.results.ranking import rank
from search.study.record import FINISHED, history_of
from search.study.store import DATA, definition_of


@dataclass(frozen=True)
class Progress:
    """The best complete trial so far, one entry per improvement and one for the last trial.

    epochs: trained so far over all trials. seconds: wall time since the first trial started.
    """

    epochs: list[float]
    seconds: list[float]
    best: list[float]


@dataclass(frozen=True)
class Answer:
    """Result of a study.

    fingerprint: of the data. answer: label of the selected configuration. accuracies: of its training runs. retrained:
    whether these are fresh runs of a finalist; if not, it was selected by these accuracies.
    """

    study: str
    score_on: str
    data: str
    fingerprint: str
    finished: int
    progress: Progress
    answer: str
    accuracies: list[float]
    accuracy: Estimate
    retrained: bool

    def comparable(self, other: "Answer") -> bool:
        """Whether both were scored on the same images."""
        return (self.fingerprint, self.score_on) == (other.fingerprint, other.score_on)


@dataclass(frozen=True)
class Comparison:
    """Comparison of studies.

    differences: of each further study from the first, with simultaneous intervals; None without two seeds each or
    scores on the same images. left_out: studies without a complete trial.
    """

    answers: list[Answer]
    differences: list[Difference | None]
    left_out: list[str]

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self) | {"words": self.words if self.answers else ""}

    @property
    def words(self) -> str:
        """The differences in sentences."""
        first, *others = self.answers
        return " ".join(_sentence(first, other, found) for other, found in zip(others, self.differences, strict=True))


def compare(studies: list[tuple[optuna.Study, Path]]) -> Comparison:
    """Compare studies, given with their folders; those without a complete trial are left out."""
    found = {study.study_name: _answer(study, folder) for study, folder in studies}
    answers = [answer for answer in found.values() if answer]
    return Comparison(answers, _differences(answers), [name for name, answer in found.items() if answer is None])


def _differences(answers: list[Answer]) -> list[Difference | None]:
    comparable = [answer for answer in answers if answer.comparable(answers[0])]
    pooled = Pooled([answer.accuracies for answer in comparable])
    return [pooled.difference(comparable.index(answer), 0) if answer in comparable else None for answer in answers[1:]]


def _answer(study: optuna.Study, folder: Path) -> Answer | None:
    trials, definition = study.get_trials(deepcopy=False), definition_of(study)
    ranked = rank(definition, trials)
    if not ranked:
        return None
    standings = standings_of(study, folder)
    retrained = standings.winner.retrained if standings and standings.winner else None
    best = retrained or ranked[0]
    ended = [trial for trial in trials if trial.state in FINISHED]
    return Answer(
        study=study.study_name,
        score_on=definition.score_on,
        data=study.user_attrs[DATA]["name"],
        fingerprint=study.user_attrs[DATA]["fingerprint"],
        finished=len(ended),
        progress=_progress(ended),
        answer=best.label,
        accuracies=best.accuracies,
        accuracy=best.accuracy,
        retrained=retrained is not None,
    )


def _progress(trials: list[FrozenTrial]) -> Progress:
    ordered = sorted(trials, key=_end)
    began = beginning(ordered)
    epochs, best, rows = 0.0, -math.inf, []
    for trial in ordered:
        epochs += last(trial) if history_of(trial) else 0.0
        seconds = (_end(trial) - began).total_seconds()
        accuracy = trial.value if trial.state == TrialState.COMPLETE and trial.value is not None else -math.inf
        better = accuracy > best
        best = max(best, accuracy)
        if best > -math.inf and (better or trial is ordered[-1]):
            rows.append((epochs, seconds, best))
    return Progress(*map(list, zip(*rows, strict=True)))


def _end(trial: FrozenTrial) -> datetime:
    assert trial.datetime_complete is not None  # finished trials only
    return trial.datetime_complete.replace(tzinfo=UTC)


def _sentence(first: Answer, other: Answer, found: Difference | None) -> str:
    if not first.comparable(other):
        return f"{other.study} and {first.study} were scored on different images: their accuracies are not comparable."
    if found is None:
        return (
            f"{other.study} and {first.study} cannot be compared: that needs several training runs of each selected "
            "configuration, with scores that vary."
        )
    better, worse = (other, first) if found.mean > 0 else (first, other)
    ends = (found.low, found.high) if found.mean > 0 else (-found.high, -found.low)
    by = f"{points(abs(found.mean))} points ({points(ends[0])} to {points(ends[1])})"
    if found.is_noise:
        return f"{first.study} and {other.study} are statistically tied: {better.study} is ahead by {by}."
    return f"{better.study} is better than {worse.study} by {by}."
