"""Sentences on the result of a search."""

from dataclasses import replace

import pytest

from search.results import wording
from search.results.finalists import Standings, Unscored
from search.results.ranking import rank
from tests.factories import BETTER, FINALISTS, GRID, TIE, ended, lost, ranking_of, report_standings

WORSE = ranking_of((4, [0.90, 0.91, 0.92]), (2, [0.80, 0.81, 0.82]))  # 4 filters are the default
SINGLE = ranking_of((2, [0.9]), (4, [0.8]))
CONSTANT = ranking_of((2, [0.9, 0.9]), (4, [0.8, 0.8]))
LOST = rank(
    GRID,
    [
        *(ended(GRID, 0.9 + n / 1000, filters=2) for n in range(3)),
        *(ended(GRID, 0.95, filters=4) for _ in range(3)),
        lost(GRID, filters=4),
    ],
)


@pytest.mark.parametrize(
    ("standings", "expected"),
    [
        (report_standings(BETTER), "Trial 7 is 10.00 points better than the default (95 % interval "),
        (
            report_standings(TIE),
            "No configuration is significantly better than the default: trial 7 scored 1.00 points higher, "
            "which may be noise (95 % interval -",
        ),
        (report_standings(WORSE), "The search found nothing better than the default configuration."),
        (report_standings(WORSE[:1]), "The search found nothing better than the default configuration."),
        (report_standings(SINGLE), "Trial 7 won; with one seed each, its gain over the default may be noise."),
        (report_standings(CONSTANT), "Trial 7 won; its gain over the default has no interval"),
        (
            report_standings(LOST),
            "Trial 7 won; its gain over the default is unknown, as training the default failed (1 of 4 diverged).",
        ),
        (
            replace(report_standings(BETTER[:1]), unscored=[Unscored(0, 0.9, {}, "default", 3)]),
            "Trial 7 is 10.00 points better",  # the gain over the default is known from before
        ),
        (report_standings(BETTER, trained=4), "4 of 6 training runs of the finalists are finished."),
        (replace(report_standings(BETTER), outdated=True), "So far trial 7 is 10.00 points better than the default"),
        (replace(report_standings(WORSE), outdated=True), "So far the search found nothing better than the default"),
        (report_standings([replace(BETTER[0], diverged=1)]), "No winner: the only finalist has diverged"),
    ],
)
def test_the_headline_states_the_winners_gain_over_the_default(standings: Standings, expected: str) -> None:
    headline, *details = wording.answer(standings, FINALISTS)
    assert headline.startswith(expected)
    assert headline.count(". ") == 0
    assert len(details) == (1 if standings.winner else 0)
