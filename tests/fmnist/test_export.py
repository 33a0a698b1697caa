import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from onnxruntime import InferenceSession

from fmnist import checkpoint, export
from fmnist.architectures import build
from fmnist.checkpoint import Checkpoint
from fmnist.choices import Activation, Architecture
from fmnist.data import CLASSES, DataSet, LabelledImages, split
from fmnist.evaluation import evaluate
from fmnist.export import ExportError, write_onnx
from fmnist.hyperparameters import Hyperparameters
from fmnist.prediction import predict
from fmnist.training import Training
from tests.conftest import Command

NEARLY = 1e-4  # of logits


# All activations and architectures, an even kernel and a residual convolution.
NETWORKS: list[dict[str, Any]] = [
    *({"architecture": architecture} for architecture in get_args(Architecture)),
    *({"architecture": "simple", "activation": activation} for activation in get_args(Activation)),
    {"architecture": "cnn", "kernel_size": 4, "residual": True, "activation": "silu", "hidden": 30},
    {"architecture": "simple", "kernel_size": 2, "hidden": 31},
]


def trained(network: dict[str, Any], data: DataSet) -> bytes:
    """The checkpoint of a short training run, so that batch norm has statistics and logits differ."""
    hyperparameters = Hyperparameters(filters=4, epochs=2, learning_rate=0.005, **network)
    training = Training(hyperparameters, seed=4)
    for _ in training.epochs(split(data, "test")):
        pass
    return checkpoint.dump(training, "test", data)


@pytest.fixture(scope="module")
def content(tiny: DataSet) -> bytes:
    torch.set_num_threads(1)
    return trained({"architecture": "simple"}, tiny)


@pytest.fixture
def simple(content: bytes) -> Checkpoint:
    return checkpoint.parse(content, "simple")


@pytest.fixture
def saved(content: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    return path


def session(path: Path) -> InferenceSession:
    return InferenceSession(path, providers=["CPUExecutionProvider"])


def logits_of(path: Path, images: LabelledImages, batch: int) -> torch.Tensor:
    """onnxruntime's logits of raw pixels, in batches of that many images."""
    runtime = session(path)
    parts = [part.to(torch.float32).numpy() for part in images.images.split(batch)]
    return torch.cat([torch.from_numpy(runtime.run(["logits"], {"images": part})[0]) for part in parts])


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: "-".join(map(str, network.values())))
def test_onnxruntime_reproduces_torch_from_raw_pixels(
    network: dict[str, Any], tiny: DataSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """For every kind of network, on real images, with batches of one, of all, and of a size with a remainder."""
    path = tmp_path / "folder" / "net.onnx"
    loaded = checkpoint.parse(trained(network, tiny), "net")
    difference = write_onnx(loaded, path)
    assert capfd.readouterr() == ("", "")
    assert 0 <= difference < NEARLY
    expected = evaluate(loaded.network(), tiny.test).logits
    predicted = [prediction.class_name for prediction in predict(loaded.network(), tiny.test.images)]
    assert predicted == [CLASSES[index] for index in expected.argmax(dim=1)]
    assert expected.std(dim=0).min() > 20 * NEARLY  # logits differ between images
    for batch in (1, 64, len(tiny.test)):
        assert (logits_of(path, tiny.test, batch) - expected).abs().max() < NEARLY
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]


def test_the_file_describes_its_inputs_and_provenance(simple: Checkpoint, tmp_path: Path) -> None:
    write_onnx(simple, tmp_path / "net.onnx")
    runtime = session(tmp_path / "net.onnx")
    (images,), (logits,) = runtime.get_inputs(), runtime.get_outputs()
    assert (images.name, images.shape, images.type) == ("images", ["batch", 1, 28, 28], "tensor(float)")
    assert (logits.name, logits.shape, logits.type) == ("logits", ["batch", 10], "tensor(float)")
    facts = {name: json.loads(value) for name, value in runtime.get_modelmeta().custom_metadata_map.items()}
    assert facts == {
        "classes": list(CLASSES),
        "hyperparameters": simple.hyperparameters.model_dump(),
        "seed": 4,
        "tta": "mirror",
        "data_set": "data set 'digits'",
        "score_on": "test",
        "accuracy": simple.history[-1].accuracy,
        "made_with": simple.made_with,
    }


