"""The finalists: who they are, how they are trained again, and what is said of them."""

import io
import json
import re
import shlex
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import Trial, TrialState
from rich.console import Console

from fmnist import checkpoint
from fmnist.checkpoint import CheckpointError
from fmnist.data import DataSet, load
from fmnist.evaluation import evaluate
from search.console.status import show_finalists
from search.database.connection import lock, open_storage
from search.queue import tickets
from search.queue.lease import Holder, finish
from search.report.analysis import analyse
from search.report.comparison import compare
from search.report.page import render
from search.results import finalists, wording
from search.results.finalists import Finalist, Standings, Unscored, define, search_results, standings_of
from search.results.intervals import Difference, estimate
from search.results.ranking import RACE, Configuration
from search.run.finalists import publish_ensemble, publish_winner, run_finalists
from search.run.finalists import retrain as retrain_finalists
from search.run.search import run_search
from search.run.supervise import RunSettings
from search.study.definition import StudyDefinition
from search.study.places import Place, folder_of
from search.study.space import distributions, grid, key, training_seed
from search.study.store import (
    DEFINITION,
    definition_of,
    finalists_of,
    load_study,
    open_study,
    request_stop,
    stop_requests,
)
from search.worker.loop import WorkerSettings, work
from tests.conftest import Command, Make
from tests.factories import FINALISTS, STUDY, TWO, definition, study_of
from tests.factories import ended as trial_of

QUICK = {"architecture": "simple", "epochs": 1, "filters": 4, "learning_rate": 0.002}


def test_progress_lines_name_finalist_and_seed(make: Make) -> None:
    study, _ = make(grid_of([2, 3, 4], seeds=2), 0)
    failed = trial_of(definition_of(study), None, state=TrialState.FAIL, filters=3)
    filters = [4, 2, 3, 4, 2]
    study.add_trials([failed, *(trial_of(definition_of(study), 0.9, filters=one) for one in filters)])
    assert list(finalists.names_of(study).values()) == [
        "finalist 2, seed 1 of 2",
        "default, seed 1 of 2",
        "finalist 1, seed 1 of 2",
        "finalist 2, seed 1 of 2",
        "default, seed 2 of 2",
        "finalist 1, seed 2 of 2",
    ]


def grid_of(filters: list[int], **changes: object) -> StudyDefinition:
    return definition(sampler="grid", defaults=QUICK, space={"filters": {"choices": filters}}, **changes)


def ended(study: optuna.Study, *values: float | None) -> None:
    """End waiting trials with these accuracies, None for one that diverges."""
    for place, value in enumerate(values):
        ticket = tickets.claim(study, Holder(), str(place))
        assert ticket is not None
        study.get_trials(deepcopy=False)  # or the cache does not know the trial
        trial = Trial(load_study(study._storage, study.study_name), ticket.trial_id)
        for name, distribution in distributions(definition_of(study)).items():
            trial._suggest(name, distribution)
        state = TrialState.COMPLETE if value else TrialState.PRUNED
        finish(study, ticket, state, value, None if value else "diverged: the training loss is nan in epoch 1")


def choose(study: optuna.Study, settings: WorkerSettings, data_set: DataSet, top: int, seeds: int) -> optuna.Study:
    """Make the study of the finalists with its tickets, as a run does."""
    chosen = define(study, top, seeds)
    assert chosen is not None
    place = finalists.place_of(study, folder_of(study))
    again = open_study(open_storage(settings.storage, "create"), "s.finalists", chosen, data_set, place)
    tickets.top_up(again, chosen, None)
    return again


def retrained(study: optuna.Study, folder: Path) -> tuple[Standings, optuna.Study]:
    """The standings of a study's finalists, and the finalists' own study."""
    standings, again = standings_of(study, folder), finalists_of(study)
    assert standings is not None
    assert again is not None
    return standings, again


def filters_of(defined: StudyDefinition | None) -> list[object]:
    assert defined is not None
    return [part["filters"][0] for part in defined.grid]


def test_they_are_the_best_configurations_and_the_default(make: Make) -> None:
    study, _ = make(grid_of([2, 3, 4, 5, 6]), 5)  # the default, 4, is trial 0
    ended(study, 0.80, 0.95, None, 0.90, 0.85)
    chosen = define(study, 2, 3)
    assert filters_of(chosen) == [2, 5, 4]
    assert chosen is not None
    assert (chosen.seeds, chosen.pruner, chosen.sampler, chosen.audit) == (3, "none", "grid", 0.0)
    assert filters_of(define(study, 4, 3)) == [2, 5, 6, 4]  # the pruned one is none of them
    assert filters_of(define(study, 0, 3)) == [4]


