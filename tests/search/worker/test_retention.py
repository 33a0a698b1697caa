"""Deletion of checkpoints by several processes at once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
from optuna.trial import TrialState

from search.artifacts import Folder
from search.database.connection import opened
from search.study.places import KEY, location_of
from search.study.record import CHECKPOINT, checkpoint_of
from search.worker.loop import work
from search.worker.retention import drop_outperformed
from tests.conftest import Make
from tests.factories import TWO, definition, ended, study_of

TRIALS = 60


def test_concurrent_processes_delete_each_checkpoint_once(url: str, tmp_path: Path) -> None:
    artifacts, both = Folder(tmp_path), threading.Barrier(2)
    with opened(url, "create") as storage:
        trials = [ended(TWO, number / 100) for number in range(TRIALS)]
        for number, trial in enumerate(trials):
            trial.user_attrs[CHECKPOINT]["name"] = f"trial-{number}.pt"
        study, _ = study_of(storage, "s", trials, TWO)
        study.set_user_attr(KEY, "key")

    def remove(_: int) -> int:
        with opened(url, "write") as mine:
            study = optuna.load_study(study_name="s", storage=mine)
            both.wait()
            return drop_outperformed(study, artifacts, keep=1)

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(remove, range(2))) == TRIALS - 1
    with opened(url) as storage:
        kept = [checkpoint_of(trial) for trial in optuna.load_study(study_name="s", storage=storage).trials]
    assert [name for name in kept if name] == [f"trial-{TRIALS - 1}.pt"]


def test_the_next_worker_deletes_partial_files_of_killed_ones(make: Make) -> None:
    study, settings = make(definition(), 3)
    folder = location_of(study)
    trials = study.get_trials(deepcopy=False)
    study._storage.set_trial_state_values(trials[2]._trial_id, TrialState.RUNNING)  # a process that may still write
    left = [Path(folder, f".trial-0000{number}-epoch-1.pt.host.{number}") for number in range(3)]
    others = [Path(folder, name) for name in (".hidden", "trial-00001-epoch-9.pt")]
    for file in (*left, *others):
        file.write_bytes(b"partial")
    work(settings, lambda: True)
    assert [file.exists() for file in left] == [False, False, True]
    assert all(file.exists() for file in others)
