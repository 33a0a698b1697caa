"""What commands print about a study: the result of a run, status, best trial, finalists."""

import json
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.console.progress import live_view
from search.console.terminal import print_line, print_table, signals_handled
from search.database.retry import retry
from search.database.url import command
from search.formatting import count, marked, percent, short
from search.queue import tickets
from search.results import wording
from search.results.finalists import Standings, standings_of
from search.results.ranking import Configuration, rank
from search.results.summary import Listed, RunResult, Summary, summarize
from search.study import space
from search.study.catalogue import Entry
from search.study.places import location_of
from search.study.store import definition_of, finalists_of

SHOWN = 5  # trials in the table of best trials
_RESUME = "run the same command to resume"
_WHY = {"interrupted": "Stopped", "timeout": "Time is up", "request": "Stopped by `fmnist-search stop`"}


def show(console: Console, result: RunResult, finalists: str, options: str, note: str | None) -> None:
    """Print the result of a run: trials, best trials or finalists, checkpoint, report, next command.

    Args:
        finalists: the command that trains the study's finalists.
        options: with which a command finds the database.
        note: what to know about such commands.
    """
    trials, name = result.summary.trials, result.summary.study
    say = partial(print_line, console)
    if result.stopped and trials.finished >= result.goal:
        say(f"{_WHY[result.stopped]} before the finalists were trained; {_RESUME}.")
    elif result.stopped:
        paused = f" and {trials.paused} are paused" if trials.paused else ""
        done = f"{trials.finished} of {result.goal} trials are finished{paused}"
        say(f"{_WHY[result.stopped]}: {done}; {_RESUME}.")
    elif not result.had_work:
        say(
            f"Nothing left to do: study {name} has {count(trials.finished, 'finished trial')} of {result.goal}; "
            "request more with --trials."
        )
    else:
        failed = f", {trials.failed} failed and were replaced" if trials.failed else ""
        say(f"Done: {count(trials.finished, 'trial')}, {trials.complete} complete and {trials.pruned} pruned{failed}.")
    definition, read = retry(lambda: (definition_of(result.study), result.study.get_trials(deepcopy=False)))
    if not trials.left and (untrained := wording.ended_early(definition, read)):
        say(untrained)
    best = result.summary.best
    if best is None:
        say("No complete trial yet, so no best trial.")
        return
    ranked = rank(definition, read)
    repeated = wording.ranked(ranked) if definition.seeds > 1 else None
    scored_on = result.summary.score_on
    print_table(console, ranking(ranked, name) if repeated else retry(lambda: best_trials(result.study, scored_on)))
    if repeated:
        say(repeated)
    if result.standings:
        show_finalists(console, name, result.standings, finalists)
    else:
        if not repeated:
            say(wording.caution(result.summary))
        location = retry(lambda: location_of(result.study, result.report.parent))
        checkpoint = best.checkpoint or f"not found in {location}"
        say(f"Best checkpoint  {checkpoint}")
    say("Report           ", str(result.report))
    say("Explore it       ", command("dashboard", options=options))
    if note:
        say(note)