def test_with_several_seeds_the_mean_counts(make: Make) -> None:
    study, _ = make(grid_of([4, 5], seeds=2), 4)
    ended(study, 0.90, 0.99, 0.92, 0.80)
    assert filters_of(define(study, 1, 3)) == [4]


def test_there_are_none_before_a_trial_is_complete(make: Make) -> None:
    study, _ = make(grid_of([4, 5]), 2)
    ended(study, None)
    assert define(study, 3, 3) is None
    assert standings_of(study, Path()) is None


def test_their_seeds_are_fresh(make: Make) -> None:
    study, _ = make(grid_of([4, 5]), 2)
    ended(study, 0.9, 0.8)
    again = define(study, 2, 3)
    assert again is not None
    searched = {training_seed(definition_of(study), number) for number in range(100)}
    assert searched.isdisjoint(training_seed(again, number) for number in range(100))


Retrain = Callable[[WorkerSettings, int, int], None]
Searched = tuple[optuna.Study, WorkerSettings]


@pytest.fixture
def retrain(tmp_path: Path) -> Retrain:
    def retrained(settings: WorkerSettings, top: int, seeds: int) -> None:
        run = RunSettings(None, Place(tmp_path / settings.study), 1, settings, None, quiet=True)
        run_finalists(run, top, seeds, Console(quiet=True))

    return retrained


@pytest.fixture
def searched(make: Make) -> Searched:
    """A study with two real trials."""
    study, settings = make(grid_of([2, 4]), 2)
    work(settings, lambda: False)
    return study, settings


def test_they_are_trained_again_and_the_winner_is_the_best_mean(
    searched: Searched, retrain: Retrain, tmp_path: Path, tiny: DataSet
) -> None:
    study, settings = searched
    retrain(settings, 2, 2)
    standings, again = retrained(study, tmp_path / "s")
    assert (standings.trained, standings.wanted, standings.test) == (4, 4, None)
    first, second = standings.finalists
    assert first.retrained.accuracy.mean >= second.retrained.accuracy.mean
    for finalist in (first, second):
        assert finalist.retrained.accuracies == [again.trials[number].value for number in finalist.retrained.trials]
        assert finalist.trial is not None
        assert finalist.search == study.trials[finalist.trial].value
        assert finalist.change == pytest.approx(finalist.retrained.accuracy.mean - finalist.search)
    best = checkpoint.load(tmp_path / "s" / "best.pt")
    assert best.hyperparameters.filters == first.retrained.params["filters"]
    assert (
        evaluate(best.network(), tiny.test).accuracy == standings.checkpoint_accuracy == first.retrained.accuracies[0]
    )
    assert standings.checkpoint == tmp_path / "s" / "best.pt"
    analysis = analyse(study, tmp_path / "s", lambda: tiny)
    assert analysis.epochs == 2 + 4  # as the wall time, which ends when the last finalist does
    assert analysis.seconds == max(spell.end for spell in analysis.spells if spell.retrained)


def test_more_of_them_or_more_seeds_train_the_difference_and_fewer_change_nothing(
    searched: Searched, retrain: Retrain, tmp_path: Path
) -> None:
    study, settings = searched
    retrain(settings, 1, 2)
    again = finalists_of(study)
    assert again is not None
    assert len(again.trials) == 2 * len(definition_of(again).grid)
    retrain(settings, 2, 3)
    assert len(again.trials) == 6
    ends = [trial.datetime_complete for trial in again.trials]
    retrain(settings, 1, 1)
    assert [trial.datetime_complete for trial in again.trials] == ends
    standings = standings_of(study, tmp_path / "s")
    assert standings is not None
    assert [finalist.retrained.accuracy.n for finalist in standings.finalists] == [3, 3]


