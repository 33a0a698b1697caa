"""The user's own network: accepted classes, one-line errors, and which code runs."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fmnist import archive, checkpoint, own_network, user_code
from fmnist.checkpoint import CheckpointError
from fmnist.complexity import complexity
from fmnist.data import DataSet, split
from fmnist.dry_run import dry_run
from fmnist.errors import NetworkError
from fmnist.evaluation import evaluate
from fmnist.hyperparameters import Hyperparameters
from fmnist.own_network import load
from fmnist.training import Training
from tests.factories import forget_networks

HEAD = """
from typing import Literal
import torch
from torch import nn
from torch.nn import functional as F
"""
NET = (
    HEAD
    + """
class CNNModel(nn.Module):
    def __init__(self, kernel_size: int = 5, hidden=8, kind: Literal["max", "avg"] = "max", bias=True, dropout=0.25):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, kernel_size, padding="same", bias=bias)
        self.pool = nn.MaxPool2d(4) if kind == "max" else nn.AvgPool2d(4)
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(98, hidden)
        self.fc2 = nn.Linear(hidden, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv(x)))
        x = x.view(x.size(0), -1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))
"""
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    forget_networks()
    Path("net.py").write_text(NET)


def made(**values: Any) -> Hyperparameters:
    return Hyperparameters(**{"architecture": "net.py:CNNModel", "epochs": 2, **values})


def body(init: str = "", forward: str = "return self.fc(x.flatten(1))", signature: str = "") -> str:
    """A one-layer network with extra code in its constructor (line 10) and its forward (from line 12)."""
    return f"""{HEAD}
class CNNModel(nn.Module):
    def __init__(self{signature}):
        super().__init__(); self.fc = nn.Linear(784, 10)
        {init or "pass"}
    def forward(self, x):
        {forward}
"""


def refusal(text: str, **values: Any) -> str:
    """The first line of the error; only frames of the user's code may follow."""
    Path("net.py").write_text(text)
    with pytest.raises(NetworkError) as error:
        Training(made(**values), seed=0)
    first, *frames = str(error.value).splitlines()
    assert all("/fmnist/" not in line and "site-packages" not in line for line in frames)
    assert ";" in first or "did you mean" in first  # what to do
    return first


