"""Export a trained network or an ensemble to an ONNX file, which needs neither torch nor this package.

The graph takes `images` (batch, 1, 28, 28) float32, raw pixels in [0, 255] with 0 as background, standardizes them, and
returns `logits` (batch, 10) float32, for any batch size. Their softmax gives probabilities; logits of a mirrored
network or an ensemble are log probabilities. The file's metadata record its provenance. It is written only after
onnxruntime has reproduced torch's logits.
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
from fmnist.files import write_atomically

if TYPE_CHECKING:
    from onnx import ModelProto

BATCHES = (1, 5, 250)  # images; sizes of the batches that verify a graph
SEED = 20170825  # of those images
TOLERANCE = 1e-3  # for logits up to 10; 1e-4 of larger ones, which float32 rounds more coarsely

UPGRADE = "pip install --upgrade onnx onnxscript onnxruntime"


class ExportError(ExpectedError):
    """The network cannot be exported, or the file cannot be written."""


class _WithStandardization(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, 28, 28) float32 in [0, 255] to (N, 10) float32 logits."""
        logits: Tensor = self.network(standardize(images.clone()))  # a copy, as standardize works in place
        return logits


def write_onnx(saved: Checkpoint | Ensemble, path: Path) -> float:
    """Write a checkpoint's network, or an ensemble, as one ONNX graph, after onnxruntime has reproduced it.

    Returns:
        The largest difference between the logits of onnxruntime and torch on random images.

    Raises:
        ExportError: the extra `onnx` is not installed, onnxruntime fails or differs from
            torch, or the file cannot be written; an existing file stays unchanged.
    """
    _require_extra()
    network = _WithStandardization(saved.network()).eval()
    model = _graph(network)
    _add_provenance(model, saved)
    content = model.SerializeToString()
    difference, largest = _compare(content, network)
    if not difference <= TOLERANCE * max(1, largest / 10):  # so that NaN fails
        raise ExportError(f"onnxruntime's logits differ from torch's by {difference:.2g}: nothing written; {UPGRADE}")
    try:
        write_atomically(path, content)
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}; name another file with --to") from error
    return difference


def _require_extra() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(name)
        except ImportError as error:
            raise ExportError(
                "export needs the extra `onnx`; in the fmnist-search checkout, run pip install -e '.[onnx]'"
            ) from error


def _graph(network: _WithStandardization) -> "ModelProto":
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
    except Exception as error:  # a user's own network may do what no graph supports; the cause names it
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        raise ExportError(f"torch cannot export the network: nothing written ({cause})") from error
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")  # source paths and lines of this machine
    return model


def _add_provenance(model: "ModelProto", saved: Checkpoint | Ensemble) -> None:
    from onnx.helper import set_model_props

    facts: dict[str, Any] = {"classes": CLASSES, "data_set": saved.data_set, "score_on": saved.score_on}
    if isinstance(saved, Ensemble):
        facts["members"] = [
            {"trial": trial, **_provenance(member)} for trial, member in zip(saved.trials, saved.members, strict=True)
        ]
    else:
        facts |= _provenance(saved)
    set_model_props(model, {name: json.dumps(value) for name, value in facts.items()})


def _provenance(saved: Checkpoint) -> dict[str, Any]:
    return {
        "hyperparameters": saved.hyperparameters.model_dump(),
        "seed": saved.seed,
        "tta": saved.tta,
        "accuracy": saved.history[-1].accuracy,
        "made_with": saved.made_with,
    }


@torch.no_grad()
def _compare(content: bytes, network: _WithStandardization) -> tuple[float, float]:
    # Returns the largest difference, and torch's largest logit.
    from onnxruntime import InferenceSession

    generator = torch.Generator().manual_seed(SEED)
    images = torch.randint(256, (sum(BATCHES), 1, SIDE, SIDE), generator=generator).to(torch.float32)
    batches = images.split(BATCHES)
    expected = torch.cat([network(batch) for batch in batches])
    try:
        session = InferenceSession(content, providers=["CPUExecutionProvider"])
        outputs = [session.run(["logits"], {"images": batch.numpy()})[0] for batch in batches]
    except Exception as error:  # onnxruntime's errors share no other class
        raise ExportError(f"onnxruntime cannot run the network: nothing written; {UPGRADE} ({error})") from error
    reproduced = torch.cat([torch.from_numpy(logits) for logits in outputs])
    return (reproduced - expected).abs().max().item(), expected.abs().max().item()