def best_trials(study: optuna.Study, score_on: str) -> Table:
    """Table of the complete trials with the highest accuracy, and their parameters."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = sorted(complete, key=_accuracy, reverse=True)[:SHOWN]
    definition = definition_of(study)
    marks = space.marks(definition)
    names = [name for name in definition.space if any(name in trial.params for trial in ranked)]
    table = _table(f"Best trials of study {study.study_name}", "trial", f"{score_on} accuracy", *names)
    table.columns[0].no_wrap = True
    for trial in ranked:
        values = [short(trial.params[name]) if name in trial.params else "-" for name in names]
        table.add_row(marked(trial.number, marks.get(space.key(trial.params))), percent(_accuracy(trial)), *values)
    return table


def ranking(configurations: list[Configuration], study: str) -> Table:
    """Table of configurations trained with several seeds, best first."""
    columns = ("accuracy", "95 % interval", "seeds", "seconds", "")
    table = _table(f"Configurations of study {study}", "configuration", *columns)
    for place, configuration in enumerate(configurations):
        table.add_row(
            configuration.label,
            percent(configuration.accuracy.mean),
            wording.interval(configuration.accuracy),
            str(configuration.accuracy.n),
            f"{configuration.seconds:.1f}",
            wording.standing(configuration, "" if place else "best"),
        )
    return table


def show_finalists(console: Console, study: str, standings: Standings | None, command: str) -> None:
    """Print the table of finalists, and the winner in words; command: trains the finalists."""
    say = partial(print_line, console)
    if standings is None:
        say(f"Study {study} has no finalists yet: no trial is complete, or no finalists were requested.")
        return
    columns = ("trial", "search", "re-trained", "95 % interval", "change", "seeds")
    table = _table(f"Finalists of study {study}", *columns)
    table.add_column("")
    for place, finalist in enumerate(standings.finalists):
        table.add_row(
            wording.name(finalist),
            "-" if finalist.search is None else percent(finalist.search),
            percent(finalist.retrained.accuracy.mean),
            wording.interval(finalist.retrained.accuracy),
            wording.change(finalist),
            str(finalist.retrained.accuracy.n),
            wording.standing(finalist.retrained, "" if place else standings.title),
        )
    for unscored in standings.unscored:
        search_score = "-" if unscored.search is None else percent(unscored.search)
        note = f"{unscored.diverged} of {unscored.diverged} diverged"
        table.add_row(wording.name(unscored), search_score, "-", "-", "-", "0", note)
    print_table(console, table)
    for paragraph in wording.answer(standings, command):
        say(paragraph)
    if standings.trained < standings.wanted:
        say(f"{standings.trained} of {standings.wanted} training runs are finished; {_RESUME}.")
    _say_networks(say, standings, command)


def _say_networks(say: Callable[[str], None], standings: Standings, finalists: str) -> None:
    say(wording.checkpoint(standings, finalists))
    if ensemble := wording.ensemble(standings):
        say(ensemble)


def show_catalogue(console: Console, entries: list[Entry]) -> None:
    """Print the studies that can be run by name."""
    table = _table(None, "study", "sampler", "trials", "minutes", "question")
    for entry in entries:
        minutes = "" if entry.minutes is None else str(entry.minutes)
        table.add_row(entry.name, entry.sampler, str(entry.trials), minutes, entry.description)
    print_table(console, table)
    print_line(console, "Minutes were measured on two cores. Start a study with `fmnist-search run STUDY`.")
    console.print()


def show_studies(console: Console, studies: list[Listed], where: str) -> None:
    """Print the studies of a database; where: its file or URL."""
    if not studies:
        print_line(console, "No studies yet in ", where)
        return
    table = _table(None, "study", "state", "trials", "best trial", "winner")
    for each in studies:
        trials = "" if each.finished is None else f"{each.finished} of {each.goal}"
        best, winner = ("" if value is None else percent(value) for value in (each.best, each.winner))
        table.add_row(each.study, each.state, trials, best, winner)
    print_line(console, "Studies in ", where)
    print_table(console, table)


def show_status(console: Console, summary: Summary, standings: Standings | None, finalists: str) -> None:
    """Print the current state of a study; finalists: the command that trains them."""
    for line in status(summary, standings, finalists):
        print_line(console, line)


def status(summary: Summary, standings: Standings | None, finalists: str, *, running: bool = True) -> list[str]:
    """The current state of a study, as lines.

    Args:
        finalists: the command that trains the study's finalists.
        running: include a line for each running trial.
    """
    trials = summary.trials
    lines = [
        f"Study {summary.study}: {count(trials.finished, 'trial')} finished "
        f"({trials.complete} complete, {trials.pruned} pruned), "
        f"{trials.running} running, {trials.waiting} waiting, "
        f"{f'{trials.paused} paused, ' if trials.paused else ''}{trials.failed} failed."
    ]
    for each in summary.running if running else ():
        accuracy = "" if each.accuracy is None else f", {percent(each.accuracy)} on {summary.score_on}"
        lines.append(f"  trial {each.label}: epoch {each.epoch:g} of {each.epochs}{accuracy}")
    if summary.best:
        lines.append(f"Best so far: trial {summary.best.label}, {percent(summary.best.value)} on {summary.score_on}.")
    if standings:
        trained = f"{standings.trained} of {standings.wanted} training runs finished. " if standings.decided else ""
        lines.append(f"Finalists: {trained}{' '.join(wording.answer(standings, finalists))}")
    return lines


def show_best(
    console: Console,
    summary: Summary,
    standings: Standings | None,
    location: str,
    finalists: str,
    ranking: list[Configuration] | None = None,
) -> None:
    """Print the winner among the finalists, else the best trial with its parameters and checkpoint.

    Args:
        location: folder or URL of the study's checkpoints.
        finalists: the command that trains the study's finalists.
        ranking: configurations, best first, of a study that trains each with several seeds.
    """
    say = partial(print_line, console)
    if standings:
        for paragraph in wording.answer(standings, finalists):
            say(paragraph)
        _say_networks(say, standings, finalists)
        return
    if summary.best is None:
        say(f"Study {summary.study} has no complete trial yet.")
        return
    if ranking and (answer := wording.ranked(ranking)):
        say(answer)
        say(f"Its training runs: {wording.listed([f'trial {number}' for number in ranking[0].trials])}.")
        return
    say(f"Trial {summary.best.label} of study {summary.study}: {percent(summary.best.value)} on {summary.score_on}.")
    say(wording.caution(summary))
    for name, value in summary.best.params.items():
        say(f"  {name} = {short(value)}")
    say(f"Checkpoint: {summary.best.checkpoint or f'not found in {location}'}")


def _table(title: str | None, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)


def _accuracy(trial: FrozenTrial) -> float:
    assert trial.value is not None  # it is complete
    return trial.value


AWAITED_FINALISTS = 30.0  # seconds after the last trial within which `run` creates the finalists' study


def watch(
    study: optuna.Study, folder: Path, console: Console, seconds: float, finalists: str, *, as_json: bool
) -> None:
    """Show a study's status until it and its finalists are finished.

    On a terminal the status is redrawn in place; elsewhere each change prints a line.

    Args:
        seconds: between refreshes.
        finalists: the command that trains the study's finalists.

    Raises:
        StudyError: the study was deleted.
        KeyboardInterrupt: on Ctrl-C or SIGTERM.
    """

    def read() -> tuple[Summary, Standings | None]:
        return summarize(study, folder), standings_of(study, folder)

    shown, printed = retry(read), ""
    last_busy = float("-inf")  # time.monotonic(), when trials were last unfinished
    live = console.is_interactive and not as_json
    view = live_view(console, lambda: Text("\n".join(status(*shown, finalists))), stays=True)
    with signals_handled(signal.default_int_handler), view if live else nullcontext():
        while True:
            busy, awaited = retry(lambda: (_is_busy(study), _awaits_finalists(study)))
            shown = retry(read)  # after the check, so that the last status shown is final
            lines = [json.dumps(shown[0].as_json(shown[1]))] if as_json else status(*shown, finalists, running=False)
            line = " ".join(lines)
            if not live and line != printed:
                print(line, file=console.file, flush=True)
                printed = line
            if busy:
                last_busy = time.monotonic()
            elif not (awaited or _is_undecided(shown[1])) or time.monotonic() - last_busy > AWAITED_FINALISTS:
                return
            time.sleep(seconds)


def _is_undecided(standings: Standings | None) -> bool:
    # Between the first seeds of the finalists and the last ones, `run` decides which of them get more.
    return standings is not None and not standings.decided


def _is_busy(study: optuna.Study) -> bool:
    finalists = finalists_of(study)
    return not all(tickets.is_done(each) for each in ([study, finalists] if finalists else [study]))


def _awaits_finalists(study: optuna.Study) -> bool:
    # `run` chooses finalists, workers do not: without a `run` this may stay true for ever.
    finalists = finalists_of(study)
    return definition_of(study).finalists > 0 and (finalists is None or tickets.goal(finalists)["trials"] == 0)
