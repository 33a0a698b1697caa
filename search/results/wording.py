"""What the numbers of finalists say, in words that terminal, report and dashboard share."""

from collections.abc import Iterable

from optuna.trial import FrozenTrial

from search.formatting import assignments, count, marked, percent, points
from search.results.finalists import Finalist, Standings, Unscored
from search.results.intervals import Difference, Estimate, sampling_margin
from search.results.ranking import Configuration, left_behind
from search.results.summary import Summary
from search.study.definition import StudyDefinition


def name(finalist: Finalist | Unscored) -> str:
    """A configuration by its trial in the search."""
    if finalist.is_default and finalist.trial is None:
        return "default"
    return marked(finalist.trial, finalist.mark)


def called(finalist: Finalist | Unscored) -> str:
    """The same in a sentence."""
    return "the default" if finalist.trial is None else f"trial {name(finalist)}"


def interval(estimate: Estimate) -> str:
    """92.31–92.60 %."""
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{100 * max(estimate.low, 0):.2f}–{percent(min(estimate.high, 1))}"


def span(difference: Difference) -> str:
    """95 % interval -0.10 to 0.31."""
    return f"95 % interval {points(difference.low)} to {points(difference.high)}"


def _with_interval(estimate: Estimate) -> str:
    """The same in parentheses after a mean; nothing where there is none."""
    return "" if estimate.low is None else f" (95 % interval {interval(estimate)})"


def precision(configurations: list[Configuration], noun: str) -> str:
    """How the intervals of configurations are made, and what they leave out; empty where none has one."""
    repeated = [one for one in configurations if one.accuracy.low is not None]
    if not repeated:
        return ""
    sentences = ["The interval is over seeds."]
    if len(repeated) > 1:
        sentences = [
            f"Intervals are over seeds, from one standard deviation pooled over all {noun} (only in part where "
            "theirs differ). Those of differences are corrected for all pairs (Tukey); the winner's own is not "
            "corrected for its having been chosen."
        ]
    if images := repeated[0].images:
        margin = sampling_margin(repeated[0].accuracy.mean, images)
        sentences.append(
            f"Another {images:,} images would move all scores together by about ± {100 * margin:.2g} points."
        )
    return " ".join(sentences)


def change(finalist: Finalist) -> str:
    """How far from its score in the search the mean of its fresh trainings is: -0.21, +0.05."""
    return "-" if finalist.change is None else _signed(finalist.change)


def gain(configuration: Configuration) -> str:
    """What it gains on the default: +0.21, noise."""
    if configuration.gain is None:
        return ""
    return f"{_signed(configuration.gain.mean)}{', noise' if configuration.gain.is_noise else ''}"


def _signed(difference: float) -> str:
    written = points(difference)
    return written if written.startswith("-") else f"+{written}"


def lost(configuration: Configuration) -> str:
    """How many of its trainings came to no accuracy: 1 of 3 diverged."""
    numbers = {"diverged": configuration.diverged, "pruned": configuration.pruned}
    return ", ".join(f"{number} of {configuration.finished} {how}" for how, number in numbers.items() if number)


def standing(configuration: Configuration, best: str) -> str:
    """Whether a configuration is the best (in a word for that, empty for the others), ties with it, by how much it is
    worse, or why it cannot be the best; unclear where nothing tells how scores vary."""
    if not configuration.whole:
        return lost(configuration)
    if configuration.behind is None:
        return (best or "unclear") if configuration.accuracy.n > 1 else ""
    return "tie" if configuration.ties else f"{points(configuration.behind.mean)} behind"


def ended_early(definition: StudyDefinition, trials: Iterable[FrozenTrial]) -> str | None:
    """What a search with paused trials left untrained."""
    behind = left_behind(trials) if definition.pruner == "freeze" else []
    if not behind:
        return None
    which = f"The nearest of the {len(behind)} trials" if len(behind) > 1 else "The one trial"
    return f"{which} not trained to the end was {points(min(behind))} points behind the best at its epoch."


