"""The commands with a user's own network, from training to export, and their errors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fmnist import checkpoint, own_network
from tests.conftest import Command
from tests.factories import forget_networks
from tests.fmnist.test_own_network import NET, body

NAMED = ("train", "--architecture", "net.py:CNNModel", "--epochs", "1", "--save", "net.pth")


@pytest.fixture(autouse=True)
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    forget_networks()
    file = tmp_path / "net.py"
    file.write_text(NET)
    return file


def refused(invoke: Command, *arguments: str, exit_code: int = 2) -> str:
    """Run a command that must fail as in a new process; return its error message."""
    forget_networks()
    result = invoke(*arguments)
    assert result.returncode == exit_code
    _, _, message = f"\n{result.stderr}".partition("\nError: ")
    assert "Traceback" not in result.stderr
    assert "/search/" not in message
    return message


def test_an_own_network_is_trained_scored_used_and_exported(invoke: Command, net: Path, tmp_path: Path) -> None:
    """Its own prints go to standard error, not into the JSON."""
    net.write_text(
        "print('imported')\n" + NET.replace("def forward(self, x):", "def forward(self, x):\n        print(1)")
    )
    trained = invoke(*NAMED, "--set", "kernel_size=3", "--set", "kind=avg", "--hidden", "9")
    assert trained.returncode == 0, trained.stderr
    assert checkpoint.load(tmp_path / "net.pth").hyperparameters.network == {
        "kernel_size": 3,
        "kind": "avg",
        "hidden": 9,
    }
    scores = json.loads(invoke("evaluate", "net.pth", "--json").stdout)
    assert f"Accuracy: {scores['correct']}/{scores['total']}" in trained.stdout
    Image.new("L", (28, 28)).save(tmp_path / "image.png")
    (answer,) = json.loads(invoke("predict", "net.pth", "image.png", "--json").stdout)
    exported = invoke("export", "net.pth")
    assert exported.returncode == 0, exported.stderr
    shutil.move(net, tmp_path / "elsewhere.py")
    images = np.zeros((1, 1, 28, 28), "float32")
    from onnxruntime import InferenceSession

    (logits,) = InferenceSession(str(tmp_path / "net.onnx")).run(["logits"], {"images": images})
    assert list(answer["probabilities"])[int(logits.argmax())] == answer["class"]


@pytest.mark.parametrize("command", [("evaluate", "net.pth"), ("predict", "net.pth", "net.png"), ("export", "net.pth")])
def test_missing_or_changed_code_is_refused(
    invoke: Command, net: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    assert invoke(*NAMED).returncode == 0
    net.write_text(NET + "import pathlib; pathlib.Path('ran').touch()\n")
    assert "+import pathlib" in refused(invoke, *command)
    assert not (tmp_path / "ran").exists()
    net.unlink()
    assert "--network-dir" in refused(invoke, *command)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    found = invoke(*command, "--network-dir", "folder")
    assert found.returncode == (1 if command[0] == "predict" else 0)  # the image is missing
    assert "--network-dir" in refused(invoke, *command)  # the option applies to one command only


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--architecture", "net.py:CNNModel", "--set", "kernal_size=3"), "did you mean kernel_size?"),
        (("--architecture", "net.py:CNNModel", "--set", "bias=maybe"), "--set bias=maybe: should be a valid boolean"),
        (("--architecture", "net.py:CNNModel", "--set", "bias"), "write NAME=VALUE"),
        (("--architecture", "net.py:CNNModel", "--filters", "3"), "has no parameter filters"),
        (("--architecture", "net.py:CNN"), "did you mean CNNModel?"),
        (("--architecture", "net:CNNModel"), "name the file, as net.py:CLASS"),
        (("--architecture", "../net.py:CNNModel"), "--architecture: '../net.py:CNNModel' does not name a network"),
        (("--architecture", "/net.py:CNNModel"), "does not name a network"),
        (("--architecture", "absent.py:CNNModel"), "--network-dir"),
        (("--architecture", "resnett"), "did you mean 'resnet'?"),
        (("--set", "a=3"), "name it with --architecture"),
    ],
)
def test_an_unusable_network_is_a_one_line_error(invoke: Command, arguments: tuple[str, ...], expected: str) -> None:
    message = refused(invoke, "train", *arguments)
    assert expected in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        ("raise KeyError('late')", "net.py, line 13: KeyError: 'late'; correct it"),
        ("raise SystemExit", "net.py, line 13: calls exit(); remove the call"),
    ],
)
def test_an_error_during_training_shows_only_the_users_frames(
    invoke: Command, net: Path, failing: str, expected: str
) -> None:
    forward = f"self.n += 1; n = self.n\n        if n > 3: {failing}\n        return self.fc(x.flatten(1))"
    net.write_text(body("self.n = 0", forward))
    first, *frames = refused(invoke, *NAMED).splitlines()
    assert first == expected
    shown = [line.strip() for line in frames if "File" in line]
    assert shown == [f'File "{net}", line 13, in forward'] * (failing != "raise SystemExit")


def test_a_network_that_cannot_be_exported_is_a_one_line_error(invoke: Command, net: Path, tmp_path: Path) -> None:
    branch = "return self.fc(x.flatten(1)) * (2 if float(x.sum()) > 0 else 1)"
    net.write_text(body(forward=branch))
    assert invoke(*NAMED).returncode == 0
    assert "torch cannot export the network" in refused(invoke, "export", "net.pth", exit_code=1)
    assert not (tmp_path / "net.onnx").exists()


def test_an_architecture_in_the_settings_applies_to_train_only(
    invoke: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert invoke(*NAMED).returncode == 0
    forget_networks()
    (tmp_path / "fmnist-search.toml").write_text('architecture = "simple"\n')
    monkeypatch.setenv("FMNIST_SEARCH_ARCHITECTURE", "named:CNNModel")
    assert invoke("evaluate", "net.pth").returncode == 0
    assert not own_network._named


def test_changed_code_does_not_run_even_if_named(invoke: Command, net: Path, tmp_path: Path) -> None:
    assert invoke(*NAMED).returncode == 0
    net.write_text(NET + "import pathlib; pathlib.Path('ran').touch()\n")
    assert "so it was not run" in refused(invoke, "evaluate", "net.pth", "--architecture", "net.py:CNNModel")
    assert not (tmp_path / "ran").exists()
