"""The page "Your own network": its files, commands, notebook and messages work as described."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from search.database.connection import open_storage
from search.database.url import default_url
from search.study import definition
from search.study.store import load_study
from tests.conftest import Command
from tests.factories import forget_networks

DOCS = Path(__file__).resolve().parent.parent / "docs"
FILES = DOCS / "own_network"
PAGE = (DOCS / "own-network.md").read_text()
NET, STUDY = ((FILES / name).read_text() for name in ("my_net.py", "mine.toml"))


def shortened(text: str) -> str:
    """A study file with as few trials and epochs as possible."""
    for was, now in {"trials = 20": "trials = 2\nfinalists = 1", "epochs = 3": "epochs = 1"}.items():
        assert was in text
        text = text.replace(was, now)
    return text


@pytest.fixture
def here(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the page's files; the data set is tiny."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMNIST_DATA", str(tiny_folder))
    forget_networks()
    (tmp_path / "my_net.py").write_text(NET)
    (tmp_path / "mine.toml").write_text(shortened(STUDY))
    return tmp_path


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_its_commands_produce_a_report_and_a_prediction(here: Path, command: Command) -> None:
    printed: dict[str, str] = {}
    for line in re.findall(r"^\$ (.*)$", "".join(blocks("console")), re.MULTILINE):
        program, first, *rest = shlex.split(line)
        if program == "python":
            exec(rest[0])  # noqa: S102  # in this process, because importing torch takes long
            continue
        assert program == "fmnist-search"
        result = command(first, *(argument for argument in rest if argument != "--open"))  # nobody looks
        assert result.returncode == 0, f"{line}\n{result.stderr}"
        printed[first] = result.stdout
    assert list(printed) == ["train", "run", "report", "predict"]
    assert len(load_study(open_storage(default_url(here / "studies")), "mine").trials) == 2
    assert "my_net.py:CNNModel" in (here / "studies/mine/report.html").read_text()
    assert re.fullmatch(r"boot\.png  \S.* +[\d.]+ %  whole picture\n", printed["predict"])


def test_its_python_example_runs_as_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = (block for block in blocks("python") if "class CNNModel" not in block)
    exec(program, {})  # noqa: S102
    assert re.fullmatch(r"[\d.]+%\n", capsys.readouterr().out)


def test_its_conditions_and_starting_points_are_valid(here: Path) -> None:
    (extract,) = (block for block in blocks("toml") if "[[start]]" in block)
    (here / "my_net.py").write_text(NET.replace("kernel_size=5", "pool='max', stride=2"))
    (here / "mine.toml").write_text(f'[defaults]\narchitecture = "my_net.py:CNNModel"\n{extract}')
    study = definition.read(here / "mine.toml")
    assert study.space.keys() == {"pool", "stride"}
    assert study.start == [{"pool": "avg", "stride": 3}]


# By the first column of the page's table of mistakes: the file and the text to replace so that its message is printed.
MISTAKES = {
    "return self.fc3(x)[:, :9]": ("my_net.py", "return self.fc3(x)"),
    "F.dropout(F.relu(self.fc1(x)))": ("my_net.py", "self.dropout(F.relu(self.fc1(x)))"),
    "nn.LazyLinear(hidden)": ("my_net.py", "nn.Linear(filters * side * side, hidden)"),
    "def __init__(self, epochs=3)": (
        "my_net.py",
        "def __init__(self, kernel_size=5, filters=8, hidden=128, dropout=0.0)",
    ),
    "from layers import Block": ("my_net.py", "import torch.nn as nn"),
    "hiden = { low = 32, high = 256 }": ("mine.toml", "hidden = { low = 32, high = 256, log = true }"),
    "hidden = { low = 0.5, high = 256 }": ("mine.toml", "hidden = { low = 32, high = 256, log = true }"),
}
ROWS = dict(re.findall(r"^\| `(.*?)` \| `(.*?)` \|$", PAGE, re.MULTILINE))


def test_each_mistake_on_the_page_is_tested() -> None:
    assert ROWS.keys() == MISTAKES.keys()


@pytest.mark.parametrize("written", MISTAKES)
def test_a_mistake_leads_to_the_message_on_the_page(here: Path, invoke: Command, written: str) -> None:
    name, instead_of = MISTAKES[written]
    (here / "layers.py").touch()
    before = (here / name).read_text()
    assert before.count(instead_of) == 1
    (here / name).write_text(before.replace(instead_of, written))
    result = invoke("run", "mine.toml")
    assert result.returncode == 2
    assert result.stderr.splitlines()[0] == f"Error: {ROWS[written]}"


@pytest.fixture
def notebook(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nbformat.NotebookNode]:
    """The page's notebook, to be run in a folder of its own on tiny data."""
    for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))  # not the developer's own
    monkeypatch.setenv("FMNIST_DATA", str(tiny_folder))
    return nbformat.read(FILES / "own_network.ipynb", as_version=4)


def cell_of(notebook: nbformat.NotebookNode, text: str) -> nbformat.NotebookNode:
    (found,) = (cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source)
    return found


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def test_the_notebook_has_the_pages_files_and_no_outputs(notebook: nbformat.NotebookNode) -> None:
    for name, content in {"my_net.py": NET, "mine.toml": STUDY}.items():
        magic = f"%%writefile {name}\n"
        assert cell_of(notebook, magic).source + "\n" == magic + content
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_the_notebook_runs_to_its_end_and_again_with_a_changed_class(
    notebook: nbformat.NotebookNode, tmp_path: Path
) -> None:
    study, network, search = (cell_of(notebook, text) for text in ("%%writefile mine", "%%writefile my", "run_search"))
    study.source = shortened(study.source)
    network.source += "\n\nimport os, pathlib\npathlib.Path(f'process-{os.getpid()}').touch()"
    refused = [
        new_code_cell(search.source),
        new_code_cell(
            "from torch import nn\nfrom search import StudyDefinition\n"
            "class CNNModel(nn.Module): pass\n"
            'StudyDefinition.model_validate({"defaults": {"architecture": CNNModel}})'
        ),
    ]
    for cell in refused:
        cell.metadata["tags"] = ["raises-exception"]
    other = search.source.replace('"mine.toml"', '"mine.toml", trials=1, finalists=0').replace('"mine"', '"other"')
    changed = network.source.replace("touch()", "write_text('changed')")
    notebook.cells += [new_code_cell(changed), *refused, new_code_cell(other)]

    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()

    assert len(re.findall(r"^[\d.]+% \(.*kernel_size", printed(cell_of(notebook, ".finalists")), re.MULTILINE)) == 2
    assert len(printed(cell_of(notebook, "predict(")).splitlines()) == 3
    report = printed(cell_of(notebook, "print(result.report)")).strip()
    assert report == "studies/mine/report.html"
    assert (tmp_path / report).is_file()
    processes = [file.read_text() for file in tmp_path.glob("process-*")]
    assert processes.count("") >= 2  # the search's and the finalists' workers; the kernel has run the changed class too
    assert processes.count("changed") >= 2
    messages = [output.evalue for cell in refused for output in cell.outputs if output.output_type == "error"]
    assert "was started with another version of my_net.py: restore that" in messages[0]
    assert "save the class to a file (%%writefile" in messages[1]
    assert len(load_study(open_storage(default_url(tmp_path / "studies")), "other").trials) == 1
