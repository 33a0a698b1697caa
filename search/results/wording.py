"""Sentences on finalists and ranked configurations, shared by terminal, report and dashboard."""

from collections.abc import Iterable

from optuna.trial import FrozenTrial

from search.formatting import assignments, count, marked, percent, points
from search.results.finalists import Finalist, Standings, Unscored
from search.results.intervals import Difference, Estimate, sampling_margin
from search.results.ranking import Configuration, left_behind
from search.results.summary import Summary
from search.study.definition import StudyDefinition


def name(finalist: Finalist | Unscored) -> str:
    """Label of a finalist: its trial number in the search."""
    if finalist.is_default and finalist.trial is None:
        return "default"
    return marked(finalist.trial, finalist.mark)


def called(finalist: Finalist | Unscored) -> str:
    """A finalist in a sentence: the default, trial 7."""
    return "the default" if finalist.trial is None else f"trial {name(finalist)}"


def interval(estimate: Estimate) -> str:
    """An interval within 0 and 1: 92.31–92.60 %."""
    if estimate.low is None or estimate.high is None:
        return "-"
    return f"{100 * max(estimate.low, 0):.2f}–{percent(min(estimate.high, 1))}"


def span(difference: Difference) -> str:
    """The interval of a difference: 95 % interval -0.10 to 0.31."""
    return f"95 % interval {points(difference.low)} to {points(difference.high)}"


def _with_interval(estimate: Estimate) -> str:
    return "" if estimate.low is None else f" (95 % interval {interval(estimate)})"


def precision(configurations: list[Configuration], noun: str) -> str:
    """How the intervals of configurations are computed and what they do not cover; empty if none has an interval."""
    repeated = [one for one in configurations if one.accuracy.low is not None]
    if not repeated:
        return ""
    sentences = ["The interval is over seeds."]
    if len(repeated) > 1:
        sentences = [
            f"Intervals are over seeds, with a standard deviation pooled over all {noun} (partially pooled where "
            "deviations differ). Intervals of differences are corrected for all pairs (Tukey); the winner's own "
            "interval is not corrected for selection."
        ]
    if images := repeated[0].images:
        margin = sampling_margin(repeated[0].accuracy.mean, images)
        sentences.append(
            f"Another sample of {images:,} images would shift all scores together by about ± {100 * margin:.2g} points."
        )
    return " ".join(sentences)


def change(finalist: Finalist) -> str:
    """Mean of the fresh training runs minus the score in the search: -0.21, +0.05."""
    return "-" if finalist.change is None else _signed(finalist.change)


def gain(configuration: Configuration) -> str:
    """Gain over the default: +0.21, or +0.21, noise if the interval contains zero."""
    if configuration.gain is None:
        return ""
    return f"{_signed(configuration.gain.mean)}{', noise' if configuration.gain.is_noise else ''}"


def _signed(difference: float) -> str:
    text = points(difference)
    return text if text.startswith("-") else f"+{text}"


def lost(configuration: Configuration) -> str:
    """Training runs that ended without a score: 1 of 3 diverged."""
    numbers = {"diverged": configuration.diverged, "pruned": configuration.pruned}
    return ", ".join(f"{number} of {configuration.finished} {how}" for how, number in numbers.items() if number)


def standing(configuration: Configuration, best: str) -> str:
    """Table cell on the rank of a configuration: a tie with the best, the distance, or why it cannot be the best.

    Args:
        best: word for the best configuration; empty for all others.
    """
    if not configuration.whole:
        return lost(configuration)
    if configuration.behind is None:
        return (best or "unclear") if configuration.accuracy.n > 1 else ""
    return "tie" if configuration.ties else f"{points(configuration.behind.mean)} behind"


def ended_early(definition: StudyDefinition, trials: Iterable[FrozenTrial]) -> str | None:
    """How close the best trial that `freeze` stopped early came to the best; None without such trials."""
    behind = left_behind(trials) if definition.pruner == "freeze" else []
    if not behind:
        return None
    which = f"Of the {len(behind)} trials stopped early, the closest" if len(behind) > 1 else "The trial stopped early"
    return f"{which} was {points(min(behind))} points behind the best at the same epoch."


