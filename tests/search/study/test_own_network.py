"""Studies of a user's own network: valid files, what works without running its code, and what is trusted."""

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fmnist import own_network
from fmnist.errors import ExpectedError, NetworkError
from fmnist.hyperparameters import Hyperparameters
from search.database.connection import open_storage
from search.report.provenance import as_toml
from search.study import definition, space
from search.study.catalogue import trials_of
from search.study.definition import DefinitionError, StudyDefinition
from search.study.places import StudyError
from search.study.store import DEFINITION, definition_of, load_study, own_network_of
from search.worker.trial import try_network
from tests.conftest import Make
from tests.factories import forget_networks
from tests.fmnist.test_own_network import NET, body

RUNS = NET + "import pathlib; pathlib.Path('ran').touch()\n"
HIDDEN = "hidden = { low = 2, high = 9 }"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    forget_networks()
    Path("net.py").write_text(NET)


def study(space: str = HIDDEN, defaults: str = "", *, top: str = "", rest: str = "") -> Path:
    """A study file; rest: the text between [defaults] and [space]."""
    named = "" if "architecture" in defaults else 'architecture = "net.py:CNNModel"'
    file = Path("mine.toml")
    file.write_text(f"{top}\n[defaults]\n{named}\n{defaults}\n{rest}\n" + (f"[space]\n{space}\n" if space else ""))
    return file


def mistakes(*given: str, **more: str) -> list[str]:
    with pytest.raises(DefinitionError) as error:
        definition.read(study(*given, **more))
    lines = str(error.value).splitlines()
    assert all(line.startswith("mine.toml: ") and (";" in line or "did you mean" in line) for line in lines), lines
    return [line.removeprefix("mine.toml: ") for line in lines]


@pytest.mark.parametrize(
    ("given", "more", "expected"),
    [
        (("hiden = { low = 2, high = 9 }",), {}, ["space.hiden: is not a hyperparameter; did you mean 'hidden'?"]),
        (
            (HIDDEN, "hiden = 3\nfilters = 3"),
            {},
            ["defaults.hiden: is not a", "defaults.filters: is not a parameter"],
        ),
        (("blocks = { choices = [1, 2] }",), {}, ["space.blocks: is not a parameter of net.py:CNNModel"]),
        (("architecture = { choices = ['net.py:CNNModel', 'cnn'] }",), {}, ["space.architecture: your own network"]),
        (
            ("architecture = { choices = ['net.py:CNNModel', 'cnn'] }", "architecture = 'cnn'"),
            {},
            ["space.architecture: your own network"],
        ),
        (("seed = { low = 1, high = 3 }",), {}, ["space.seed: is not a hyperparameter"]),
        (
            (
                "kernel_size = { choices = [3, 'a'] }\ndropout = { choices = ['a'] }\nhidden = { low = 1.5, high = 3 }",
                "kind = 'min'\nbias = 1",
            ),
            {},
            [
                "defaults.kind: net.py, line 8: kind should be 'max' or 'avg', not 'min'",
                "defaults.bias: net.py, line 8: bias should be a valid boolean, not 1",
                "space.kernel_size: net.py, line 8: kernel_size should be a valid integer, not 'a'",
                "space.dropout: net.py, line 8: dropout should be a valid number, not 'a'",
                "space.hidden: net.py, line 8: hidden should be a valid integer, not 1.5",
            ],
        ),
        (
            (HIDDEN,),
            {"rest": "[[start]]\nhidden = 'a'\n[[start]]\nhidden = 20\n[[start]]\nbias = true"},
            [
                "start #1.hidden: net.py, line 8: hidden should be a valid integer, not 'a'",
                "start #2.hidden: 20 is not in space.hidden",
                "start #3.bias: is not searched",
            ],
        ),
        (
            ("",),
            {"top": "sampler = 'grid'", "rest": "[[grid]]\nhidden = [2, 2.5]\n[[grid]]\nbogus = [1]"},
            ["grid.bogus: is not a hyperparameter", "grid.hidden: net.py, line 8: hidden should be a valid integer"],
        ),
        ((HIDDEN, "hidden = 100"), {}, ["defaults.hidden: 100 is not in space.hidden"]),
        (("hidden = { low = 20, high = 30 }",), {}, ["hidden: the default, 8, is not in space.hidden"]),
        (
            (HIDDEN, "architecture = '../net.py:CNNModel'"),
            {},
            ["defaults.architecture: '../net.py:CNNModel' does not name"],
        ),
        ((HIDDEN, "architecture = 'net.py'"), {}, ["defaults.architecture: 'net.py' is not a network; choose"]),
    ],
)
def test_each_mistake_is_one_line_with_key_and_remedy(
    given: tuple[str, ...], more: dict[str, str], expected: list[str]
) -> None:
    found = mistakes(*given, **more)
    assert len(found) == len(expected), found
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True)), found


