"""The directions of imports that the architecture promises."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "PIL",
    "fmnist",
    "numpy",
    "onnx",
    "onnxruntime",
    "platformdirs",
    "pydantic",
    "sklearn",
    "torch",
    "torchvision",
}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_fmnist_knows_nothing_of_the_search() -> None:
    for file in (ROOT / "fmnist").rglob("*.py"):
        packages = {name.split(".")[0] for name in imported(file)} - sys.stdlib_module_names
        assert packages <= ALLOWED, f"{file} imports {packages - ALLOWED}"


def test_nobody_imports_the_command_line() -> None:
    for folder in ("fmnist", "search"):
        for file in (ROOT / folder).rglob("*.py"):
            if file.name != "__main__.py" and file.parent.name != "cli":
                assert not any(name.startswith("search.cli") for name in imported(file)), file