def ranked(ranking: list[Configuration]) -> str | None:
    """The best of configurations with several seeds each, and how many are tied with it.

    None while a configuration with fewer training runs than others is ahead.
    """
    repeated = [one for one in ranking if one.accuracy.n > 1]
    if len(ranking) > 1 and not any(one.whole for one in ranking):
        return f"There is no best configuration: each of the {len(ranking)} has diverged or pruned training runs."
    if len(repeated) < 2 or repeated[0] is not ranking[0] or ranking[0].finished < max(one.finished for one in ranking):
        return None
    best, *others = [one for one in repeated if one.whole]
    sentences = [f"Best: {best.label}, {percent(best.accuracy.mean)}{_with_interval(best.accuracy)}."]
    if compared := gained(best):
        sentences.append(compared)
    if others:
        sentences.append(_ties(others))
    if incomplete := [one for one in ranking if not one.whole]:
        excluded = f"{count(len(incomplete), 'configuration')} with diverged or pruned training runs"
        sentences.append(f"{excluded} {'is' if len(incomplete) == 1 else 'are'} excluded.")
    sentences.append(precision(ranking, "configurations"))
    return " ".join(filter(None, sentences))


def _ties(others: list[Configuration]) -> str:
    if any(other.behind is None for other in others):
        return "No score varies between seeds, so differences have no intervals."
    ties = [other.ties for other in others]
    if len(ties) == 1:
        return f"The other is {'statistically tied with it' if ties[0] else 'significantly worse'}."
    if all(ties):
        return f"The other {len(ties)} are all statistically tied with it."
    if any(ties):
        return f"{sum(ties)} of the other {len(ties)} {'is' if sum(ties) == 1 else 'are'} statistically tied with it."
    return f"The other {len(ties)} are all significantly worse."


def answer(standings: Standings, finalists: str) -> list[str]:
    """The result of a search in paragraphs; the first is a single sentence.

    Args:
        finalists: the command that trains the study's finalists, to paste.
    """
    return [paragraph for paragraph in (headline(standings), winner(standings, finalists)) if paragraph]


def headline(standings: Standings) -> str:
    """The result of a search in one sentence: the gain over the default."""
    best = standings.winner
    if best is None:
        return _no_winner(standings, len(standings.finalists) + len(standings.unscored))
    if not standings.decided:
        return f"{standings.trained} of {standings.wanted} training runs of the finalists are finished."
    sentence = _headline(standings, best)
    return sentence[0].upper() + sentence[1:] if standings.final else f"So far {sentence}"


def _headline(standings: Standings, best: Finalist) -> str:
    if best.is_default:
        return "the search found nothing better than the default configuration."
    if best.retrained.gain:
        return _compared(called(best), best.retrained.gain)
    default = next((one.retrained for one in standings.finalists if one.is_default), None)
    if default is None or not default.whole:
        how = lost(default) if default else "all diverged"
        return f"{called(best)} won; its gain over the default is unknown, as training the default failed ({how})."
    if best.retrained.accuracy.n == 1:
        return f"{called(best)} won; with one seed each, its gain over the default may be noise."
    return f"{called(best)} won; its gain over the default has no interval, as no score varies between seeds."


def gained(best: Configuration) -> str | None:
    """Gain of the best configuration over the default; None if unknown."""
    if best.is_default:
        return "No configuration is better than the default."
    if best.gain is None:
        return None
    compared = _compared(best.label, best.gain)
    return compared[0].upper() + compared[1:]


def _compared(name: str, gain: Difference) -> str:
    if gain.is_noise:
        return (
            f"no configuration is significantly better than the default: {name} scored {points(gain.mean)} "
            f"points higher, which may be noise ({span(gain)})."
        )
    return f"{name} is {points(gain.mean)} points better than the default ({span(gain)})."