EXITS = "import sys; sys.exit()"
REFUSED = {
    "a syntax error": ("def f(:\n", r"^net\.py, line 1: "),
    "a failing import": ("import nothing_of_that_name\n", r"^net\.py, line 1: .*nothing_of_that_name.*install"),
    "an import of a sibling": ("import sibling\n", r"sibling\.py is in the same folder"),
    "a relative import": ("from .sibling import a\n", r"line 1: .*package"),
    "an exception at import": ("x = 1\n1 / 0\n", r"^net\.py, line 2: ZeroDivisionError"),
    "an exit at import": (EXITS, r"^net\.py, line 1: calls exit"),
    "no such class": (NET.replace("CNNModel", "CNNModle"), r"^net\.py: has no CNNModel; did you mean CNNModle\?"),
    "no such class, but another": (HEAD + "class A(nn.Module): pass", r"has no CNNModel; did you mean A\?"),
    "not a module": ("class CNNModel: pass", "derive it"),
    "a number": ("CNNModel = 3", "name a class"),
    "a network already made": (HEAD + "CNNModel = nn.Linear(1, 1)", "is a Linear instance"),
    "a function of something else": ("def CNNModel(): return 3", r"^net\.py, line 1: returns a int"),
    "a required parameter": (body(signature=", width: int"), r"^net\.py, line 8: needs width"),
    "a required parameter of no type": (body(signature=", width"), "parameter width needs a type"),
    "a default of another type": (body(signature=", width: int = 'a'"), "parameter width: its default .*integer"),
    "a default that is no choice": (body(signature=", width: Literal[1, 2] = 3"), "its default should be 1 or 2"),
    "an annotation of nothing": (body(signature=", width: 'Nothing' = 3"), "NameError"),
    "positional": (body(signature=", *args"), "parameter args: \\*args"),
    "keywords": (body(signature=", **kwargs"), "parameter kwargs: \\*args"),
    "epochs": (body(signature=", epochs: int = 3"), "parameter epochs has the name"),
    "seed": (body(signature=", seed: int = 3"), "parameter seed has the name"),
    "a shape": (body(forward="return self.fc(x.flatten(1))[:, :9]"), r"^net\.py, line 11: returns .*\(2, 9\)"),
    "a shape of one image": (body(forward="return self.fc(x.flatten(1)).squeeze()"), r"\(10,\); return .*\(1, 10\)"),
    "two outputs": (body(forward="return self.fc(x.flatten(1)), x"), "returns a tuple"),
    "NaN": (body(forward="return self.fc(x.flatten(1)) * float('nan')"), "NaN"),
    "gradients": (body(forward="y = self.fc(x.flatten(1)); return y + (y - y).abs().sqrt()"), "gradients are not"),
    "no parameters": (body("self.fc.requires_grad_(False)"), "no trainable parameter"),
    "no gradients": (body(forward="return self.fc(x.flatten(1)).detach()"), "no gradient"),
    "an exit in the constructor": (body(EXITS), r"^net\.py, line 10: calls exit"),
    "an exit in forward": (body(forward=EXITS), r"^net\.py, line 12: calls exit"),
    "an exception in forward": (body(forward="return self.absent(x)"), r"^net\.py, line 12: AttributeError"),
    "no forward": (
        HEAD + "class CNNModel(nn.Module):\n def __init__(self): super().__init__()\n",
        "no trainable parameter",
    ),
    "a seed in the constructor": (body("torch.manual_seed(1)"), r"^net\.py, line 8: sets torch's seed"),
    "a seed in forward": (body(forward="torch.manual_seed(1); return self.fc(x.flatten(1))"), "line 11: sets torch's"),
    "what is drawn and not kept": (
        body("self.mean = torch.randn(1)", "return self.fc(x.flatten(1)) - 9 * self.mean"),
        "predictions change after saving and loading",
    ),
    "probabilities": (body(forward="return self.fc(x.flatten(1)).softmax(1)"), "line 11: returns probabilities"),
    "more memory than there is": (
        body("torch.empty(2**60)"),
        r"^net\.py, line 10: RuntimeError: .* make the network smaller",
    ),
    "another generator": (
        body("import random; nn.init.constant_(self.fc.bias, random.random())"),
        "two runs with one seed",
    ),
    "lazy layers": (body("self.fc = nn.LazyLinear(10)"), "lazy layers"),
    "a layer made in forward": (
        body("self.made = None", "self.made = self.made or nn.Linear(784, 10); return self.made(x.flatten(1))"),
        "creates parameter made.weight",
    ),
    "double precision": (body("self.double()"), "fc.weight is not float32"),
    "two parameters of the same memory": (
        body("self.other = nn.Parameter(self.fc.weight.data)"),
        "assign the same nn.Parameter",
    ),
    "extra state": (body() + "    def get_extra_state(self): return {'a': 1}\n", "_extra_state"),
    "dropout in evaluation": (body(forward="return self.fc(F.dropout(x.flatten(1)))"), "self.training"),
    "text of another encoding": ("# é\n", "UTF-8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_network_that_cannot_be_trained_is_rejected_with_file_line_and_fix(case: str) -> None:
    text, expected = REFUSED[case]
    Path("sibling.py").write_text("a = 1")
    if case == "text of another encoding":
        Path("net.py").write_bytes(text.encode("latin-1"))
        with pytest.raises(NetworkError, match=expected):
            load("net.py:CNNModel")
        return
    line = refusal(text)
    assert re.search(expected, line), line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"kernel_size": 2.5}, "kernel_size should be a valid integer"),
        ({"kernel_size": True}, "kernel_size should be a valid integer"),
        ({"kind": "min"}, "kind should be 'max' or 'avg'"),
        ({"bias": 1}, "bias should be a valid boolean"),
        ({"hiden": 3}, "did you mean hidden?"),
        ({"filters": 3}, "has no parameter filters"),
    ],
)
def test_arguments_are_checked_as_strictly_as_hyperparameters(arguments: dict[str, Any], expected: str) -> None:
    assert expected in refusal(NET, network=arguments)


