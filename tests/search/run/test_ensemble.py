"""The ensemble of the finalists: its members, its record, and the commands that use its file."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from PIL import Image
from rich.console import Console

from fmnist import checkpoint, ensemble
from fmnist.data import DataSet, split
from fmnist.ensemble import Ensemble
from fmnist.evaluation import evaluate
from search.database.connection import lock
from search.outputs import BEST, ENSEMBLE, NotOurs
from search.results import wording
from search.results.finalists import Scored, Standings, standings_of
from search.results.intervals import share
from search.run import finalists
from search.run.finalists import run_finalists
from search.run.supervise import RunSettings
from search.study.definition import StudyDefinition
from search.study.places import Place
from search.study.store import finalists_of
from search.worker.loop import WorkerSettings, work
from tests.children import publish_and_die, spawn
from tests.conftest import Command, Make
from tests.factories import BETTER, STUDY, TIE, definition, ranking_of, report_standings

QUICK = {"architecture": "simple", "epochs": 1, "filters": 4, "learning_rate": 0.002}
Searched = tuple[optuna.Study, WorkerSettings]


def grid_of(**changes: object) -> StudyDefinition:
    return definition(sampler="grid", defaults=QUICK, space={"filters": {"choices": [2, 4]}}, **changes)


@pytest.fixture
def searched(make: Make) -> Searched:
    study, settings = make(grid_of(), 2)
    work(settings, lambda: False)
    return study, settings


def published(searched: Searched, folder: Path, top: int = 2, seeds: int = 2) -> Standings:
    """The standings after the finalists were trained."""
    study, settings = searched
    run = RunSettings(None, Place(folder / "s"), 1, settings, None, quiet=True)
    run_finalists(run, top, seeds, Console(quiet=True))
    standings = standings_of(study, folder / "s")
    assert standings is not None
    return standings


def record_of(study: optuna.Study) -> dict[str, Any]:
    again = finalists_of(study)
    assert again is not None
    settled: dict[str, Any] = again.user_attrs["settled"]
    return settled


def scored(network: torch.nn.Module, data: DataSet, score_on: Any) -> Scored:
    result = evaluate(network, split(data, score_on).scored)
    interval = share(result.correct, result.total)
    return Scored(result.accuracy, result.correct, result.total, interval.low, interval.high)


def member(folder: Path, number: int) -> checkpoint.Checkpoint:
    return checkpoint.load(folder / "s.finalists" / "checkpoints" / f"trial-{number:05d}-epoch-1.pt")


def test_members_are_all_training_runs_of_the_winner_and_of_finalists_tied_with_it() -> None:
    single = ranking_of((2, [0.9]), (4, [0.8]))  # single runs have no interval
    for ranking, expected in ((BETTER, [0]), (TIE, [0, 1]), (single, [0]), ([replace(TIE[0], diverged=1)], [])):
        numbered = [replace(one, trials=[10 * place, 10 * place + 1]) for place, one in enumerate(ranking)]
        assert report_standings(numbered).members == [10 * place + k for place in expected for k in (0, 1)]
    broken = [TIE[0], replace(TIE[1], diverged=1)]
    assert report_standings(broken).members == TIE[0].trials


@pytest.mark.parametrize("score_on", ["test", "validation"])
def test_both_networks_are_scored_and_measured(make: Make, tmp_path: Path, tiny: DataSet, score_on: str) -> None:
    study, settings = make(grid_of(score_on=score_on), 2)
    work(settings, lambda: False)
    standings = published((study, settings), tmp_path, seeds=2)
    assert standings.single is not None
    assert standings.ensemble is not None
    assert standings.winner is not None
    networks = {BEST: standings.single, ENSEMBLE: standings.ensemble}
    for name, network in networks.items():
        file = tmp_path / "s" / name
        saved = ensemble.load(file)
        assert network.scores == {images: scored(saved.network(), tiny, images) for images in {score_on, "test"}}
        assert network.score == network.scores["test"]
        assert network.digest == saved.digest
        assert network.megabytes == file.stat().st_size / 1e6
        assert 0 < network.milliseconds < 100
    assert standings.single.trials == standings.winner.retrained.trials[:1]
    assert standings.single.scores[score_on].accuracy == standings.checkpoint_accuracy
    assert standings.ensemble.trials == standings.members
    assert standings.ensemble_file == tmp_path / "s" / ENSEMBLE
    made = ensemble.load(tmp_path / "s" / ENSEMBLE)
    assert isinstance(made, Ensemble)
    assert made.trials == standings.members
    assert [one.seed for one in made.members] == [member(tmp_path, number).seed for number in made.trials]
    assert not standings.unsettled
    said = wording.ensemble(standings)
    assert said is not None
    assert f"{len(made.members)} networks" in said
    assert str(tmp_path / "s" / ENSEMBLE) in said
    assert ("on the test images; best checkpoint" in said) == (score_on == "validation")
    record = json.loads(json.dumps(standings.as_json()))
    assert record["ensemble"]["trials"] == standings.members
    assert record["ensemble_file"] == str(standings.ensemble_file)
    assert record["single"]["scores"]["test"]["total"] == len(tiny.test)


def test_the_members_are_recorded_before_an_ensemble_is_scored(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, _ = searched

    def dies(*_: object) -> object:
        raise RuntimeError("as if killed")

    with monkeypatch.context() as patch:
        patch.setattr(ensemble, "dump", dies)
        with pytest.raises(RuntimeError, match="as if killed"):
            published(searched, tmp_path)
    before = standings_of(study, tmp_path / "s")
    assert before is not None
    assert record_of(study)["ensemble"] == {"members": before.members}
    assert (before.ensemble, before.without_ensemble, before.unsettled) == (None, None, True)
    assert wording.ensemble(before) is None
    assert not (tmp_path / "s" / ENSEMBLE).exists()
    after = published(searched, tmp_path)
    assert record_of(study)["ensemble"]["members"] == before.members
    assert (after.members, after.unsettled) == (before.members, False)


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_a_kill_leaves_either_the_old_file_or_the_complete_new_one(
    searched: Searched, tmp_path: Path, moment: str
) -> None:
    study, settings = searched
    first = published(searched, tmp_path)
    file, again = tmp_path / "s" / ENSEMBLE, finalists_of(study)
    assert again is not None
    new = file.read_bytes()
    trials = list(reversed(first.members))
    former = ensemble.dump([member(tmp_path, number) for number in trials], trials)
    file.write_bytes(former)
    again.set_user_attr("settled", {"trials": [99], "test": []})  # of an earlier winner
    process = spawn(publish_and_die, settings, tmp_path / "s", moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert file.read_bytes() == (new if moment == "after" else former)
    killed = standings_of(study, tmp_path / "s")
    assert killed is not None
    assert (killed.ensemble, killed.unsettled) == (None, True)
    last = published(searched, tmp_path)
    assert last.ensemble is not None
    assert first.ensemble is not None
    assert last.ensemble.scores == first.ensemble.scores


def test_the_ensemble_is_rebuilt_if_its_file_is_missing_or_its_members_change(
    searched: Searched, tmp_path: Path
) -> None:
    study, _ = searched
    first = published(searched, tmp_path)
    (tmp_path / "s" / ENSEMBLE).unlink()
    gone = standings_of(study, tmp_path / "s")
    assert gone is not None
    assert (gone.ensemble, gone.unsettled) == (None, True)
    again = finalists_of(study)
    assert published(searched, tmp_path).ensemble is not None
    assert again is not None
    of_others = record_of(study)["ensemble"] | {"members": first.members[:1]}
    again.set_user_attr("settled", record_of(study) | {"ensemble": of_others})
    other = standings_of(study, tmp_path / "s")
    assert other is not None
    assert (other.ensemble, other.unsettled) == (None, True)
    more = published(searched, tmp_path, seeds=3)
    assert more.ensemble is not None
    assert more.ensemble.trials == more.members != first.members


def test_a_missing_checkpoint_of_a_member_prevents_the_ensemble_and_is_reported(
    searched: Searched, tmp_path: Path
) -> None:
    study, _ = searched
    standings = published(searched, tmp_path)
    again = finalists_of(study)
    assert again is not None
    *_, removed = standings.members
    (tmp_path / "s.finalists" / "checkpoints" / f"trial-{removed:05d}-epoch-1.pt").unlink()
    again.set_user_attr("settled", {"trials": [99], "test": []})
    after = published(searched, tmp_path)
    assert after.without_ensemble == f"the checkpoint of finalist trial {removed} was deleted"
    assert wording.ensemble(after) == f"Ensemble         none: the checkpoint of finalist trial {removed} was deleted"
    assert (after.ensemble, after.unsettled) == (None, False)
    assert after.checkpoint is not None
    assert not (tmp_path / "s" / ENSEMBLE).exists()  # the earlier ensemble was deleted


def test_an_ensemble_needs_several_networks_and_not_too_many(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = make(definition(sampler="grid", defaults=QUICK, space={"filters": {"choices": [4]}}), 1)
    work(settings, lambda: False)
    alone = published((study, settings), tmp_path, seeds=1)
    assert alone.without_ensemble == "the winner was trained once, and no other configuration is tied with it"
    assert not (tmp_path / "s" / ENSEMBLE).exists()
    monkeypatch.setattr(ensemble, "MAX_MEMBERS", 2)
    many = published((study, settings), tmp_path, seeds=3)
    assert many.without_ensemble == "3 networks are tied, and an ensemble has at most 2"


def test_a_winner_that_another_command_published_meanwhile_is_kept(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = searched
    score, later = finalists._ensemble, {"trials": [99], "test": [], "ensemble": {"members": [99]}}

    def slowly(again: optuna.Study, *arguments: Any) -> object:
        made = score(again, *arguments)
        with lock(settings.storage):  # not held while an ensemble is scored
            again.set_user_attr("settled", later)
        return made

    monkeypatch.setattr(finalists, "_ensemble", slowly)
    published(searched, tmp_path)
    assert record_of(study) == later
    assert not (tmp_path / "s" / ENSEMBLE).exists()


def test_a_file_of_another_program_is_not_overwritten(searched: Searched, tmp_path: Path) -> None:
    (tmp_path / "s" / ENSEMBLE).write_text("mine")
    with pytest.raises(NotOurs, match=r"ensemble\.pt: fmnist-search did not write this file"):
        published(searched, tmp_path)


def test_commands_accept_network_and_ensemble_and_finalists_0_writes_no_ensemble(
    invoke: Command, study_file: Path, tmp_path: Path, tiny: DataSet
) -> None:
    study_file.write_text(STUDY.replace("epochs = 2", "epochs = 1"))
    none = invoke("run", "tiny.toml", "--trials", "2", "--finalists", "0", "--workers", "1")
    assert none.returncode == 0, none.stderr
    assert "Ensemble" not in none.stdout
    assert not list((tmp_path / "studies").glob("*/ensemble.pt"))
    result = invoke("run", "tiny.toml", "--trials", "2", "--finalists", "1", "--workers", "2")
    assert result.returncode == 0, result.stderr
    assert "Ensemble         studies/tiny/ensemble.pt  (" in result.stdout
    assert "Ensemble         studies/tiny/ensemble.pt  (" in invoke("best", "tiny").stdout
    standings = json.loads(invoke("finalists", "tiny", "--top", "1", "--json").stdout)
    Image.fromarray(tiny.test.images[0, 0].numpy()).save(tmp_path / "image.png")
    for name, network in ((BEST, standings["single"]), (ENSEMBLE, standings["ensemble"])):
        file = f"studies/tiny/{name}"
        scores = json.loads(invoke("evaluate", file, "--json").stdout)
        assert scores["accuracy"] == network["scores"]["test"]["accuracy"]
        (answer,) = json.loads(invoke("predict", file, "image.png", "--json").stdout)
        assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        exported = invoke("export", file, "--to", f"{name}.onnx")
        assert exported.returncode == 0, exported.stderr
        assert exported.stdout.startswith(f"Saved {name}.onnx\nLargest difference")
        assert invoke("export", file, "--to", f"{name}.onnx").returncode == 0  # recognized as our file
    assert not invoke("delete", "tiny", "--yes").returncode
    assert not (tmp_path / "studies" / "tiny").exists()