def ranked(ranking: list[Configuration]) -> str | None:
    """The best of configurations that were trained several times each, and how many tie with it.

    None while one that was trained less often than others is ahead.
    """
    repeated = [one for one in ranking if one.accuracy.n > 1]
    if len(ranking) > 1 and not any(one.whole for one in ranking):
        return f"There is no best configuration: of each of the {len(ranking)} a training came to no accuracy."
    if len(repeated) < 2 or repeated[0] is not ranking[0] or ranking[0].finished < max(one.finished for one in ranking):
        return None
    best, *others = [one for one in repeated if one.whole]
    sentences = [f"Best: {best.label}, {percent(best.accuracy.mean)}{_with_interval(best.accuracy)}."]
    if compared := gained(best):
        sentences.append(compared)
    if others:
        sentences.append(_told_apart([other.ties or other.behind is None for other in others]))
    if broken := [one for one in ranking if not one.whole]:
        sentences.append(f"{count(len(broken), 'configuration')} with trainings that came to no accuracy cannot be it.")
    sentences.append(precision(ranking, "configurations"))
    return " ".join(filter(None, sentences))


def _told_apart(ties: list[bool]) -> str:
    """How many of the others, for each of which it is given whether it ties, cannot be told from the best."""
    if len(ties) == 1:
        return f"The other {'cannot be told from it' if ties[0] else 'is worse by more than noise'}."
    if all(ties):
        return f"None of the other {len(ties)} can be told from it."
    if any(ties):
        return f"{sum(ties)} of the other {len(ties)} cannot be told from it."
    return f"Each of the other {len(ties)} is worse by more than noise."


def answer(standings: Standings) -> list[str]:
    """The answer of a search in paragraphs, the first of one sentence."""
    return [paragraph for paragraph in (headline(standings), winner(standings)) if paragraph]


def headline(standings: Standings) -> str:
    """The answer of a search in one plain sentence: what it gained on the default."""
    best = standings.winner
    if best is None:
        return _nobody(standings, len(standings.finalists) + len(standings.unscored))
    if not standings.decided:
        return f"{standings.trained} of {standings.wanted} trainings of the finalists are finished."
    sentence = _headline(standings, best)
    return sentence[0].upper() + sentence[1:] if standings.final else f"So far {sentence}"


def _headline(standings: Standings, best: Finalist) -> str:
    if best.is_default:
        return "the search found nothing better than the default configuration."
    if best.again.gain:
        return _compared(called(best), best.again.gain)
    default = next((one.again for one in standings.finalists if one.is_default), None)
    if default is None or not default.whole:
        how = lost(default) if default else "all diverged"
        return f"{called(best)} won; there is nothing to compare it with, as the default's trainings failed ({how})."
    if best.again.accuracy.n == 1:
        return f"{called(best)} won; one seed each cannot tell its gain on the default from noise."
    return f"{called(best)} won; no score varies between seeds, so nothing tells its gain on the default from noise."


def gained(best: Configuration) -> str | None:
    """What the best of configurations with several seeds gained on the default; None if that is unknown."""
    if best.is_default:
        return "Nothing found is better than the default configuration."
    if best.gain is None:
        return None
    compared = _compared(best.label, best.gain)
    return compared[0].upper() + compared[1:]


def _compared(name: str, gain: Difference) -> str:
    """What a configuration gained on the default."""
    if gain.is_noise:
        return (
            f"nothing found is certainly better than the default configuration: {name} scored {points(gain.mean)} "
            f"points higher, which may be noise ({span(gain)})."
        )
    return f"{name} is {points(gain.mean)} points better than the default ({span(gain)})."