@pytest.mark.parametrize("name", ["/net.py:A", "../net.py:A", "a/../net.py:A", "net.py:", ":A", "a b:C"])
def test_names_outside_the_folder_are_rejected(name: str) -> None:
    with pytest.raises(ValidationError, match=r"does not name a network; write FILE\.py:CLASS"):
        made(architecture=name)
    with pytest.raises(NetworkError, match=r"write FILE\.py:CLASS"):
        load(name)


def test_invalid_networks_are_rejected_with_a_fix() -> None:
    with pytest.raises(ValidationError, match="did you mean 'resnet'"):
        made(architecture="resnett")
    for unnamed in (torch.nn.Linear, torch.nn.Linear(1, 1), "__main__:CNNModel"):
        with pytest.raises(ValidationError, match="%%writefile"):
            made(architecture=unnamed)
    with pytest.raises(ValidationError, match="not your own network"):
        Hyperparameters(network={"a": 1})
    with pytest.raises(ValidationError, match=r"write network=\{'filters'"):
        made(filters=3)
    with pytest.raises(NetworkError, match="No such file"):
        load("absent.py:A")
    Path("folder.py").mkdir()
    with pytest.raises(NetworkError, match="is not a file"):
        load("folder.py:A")
    Path("net.py").write_text("#" * 300_000)
    with pytest.raises(NetworkError, match="larger than 256 KiB"):
        load("net.py:A")


def test_equal_hyperparameters_have_equal_hashes() -> None:
    one, other = made(network={"a": 1, "b": 2}), made(network={"b": 2, "a": 1})
    assert one == other
    assert hash(one) == hash(other)
    assert made(network={"a": 1}) != made(network={"a": 2})


@pytest.mark.parametrize(
    ("text", "value"),
    [("kernel_size=3", 3), ("dropout=0.5", 0.5), ("dropout=1", 1.0), ("bias=false", False), ("kind=avg", "avg")],
)
def test_texts_are_parsed_to_the_constructors_types(text: str, value: object) -> None:
    (parsed,) = load("net.py:CNNModel").parsed([text]).values()
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize("text", ["kernel_size=a", "dropout=nan", "bias=maybe", "kind=min", "absent=1", "kernel_size"])
def test_invalid_texts_are_rejected(text: str) -> None:
    with pytest.raises(NetworkError, match=r"; |did you mean"):
        load("net.py:CNNModel").parsed([text])


def test_a_literal_of_numbers_is_parsed() -> None:
    Path("net.py").write_text(body(signature=", width: Literal[3, 5] = 3"))
    assert load("net.py:CNNModel").parsed(["width=5"]) == {"width": 5}


def test_loading_has_no_side_effects(capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.py").write_text("import torch; torch.manual_seed(0); torch.rand(3); print('hello')\n" + NET)
    before, path = torch.random.get_rng_state(), list(sys.path)
    first = load("net.py:CNNModel")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sys.path == path
    assert sorted(map(str, Path().rglob("*"))) == ["net.py"]  # nothing compiled
    assert load("net.py:CNNModel") is first
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "hello\n")
    training = Training(made(), seed=3)
    assert all(map(torch.equal, training.network.parameters(), training.averaged.parameters()))


