"""What a search of benchmarks/search.py came to, its file, and its picture."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from fmnist.files import write_whole


@dataclass(frozen=True)
class Ended:
    """A finished trial. at: seconds after the first trial's beginning; epochs: trained; value: None if pruned."""

    at: float
    epochs: float
    value: float | None


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
    """A trial's accuracy, if it came to its end."""
    return trial.value if trial.state == TrialState.COMPLETE else None


def reached(trials: list[Ended], mark: float) -> tuple[float, float] | None:
    """Seconds, and epochs trained by all, at the end of the first trial with at least that accuracy."""
    seconds, epochs, best = best_so_far(trials)
    found = (i for i, value in enumerate(best) if value >= mark)
    return next(((seconds[i], epochs[i]) for i in found), None)


def best_so_far(trials: list[Ended]) -> tuple[list[float], list[float], list[float]]:
    """Seconds, epochs trained by all and best accuracy, at each trial that is better than all before."""
    seconds: list[float] = []
    epochs: list[float] = []
    best: list[float] = []
    trained = 0.0
    for trial in trials:
        trained += trial.epochs
        if trial.value is not None and trial.value > (best[-1] if best else 0.0):
            seconds.append(trial.at)
            epochs.append(trained)
            best.append(trial.value)
    return seconds, epochs, best


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
        write_whole(self.file, (json.dumps(record, indent=1) + "\n").encode())


def figure(searches: list[Searched]) -> go.Figure:
    """Best accuracy so far against seconds and against epochs."""
    drawn = make_subplots(1, 2, shared_yaxes=True, subplot_titles=("by wall time", "by epochs trained"))
    for searched, colour in zip(searches, ("#0072b2", "#e69f00", "#009e73"), strict=False):
        seconds, epochs, best = best_so_far(searched.trials)
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
