"""The wheel: what it holds, and that it works outside the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_it_holds_both_packages_and_the_studies_and_nothing_else(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"fmnist", "search"}
    shipped = {path.name for path in (installed / "search" / "studies").iterdir()}
    assert shipped == {path.name for path in (ROOT / "studies").glob("*.toml")}
    assert (installed / "search" / "report" / "page.html").is_file()


def test_it_finds_the_default_study_outside_the_checkout(installed: Path, tmp_path: Path, tiny_folder: Path) -> None:
    program = "import search.cli as c, search.definition as d; print(c.__file__); print(d.locate('cnn'))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    module, study = map(Path, result.stdout.splitlines())
    assert module.is_relative_to(installed)
    assert study == installed / "search" / "studies" / "cnn.toml"
