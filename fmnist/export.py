"""A trained network or an ensemble as an ONNX file, which needs neither torch nor this package.

Its graph takes `images` (batch, 1, 28, 28) float32, raw pixels in [0, 255] with 0 for the
background, standardizes them itself, and gives `logits` (batch, 10) float32, for a batch
of any size. Their softmax is the probabilities; of a mirrored network and of an ensemble
they are the logarithms of these. The file's metadata say what made it. It is written only after onnxruntime
has computed the same logits from it as torch.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fmnist.checkpoint import Checkpoint
from fmnist.data import CLASSES, SIDE, standardize
from fmnist.ensemble import Ensemble
from fmnist.errors import ExpectedError
from fmnist.files import write_whole

if TYPE_CHECKING:
    from onnx import ModelProto

BATCHES = (1, 5, 250)  # images; sizes of the batches that check a graph
SEED = 20170825  # of those images
TOLERANCE = 1e-3  # of logits up to 10; a ten-thousandth of larger ones, which float32 rounds more coarsely

UPGRADE = "pip install --upgrade onnx onnxscript onnxruntime"


class ExportError(ExpectedError):
    """The network cannot be exported, or the file cannot be written."""


class _OfRawPixels(nn.Module):
    """The network after standardization, which so becomes a part of the graph."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 1, 28, 28) float32 in [0, 255]; (N, 10) float32 logits."""
        logits: Tensor = self.network(standardize(images.clone()))  # a copy: it works in place on float32
        return logits


def write_onnx(saved: Checkpoint | Ensemble, path: Path) -> float:
    """Write a checkpoint's network, or an ensemble, as one ONNX graph, once onnxruntime has reproduced it.

    Returns:
        The largest difference between onnxruntime's logits and torch's on random images.

    Raises:
        ExportError: the extra `onnx` is not installed, onnxruntime fails or differs from
            torch, or the file cannot be written; a former file stays as it was.
    """
    _require_extra()
    network = _OfRawPixels(saved.network()).eval()
    model = _graph(network)
    _describe(model, saved)
    content = model.SerializeToString()
    difference, largest = _compare(content, network)
    if not difference <= TOLERANCE * max(1, largest / 10):  # so that NaN fails
        raise ExportError(f"onnxruntime's logits differ from torch's by {difference:.2g}: nothing written; {UPGRADE}")
    try:
        write_whole(path, content)
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}; name another file with --to") from error
    return difference


def _require_extra() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ImportError as error:
            raise ExportError(
                "export needs the extra `onnx`; in the checkout of fmnist-search: pip install -e '.[onnx]'"
            ) from error


def _graph(network: _OfRawPixels) -> "ModelProto":
    """The network as torch's exporter sees it, without the paths and lines of this machine's source."""
    try:
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 1, SIDE, SIDE),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    except Exception as error:  # a user's own network may do what no graph can; the cause says what
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        raise ExportError(f"torch cannot write the network as a graph: nothing written ({cause})") from error
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")
    return model


def _describe(model: "ModelProto", saved: Checkpoint | Ensemble) -> None:
    """Put what made the network into the file's metadata, each value as JSON."""
    from onnx.helper import set_model_props

    facts: dict[str, Any] = {"classes": CLASSES, "data_set": saved.data_set, "score_on": saved.score_on}
    if isinstance(saved, Ensemble):
        facts["members"] = [
            {"trial": trial, **_training(member)} for trial, member in zip(saved.trials, saved.members, strict=True)
        ]
    else:
        facts |= _training(saved)
    set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})


def _training(saved: Checkpoint) -> dict[str, Any]:
    return {
        "hyperparameters": saved.hyperparameters.model_dump(),
        "seed": saved.seed,
        "tta": saved.tta,
        "accuracy": saved.history[-1].accuracy,
        "made_with": saved.made_with,
    }


@torch.no_grad()
def _compare(content: bytes, network: _OfRawPixels) -> tuple[float, float]:
    """The largest difference between the logits of both, and torch's largest logit."""
    from onnxruntime import InferenceSession

    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(256, (sum(BATCHES), 1, SIDE, SIDE), generator=generator).to(torch.float32)
    batches = images.split(BATCHES)
    expected = torch.cat([network(batch) for batch in batches])
    try:
        session = InferenceSession(content, providers=["CPUExecutionProvider"])
        answers = [session.run(["logits"], {"images": batch.numpy()})[0] for batch in batches]
    except Exception as error:  # its errors have no other class in common
        raise ExportError(f"onnxruntime cannot run the network: nothing written; {UPGRADE} ({error})") from error
    found = torch.cat([torch.from_numpy(logits) for logits in answers])
    return (found - expected).abs().max().item(), expected.abs().max().item()