def winner(standings: Standings) -> str:
    """What is known of the winner in a few sentences, after the `headline`."""
    best, those = standings.winner, len(standings.finalists) + len(standings.unscored)
    sentences = [_ahead(standings, best)] if best else []
    if standings.diverged:
        sentences.append(_diverged(standings))
    if standings.outdated:
        sentences.append(
            f"The search has gone on since, and its best trial is not among them: `fmnist-search finalists "
            f"{standings.study}` trains that again too."
        )
    if standings.unfinished:
        sentences.append("The search is unfinished, so it may still find others.")
    if best and those > 1 and standings.decided and not standings.test:
        sentences.append(
            f"It was chosen among {those} finalists after {count(standings.searched, 'trial')} of the search, all "
            f"scored on the same {standings.score_on} images."
        )
    if best:
        sentences.append(precision([finalist.again for finalist in standings.finalists], "finalists"))
    if standings.test:
        test = f"{percent(standings.test.mean)}{_with_interval(standings.test)}"
        sentences.append(f"On the test images, which nothing was chosen by: {test}.")
    return " ".join(filter(None, sentences))


def _ahead(standings: Standings, best: Finalist) -> str:
    accuracy = best.again.accuracy
    answer = (
        f"{standings.title.capitalize()}: {called(best)}, "
        f"{percent(accuracy.mean)} {standings.score_on} accuracy, mean of "
        f"{count(accuracy.n, 'fresh seed')}{_with_interval(accuracy)}: "
        f"{assignments(best.again.params)}."
    )
    others = [other for other in standings.finalists[1:] if other.again.whole]
    ties = [called(other) for other in others if other.again.ties]
    if not ties:
        return answer
    tied = listed(ties)
    return f"{answer} {tied[0].upper()}{tied[1:]} {'is' if len(ties) == 1 else 'are'} statistically tied with it."


def _nobody(standings: Standings, those: int) -> str:
    which = "the only finalist" if those == 1 else f"each of the {those} finalists"
    if standings.decided:
        return f"No winner: a training of {which} diverged."
    return f"No finalist is ahead yet: a training of {which} so far diverged."


def _diverged(standings: Standings) -> str:
    """Which trainings diverged."""
    broken = [one for one in standings.finalists if not one.again.whole]
    lost = [(called(one), one.again.finished - one.again.accuracy.n, one.again.finished) for one in broken]
    lost += [(called(one), one.diverged, one.diverged) for one in standings.unscored]
    whose = listed([f"{number} of {of_all} of {whom}" for whom, number, of_all in lost])
    return f"{count(standings.diverged, 'training')} diverged: {whose}; such finalists rank last."


def checkpoint(standings: Standings) -> str:
    """Where a training of the winner is."""
    if standings.checkpoint is None:
        if not standings.decided:
            return "Best checkpoint  is not chosen yet"
        if standings.winner is None:
            return "Best checkpoint  is not chosen, as there is no winner"
        if standings.removed:
            return "Best checkpoint  was removed; the report has the command that trains it again"
        return f"Best checkpoint  is not here; `fmnist-search finalists {standings.study}` puts it here"
    assert standings.winner is not None  # whose it is
    accuracies = standings.winner.again.accuracies
    return f"Best checkpoint  {standings.checkpoint}  ({percent(accuracies[0])}, one of {len(accuracies)})"


def ensemble(standings: Standings) -> str | None:
    """Where the ensemble is, or why there is none; None before that is known."""
    if standings.without_ensemble:
        return f"Ensemble         none: {standings.without_ensemble}"
    made = standings.ensemble
    if made is None:
        return None
    costs = f"{made.megabytes:.1f} MB, {made.milliseconds:.2f} ms per image"
    accuracy = percent(made.score.accuracy)
    if standings.score_on != "test":  # of which the line on the best checkpoint says another
        accuracy += " of the test images"
        if standings.single:
            accuracy += f", where that has {percent(standings.single.score.accuracy)}"
    return f"Ensemble         {standings.ensemble_file}  ({accuracy}, {count(len(made.trials), 'network')}, {costs})"


def caution(summary: Summary) -> str:
    """Caveat shown beside a single-run score."""
    if summary.trials.finished == 1:
        return "This is one training (one seed): another one of it will score a little differently."
    return (
        f"This is one training (one seed), the best of {summary.trials.finished} chosen on the "
        f"{summary.score_on} images that scored it: a fresh training of it will on average score a little lower."
    )


def listed(names: list[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
