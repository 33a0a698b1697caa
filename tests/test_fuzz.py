"""Any study file, settings file or command line leads to success or a one-line error, never to a traceback."""

import datetime
import json
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fmnist.hyperparameters import Hyperparameters
from search.cli import main
from search.cli.settings import FILE, options_of
from search.cli.settings import read as read_settings
from search.console.status import show_catalogue
from search.console.terminal import terminal
from search.report.provenance import as_toml
from search.study import catalogue, definition, space
from search.study.definition import DefinitionError, StudyDefinition
from search.study.parameters import Parameter, is_complete
from tests.conftest import Make
from tests.factories import STUDY
from tests.factories import definition as defined

# The same examples every time, without a deadline on slow machines.
BOUNDED = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))

NUMBERS = st.one_of(
    st.integers(-2, 70_000),
    st.sampled_from([10**30, -(10**30), 10**400, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")]),
    st.floats(-2, 2),
    st.floats(),
)
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["", " ", "[/b]", "\u202e", "a\nb", "a\x1b[2Jb", "\U0001f455"]))
KNOWN = sorted({*StudyDefinition.model_fields, *Hyperparameters.model_fields, *Parameter.model_fields})
CHOICES = ["simple", "cnn", "both", "grid", "qmc", "gp", "none", "hyperband", "validation", "write-up"]


