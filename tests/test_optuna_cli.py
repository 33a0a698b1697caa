"""Optuna's own command line on one of our databases."""

import json
import subprocess
import sys

from optuna.trial import TrialState

from search.database.url import parse
from search.queue import lease, tickets
from search.queue.lease import Holder, Ticket
from tests.conftest import Make
from tests.factories import definition

CALL = [sys.executable, "-W", "ignore", "-c", "import sys; from optuna.cli import main; sys.exit(main())"]


def optuna(command: str, url: str, *arguments: str) -> list[dict[str, object]]:
    """The parsed JSON output of an Optuna command."""
    storage = parse(url).render_as_string(hide_password=False)
    call = [*CALL, command, "--storage", storage, "--format", "json", *arguments]
    result = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
    printed: list[dict[str, object]] = json.loads(result.stdout)
    return printed


def test_studies_and_trials_of_every_state_are_read(make: Make, url: str) -> None:
    study, _ = make(definition(), 5, url)

    def claim() -> Ticket:
        ticket = tickets.claim(study, Holder(), f"token-{len(study.trials)}")
        assert ticket
        return ticket

    lease.finish(study, claim(), TrialState.COMPLETE, 0.75)
    lease.finish(study, claim(), TrialState.PRUNED, reason="pruned after epoch 1 of 2")
    failing = claim()
    for _ in range(lease.MOST_ATTEMPTS):
        lease.fail(study, failing, "OSError: [Errno 28]")
        failing = claim()
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING"]

    (listed,) = optuna("studies", url)
    assert (listed["name"], listed["direction"], listed["n_trials"]) == ("s", ["MAXIMIZE"], 5)
    trials = optuna("trials", url, "--study-name", "s")
    assert [(trial["number"], trial["state"]) for trial in trials] == list(enumerate(states))
    assert trials[0]["value"] == 0.75
