"""Recommendations, and that there are none where the numbers do not support them."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from fmnist.data import DataSet
from search.database.connection import open_storage
from search.database.url import default_url
from search.report import advice, importance
from search.report.findings import NEXT, findings
from search.report.history import Audit
from search.report.importance import Early, Importance, Importances
from search.results.finalists import Finalist, Standings
from search.results.intervals import Pooled, share
from search.results.ranking import Configuration, rank
from search.study.definition import StudyDefinition
from search.study.places import Place, StudyError
from search.study.store import open_study
from tests.conftest import Command
from tests.factories import (
    CONDITIONAL,
    GRID,
    NO_IMPORTANCES,
    RATES,
    TWO,
    definition,
    ended,
    evidence_of,
    lost,
    said,
    standings_of,
    trained,
)

DEFAULT = trained(0.80, 0.81, 0.82)


def standing(*trials: Sequence[float]) -> Standings:
    """Finalists with 2 and 3 filters, and the default with 4."""
    others = [
        ended(GRID, one, filters=filters) for filters, values in zip((2, 3), trials, strict=False) for one in values
    ]
    return standings_of(rank(GRID, [*DEFAULT, *others]))


def accepts(defined: StudyDefinition, text: str) -> bool:
    """Whether a new study may have the options that the text suggests."""
    words = shlex.split(next(part for part in text.split("`") if part.startswith("--pruner")))
    options = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    changes = {"pruner": options["pruner"]} | ({"audit": float(options["audit"])} if "audit" in options else {})
    StudyDefinition.model_validate(defined.model_dump(mode="json") | changes)
    return True


# A tie with the default


def test_a_winner_tied_with_the_default_needs_enough_seeds_to_show_its_gain() -> None:
    standings = standing([0.81, 0.82, 0.84])
    text = said("tie", GRID, standings=standings)
    assert text is not None
    gain = Pooled([[0.81, 0.82, 0.84], [0.80, 0.81, 0.82]]).difference(0, 1)
    assert gain is not None
    seeds = int(text.split("--seeds ")[1].split("`")[0])
    assert text.startswith("The winner is statistically tied with the default: it scored 1.33 points higher (")
    command = f"`fmnist-search finalists s --seeds {seeds}`"
    more = 2 * seeds - 6  # two finalists have three each
    assert text.endswith(f"about {seeds} seeds each would show it: {command} ({more} more training runs).")
    enough, fewer = ((gain.high - gain.low) / 2 * (3 / n) ** 0.5 for n in (seeds, seeds - 1))
    assert enough <= gain.mean < fewer


def test_no_more_seeds_are_suggested_for_a_gain_too_small_to_show() -> None:
    text = said("tie", GRID, standings=standing([0.79, 0.81, 0.8301]))
    assert text is not None
    assert "Even 50 seeds each would hardly separate them" in text


def test_another_search_space_is_suggested_if_the_default_won() -> None:
    text = said("tie", GRID, standings=standing([0.7, 0.71, 0.72]))
    assert text is not None
    assert text.startswith("The default configuration won")
    assert said("tie", GRID, standings=standing()) is None  # the only finalist


def test_nothing_is_suggested_for_a_better_or_undecided_winner() -> None:
    assert said("tie", GRID, standings=standing([0.90, 0.91, 0.92])) is None
    assert said("tie", GRID, standings=replace(standing([0.81, 0.82, 0.84]), trained=5)) is None
    assert said("tie", GRID) is None


# Luck


def test_retraining_is_suggested_for_the_best_of_single_training_runs() -> None:
    text = said("luck", TWO, [ended(TWO, 0.8), ended(TWO, 0.9, filters=2)])
    assert text is not None
    assert text.startswith("The best accuracy is from a single training run, selected from 2 ")
    assert "`fmnist-search finalists s`" in text


def test_retraining_is_not_suggested_with_finalists_several_seeds_or_a_single_trial() -> None:
    two = [ended(TWO, 0.8), ended(TWO, 0.9, filters=2)]
    assert said("luck", TWO, two, standings=standing([0.9])) is None
    assert said("luck", TWO, two[:1]) is None
    assert said("luck", GRID, trained(0.8, 0.9) + trained(0.7, filters=2)) is None


# Cheaper


def costing(*rows: tuple[int, float, Sequence[float]]) -> list[Configuration]:
    """Configurations as (filters, seconds, accuracies)."""
    trials = [ended(GRID, one, filters=filters, seconds=seconds) for filters, seconds, values in rows for one in values]
    return rank(GRID, trials)


BEST = (2, 10.0, [0.90, 0.91, 0.92])
TIE = [0.89, 0.90, 0.92]


def test_the_fastest_tied_configuration_is_suggested_with_the_time_it_saves() -> None:
    ranking = costing(BEST, (3, 4.0, TIE), (4, 6.0, TIE))
    assert said("cheaper", GRID, ranking=ranking) == (
        "Filters=3 is statistically tied with the best and takes 60 % less time to train (4.0 s instead of 10.0 s): "
        "use it where time matters."
    )
    finalists = [Finalist(number, 0.99, one) for number, one in enumerate(ranking)]
    standings = Standings("s", "test", 9, 9, 0, False, finalists, Path("best.pt"), 0.9, None)
    text = said("cheaper", GRID, standings=standings)
    assert text is not None
    assert text.startswith("Trial 1 is statistically tied")


@pytest.mark.parametrize(
    "others",
    [
        [(3, 9.0, TIE)],  # saves too little
        [(3, 4.0, [0.5, 0.51, 0.52])],  # worse
        [(3, 4.0, [0.89])],  # a single training run
        [],
    ],
)
def test_no_slow_or_worse_configuration_is_suggested(
    others: list[tuple[int, float, list[float]]],
) -> None:
    assert said("cheaper", GRID, ranking=costing(BEST, *others)) is None


# Unimportant hyperparameters


LITTLE, MUCH, UNSURE = Importance(0.01, 0.0, 0.04), Importance(0.9, 0.8, 0.95), Importance(0.02, 0.0, 0.2)


def importances(**methods: dict[str, Importance]) -> Importances:
    return replace(NO_IMPORTANCES, complete=30, finished=30, **methods)


def test_hyperparameters_unimportant_by_every_method_should_be_fixed() -> None:
    both = {"a": MUCH, "b": LITTLE, "c": LITTLE}
    text = said("unimportant", TWO, importances=importances(fanova=both, ped_anova=both))
    assert text is not None
    assert text.startswith("b and c explain almost none of the accuracy (importance below 0.05 by each method)")
    assert "in a new study (`--name`), set them in `[defaults]` only" in text
    text = said("unimportant", TWO, importances=importances(fanova=both, ped_anova=both | {"c": UNSURE}))
    assert text is not None
    assert text.startswith("b explains almost none")
    assert said("unimportant", TWO, importances=importances(fanova=both)) is not None


def test_possibly_important_hyperparameters_should_not_be_fixed() -> None:
    assert said("unimportant", TWO, importances=importances(fanova={"a": MUCH, "b": UNSURE})) is None
    assert said("unimportant", TWO, importances=importances(ped_anova={"a": MUCH, "b": LITTLE})) is None
    assert said("unimportant", TWO, importances=importances(fanova={"a": LITTLE, "b": LITTLE})) is None
    assert said("unimportant", TWO, importances=None) is None


def test_early_importance_alone_is_no_reason_to_fix_a_hyperparameter() -> None:
    early = Early(0.25, 0, False, importances(fanova={"a": MUCH, "b": LITTLE}))
    assert said("unimportant", TWO, importances=replace(NO_IMPORTANCES, early=early)) is None


def test_hyperparameters_in_conditions_are_kept_so_that_the_space_stays_valid() -> None:
    conditional = definition(**CONDITIONAL)
    shares = {name: MUCH if name == "learning_rate" else LITTLE for name in ("architecture", "optimizer", "batch_size")}
    text = said("unimportant", conditional, importances=importances(fanova=shares))
    assert text is not None
    assert text.startswith("batch_size explains")
    fixed = conditional.model_dump(mode="json")
    del fixed["space"]["batch_size"]
    StudyDefinition.model_validate(fixed)


# The pruner

BAD = Audit(20, 5, 0.9, share(5, 20))


@pytest.mark.parametrize(
    ("pruner", "patient"), [("slack", "freeze"), ("median", "freeze"), ("hyperband", "freeze"), ("freeze", "none")]
)
def test_a_more_patient_pruner_is_suggested_if_good_trials_were_stopped(pruner: str, patient: str) -> None:
    text = said("patience", definition(pruner=pruner, audit=0.2), audit=BAD)
    assert text is not None
    assert text.startswith("The pruner stopped good trials: 5 of 20 audited trials would have been among the best.")
    assert f"`--pruner {patient}" in text
    assert "in a new study (`--name`)" in text
    assert accepts(definition(pruner=pruner, audit=0.2), text)


@pytest.mark.parametrize("audit", [None, Audit(5, 2, 0.9, None), Audit(20, 5, 0.9, share(1, 20))])
def test_no_pruner_is_suggested_without_a_significant_false_prune_rate(audit: Audit | None) -> None:
    assert said("patience", TWO, audit=audit) is None


# Learning rates


def test_learning_rates_at_which_trials_diverge_should_be_excluded() -> None:
    fine = [ended(RATES, 0.9, learning_rate=rate) for rate in (0.01, 0.02, 0.03)]
    bad = [ended(RATES, 0.5, learning_rate=0.9), *[ended(RATES, 0.8, learning_rate=0.1)] * 5]
    trials = [*fine, *bad, lost(RATES, learning_rate=0.5), lost(RATES, learning_rate=0.7)]
    text = said("rates", RATES, trials)
    assert text is not None
    assert text.startswith("Trials diverged at learning rates of 0.5 and above; the best trials use at most 0.1")
    assert text.endswith("in a new study (`--name`), end the range below 0.5.")


@pytest.mark.parametrize("start", [[], [{"learning_rate": 0.9}]])
def test_defaults_and_starting_points_above_the_new_bound_must_move_too(start: list[dict[str, float]]) -> None:
    default = 0.1 if start else 0.6
    defined = definition(defaults={"learning_rate": default}, space=RATES.space, start=start)
    trials = [*[ended(defined, 0.9, learning_rate=0.01)] * 5, lost(defined, learning_rate=0.5)]
    text = said("rates", defined, trials)
    assert text is not None
    assert text.endswith("end the range below 0.5, and move defaults and starting points into it.")
    cut = defined.model_dump(mode="json")
    cut["space"]["learning_rate"]["high"] = 0.49
    with pytest.raises(ValidationError):
        StudyDefinition.model_validate(cut)
    StudyDefinition.model_validate(cut | {"defaults": {"learning_rate": 0.01}, "start": []})


def test_a_table_that_would_become_empty_is_not_cut() -> None:
    tables = [
        {"low": 0.001, "high": 0.1, "when": {"optimizer": "adam"}},
        {"low": 0.5, "high": 1.0, "when": {"optimizer": "sgd"}},
    ]
    space = {"optimizer": {"choices": ["adam", "sgd"]}, "learning_rate": tables}
    defined = definition(space=space)
    trials = [*[ended(defined, 0.9, learning_rate=0.01)] * 5, lost(defined, optimizer="sgd", learning_rate=0.5)]
    assert said("rates", defined, trials) is None


def test_learning_rates_are_kept_if_a_good_trial_uses_a_higher_one_or_few_trials_diverge() -> None:
    fine = [ended(RATES, 0.9, learning_rate=0.8), lost(RATES, learning_rate=0.5)]
    assert said("rates", RATES, fine) is None
    few = [*[ended(RATES, 0.9, learning_rate=0.01)] * 30, lost(RATES, learning_rate=0.5)]
    assert said("rates", RATES, few) is None
    assert said("rates", RATES, [lost(RATES, learning_rate=0.5)]) is None
    assert said("rates", TWO, [ended(TWO, 0.9), lost(TWO)]) is None


# More trials


def few(complete: int, pruned: int, defined: StudyDefinition = TWO, *others: FrozenTrial) -> str | None:
    """The advice after a number of trials that is too small for fANOVA."""
    trials = [ended(defined, 0.8 + number / 1000) for number in range(complete)]
    trials += [ended(defined, 0.5, state=TrialState.PRUNED) for _ in range(pruned)]
    missing = ["Too few trials for fANOVA."]
    found = replace(NO_IMPORTANCES, finished=complete + pruned, complete=complete, missing=missing)
    return said("more", defined, [*trials, *others], importances=found)


def test_the_suggested_number_of_trials_yields_enough_complete_ones_at_the_studys_rate() -> None:
    frozen = definition(pruner="freeze", space=TWO.space, defaults={"filters": 4, "dropout": 0.1})
    text = few(6, 44, frozen)
    assert text is not None
    assert text.startswith("6 complete trials are too few to measure importance for the final accuracy: 20 are needed.")
    assert "6 of 50" in text
    wanted = int(text.split("`--trials ")[1].split("`")[0])
    assert 20 <= 6 / 50 * wanted < 22
    assert "`--pruner none` in a new study (`--name`)" in text
    assert accepts(frozen, text)


def test_without_a_pruner_twenty_trials_are_enough() -> None:
    text = few(8, 0)
    assert text is not None
    assert "`--trials 20`" in text
    assert "--pruner" not in text


def test_only_another_pruner_is_suggested_if_very_few_trials_complete() -> None:
    frozen = definition(pruner="freeze", audit=0.1)
    for text in (few(0, 50, frozen), few(1, 99, frozen)):
        assert text is not None
        assert "--trials" not in text
        assert "`--pruner none --audit 0`" in text
        assert accepts(frozen, text)


def test_no_more_trials_are_suggested_than_a_grid_has_points() -> None:
    small = definition(sampler="grid", space={"filters": {"low": 2, "high": 13}, "residual": {"choices": [False]}})
    text = few(12, 0, small)
    assert text is not None
    assert "--trials" not in text
    assert "more values in a new study (`--name`)" in text
    large = definition(sampler="grid", space={"filters": {"low": 2, "high": 31}, "residual": {"choices": [False]}})
    text = few(12, 0, large)
    assert text is not None
    assert "`--trials 20`" in text


def test_no_more_trials_are_suggested_if_nearly_all_diverge() -> None:
    assert few(1, 99) is None


def test_no_more_trials_are_suggested_with_enough_trials_or_during_a_search() -> None:
    assert few(20, 0) is None
    assert few(20, 30) is None
    for state in (TrialState.RUNNING, TrialState.WAITING):
        unfinished = ended(TWO, 0.5)
        unfinished.state = state
        assert few(8, 0, TWO, unfinished) is None
    assert said("more", TWO, importances=None) is None
    assert said("more", TWO, importances=NO_IMPORTANCES) is None


def test_all_advice_is_listed_under_recommendations() -> None:
    evidence = evidence_of(
        TWO,
        [ended(TWO, 0.5) for _ in range(9)] + [ended(TWO, 0.9, filters=8)],
        importances=replace(NO_IMPORTANCES, finished=9, complete=8, missing=["Too few trials."]),
    )
    about = [finding.about for finding in findings(evidence)]
    assert about[-3:] == ["edge", "luck", "more"]
    assert set(about[-3:]) < set(NEXT)


# Following the advice


SEARCHED = definition(pruner="freeze", defaults={"filters": 8, "dropout": 0.2}, space=TWO.space)


@pytest.mark.parametrize(
    "changes",
    [
        {"space": TWO.model_dump()["space"] | {"filters": {"low": 2, "high": 16}}},  # widen filters above 8
        {"space": {"filters": {"low": 2, "high": 8}}},  # set dropout in [defaults] only
        {"pruner": "none"},
        {"defaults": {"filters": 8, "dropout": 0.2, "epochs": 9}},  # more epochs may help
    ],
)
def test_suggested_changes_are_refused_in_the_same_study_and_accepted_in_a_new_one(
    changes: dict[str, object], tiny: DataSet, tmp_path: Path
) -> None:
    storage = open_storage(default_url(tmp_path), "create")
    open_study(storage, "s", SEARCHED, tiny, Place(tmp_path / "s"))
    changed = StudyDefinition.model_validate(SEARCHED.model_dump(mode="json") | changes)
    with pytest.raises(StudyError, match="--name"):
        open_study(storage, "s", changed, tiny, Place(tmp_path / "s"))
    open_study(storage, "another", changed, tiny, Place(tmp_path / "another"))


def test_suggested_commands_work(
    invoke: Command, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (advice, importance):
        monkeypatch.setattr(module, "FEWEST_COMPLETE", 3)
    run = ["run", study_file.name, "--trials", "2", "--workers", "1"]
    assert invoke(*run).returncode == 0
    texts = _advice(invoke, tmp_path)
    more = shlex.split(texts["more"].split("`")[3])
    assert more == ["--trials", "3"]
    assert invoke(*run, *more).returncode == 0
    status = json.loads(invoke("status", "tiny", "--json").stdout)
    assert status["trials"]["complete"] == 3
    texts = _advice(invoke, tmp_path)
    assert "more" not in texts
    _, *command = shlex.split(texts["luck"].split("`")[1])
    result = invoke(*command, "--seeds", "1", "--workers", "1")
    assert result.returncode == 0, result.stderr
    assert "luck" not in _advice(invoke, tmp_path)


def _advice(invoke: Command, folder: Path) -> dict[str, str]:
    file = folder / "report.json"
    assert invoke("report", "tiny", "--format", "json", "--to", file).returncode == 0
    return {finding["about"]: finding["text"] for finding in json.loads(file.read_text())["findings"]}