def toml(value: Any) -> str:
    """A value as TOML, which is invalid if TOML cannot express it."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{toml(key)} = {toml(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)


KEYS = st.one_of(st.sampled_from(KNOWN), TEXTS)
SCALARS = st.one_of(NUMBERS, st.booleans(), TEXTS, st.sampled_from(CHOICES), st.just(datetime.date(2026, 11, 26)))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
PARAMETERS = st.dictionaries(
    st.sampled_from(sorted(Parameter.model_fields)), NUMBERS | st.booleans() | st.lists(NUMBERS, max_size=4), max_size=4
)
CONDITIONED = st.builds(
    lambda table, when: table | {"when": when}, PARAMETERS, st.dictionaries(KEYS, SCALARS, max_size=2)
)
CHANGES = st.tuples(
    st.sampled_from(["", "defaults", "space", "space.filters", "grid", "start"]),
    KEYS,
    VALUES | PARAMETERS | CONDITIONED | st.lists(CONDITIONED, max_size=3),
)


@st.composite
def study_files(draw: st.DrawFn) -> str:
    """A study file that is valid except for a few keys."""
    content = tomllib.loads(STUDY)
    for where, key, value in draw(st.lists(CHANGES, min_size=1, max_size=4)):
        table: Any = content
        for part in filter(None, where.split(".")):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                break
        else:
            table[key] = value
            continue
        content[key] = value
    for key in ("grid", "start"):
        if isinstance(content.get(key), dict):
            content[key] = [content[key]]
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in content.items())


def read_and_use(file: Path) -> None:
    """Read a study file: a valid one can be used, an invalid one leads to lines that name the file."""
    try:
        read = definition.read(file)
    except DefinitionError as error:
        message = str(error)
    else:
        use(read, file)
        return
    assert message
    assert all(line.startswith(f"{file}: ") for line in message.splitlines())


def use(read: StudyDefinition, file: Path) -> None:
    """Use a definition as before a search."""
    assert StudyDefinition.model_validate(read.model_dump(mode="json")) == read
    assert json.loads(json.dumps(read.identity(), allow_nan=False)) == read.identity()
    assert is_complete(read.space, space.default_point(read))
    (file := file.with_name("again.toml")).write_text(as_toml(read), encoding="utf-8")
    assert definition.read(file) == read
    entry = catalogue.Entry("s", read.description, read.sampler, catalogue.trials_of(read), read.minutes)
    show_catalogue(terminal(), [entry])


@settings(BOUNDED, max_examples=150)
@given(content=study_files())
def test_a_study_file_of_any_values(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any-values.toml"
    file.write_text(content, encoding="utf-8", errors="replace")
    read_and_use(file)


@settings(BOUNDED, max_examples=200)
@given(at=st.integers(0, len(STUDY)), length=st.integers(0, 40), put=st.binary(max_size=12))
def test_a_study_file_with_any_bytes_in_it(
    tmp_path_factory: pytest.TempPathFactory, at: int, length: int, put: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any-bytes.toml"
    file.write_bytes(STUDY.encode()[:at] + put + STUDY.encode()[at + length :])
    read_and_use(file)


@pytest.mark.parametrize("content", [5000 * "[", "a = " + 5000 * "[", "a = " + 5000 * "{b=", 'a."' + 5000 * 'b"."'])
def test_a_study_file_with_extreme_nesting(tmp_path: Path, content: str) -> None:
    (tmp_path / "deep.toml").write_text(content)
    read_and_use(tmp_path / "deep.toml")


# Arguments as the operating system passes them: no NUL; invalid UTF-8 as lone surrogates.
ARGUMENTS = st.one_of(
    (st.integers(-2, 9) | st.floats() | st.sampled_from([10**30, 10**19, 1e308])).map(str),
    st.sampled_from(
        ["", "-", "--", "s", "cnn", ".", "9" * 5000, "x" * 300, "\udcff", "[/b]", "nan", "%", "epochs=", "=x"]
    ),
    st.sampled_from(
        ["postgresql://127.0.0.1:9/", "postgresql://me:@[/x", "mysql://h/d", "sqlite://", "sqlite:///x.db"]
    ),
    st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), max_size=8),
)


def command_lines(names: list[str], without: str = "") -> st.SearchStrategy[list[str]]:
    """A command with some options of any values and some arguments; no flags, as --yes and --follow take effect."""

    def of(name: str) -> st.SearchStrategy[list[str]]:
        options = options_of(main.commands[name]).items()
        pairs = [
            st.tuples(st.just(f"--{key}"), ARGUMENTS | _choices(option))
            for key, option in options
            if not option.is_flag and key != without
        ]
        chosen = st.lists(st.one_of(pairs), max_size=2) if pairs else st.just([])
        return st.builds(
            lambda given, rest: [name, *(part for pair in given for part in pair), *rest],
            chosen,
            st.lists(ARGUMENTS, max_size=2),
        )

    return st.sampled_from(names).flatmap(of)


def _choices(option: click.Option) -> st.SearchStrategy[str]:
    return st.sampled_from(list(option.type.choices)) if isinstance(option.type, click.Choice) else ARGUMENTS


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a data set, so nothing is trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMNIST_DATA", str(tmp_path))
    return tmp_path


def check(arguments: list[str]) -> None:
    """Run a command in this process: it exits with 0, or with another code and a one-line error."""
    result = CliRunner().invoke(main, arguments)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert result.exit_code in (0, 1, 2), result.output
    if result.exit_code and arguments[0] != "doctor":  # whose report is longer
        assert "\nError: " in f"\n{result.stderr}" or "Aborted!" in result.stderr, result.output


@settings(BOUNDED, max_examples=30)
@given(arguments=command_lines(sorted(main.commands.keys() - {"dashboard"})))
@example(arguments=["export", ""])
@example(arguments=["run", "\udcff.toml"])
def test_a_command_line_of_any_values(nowhere: Path, arguments: list[str]) -> None:
    check(arguments)


@settings(BOUNDED, max_examples=20)
@given(arguments=command_lines(["best", "delete", "enqueue", "gc", "report", "reproduce", "status", "stop"], "watch"))
def test_a_command_line_of_any_values_on_an_existing_study(nowhere: Path, make: Make, arguments: list[str]) -> None:
    if not (nowhere / "studies.db").exists():
        make(defined(), 1)
    check([*arguments[:1], "--output", str(nowhere), *arguments[1:]])


@settings(BOUNDED, max_examples=300)
@given(assignment=st.builds("{}={}".format, st.sampled_from(KNOWN) | TEXTS, SCALARS) | ARGUMENTS)
def test_an_assignment_of_any_values(assignment: str) -> None:
    read = defined()
    try:
        ((name, value),) = space.parse_assignments(read, [assignment]).items()
    except DefinitionError as error:
        message = str(error)
    else:
        assert name in read.space
        assert json.loads(json.dumps(value, allow_nan=False)) == value
        return
    assert message.startswith(f"--set {assignment}: ")


@settings(BOUNDED, max_examples=150)
@given(
    content=st.dictionaries(
        st.sampled_from([*main.commands, "keep", "storage", "data-dir"]) | TEXTS, VALUES, max_size=4
    )
)
def test_a_settings_file_of_any_values(nowhere: Path, content: dict[str, Any]) -> None:
    FILE.write_text(
        "".join(f"{toml(key)} = {toml(value)}\n" for key, value in content.items()), encoding="utf-8", errors="replace"
    )
    try:
        read = read_settings(click.Context(main), main.commands)
    except click.UsageError as error:
        message = error.message
    else:
        assert read.keys() <= main.commands.keys()
        return
    assert message.startswith(f"{FILE}: ")
    assert len(message.splitlines()) == 1
