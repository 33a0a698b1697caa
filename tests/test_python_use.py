"""The Python API: stable names that are imported on first use, and the documented examples."""

import ast
import csv
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import fmnist
import search
from fmnist import checkpoint
from fmnist.classes import CLASSES
from search.database.connection import open_storage
from search.database.url import default_url
from search.study.store import load_study
from tests.factories import STUDY

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = pytest.mark.parametrize("package", [fmnist, search], ids=["fmnist", "search"])


def promised(package: ModuleType) -> dict[str, str]:
    """The names that a package exports to a type checker, and the module of each."""
    assert package.__file__
    (checking,) = (node for node in ast.parse(Path(package.__file__).read_text()).body if type(node) is ast.If)
    assert ast.unparse(checking.test) == "TYPE_CHECKING"
    imports = [node for node in checking.body if type(node) is ast.ImportFrom]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


@PACKAGES
def test_each_name_is_the_object_that_type_checkers_see(package: ModuleType) -> None:
    assert sorted(promised(package)) == sorted(package.__all__)
    for name, module in promised(package).items():
        home = import_module(module)
        expected = import_module(f"{module}.{name}") if home is package else getattr(home, name)
        assert package.__getattr__(name) is expected
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


@PACKAGES
def test_nothing_heavy_is_imported_before_a_name_is_used(package: ModuleType) -> None:
    program = (
        f"import sys, {package.__name__}; "
        "print(*{'torch', 'optuna', 'plotly', 'sklearn', 'numpy', 'pydantic'} & sys.modules.keys()); "
        f"from {package.__name__} import *; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["", "True"]


def test_the_examples_run_as_written(tmp_path: Path, tiny_folder: Path) -> None:
    page = (ROOT / "docs/python-api.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    examples = [example for example in examples if "trials_dataframe" not in example]  # needs pandas, which we do not
    (tmp_path / "mine.toml").write_text(
        STUDY.replace("finalists = 0", "finalists = 1").replace("epochs = 2", "epochs = 1")
    )
    training, searching, reading, _ = (run(example, tmp_path, tiny_folder) for example in examples)

    assert [line.split(":")[0] for line in training[:3]] == ["epoch 1", "epoch 2", "epoch 3"]
    saved = checkpoint.load(tmp_path / "boots.pt")
    assert f"{saved.history[-1].accuracy:.2%}" in training[2]
    assert {line.rsplit(" ", 1)[0] for line in training[-3:]} <= set(CLASSES)

    study = load_study(open_storage(default_url(tmp_path / "studies")), "mine")
    assert f"trial {study.best_trial.number}: {study.best_value:.2%} of the test images" in "\n".join(searching)
    assert searching[-1] == "studies/mine/report.html"
    assert (tmp_path / searching[-1]).is_file()

    assert reading[0] == f"20 {study.best_value}"
    assert "complete=20" in reading[1]
    assert ast.literal_eval(reading[2]).keys() == study.best_params.keys()

    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == list(range(20))
    assert max(float(row["value"]) for row in rows) == study.best_value
    assert study.best_params.keys() < rows[0].keys()


def run(example: str, folder: Path, data: Path) -> list[str]:
    """Run an example as a script, and return the lines that it prints."""
    script = folder / "example.py"
    script.write_text(example)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "FMNIST_DATA": str(data)}
    call = [sys.executable, script.name]
    result = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()