def test_of_a_validated_study_the_test_images_are_looked_at_once_the_winner_is_known(
    make: Make, tmp_path: Path, tiny: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(grid_of([2, 4], score_on="validation"), 2)
    with monkeypatch.context() as patch:
        patch.setattr("search.worker.loop.fashion.load", lambda _: replace(tiny, test=None))  # whoever looks fails
        work(settings, lambda: False)
        again = choose(study, settings, tiny, 2, 2)
        work(settings, lambda: False)  # a worker of the study goes on with its finalists
    assert [trial.state for trial in again.trials] == [TrialState.COMPLETE] * 4
    before = standings_of(study, tmp_path / "s")
    assert before is not None
    assert before.test is None
    assert before.unsettled
    publish_winner(study, again, before, tmp_path / "s", tiny)
    publish_ensemble(again, tmp_path / "s", settings.storage, tiny)
    after = standings_of(study, tmp_path / "s")
    assert after is not None
    assert not after.unsettled
    networks = [
        checkpoint.load(tmp_path / "s.finalists" / "checkpoints" / f"trial-{number:05d}-epoch-1.pt").network()
        for number in after.winner.retrained.trials
    ]
    assert after.test == estimate([evaluate(network, tiny.test).accuracy for network in networks])
    assert "On the test images, which were not used for any selection" in wording.winner(after, FINALISTS)


def test_a_winner_whose_checkpoint_is_damaged_is_not_put_in_place(
    searched: Searched, retrain: Retrain, tmp_path: Path, tiny: DataSet
) -> None:
    study, settings = searched
    retrain(settings, 2, 1)
    standings, again = retrained(study, tmp_path / "s")
    winner = tmp_path / "s.finalists" / "checkpoints" / f"trial-{standings.winner.retrained.trials[0]:05d}-epoch-1.pt"
    content = bytearray(winner.read_bytes())
    content[len(content) // 2] ^= 1
    best = tmp_path / "s" / "best.pt"
    for file in (winner, best):
        file.write_bytes(content)
    analysis = analyse(study, tmp_path / "s", lambda: tiny)
    assert analysis.network is None
    assert "best.pt: damaged" in (analysis.missing or "")
    best.unlink()
    with pytest.raises(CheckpointError, match=f"{winner.name}: damaged"):
        publish_winner(study, again, standings, tmp_path / "s", tiny)
    assert not best.exists()


def test_until_all_are_trained_there_is_no_winner_and_nobody_looks_at_the_test_images(
    make: Make, tmp_path: Path, tiny: DataSet
) -> None:
    """A run that time stops among the finalists; a worker trains the others; a run finds nothing to train."""
    study, settings = make(grid_of([2, 4], score_on="validation"), 2)
    work(settings, lambda: False)
    run = RunSettings(None, Place(tmp_path / "s"), 1, settings, 0.001, quiet=True)
    _, stopped = run_finalists(run, 2, 2, Console(quiet=True))
    assert stopped == "timeout"
    again = finalists_of(study)
    assert again is not None
    claimed = iter([False, True])
    work(settings, lambda: next(claimed, True) and bool(again.get_trials(states=(TrialState.COMPLETE,))))
    standings = standings_of(study, tmp_path / "s")
    assert standings is not None
    assert (standings.trained, standings.wanted, standings.decided) == (1, 4, False)
    assert wording.winner(standings, FINALISTS).startswith("Ahead so far: ")
    assert "not chosen yet" in wording.checkpoint(standings, FINALISTS)

    work(settings, lambda: False)  # nobody has chosen: that is left to whoever has the study's folder
    assert "settled" not in again.user_attrs
    assert not (tmp_path / "s" / "best.pt").exists()
    run_finalists(replace(run, timeout=None), 2, 2, Console(quiet=True))
    standings = standings_of(study, tmp_path / "s")
    assert standings is not None
    assert standings.test is not None
    assert wording.winner(standings, FINALISTS).startswith("Winner: ")
    assert standings.checkpoint == tmp_path / "s" / "best.pt"


def test_a_checkpoint_of_another_winner_is_not_shown_as_this_ones(
    searched: Searched, retrain: Retrain, tmp_path: Path
) -> None:
    study, settings = searched
    retrain(settings, 2, 1)
    again = finalists_of(study)
    assert again is not None
    again.set_user_attr("settled", {"trials": [99], "test": []})  # an earlier winner's
    standings = standings_of(study, tmp_path / "s")
    assert standings is not None
    assert standings.checkpoint is None
    retrain(settings, 2, 1)
    standings = standings_of(study, tmp_path / "s")
    assert standings is not None
    assert standings.checkpoint is not None


def test_how_settled_finalists_stand_is_told_without_reading_all_trials(
    searched: Searched, retrain: Retrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = searched
    retrain(settings, 1, 1)
    with monkeypatch.context() as patch:
        patch.setattr("search.results.finalists.search_results", None)
        kept = standings_of(study, tmp_path / "s")
    again = finalists_of(study)
    assert again is not None
    again.set_user_attr("settled", {key: value for key, value in again.user_attrs["settled"].items() if key != "found"})
    assert standings_of(study, tmp_path / "s") == kept
    retrain(settings, 3, 1)
    more = standings_of(study, tmp_path / "s")
    assert kept is not None
    assert more is not None
    assert len(more.finalists) > len(kept.finalists)


def stand(study: optuna.Study, folder: Path) -> Standings:
    standings = standings_of(study, folder)
    assert standings is not None
    return standings


def table_of(standings: Standings) -> str:
    console = Console(file=io.StringIO(), width=200)
    show_finalists(console, "s", standings, FINALISTS)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_finalist_of_which_a_training_diverged_does_not_win_by_the_mean_of_the_others(
    make: Make, tmp_path: Path
) -> None:
    study, settings = make(grid_of([2, 4]), 2)
    ended(study, 0.8, 0.9)
    again = choose(study, settings, load(settings.data_dir), 2, 3)
    ended(again, 0.80, 0.95, 0.81, 0.94, 0.82, None)  # the default, 4, and 2 in turn
    standings = stand(study, tmp_path / "s")
    assert (standings.decided, standings.final, standings.diverged) == (True, True, 1)
    assert [finalist.retrained.params["filters"] for finalist in standings.finalists] == [4, 2]
    assert "Winner: trial 0 (default), 81.00 %" in wording.winner(standings, FINALISTS)
    assert "1 training run diverged: 1 of 3 of trial 1" in wording.winner(standings, FINALISTS)
    assert "statistically tied" not in wording.winner(standings, FINALISTS)
    assert "1 of 3 diverged" in table_of(standings)
    assert standings.as_json()["final"] is True


def test_a_finalist_of_which_all_trainings_diverged_is_in_the_table_too(make: Make, tmp_path: Path) -> None:
    study, settings = make(grid_of([2, 4]), 2)
    ended(study, 0.8, 0.9)
    again = choose(study, settings, load(settings.data_dir), 2, 2)
    ended(again, 0.80, None, 0.81, None)
    standings = stand(study, tmp_path / "s")
    assert (standings.trained, standings.wanted, standings.diverged, len(standings.finalists)) == (4, 4, 2, 1)
    assert standings.unscored == [Unscored(1, 0.9, {"filters": 2}, None, 2)]
    assert "2 training runs diverged: 2 of 2 of trial 1" in wording.winner(standings, FINALISTS)
    assert "2 of 2 diverged" in table_of(standings)


@pytest.mark.parametrize("values", [(0.90, 0.95, None, None), (None, None, None, None)])
def test_where_a_training_of_each_diverged_there_is_no_winner(
    make: Make, tmp_path: Path, tiny: DataSet, values: tuple[float | None, ...]
) -> None:
    study, settings = make(grid_of([2, 4]), 2)
    ended(study, 0.8, 0.9)
    again = choose(study, settings, load(settings.data_dir), 2, 2)
    ended(again, *values)
    run = RunSettings(None, Place(tmp_path / "s"), 1, settings, None, quiet=True)
    standings, stopped = run_finalists(run, 2, 2, Console(quiet=True))
    assert standings is not None
    assert (stopped, standings.winner, standings.decided, standings.final) == (None, None, True, False)
    assert wording.headline(standings).startswith("No winner: ")
    assert "there is no winner" in wording.checkpoint(standings, FINALISTS)
    assert "winner" not in table_of(standings).replace("No winner", "").replace("there is no winner", "")
    assert not (tmp_path / "s" / "best.pt").exists()
    assert "settled" not in again.user_attrs
    analysis = analyse(study, tmp_path / "s", lambda: tiny)
    assert analysis.answer is None
    assert "s.finalists" not in str(analysis.reproduction)
    assert "No winner" in render(analysis)
    assert compare([(study, tmp_path / "s")]).answers[0].retrained is False


def test_finalists_of_before_stay_and_can_win_when_a_longer_search_finds_others(make: Make, tmp_path: Path) -> None:
    defined = grid_of([2, 3, 4])
    study, settings = make(defined, 2)
    data_set = load(settings.data_dir)
    ended(study, 0.80, 0.90)  # of 4, the default, and 2
    again = choose(study, settings, data_set, 1, 2)
    ended(again, 0.80, 0.93, 0.81, 0.93)
    first = stand(study, tmp_path / "s")
    assert (first.trained, first.wanted, wording.called(first.finalists[0])) == (4, 4, "trial 1")
    tickets.top_up(study, defined, 3)
    ended(study, 0.95)  # of 3
    again = choose(study, settings, data_set, 1, 2)
    assert tickets.counts(again)[TrialState.WAITING] == 2
    ended(again, 0.91, 0.91)
    last = stand(study, tmp_path / "s")
    assert (last.trained, last.wanted, last.outdated, last.final) == (6, 6, False, True)
    assert [finalist.trial for finalist in last.finalists] == [1, 2, 0]
    assert "Winner: trial 1, 93.00 %" in wording.winner(last, FINALISTS)


def test_more_seeds_are_for_those_of_before_too(make: Make, tmp_path: Path) -> None:
    defined = grid_of([2, 3, 4])
    study, settings = make(defined, 2)
    data_set = load(settings.data_dir)
    ended(study, 0.80, 0.90)
    ended(choose(study, settings, data_set, 1, 1), 0.80, 0.93)
    tickets.top_up(study, defined, 3)
    ended(study, 0.95)
    again = choose(study, settings, data_set, 1, 2)
    ended(again, *[0.9] * 4)
    assert tickets.is_done(again)
    assert {finalist.retrained.accuracy.n for finalist in stand(study, tmp_path / "s").finalists} == {2}


def test_what_an_earlier_version_took_out_of_the_finalists_is_among_them_again(make: Make, tmp_path: Path) -> None:
    """It put the new configurations in the place of the former ones, and recorded a winner of the new ones."""
    study, settings = make(grid_of([2, 3, 4]), 3)
    data_set = load(settings.data_dir)
    ended(study, 0.80, 0.90, 0.95)  # of 4, the default, 2 and 3
    again = choose(study, settings, data_set, 2, 1)
    ended(again, 0.80, 0.91, 0.93)  # of 4, 3, 2
    stored = again.user_attrs[DEFINITION]
    again.set_user_attr(DEFINITION, stored | {"grid": [part for part in stored["grid"] if part["filters"] != [2]]})
    again = load_study(again._storage, "s.finalists")
    kept = search_results(study, grid(definition_of(again)))
    again.set_user_attr("settled", {"trials": [1], "test": [], "found": asdict(kept)})
    standings = stand(study, tmp_path / "s")
    assert [finalist.trial for finalist in standings.finalists] == [1, 2, 0]
    assert (standings.trained, standings.wanted, standings.unsettled) == (3, 3, True)
    more = define(study, 1, 2)
    assert more is not None
    assert sorted(map(str, filters_of(more))) == ["2", "3", "4"]
    assert tickets.top_up(choose(study, settings, data_set, 1, 2), more, None) == 6


def test_finalists_of_an_unfinished_search_are_trained_by_hand_only_and_it_is_said(make: Make, tmp_path: Path) -> None:
    study, settings = make(grid_of([2, 4]), 2)
    ended(study, 0.9)
    again = choose(study, settings, load(settings.data_dir), 1, 1)
    run = RunSettings(None, Place(tmp_path / "s"), 1, settings, None, quiet=False)
    console = Console(file=io.StringIO(), width=200)
    standings, _ = run_finalists(run, 1, 1, console)
    assert "unfinished" in console.file.getvalue()  # type: ignore[attr-defined]
    assert standings is not None
    assert (standings.decided, standings.unfinished, standings.final) == (True, True, False)
    assert wording.winner(standings, FINALISTS).startswith("Ahead so far: ")
    assert "unfinished" in wording.winner(standings, FINALISTS)
    ended(study, 0.8)
    assert stand(study, tmp_path / "s").final
    assert tickets.is_done(again)


def test_a_search_that_went_on_is_said_to_have_outrun_its_finalists(make: Make, tmp_path: Path) -> None:
    defined = grid_of([2, 3, 4])
    study, settings = make(defined, 2)
    ended(study, 0.9, 0.8)
    again = choose(study, settings, load(settings.data_dir), 1, 2)
    ended(again, 0.9, 0.91)
    before = stand(study, tmp_path / "s")
    tickets.top_up(study, defined, 3)
    ended(study, 0.95)
    after = stand(study, tmp_path / "s")
    assert (before.title, after.title) == ("winner", "ahead so far")
    assert "`fmnist-search finalists s` trains it again too" in wording.winner(after, FINALISTS)


def test_other_seeds_later_never_leave_a_finalist_with_fewer(make: Make) -> None:
    study, settings = make(grid_of([2, 3, 4]), 3)
    ended(study, 0.9, 0.8)
    choose(study, settings, load(settings.data_dir), 1, 5)
    ended(study, 0.95)
    more = define(study, 3, 3)
    assert more is not None
    assert (more.seeds, len(more.grid)) == (5, 3)


def test_a_search_leaves_the_finalists_of_before_alone(searched: Searched, retrain: Retrain, tmp_path: Path) -> None:
    study, settings = searched
    retrain(settings, 1, 1)
    again = finalists_of(study)
    assert again is not None
    tickets.enqueue(again, definition_of(again).model_copy(update={"seeds": 2}), 1, {})
    work(replace(settings, finalists=False), lambda: False)
    assert again.trials[-1].state == TrialState.WAITING
    work(settings, lambda: False)
    assert again.trials[-1].state == TrialState.COMPLETE


def test_a_following_worker_takes_up_finalists_that_are_chosen_later(
    searched: Searched, tmp_path: Path, tiny: DataSet
) -> None:
    study, settings = searched

    def finished() -> bool:
        again = finalists_of(study)
        return again is not None and not tickets.counts(again)[TrialState.WAITING]

    later = threading.Timer(
        1.0, choose, (study, settings, tiny, 2, 1)
    )  # the worker is waiting by then, or else begins with them: both are right
    later.start()
    work(replace(settings, follow=True), finished)
    later.join()
    again = finalists_of(study)
    assert again is not None
    assert {trial.state for trial in again.trials} == {TrialState.COMPLETE}


def test_a_request_to_stop_is_for_the_finalists_too(searched: Searched, retrain: Retrain) -> None:
    study, settings = searched
    retrain(settings, 1, 1)
    again = finalists_of(study)
    assert again is not None
    before = [stop_requests(each) for each in (study, again)]
    request_stop(study)
    assert all(stop_requests(each) != former for each, former in zip((study, again), before, strict=True))


def test_the_name_of_finalists_is_not_given_to_another_study(command: Command, study_file: Path) -> None:
    refused = command("run", "tiny.toml", "--name", "tiny.finalists")
    assert refused.returncode == 2
    assert "is reserved for the finalists of another study" in refused.stderr


def configuration(accuracies: list[float], behind: Difference | None) -> Configuration:
    return Configuration({"filters": 8}, {}, [0], accuracies, estimate(accuracies), 1.0, behind, None)


def test_words_tell_ties_from_differences() -> None:
    tie, worse = Difference(0.01, -0.01, 0.03), Difference(0.02, 0.01, 0.03)
    assert wording.standing(configuration([0.9, 0.91], None), "winner") == "winner"
    assert wording.standing(configuration([0.9, 0.91], tie), "winner") == "tie"
    assert wording.standing(configuration([0.9, 0.91], worse), "winner") == "2.00 behind"
    assert wording.standing(configuration([0.9], None), "winner") == ""
    assert wording.standing(configuration([0.9, 0.9], None), "") == "unclear"


def test_a_change_on_retraining_has_a_sign() -> None:
    lower, higher, new = (Finalist(1, search, configuration([0.9, 0.9], None)) for search in (0.9021, 0.8995, None))
    assert [wording.change(each) for each in (lower, higher, new)] == ["-0.21", "+0.05", "-"]


def test_words_say_how_intervals_are_made_and_how_many_images_scored() -> None:
    one = replace(configuration([0.93, 0.931], None), images=10_000)
    assert wording.precision([one], "finalists") == (
        "The interval is over seeds. "
        "Another sample of 10,000 images would shift all scores together by about ± 0.5 points."
    )
    assert "pooled over all finalists" in wording.precision([one, one], "finalists")
    assert "images" not in wording.precision([configuration([0.93, 0.931], None)], "finalists")
    assert wording.precision([configuration([0.93], None), configuration([0.93, 0.93], None)], "finalists") == ""


def test_a_finalist_that_can_hardly_win_gets_no_third_seed_and_the_winner_is_published(
    make: Make, tmp_path: Path
) -> None:
    defined = definition(
        sampler="grid", defaults=QUICK, space={"learning_rate": {"choices": [0.002, 0.003, 0.0000001]}}
    )
    study, settings = make(defined, 3)
    ended(study, 0.90, 0.91, 0.92)
    output = io.StringIO()
    run = RunSettings(None, Place(tmp_path / "s"), 1, settings, None, quiet=False)
    standings, stopped = run_finalists(run, 3, 3, Console(file=output))
    assert standings is not None
    assert stopped is None
    seeds = {each.retrained.params["learning_rate"]: each.retrained.accuracy.n for each in standings.finalists}
    assert (seeds[0.0000001], seeds[0.002]) == (RACE, 3)
    assert standings.winner is not None
    assert standings.winner.retrained.accuracy.n == 3
    assert standings.trained == standings.wanted == sum(seeds.values())
    assert standings.checkpoint is not None
    assert re.search(r"after 2 seeds each, (1 of 3 can hardly win and gets|2 of 3 .* get) no more", output.getvalue())
    assert run_finalists(run, 3, 3, Console(file=output))[0] == standings  # nothing left to do


def test_run_ends_with_the_finalists_and_goes_on_with_them(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    study_file.write_text(STUDY.replace("epochs = 2", "epochs = 1"))
    stopped = invoke("run", "tiny.toml", "--finalists", "3", "--timeout", "0.001", "--workers", "1")
    assert "Finalists" not in stopped.stdout
    first = invoke("run", "tiny.toml", "--workers", "2", "--finalists", "3")
    assert first.returncode == 0, first.stderr
    assert "again with up to 3 fresh seeds each" in first.stdout
    assert "Finalists: after 2 seeds each, " in first.stdout
    assert "Winner: trial" in first.stdout
    assert "1 of 3 training runs)" in first.stdout
    assert (tmp_path / "studies" / "tiny" / "best.pt").is_file()
    again = invoke("run", "tiny.toml", "--finalists", "3")
    assert "Nothing left to do" in again.stdout
    assert again.stdout[again.stdout.index("Winner") :] == first.stdout[first.stdout.index("Winner") :]
    assert "Winner: trial" in invoke("best", "tiny").stdout
    assert re.search(r"training runs finished\. .*default.* Winner: trial", invoke("status", "tiny").stdout)

    winner, standings = (json.loads(invoke(name, "tiny", "--json").stdout) for name in ("best", "finalists"))
    winner, first = winner["winner"], standings["finalists"][0]["retrained"]
    assert (winner["mean"], winner["seeds"], winner["trial"]) == (
        first["accuracy"]["mean"],
        3,
        standings["finalists"][0]["trial"],
    )
    assert (
        winner["params"].items() >= {**first["params"], "architecture": "simple", "epochs": 1, "batch_size": 64}.items()
    )
    assert 0 <= winner["low"] <= winner["mean"] <= winner["high"] <= 1
    saved = checkpoint.load(tmp_path / winner["checkpoint"])
    assert saved.hyperparameters.model_dump() == winner["params"] | {"network": {}}
    assert (tmp_path / winner["ensemble"]["checkpoint"]).is_file()
    assert winner["ensemble"]["members"] == len(standings["ensemble"]["trials"]) >= 3
    assert json.loads(invoke("status", "tiny", "--json").stdout)["winner"] == winner

    numbers = json.loads((tmp_path / invoke("report", "tiny", "--format", "json").stdout.strip()).read_text())
    _, *words = shlex.split(numbers["answer"]["train"])
    alone = invoke(*words, "--save", str(tmp_path / "alone.pt"))
    assert alone.returncode == 0, alone.stderr
    made, best = checkpoint.load(tmp_path / "alone.pt"), checkpoint.load(tmp_path / "studies" / "tiny" / "best.pt")
    assert (made.hyperparameters, made.seed, made.score_on) == (best.hyperparameters, best.seed, best.score_on)
    assert made.history[-1].accuracy == pytest.approx(best.history[-1].accuracy, abs=0.02)  # sums of other threads

    more = invoke("finalists", "tiny", "--top", "4", "--seeds", "4", "--json")
    assert more.returncode == 0, more.stderr
    record = json.loads(more.stdout)
    numbers = [finalist["retrained"]["accuracy"]["n"] for finalist in record["finalists"]]
    assert record["trained"] == record["wanted"] == sum(numbers)
    assert numbers[0] == 4
    assert set(numbers) <= {2, 3, 4}  # fewer of those that were eliminated

    deleted = invoke("delete", "tiny", "--yes")
    assert deleted.returncode == 0, deleted.stderr
    assert not (tmp_path / "studies" / "tiny").exists()
    assert not (tmp_path / "studies" / "tiny.finalists").exists()
    assert "there are none yet" in invoke("status", "tiny.finalists").stderr


class Watching(Console):
    """A console that does something once, when a line that begins like this is printed."""

    def __init__(self, beginning: str, then: Callable[[], object]) -> None:
        super().__init__(file=io.StringIO(), width=200)
        self.beginning, self.then = beginning, [then]

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        if self.then and str(objects[0]).startswith(self.beginning):
            self.then.pop()()


@pytest.mark.parametrize("moment", ["[2/2] ", "Finalists: "])
def test_a_goal_that_another_command_raises_at_the_end_is_reached_too(
    tmp_path: Path, tiny_folder: Path, moment: str
) -> None:
    """As a second `run` with more trials does, before the finalists are chosen and while they are trained."""
    defined = definition(sampler="random", finalists=1, defaults=QUICK)
    settings = RunSettings.of("s", trials=2, output=tmp_path, workers=1, data_dir=tiny_folder, device="cpu")
    url = settings.worker.storage

    def ask_for_more() -> None:
        with lock(url):
            tickets.top_up(load_study(open_storage(url, "write"), "s"), defined, 4)

    console = Watching(moment, ask_for_more)
    result = run_search(defined, settings, console)
    assert console.then == []
    assert (result.stopped, result.goal, result.summary.trials.complete, result.summary.trials.left) == (None, 4, 4, 0)
    again, chosen = finalists_of(result.study), define(result.study, 1, 3)
    assert again is not None
    assert chosen is not None
    trained = Counter(key(trial.params) for trial in again.trials)
    assert max(trained.values()) == 3
    assert min(trained.values()) >= RACE
    assert trained.keys() >= set(map(key, grid(chosen)))
    if moment == "[2/2] ":
        assert trained.keys() == set(map(key, grid(chosen)))


def test_a_run_chooses_no_finalists_while_the_search_is_short_of_its_goal(
    make: Make, tmp_path: Path, tiny: DataSet
) -> None:
    study, settings = make(grid_of([2, 4]), 2)
    ended(study, 0.9)
    run = RunSettings(None, Place(tmp_path / "s"), 1, settings, None, quiet=True)
    assert retrain_finalists(study, 1, 1, run, tiny, Console(quiet=True), None) == (False, None)
    assert finalists_of(study) is None


def test_finalists_0_turns_them_off(invoke: Command, study_file: Path, tmp_path: Path) -> None:
    study_file.write_text(study_file.read_text().replace("finalists = 0", "finalists = 3"))
    result = invoke("run", "tiny.toml", "--trials", "2", "--finalists", "0")
    assert result.returncode == 0, result.stderr
    assert "Finalists" not in result.stdout
    assert "This is a single training run (one seed)" in result.stdout
    assert not (tmp_path / "studies" / "tiny.finalists").exists()
    absent = invoke("finalists", "nothing")
    assert absent.returncode == 2
    assert "no study named 'nothing'" in absent.stderr


def test_a_trial_that_something_else_put_outside_of_the_space_is_no_finalist(url: str) -> None:
    """A grid has no point of it, and Optuna takes it from anyone who enqueues it."""
    storage = open_storage(url, "create")
    inside = [trial_of(TWO, 0.8 + number / 100, filters=number) for number in (2, 3)]
    outside = trial_of(TWO, 0.99, filters=8)
    outside.params["filters"] = 9
    outside.distributions["filters"] = IntDistribution(2, 9)
    study, _ = study_of(storage, "s", [*inside, outside], TWO)
    chosen = define(study, 2, 3)
    assert chosen is not None
    assert [part["filters"] for part in chosen.grid] == [[3], [2], [4]]
    assert search_results(study, [{"filters": 3, "dropout": 0.1}]).best