def test_a_required_parameter_needs_a_value_even_if_our_networks_have_a_default() -> None:
    Path("net.py").write_text(body(signature=", width: int, hidden: int"))
    assert mistakes("width = { low = 1, high = 3 }") == [
        f"defaults.{name}: is missing and has no default in net.py, line 8; add it" for name in ("width", "hidden")
    ]
    of_parts = {"top": "sampler = 'grid'", "rest": "[[grid]]\nhidden = [2, 3]"}
    assert all("is missing" in line for line in mistakes("", "width = 3", **of_parts))
    Path("net.py").write_text(body(signature=", kernel_size: str"))
    strings = {"top": of_parts["top"], "rest": "[[grid]]\nkernel_size = ['a', 'b']"}
    assert ["is missing" in line for line in mistakes("", **strings)] == [True]
    Path("net.py").write_text(body(signature=", width: int, hidden: int"))
    forget_networks()
    read = definition.read(study("", "width = 3\nhidden = 2", **of_parts))
    assert read.ranges["hidden"].values() == [2, 3]  # and not our network's 128


def test_a_constructor_error_at_an_end_of_the_space_is_reported_with_its_values() -> None:
    Path("net.py").write_text(body("assert width * height < 20", signature=", width: int = 1, height: int = 1"))
    read = definition.read(study("width = { low = 1, high = 9 }\nheight = { low = 1, high = 30 }"))
    with pytest.raises(NetworkError, match=r"^with height=30: net\.py, line 10: AssertionError.*; correct it\n"):
        try_network(read)
    try_network(definition.read(study("width = { low = 1, high = 9 }\nheight = { low = 1, high = 15 }")))


def test_parameters_named_like_ours_have_the_constructors_types() -> None:
    """Our kernel_size = 0 means a default size, and our activation and residual are not numbers."""
    signature = ", kernel_size: int = 0, activation: float = 0.5, residual: str = 'x', table=None, größe: int = 2"
    Path("net.py").write_text(body("assert table is None", signature=signature))
    searched = (
        "kernel_size = { choices = [0, 1] }\nactivation = { low = 0, high = 1 }\nresidual = { choices = ['', '<b>'] }"
    )
    read = definition.read(study(f'{searched}\n"größe" = {{ low = 1, high = 3 }}', "residual = ''"))
    assert space.default_point(read) == {"kernel_size": 0, "activation": 0.5, "residual": "", "größe": 2}
    assert not read.ranges["activation"].whole
    try_network(read)
    (copy := Path("copy.toml")).write_text(as_toml(read))
    assert definition.read(copy) == read
    assert "table" in mistakes(HIDDEN, "table = 3")[0]


def test_listing_studies_runs_no_network_code() -> None:
    Path("net.py").write_text(RUNS)
    listed = definition.describe(
        study(f"{HIDDEN}\nkind = {{ choices = ['max', 'avg'] }}", rest="[[start]]\nhidden = 3")
    )
    assert listed.space.keys() == {"hidden", "kind"}
    parts = "[[grid]]\nhidden = [2, 3]\nkernel_size = [3, 5, 7]"
    assert trials_of(definition.describe(study("", top="sampler = 'grid'", rest=parts))) == 6
    conditions = f"{HIDDEN}\nbias = {{ choices = [true, false], when = {{ hidden = 2 }} }}"
    assert definition.describe(study(conditions)).is_own
    assert not Path("ran").exists()
    definition.read(study())
    assert Path("ran").exists()


def test_a_definition_made_in_python_is_checked_once_its_network_is_loaded() -> None:
    named = Hyperparameters(architecture="net.py:CNNModel", epochs=1)
    made = StudyDefinition(defaults=named, space={"hidden": {"low": 2, "high": 9}, "dropout": {"low": 0, "high": 0.5}})  # type: ignore[dict-item]
    loaded = made.loaded()
    assert loaded.defaults.network == {"kernel_size": 5, "hidden": 8, "kind": "max", "bias": True, "dropout": 0.25}
    assert loaded.loaded() is loaded
    wrong = StudyDefinition(defaults=named, space={"hiden": {"low": 2, "high": 9}})  # type: ignore[dict-item]
    with pytest.raises(DefinitionError, match=r"space\.hiden: is not a hyperparameter; did you mean 'hidden'"):
        wrong.loaded()
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        StudyDefinition(defaults=named, space={"epochs": {"low": 0, "high": 9}})  # type: ignore[dict-item]


