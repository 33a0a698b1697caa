"""The import directions that the architecture promises, including imports inside functions."""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each package of `search` imports only those after it; `report` and `dashboard` do not import each other.
PACKAGES = [
    "cli",
    "doctor",
    "run",
    "report",
    "console",
    "results",
    "worker",
    "dashboard",
    "queue",
    "study",
    "database",
    "outputs",
    "artifacts",
    "formatting",
    "logs",
    "choices",
]
LIBRARIES_OF_FMNIST = {
    "PIL",
    "fmnist",
    "numpy",
    "onnx",
    "onnxruntime",
    "platformdirs",
    "pydantic",
    "scipy",
    "sklearn",
    "torch",
    "torchvision",
}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(file): file for package in ("fmnist", "search") for file in (ROOT / package).rglob("*.py")}


def imported(module: str, *, for_types: bool = True) -> set[str]:
    """The modules that a module imports, including those under TYPE_CHECKING if `for_types`."""
    names: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(MODULES[module].read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else str(node.module) for name in full}
        nodes += ast.iter_child_nodes(node)
    return names


def package_of(module: str) -> str:
    """The package of `search` that contains a module; "" for `search` itself."""
    return module.split(".")[1] if "." in module else ""


def test_fmnist_does_not_import_search() -> None:
    for module in MODULES:
        if module.startswith("fmnist"):
            libraries = {name.split(".")[0] for name in imported(module)} - sys.stdlib_module_names
            assert libraries <= LIBRARIES_OF_FMNIST, module


def test_each_package_imports_only_those_below_it() -> None:
    inside = [module for module in MODULES if module.startswith("search.") and module != "search.__main__"]
    assert {package_of(module) for module in inside} == set(PACKAGES)
    for module in inside:
        below = PACKAGES[PACKAGES.index(package_of(module)) + 1 :]
        others = {package_of(name) for name in imported(module) if name.startswith("search")} - {package_of(module)}
        assert others <= set(below), module


def test_only_entry_points_import_the_command_line() -> None:
    outside = [module for module in MODULES if package_of(module) != "cli" and module != "search.__main__"]
    for module in outside:
        assert not any(package_of(name) == "cli" for name in imported(module) if name.startswith("search")), module


def test_report_and_dashboard_do_not_import_each_other() -> None:
    for module in MODULES:
        if package_of(module) == "report":
            assert not any(package_of(name) == "dashboard" for name in imported(module) if name.startswith("search"))


def test_there_are_no_import_cycles() -> None:
    graph = {module: imported(module, for_types=False) & MODULES.keys() - {module} for module in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_one_module_uses_private_parts_of_optuna() -> None:
    private = {
        "_backend",
        "_storage",
        "_study_id",
        "_trial_id",
        "_thread_local",
        "_suggest",
        "_contains",
        "_get_trials",
        "_version_manager",
    }
    for module, file in MODULES.items():
        if module == "search.database.optuna_schema":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            assert not (isinstance(node, ast.Attribute) and node.attr in private), f"{module}: {ast.unparse(node)}"
            if isinstance(node, ast.ImportFrom) and node.module == "search.database.optuna_schema":
                assert not any(alias.name.startswith("_") for alias in node.names), f"{module}: {ast.unparse(node)}"
        assert not any(name.startswith("optuna.") and "._" in name for name in imported(module)), module
