"""The benchmarks run: they use more of the code's inside than others do, and would break unnoticed."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_storage_benchmark_runs_and_counts_exactly(tmp_path: Path) -> None:
    result = tmp_path / "storage.json"
    call = [sys.executable, "-m", "benchmarks.storage", "--quick", "--json", str(result)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "THE COUNT IS WRONG" not in done.stdout
    assert json.loads(result.read_text())
