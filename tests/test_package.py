"""The wheel: its contents, and that it works outside the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(".*", "dist", "build"))
    (checkout / "studies" / "cnn").mkdir(exist_ok=True)  # outputs of a search, which must not be in the wheel
    (checkout / "studies" / "cnn" / "report.html").touch()
    (checkout / "studies" / "studies.db").touch()
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(checkout)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_contains_only_both_packages_and_the_studies(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"fmnist", "search"}
    shipped = {path.name for path in (installed / "search" / "studies").iterdir()}
    assert shipped == {path.name for path in (ROOT / "studies").glob("*.toml")}
    for file in ("page.html", "plotly/plotly-cartesian.min.js.gz", "plotly/LICENSE"):
        assert (installed / "search" / "report" / file).is_file()
    for template in ("curve.svg", "confusion.svg"):
        assert (installed / "search" / "dashboard" / template).is_file()


def test_the_wheel_runs_a_search_outside_the_checkout(installed: Path, tmp_path: Path, tiny_folder: Path) -> None:
    """Run the bundled default study on tiny data with the wheel's code only."""
    program = (
        "import search, search.study.definition as d, sys; site = sys.argv.pop(1); "
        "assert search.__file__.startswith(site) and str(d.locate('cnn')).startswith(site); "
        "from search.cli import main; main(prog_name='fmnist-search')"
    )
    (tmp_path / "search.py").write_text("raise ImportError('the working directory is not to be imported from')")
    result = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            program,
            str(installed),
            "run",
            "cnn",
            "--trials",
            "2",
            "--finalists",
            "0",
            "--workers",
            "1",
            "--quiet",
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "FMNIST_DATA": str(tiny_folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Done: 2 trials" in result.stdout
    assert (tmp_path / "studies" / "cnn" / "report.html").is_file()