STATES = {
    "as it is": NET,
    "tied weights": body(
        "self.a, self.b = nn.Linear(784, 784), nn.Linear(784, 784); self.b.weight = self.a.weight",
        "return self.fc(self.b(self.a(x.flatten(1))))",
    ),
    "batch norm": body("self.norm = nn.BatchNorm2d(1)", "return self.fc(self.norm(x).flatten(1))"),
    "buffers": body(
        "self.register_buffer('mask', torch.tensor([0.0, -torch.inf])); "
        "self.register_buffer('steps', torch.zeros((), dtype=torch.int32)); "
        "self.register_buffer('flag', torch.tensor([True])); self.register_buffer('wide', torch.zeros(2).double())",
        "self.steps = self.steps + self.training; return self.fc(x.flatten(1)) + self.mask.exp()[:1]",
    ),
    "frozen": body("self.fc.bias.requires_grad_(False); self.on = nn.Parameter(torch.ones(1, 1), False)"),
    "strided": body(
        "self.scale = nn.Parameter(torch.ones(10, 20)[:, ::2])", "return self.fc(x.flatten(1)) @ self.scale"
    ),
    "attention": body(
        "self.layer = nn.TransformerEncoderLayer(28, 2, 8, batch_first=True)",
        "return self.fc(self.layer(x.squeeze(1)).flatten(1))",
    ),
}


@pytest.mark.parametrize("case", STATES)
def test_a_training_run_resumes_bit_exactly_and_scores_as_saved(tiny: DataSet, case: str) -> None:
    Path("net.py").write_text(STATES[case])
    splits, hyperparameters = split(tiny, "test"), made(weight_decay=0.01, l1=0.001)
    training = Training(hyperparameters, seed=1)
    frozen = [each.clone() for each in training.network.parameters() if not each.requires_grad]
    epochs = training.epochs(splits)
    next(epochs)
    saved = checkpoint.parse(checkpoint.dump(training, "test", tiny), "net.pt")
    assert evaluate(saved.network(), tiny.test).correct == training.history[-1].correct
    assert [*epochs]
    resumed = checkpoint.resume(saved, torch.device("cpu"))
    assert [*resumed.epochs(splits)]
    for ours, theirs in ((training.network, resumed.network), (training.averaged, resumed.averaged)):
        states = ours.state_dict(), theirs.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        assert all(map(torch.equal, frozen, [each for each in ours.parameters() if not each.requires_grad]))
    if case == "buffers":
        assert training.averaged.get_buffer("steps") == training.steps
        assert training.averaged.get_buffer("mask")[1] == -torch.inf
    if case == "tied weights":
        assert training.averaged.a.weight is training.averaged.b.weight
    assert training.history[-1].train_loss < training.history[0].train_loss


def saved_with(tiny: DataSet, **changes: Any) -> checkpoint.Checkpoint:
    training = Training(made(), seed=0)
    next(training.epochs(split(tiny, "test")))
    return replace(checkpoint.parse(checkpoint.dump(training, "test", tiny), "net.pt"), **changes)


def test_changed_content_is_shown_and_not_run(tiny: DataSet) -> None:
    saved = saved_with(tiny)
    forget_networks()  # as in another process
    Path("net.py").write_text(NET + "import pathlib; pathlib.Path('ran').touch()  # \x1b[2J\n")
    for use in (saved.network, lambda: checkpoint.resume(saved, torch.device("cpu"))):
        with pytest.raises(NetworkError, match=r"differs from the recorded file.*--network-dir\n") as error:
            use()
        assert "+import pathlib; pathlib.Path('ran').touch()" in str(error.value)
        assert "\x1b" not in str(error.value)
    assert not Path("ran").exists()
    Path("copies").mkdir()
    Path("copies/net.py").write_text(NET)
    with own_network.found_in(Path("copies")):
        assert saved.network()
    forget_networks()
    Path("net.py").unlink()
    with pytest.raises(NetworkError, match="--network-dir"):
        saved.network()