def test_the_file_is_reproducible_and_contains_no_local_paths(simple: Checkpoint, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        write_onnx(simple, tmp_path / name)
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    assert str(Path(export.__file__).parent).encode() not in content
    assert str(Path(torch.__file__).parent).encode() not in content


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_graph_that_differs_is_not_written(
    simple: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """For example, if the exporter gets a layer wrong; the previous file stays."""
    path = tmp_path / "net.onnx"
    path.write_text("previous")
    export_graph = export._graph

    def wrong(network: export._WithStandardization) -> object:
        changed = build(simple.hyperparameters)
        changed.load_state_dict({name: factor * value for name, value in simple.weights.items()})
        return export_graph(export._WithStandardization(changed).eval())

    monkeypatch.setattr(export, "_graph", wrong)
    with pytest.raises(ExportError, match=r"onnxruntime's logits differ from torch's by .*: nothing written; pip"):
        write_onnx(simple, path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("net.onnx", "previous")]


def test_a_graph_that_onnxruntime_cannot_run_is_not_written(
    simple: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, if onnxruntime is older than the file format."""
    export_graph = export._graph

    def too_new(network: export._WithStandardization) -> object:
        model = export_graph(network)
        model.ir_version = 99
        return model

    monkeypatch.setattr(export, "_graph", too_new)
    with pytest.raises(ExportError, match="onnxruntime cannot run the network: nothing written; pip install --upgrade"):
        write_onnx(simple, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_large_logits_may_differ_by_float32_rounding(simple: Checkpoint, tmp_path: Path) -> None:
    """Logits of 1e8, as in a network close to divergence, have a float32 spacing of 8."""
    weights = dict(simple.weights)
    last = list(weights)[-2]
    weights[last] = weights[last] * 1e7
    difference = write_onnx(replace(simple, weights=weights), tmp_path / "net.onnx")
    assert difference > export.TOLERANCE


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_the_error_says_how_to_install_it(
    simple: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ExportError, match=r"^export needs the extra `onnx`; in .*, run pip install -e '\.\[onnx\]'$"):
        write_onnx(simple, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_export_writes_beside_the_checkpoint_or_to_the_given_path(
    command: Command, invoke: Command, saved: Path, tiny: DataSet, tmp_path: Path
) -> None:
    result = command("export", "net.pth")
    assert (result.returncode, result.stderr) == (0, "")
    first, second = result.stdout.splitlines()
    assert first == "Saved net.onnx"
    assert re.fullmatch(
        r"Largest difference between the logits of onnxruntime and torch: \d\.\de-\d\d "
        r"\(256 random images, in batches of 1, 5, 250\)",
        second,
    )
    expected = evaluate(checkpoint.load(saved).network(), tiny.test).predictions
    assert torch.equal(logits_of(tmp_path / "net.onnx", tiny.test, 100).argmax(dim=1), expected)
    named = invoke("export", "net.pth", "--format", "onnx", "--to", "there/boots.onnx")
    assert named.stdout.startswith("Saved there/boots.onnx\n")
    assert (tmp_path / "there" / "boots.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()


def test_export_errors_are_one_line(invoke: Command, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    saved.with_name("odd.onnx").write_bytes(saved.read_bytes())
    for arguments, exit_code, message in (
        (["absent.pth"], 1, "Error: absent.pth: No such file or directory; name a checkpoint"),
        (["net.pth", "--to", "file/net.onnx"], 1, "Error: file/net.onnx: File exists; name another file with --to"),
        (["odd.onnx"], 2, "Error: odd.onnx is the checkpoint itself; name another file with --to"),
        (["net.pth", "--format", "tflite"], 2, "Error: Invalid value for '--format': 'tflite' is not 'onnx'."),
    ):
        result = invoke("export", *arguments)
        assert result.returncode == exit_code, result.stderr
        assert result.stderr.splitlines()[-1].startswith(message)
        assert "Traceback" not in result.stderr
    assert saved.with_name("odd.onnx").read_bytes() == saved.read_bytes()


def test_export_without_the_extra_is_a_one_line_error(saved: Path) -> None:
    program = (
        "import sys; sys.modules['onnxruntime'] = None; from search.cli import main; main(prog_name='fmnist-search')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "export", str(saved)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert (
        result.stderr
        == "Error: export needs the extra `onnx`; in the fmnist-search checkout, run pip install -e '.[onnx]'\n"
    )
    assert not saved.with_suffix(".onnx").exists()
