"""The note on a study in optuna-dashboard: its answer, and the commands that lead further. It is Markdown."""

import re
import shlex

from search.formatting import assignments, percent
from search.report.analysis import Analysis
from search.results import wording

END_OF_OURS = "_What is above is written anew after each run; what you write below stays._"
TITLE = "Which hyperparameters matter, 95 % intervals"  # of the figure
IMPORTANCE = (
    "Its own importances (PED-ANOVA over complete trials only) have no intervals and may stand in another order than "
    f"those under “{TITLE}”: where intervals overlap, no order is to be trusted."
)


def note(analysis: Analysis) -> str:
    """The answer in sentences and the commands as a block."""
    answer = "\n\n".join(_escaped(sentence) for sentence in _answer(analysis))
    found, remarks = analysis.importances, ["In the dashboard's figures a step is a hundredth of an epoch."]
    if found and (found.ped_anova or found.fanova):
        remarks.append(IMPORTANCE)
    commands = ["## Commands", "", "```console", *_commands(analysis), "```"]
    return "\n".join(["## Answer", "", answer, "", " ".join(remarks), "", *commands])


def with_note(ours: str, former: str) -> str:
    """The note with what people have written: below END_OF_OURS, or in the place of a note that was not ours."""
    above, mark, below = former.partition(END_OF_OURS)
    return f"{ours}\n\n{END_OF_OURS}\n\n{(below if mark else above).strip()}".rstrip()


def _answer(analysis: Analysis) -> list[str]:
    summary, best = analysis.summary, analysis.summary.best
    if analysis.standings:
        return [wording.winner(analysis.standings), wording.checkpoint(analysis.standings)]
    if analysis.repeated and (ranked := wording.ranked(analysis.ranking)):
        return [ranked]
    if best is None:
        return ["No trial is complete yet."]
    return [
        f"Trial {best.number}: {percent(best.value)} {summary.score_on} accuracy with {assignments(best.params)}.",
        wording.caution(summary),
        f"Best checkpoint  {best.checkpoint or 'is gone'}",
    ]


def _commands(analysis: Analysis) -> list[str]:
    """How to see the answer and the report, use the best network, and train it again."""
    study, origin = analysis.summary.study, analysis.provenance
    commands = [origin.command("best", study, data=False), origin.command("report", study)]
    if analysis.network:
        commands.append(f"fmnist-search predict {shlex.quote(analysis.network.path)} IMAGE.png")
    if analysis.reproduction:
        commands.append(analysis.reproduction)
    return commands


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", text)
