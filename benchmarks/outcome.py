"""Results of a search in benchmarks/search.py, their file, and their figure."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from fmnist.files import write_atomically

COLOURS = ("#0072b2", "#56b4e9", "#999999", "#009e73", "#cc79a7", "#e69f00")  # Okabe and Ito's


@dataclass
class Ended:
    """A finished trial. at: seconds since the first trial began; epochs: trained; value: None if pruned.

    retrained: test accuracies of its configuration with fresh seeds, of those that were trained again.
    """

    at: float
    epochs: float
    value: float | None
    params: dict[str, Any] = field(default_factory=dict)
    retrained: list[float] = field(default_factory=list)


@dataclass
class Searched:
    """A search's time in seconds, its trials, and what its best configuration comes to."""

    name: str
    seconds: float
    trials: list[Ended]
    best: dict[str, Any]
    finalists_seconds: float | None = None
    retrained: list[float] = field(default_factory=list)

    @property
    def epochs(self) -> float:
        return sum(trial.epochs for trial in self.trials)


def value_of(trial: FrozenTrial) -> float | None:
    """A trial's accuracy; None unless it is complete."""
    return trial.value if trial.state == TrialState.COMPLETE else None


def reached(trials: list[Ended], mark: float) -> tuple[float, float] | None:
    """Seconds, and epochs trained by all, at the end of the first trial with at least that accuracy."""
    return next(
        ((trial.at, trained) for trial, trained in records(trials) if trial.value and trial.value >= mark), None
    )


def records(trials: list[Ended]) -> Iterator[tuple[Ended, float]]:
    """Each trial that is better than all before it, and the epochs trained by all up to its end."""
    best = trained = 0.0
    for trial in trials:
        trained += trial.epochs
        if trial.value is not None and trial.value > best:
            best = trial.value
            yield trial, trained


class Results:
    """The finished parts of the benchmark, and their file, which is made at once.

    Raises:
        SystemExit: the file is of another machine, other versions or another study.
    """

    def __init__(self, file: Path, about: dict[str, Any]) -> None:
        self.file, self.about, self.searches = file, about, dict[str, Searched]()
        if file.exists():
            found = json.loads(file.read_text())
            if {**found["about"], "on": None} != {**about, "on": None}:
                raise SystemExit(f"{file} is of another machine, version or study; name another --output")
            for each in found["searches"]:
                each["trials"] = [Ended(**trial) for trial in each["trials"]]
                self.searches[each["name"]] = Searched(**each)
        self.save()

    def save(self) -> None:
        record = {"about": self.about, "searches": [asdict(each) for each in self.searches.values()]}
        write_atomically(self.file, (json.dumps(record, indent=1) + "\n").encode())


def figure(searches: list[Searched]) -> go.Figure:
    """Best accuracy so far against seconds and against epochs."""
    drawn = make_subplots(1, 2, shared_yaxes=True, subplot_titles=("by wall time", "by epochs trained"))
    for searched, colour in zip(searches, COLOURS, strict=False):
        better = list(records(searched.trials))
        best = [trial.value or 0.0 for trial, _ in better]
        seconds, epochs = [trial.at for trial, _ in better], [trained for _, trained in better]
        for column, (along, end) in enumerate(((seconds, searched.seconds), (epochs, searched.epochs)), 1):
            drawn.add_trace(
                go.Scatter(
                    x=[*along, end],
                    y=[100 * value for value in (*best, best[-1])],
                    mode="lines+markers",
                    line={"shape": "hv", "color": colour},
                    name=searched.name,
                    legendgroup=searched.name,
                    showlegend=column == 1,
                ),
                row=1,
                col=column,
            )
    drawn.update_xaxes(title="seconds", type="log", row=1, col=1)
    drawn.update_xaxes(title="epochs", type="log", row=1, col=2)
    drawn.update_yaxes(title="best test accuracy so far (%)", row=1, col=1)
    return drawn.update_layout(title="Best accuracy of a trial so far", template="plotly_white")