def test_a_checkpoint_records_the_trained_source(tiny: DataSet) -> None:
    training = Training(made(), seed=0)
    next(training.epochs(split(tiny, "test")))
    Path("net.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    saved = checkpoint.parse(checkpoint.dump(training, "test", tiny), "net.pt")
    assert saved.source
    assert saved.source.text == NET
    assert not Path("ran").exists()


def test_a_module_is_imported_only_if_it_was_named(tiny: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("named_module.py").write_text(NET + "import pathlib; pathlib.Path('ran').touch()\n")
    monkeypatch.syspath_prepend(Path.cwd())
    named = made(architecture="named_module:CNNModel")
    saved = saved_with(tiny, hyperparameters=named, source=None)
    for use in (saved.network, lambda: checkpoint.resume(saved, torch.device("cpu"))):
        with pytest.raises(NetworkError, match="add --architecture named_module:CNNModel"):
            use()
    assert not Path("ran").exists()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    load("named_module:CNNModel")
    assert saved.network()
    sys.modules.pop("named_module")


@pytest.mark.parametrize("change", ["text", "none", "overlap"])
def test_a_forged_record_is_rejected(tiny: DataSet, change: str) -> None:
    training = Training(made(), seed=0)
    next(training.epochs(split(tiny, "test")))
    content = checkpoint.dump(training, "test", tiny)
    payload = archive.read(content)
    if change == "text":
        payload["source"]["text"] += "#"
    elif change == "none":
        del payload["source"]
    else:
        zero = torch.zeros(1)
        payload["weights"] = {"a": zero.expand(10**9), "b": zero.expand(1)}
    with pytest.raises(CheckpointError, match="not valid"):
        checkpoint.parse(archive.write(payload), "net.pt")


def test_weights_of_another_shape_are_a_one_line_error(tiny: DataSet) -> None:
    with pytest.raises(CheckpointError, match="do not match the checkpoint"):
        saved_with(tiny, hyperparameters=made(network={"hidden": 9})).network()


def test_complexity_matches_a_count_by_hand() -> None:
    state = torch.random.get_rng_state()
    counted = complexity(made(network={"kernel_size": 3, "hidden": 8}))
    assert counted.parameters == 2 * 9 + 2 + 98 * 8 + 8 + 8 * 10 + 10
    assert counted.multiply_adds == 2 * 9 * 28 * 28 + 98 * 8 + 8 * 10
    assert torch.equal(torch.random.get_rng_state(), state)
    Path("net.py").write_text(STATES["attention"])
    products = 4 * 28 * 28 * 28 + 2 * 28 * 28 * 28 + 2 * 28 * 28 * 8 + 7840  # projections, attention, feed-forward
    assert complexity(made()).multiply_adds == products


@pytest.mark.parametrize("name", ["helper", "imported", "Imported", "make"])
def test_a_record_cannot_call_functions_or_imports_of_a_file(tiny: DataSet, name: str) -> None:
    """The author of a record chooses the name and the arguments."""
    text = f"""{NET}
import torch, pathlib
from shutil import rmtree as imported
from torch.nn import Identity as Imported
def helper(hidden: int = 3): pathlib.Path("ran").touch()
def make(hidden: int = 8): return CNNModel(hidden=hidden)
"""
    Path("net.py").write_text(text)
    saved = saved_with(tiny)
    forged = replace(saved, hyperparameters=made(architecture=f"net.py:{name}"))
    forget_networks()
    with pytest.raises(NetworkError):
        forged.network()
    assert not Path("ran").exists()
    assert saved.network()
    if name == "make":
        own_network.trust("net.py:make")
        assert forged.network()


def test_the_dry_run_uses_the_precision_of_the_training_run() -> None:
    forward = "y = self.fc(x.flatten(1)); return torch.zeros(len(x), 10).index_add(0, torch.arange(len(x)), y)"
    Path("net.py").write_text(body(forward=forward))
    network = load("net.py:CNNModel")
    dry_run(network, {})
    with pytest.raises(NetworkError, match=r"net\.py, line 12: RuntimeError"):
        dry_run(network, {}, "bfloat16")


def test_a_whole_number_default_that_should_be_a_float_is_explained() -> None:
    Path("net.py").write_text(body(signature=", rate=0"))
    with pytest.raises(NetworkError, match=r"write its default 0 as 0\.0, or annotate it as rate: float"):
        load("net.py:CNNModel").build({"rate": 0.5})


def test_frames_of_user_files_with_names_like_ours_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(own_network.__file__).parent.parent
    error = ValueError()
    code = compile("raise error", str(root / "fmnist_net.py"), "exec")
    with pytest.raises(NetworkError, match=r"^fmnist_net\.py, line 1: "), user_code.running("fmnist_net.py", root):
        exec(code, {"error": error})  # noqa: S102
