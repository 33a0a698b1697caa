"""Removal of checkpoints by several processes at once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna

from search.artifacts import Folder
from search.database.connection import opened
from search.study.places import KEY
from search.study.record import CHECKPOINT, checkpoint_of
from search.worker.retention import drop_beaten
from tests.factories import TWO, ended, study_of

TRIALS = 60


def test_two_that_remove_at_once_remove_each_checkpoint_once(url: str, tmp_path: Path) -> None:
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
            return drop_beaten(study, artifacts, keep=1)

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(remove, range(2))) == TRIALS - 1
    with opened(url) as storage:
        kept = [checkpoint_of(trial) for trial in optuna.load_study(study_name="s", storage=storage).trials]
    assert [name for name in kept if name] == [f"trial-{TRIALS - 1}.pt"]