def winner(standings: Standings, finalists: str) -> str:
    """Details on the winner in a few sentences, to follow the `headline`; finalists: as in `answer`."""
    best, number = standings.winner, len(standings.finalists) + len(standings.unscored)
    sentences = [_ahead(standings, best)] if best else []
    if standings.diverged:
        sentences.append(_diverged(standings))
    if standings.outdated:
        sentences.append(
            f"The search has continued since, and its best trial is not a finalist yet: `{finalists}` trains it "
            "again too."
        )
    if standings.unfinished:
        sentences.append("The search is unfinished and may still find better configurations.")
    if best and number > 1 and standings.decided and not standings.test:
        sentences.append(
            f"It was selected from {number} finalists after {count(standings.searched, 'search trial')}, all scored "
            f"on the same {standings.score_on} images."
        )
    if best:
        sentences.append(precision([finalist.retrained for finalist in standings.finalists], "finalists"))
    if standings.test:
        test = f"{percent(standings.test.mean)}{_with_interval(standings.test)}"
        sentences.append(f"On the test images, which were not used for any selection: {test}.")
    return " ".join(filter(None, sentences))


def _ahead(standings: Standings, best: Finalist) -> str:
    accuracy = best.retrained.accuracy
    sentence = (
        f"{standings.title.capitalize()}: {called(best)}, "
        f"{percent(accuracy.mean)} {standings.score_on} accuracy, mean of "
        f"{count(accuracy.n, 'fresh seed')}{_with_interval(accuracy)}: "
        f"{assignments(best.retrained.params)}."
    )
    others = [other for other in standings.finalists[1:] if other.retrained.whole]
    ties = [called(other) for other in others if other.retrained.ties]
    if not ties:
        return sentence
    tied = listed(ties)
    return f"{sentence} {tied[0].upper()}{tied[1:]} {'is' if len(ties) == 1 else 'are'} statistically tied with it."


def _no_winner(standings: Standings, finalists: int) -> str:
    which = "the only finalist" if finalists == 1 else f"each of the {finalists} finalists"
    if standings.decided:
        return f"No winner: {which} has diverged training runs."
    return f"No finalist is ahead yet: so far {which} has diverged training runs."


def _diverged(standings: Standings) -> str:
    partly = [one for one in standings.finalists if not one.retrained.whole]
    counts = [
        (called(one), one.retrained.finished - one.retrained.accuracy.n, one.retrained.finished) for one in partly
    ]
    counts += [(called(one), one.diverged, one.diverged) for one in standings.unscored]
    by_finalist = listed([f"{number} of {total} of {finalist}" for finalist, number, total in counts])
    runs = count(standings.diverged, "training run")
    return f"{runs} diverged: {by_finalist}. Finalists with diverged training runs rank last."


def checkpoint(standings: Standings, finalists: str) -> str:
    """Path and score of the winner's checkpoint, or why there is none; finalists: as in `answer`."""
    if standings.checkpoint is None:
        if not standings.decided:
            return "Best checkpoint  not chosen yet"
        if standings.winner is None:
            return "Best checkpoint  none, as there is no winner"
        if standings.removed:
            return "Best checkpoint  removed; the report shows the command that trains it again"
        return f"Best checkpoint  not found; `{finalists}` restores it"
    assert standings.winner is not None  # a checkpoint is only published for a winner
    accuracies = standings.winner.retrained.accuracies
    runs = count(len(accuracies), "training run")
    return f"Best checkpoint  {standings.checkpoint}  ({percent(accuracies[0])}, 1 of {runs})"


def ensemble(standings: Standings) -> str | None:
    """Path and score of the ensemble, or why there is none; None before that is known."""
    if standings.without_ensemble:
        return f"Ensemble         none: {standings.without_ensemble}"
    made = standings.ensemble
    if made is None:
        return None
    costs = f"{made.megabytes:.1f} MB, {made.milliseconds:.2f} ms per image"
    accuracy = percent(made.score.accuracy)
    if standings.score_on != "test":  # the line on the best checkpoint shows its accuracy on other images
        accuracy += " on the test images"
        if standings.single:
            accuracy += f"; best checkpoint {percent(standings.single.score.accuracy)}"
    return f"Ensemble         {standings.ensemble_file}  ({accuracy}, {count(len(made.trials), 'network')}, {costs})"


def caution(summary: Summary) -> str:
    """Caveat shown beside a single-run score."""
    if summary.trials.finished == 1:
        return "This is a single training run (one seed): another seed will score slightly differently."
    return (
        f"This is a single training run (one seed), selected as the best of {summary.trials.finished} on the same "
        f"{summary.score_on} images: with a fresh seed it will on average score slightly lower."
    )


def listed(names: list[str]) -> str:
    """A list in a sentence: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
