"""What the numbers of finalists say, in words that terminal, report and dashboard share."""

from search.finalists import Finalist, Standings
from search.ranking import Configuration
from search.statistics import Difference, Estimate
from search.summary import Summary
from search.text import assignments, count, percent, points


def name(finalist: Finalist) -> str:
    """A configuration by its trial in the search."""
    if finalist.again.is_default:
        return "default" if finalist.trial is None else f"{finalist.trial} (default)"
    return str(finalist.trial)


def called(finalist: Finalist) -> str:
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


def gain(configuration: Configuration) -> str:
    """What it gains on the default: +0.21, noise."""
    if configuration.gain is None:
        return ""
    return f"{100 * configuration.gain.mean:+.2f}{', noise' if configuration.gain.is_noise else ''}"


def standing(configuration: Configuration, best: str) -> str:
    """Whether a configuration is the best (in a word for that), ties with it, or by how much it is worse."""
    if configuration.behind is None:
        return best if configuration.accuracy.n > 1 else ""
    return "tie" if configuration.behind.is_noise else f"{100 * configuration.behind.mean:.2f} behind"


def ranked(ranking: list[Configuration]) -> str | None:
    """The best of configurations that were trained several times each, and how many tie with it.

    None while one that was trained only once is ahead.
    """
    repeated = [one for one in ranking if one.accuracy.n > 1]
    if len(repeated) < 2 or repeated[0] is not ranking[0]:
        return None
    best, *others = repeated
    ties = [other for other in others if other.behind is None or other.behind.is_noise]
    first = f"Best: {best.label}, {percent(best.accuracy.mean)} (95 % interval {interval(best.accuracy)})."
    if len(others) == 1:
        return f"{first} The other {'cannot be told from it' if ties else 'is worse by more than noise'}."
    if len(ties) == len(others):
        return f"{first} None of the other {len(others)} can be told from it."
    if ties:
        return f"{first} {len(ties)} of the other {len(others)} cannot be told from it."
    return f"{first} Each of the other {len(others)} is worse by more than noise."


def winner(standings: Standings) -> str:
    """The answer of a search in a sentence or two."""
    best, score_on = standings.winner, standings.score_on
    ties = [other for other in standings.finalists[1:] if other.again.behind is None or other.again.behind.is_noise]
    accuracy = best.again.accuracy
    span = f" (95 % interval {interval(accuracy)})" if accuracy.n > 1 else ""
    sentences = [
        f"{standings.title.capitalize()}: {called(best)}, "
        f"{percent(accuracy.mean)} {score_on} accuracy, mean of {count(accuracy.n, 'fresh seed')}{span}: "
        f"{assignments(best.again.params)}."
    ]
    if ties:
        sentences.append(f"Too close to call between it and {listed([called(other) for other in ties])}.")
    if standings.diverged:
        sentences.append(f"{count(standings.diverged, 'training')} diverged.")
    if standings.outdated:
        sentences.append(
            f"The search has gone on since, and its best trial is not among them: `fmnist-search finalists "
            f"{standings.study}` trains that again too."
        )
    if standings.test:
        span = f" (95 % interval {interval(standings.test)})" if standings.test.n > 1 else ""
        sentences.append(f"On the test images, which nothing was chosen by: {percent(standings.test.mean)}{span}.")
    elif len(standings.finalists) > 1:
        sentences.append(f"It was chosen among {len(standings.finalists)} on the same {score_on} images.")
    return " ".join(sentences)


def checkpoint(standings: Standings) -> str:
    """Where a training of the winner is."""
    if standings.checkpoint is None:
        if not standings.decided:
            return "Best checkpoint  is not chosen yet"
        return f"Best checkpoint  is not here; `fmnist-search finalists {standings.study}` puts it here"
    accuracy = percent(standings.checkpoint_accuracy)
    return f"Best checkpoint  {standings.checkpoint}  ({accuracy}, one of {standings.winner.again.accuracy.n})"


def caution(summary: Summary) -> str:
    """What is to be said with a best trial's accuracy."""
    if summary.trials.finished == 1:
        return "This is one training (one seed): another one of it will score a little differently."
    return (
        f"This is one training (one seed), the best of {summary.trials.finished} chosen on the "
        f"{summary.score_on} images that scored it: a fresh training of it will on average score a little lower."
    )


def listed(names: list[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