def test_the_stored_definition_is_complete_and_loads_without_network_code(make: Make, tmp_path: Path) -> None:
    recorded, _ = make(definition.read(study(defaults="kernel_size = 3")), 1)
    Path("net.py").unlink()
    assert recorded.user_attrs["network"]["text"] == NET
    kept = recorded.user_attrs["definition"]["defaults"]["network"]
    assert kept == {"kernel_size": 3, "hidden": 8, "kind": "max", "bias": True, "dropout": 0.25}
    forget_networks()
    assert load_study(recorded._storage, "s")
    with pytest.raises(NetworkError, match=r"net\.py: No such file or directory; put it there, or name its folder"):
        own_network_of(recorded)


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("network", None, r"\(network\) were changed"),
        ("network", [1], r"\(network\) were changed"),
        ("network", {"sha256": "a"}, r"\(network\) were changed"),
        ("network", {"sha256": "a", "text": 3}, r"\(network.text\) were changed"),
        ("network", {"sha256": "a", "text": "import antigravity"}, "differs from the recorded file"),
        ("architecture", "evil.py:CNNModel", "differs from the recorded file"),
        ("architecture", "evil:CNNModel", r"\(network\) were changed"),
        ("architecture", "/net.py:CNNModel", r"\(defaults.architecture\) were changed"),
        ("architecture", "cnn", r"\(network\) were changed"),
        ("architecture", "net.py:CNN", "did you mean CNNModel"),
        ("arguments", {"bogus": 3}, "does not fit its network: defaults.bogus: is not a hyperparameter"),
        ("arguments", {"kind": 3}, "does not fit its network: defaults.kind: net.py, line 8"),
        ("arguments", {"kind": [3]}, r"\(defaults.network.kind.bool\) were changed"),
        ("space", {"hidden": {"choices": ["a"]}}, r"\(definition\) were changed|does not fit"),
        ("space", {"bogus": {"low": 1, "high": 3}}, "does not fit its network: space.bogus"),
    ],
)
def test_an_altered_database_runs_no_code_and_is_a_one_line_error(
    make: Make, monkeypatch: pytest.MonkeyPatch, attribute: str, value: Any, expected: str
) -> None:
    recorded, settings = make(definition.read(study()), 1)
    content = recorded.user_attrs["definition"]
    if attribute == "network":
        recorded.set_user_attr("network", value)
    else:
        if attribute == "architecture":
            content["defaults"]["architecture"] = value
        elif attribute == "arguments":
            content["defaults"]["network"] |= value
        else:
            content["space"] |= value
        recorded.set_user_attr("definition", content)
    forget_networks()
    Path("evil.py").write_text(RUNS)
    monkeypatch.syspath_prepend(Path.cwd())
    with pytest.raises(ExpectedError, match=expected) as error:
        own_network_of(load_study(open_storage(settings.storage), "s"))
    assert not Path("ran").exists()
    first, *difference = str(error.value).splitlines()
    assert ";" in first or "did you mean" in first
    assert not difference or difference[0].startswith("---")


def test_a_recorded_module_is_imported_only_if_the_user_named_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if a file's text is recorded with its name."""
    Path("named.py").write_text(RUNS)
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    recorded, _ = make(definition.read(study(defaults="architecture = 'named:CNNModel'")), 1)
    assert "network" not in recorded.user_attrs
    forget_networks()
    monkeypatch.delitem(sys.modules, "named")
    Path("ran").unlink()
    for _ in range(2):
        with pytest.raises(NetworkError, match="is imported only if you name it; add --architecture named:CNNModel"):
            own_network_of(recorded)
        recorded.set_user_attr("network", {"sha256": "a", "text": "b"})
    assert not Path("ran").exists()
    with pytest.raises(StudyError, match="network"):
        load_study(recorded._storage, "s")
    recorded.set_user_attr("network", None)
    own_network.load("named:CNNModel")
    assert own_network_of(load_study(recorded._storage, "s"))


def test_a_name_that_is_no_identifier_is_refused_without_printing_escape_sequences(make: Make) -> None:
    recorded, _ = make(definition.read(study()), 1)
    altered = recorded.user_attrs[DEFINITION]
    altered["space"]["x\x1b[31m"] = altered["space"].pop("hidden")
    recorded.set_user_attr(DEFINITION, altered)
    with pytest.raises(StudyError, match=r"user attributes \(definition\) were changed") as error:
        definition_of(recorded)
    assert "\x1b" not in str(error.value)
