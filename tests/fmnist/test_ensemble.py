"""Ensembles: averaged predictions, and rejected files."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from onnxruntime import InferenceSession

from fmnist import archive, checkpoint, ensemble
from fmnist.architectures import build
from fmnist.checkpoint import Checkpoint, CheckpointError
from fmnist.choices import Architecture
from fmnist.data import DataSet, split
from fmnist.ensemble import MAX_MEMBERS, Ensemble, MeanOfNetworks
from fmnist.evaluation import evaluate
from fmnist.export import write_onnx
from fmnist.hyperparameters import Hyperparameters
from fmnist.training import Training
from tests.factories import forget_networks
from tests.fmnist.test_own_network import NET
from tests.fmnist.test_tta import InPlace


def finished(data: DataSet, seed: int, **values: Any) -> Checkpoint:
    defaults = {"architecture": "simple", "filters": 3, "learning_rate": 0.005, "augmentation": 0.5, "epochs": 1}
    training = Training(Hyperparameters(**defaults | values), seed)
    for _ in training.epochs(split(data, "test")):
        pass
    return checkpoint.parse(checkpoint.dump(training, "test", data), "member")


@pytest.fixture(scope="module")
def members(tiny: DataSet) -> list[Checkpoint]:
    """One with mirrored scores, one without, and one with another architecture and two epochs."""
    torch.set_num_threads(1)
    return [
        finished(tiny, 1, augmentation_kind="flip"),
        finished(tiny, 2, augmentation_kind="crop"),
        finished(tiny, 3, architecture="cnn", filters=2, epochs=2),
    ]


@pytest.fixture(scope="module")
def content(members: list[Checkpoint]) -> bytes:
    return ensemble.dump(members, [7, 0, 3])


def read(content: bytes) -> Ensemble:
    made = ensemble.parse(content, "ensemble.pt")
    assert isinstance(made, Ensemble)
    return made


def payload_of(content: bytes) -> dict[str, Any]:
    payload: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    return payload


def rejection(content: bytes) -> str:
    with pytest.raises(CheckpointError, match=r"^ensemble\.pt: ") as error:
        ensemble.parse(content, "ensemble.pt")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_ensemble_averages_its_members_probabilities(
    members: list[Checkpoint], content: bytes, tiny: DataSet
) -> None:
    made = read(content)
    result = evaluate(made.network(), tiny.test)
    logits = [evaluate(member.network(), tiny.test).logits.double() for member in members]
    expected = sum((each.exp() / each.exp().sum(1, keepdim=True) for each in logits), torch.zeros(1)) / len(members)
    assert torch.allclose(result.logits.double().exp(), expected, atol=1e-6)
    assert result.correct == int((expected.argmax(1) == tiny.test.labels).sum())
    assert torch.allclose(result.logits.exp().sum(1), torch.ones(len(tiny.test)), atol=1e-5)
    assert [member.tta for member in made.members] == ["mirror", "none", "mirror"]


def test_members_that_modify_their_input_do_not_affect_each_other() -> None:
    images = torch.rand(5, 1, 28, 28)
    expected = images.mul(3).flatten(1)[:, 100:110].softmax(1)
    made = MeanOfNetworks([InPlace(), InPlace(), InPlace()])
    assert torch.allclose(made(images).exp(), expected, atol=1e-6)


def test_an_ensemble_keeps_its_provenance(members: list[Checkpoint], content: bytes, tiny: DataSet) -> None:
    made = read(content)
    assert made.trials == [7, 0, 3]
    assert (made.score_on, made.data_set, made.data_fingerprint) == ("test", tiny.name, tiny.fingerprint)
    assert made.digest == archive.digest_of(content)
    for found, member in zip(made.members, members, strict=True):
        assert (found.hyperparameters, found.seed, found.made_with) == (
            member.hyperparameters,
            member.seed,
            member.made_with,
        )
        assert found.history == member.history[-1:]
        assert checkpoint.weights_digest(found.weights) == checkpoint.weights_digest(member.weights)


def test_load_reads_checkpoints_and_ensembles(
    members: list[Checkpoint], content: bytes, tiny: DataSet, tmp_path: Path
) -> None:
    training = Training(Hyperparameters(architecture="simple", filters=2, epochs=1), 0)
    next(training.epochs(split(tiny, "test")))
    checkpoint.save(tmp_path / "best.pt", training, "test", tiny)
    (tmp_path / "ensemble.pt").write_bytes(content)
    assert isinstance(ensemble.load(tmp_path / "best.pt"), Checkpoint)
    assert isinstance(ensemble.load(tmp_path / "ensemble.pt"), Ensemble)
    with pytest.raises(CheckpointError, match=r"ensemble\.pt: not an fmnist-search checkpoint \("):
        checkpoint.load(tmp_path / "ensemble.pt")
    with pytest.raises(CheckpointError, match=r"absent\.pt: No such file or directory; name a checkpoint"):
        ensemble.load(tmp_path / "absent.pt")


def test_a_damaged_file_is_rejected(content: bytes) -> None:
    for place in range(0, len(content), len(content) // 97):
        changed = bytearray(content)
        changed[place] ^= 1
        assert "damaged" in rejection(bytes(changed))
    for kept in (0, 3, 1000, len(content) // 2, len(content) - 1):
        rejection(content[:kept])
    unsealed = io.BytesIO()
    torch.save(payload_of(content), unsealed)
    assert "damaged" in rejection(unsealed.getvalue())


def repeat_members(payload: dict[str, Any]) -> None:
    payload["members"], payload["trials"] = payload["members"][:1] * 22, [*range(22)]


def share_weights(payload: dict[str, Any]) -> None:
    """Weights that are stored once but would need twice the file's size."""
    payload["members"] = payload["members"][2:] * 2
    payload["trials"] = [0, 1]


CHANGES: list[Callable[[dict[str, Any]], object]] = [
    lambda payload: payload.update(other=1),
    lambda payload: payload.update(format="fmnist-search ensemble 2"),
    lambda payload: payload.update(members=[]),
    lambda payload: payload.update(members=None),
    lambda payload: payload.update(members=[1, 2, 3]),
    lambda payload: payload.update(trials=[0, 1]),
    lambda payload: payload.update(trials=[0, 1, 1]),
    lambda payload: payload.update(trials=[0, 1, -1]),
    lambda payload: payload.update(trials=[0, 1, "2"]),
    lambda payload: payload.update(source=1),
    lambda payload: payload.update(source={"sha256": "0", "text": ""}),
    lambda payload: payload.update(
        members=payload["members"][:1] * (MAX_MEMBERS + 1), trials=[*range(MAX_MEMBERS + 1)]
    ),
    lambda payload: payload["members"][1].update(data_fingerprint="other"),
    lambda payload: payload["members"][1].update(score_on="validation"),
    lambda payload: payload["members"][1].update(tta="auto"),
    lambda payload: payload["members"][1].update(seed=-1),
    lambda payload: payload["members"][1].update(history=[]),
    lambda payload: payload["members"][1].update(weights={}),
    lambda payload: payload["members"][1]["hyperparameters"].update(filters=512),
    lambda payload: payload["members"][2]["hyperparameters"].update(epochs=3),
    repeat_members,
    share_weights,
]


@pytest.mark.parametrize("change", CHANGES)
def test_invalid_content_with_a_valid_digest_is_rejected(
    content: bytes, change: Callable[[dict[str, Any]], object]
) -> None:
    payload = payload_of(content)
    change(payload)
    rejection(archive.write(payload))


def test_an_unfinished_training_run_cannot_be_a_member(tiny: DataSet) -> None:
    training = Training(Hyperparameters(architecture="simple", filters=2, epochs=2), 0)
    next(training.epochs(split(tiny, "test")))
    begun = checkpoint.parse(checkpoint.dump(training, "test", tiny), "begun")
    assert "not valid" in rejection(ensemble.dump([begun], [0]))


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_the_maximum_number_of_members_fits_into_a_file(members: list[Checkpoint], architecture: Any) -> None:
    largest = Hyperparameters(architecture=architecture, filters=1, hidden=1, blocks=4, residual=True, epochs=1)
    weights = build(largest).state_dict()
    many = [
        replace(members[0], hyperparameters=largest, weights={name: value.clone() for name, value in weights.items()})
        for _ in range(MAX_MEMBERS)
    ]
    assert len(read(ensemble.dump(many, [*range(MAX_MEMBERS)])).members) == MAX_MEMBERS


def test_the_source_of_the_users_own_network_is_stored_once(
    tiny: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forget_networks()
    mark = "# a mark in the text\n"
    Path("net.py").write_text(NET + mark)
    own = [
        finished(tiny, seed, architecture="net.py:CNNModel", filters=20, network={}, augmentation_kind=kind)
        for seed, kind in ((0, "flip"), (1, "crop"))
    ]
    content = ensemble.dump(own, [0, 1])
    assert content.count(mark.encode()) == 1
    made = read(content)
    assert made.architecture == "net.py:CNNModel"
    assert [member.source for member in made.members] == [own[0].source] * 2
    probabilities = [evaluate(member.network(), tiny.test).logits.softmax(1) for member in own]
    assert torch.allclose(evaluate(made.network(), tiny.test).logits.exp(), sum(probabilities) / 2, atol=1e-5)


def test_one_onnx_graph_reproduces_the_ensemble(content: bytes, tiny: DataSet, tmp_path: Path) -> None:
    assert write_onnx(read(content), tmp_path / "ensemble.onnx") < 1e-4
    session = InferenceSession(tmp_path / "ensemble.onnx", providers=["CPUExecutionProvider"])
    images = tiny.test.images.to(torch.float32).numpy()
    (found,) = session.run(["logits"], {"images": images})
    expected = evaluate(read(content).network(), tiny.test).logits
    assert (torch.from_numpy(found) - expected).abs().max() < 1e-4
    facts = session.get_modelmeta().custom_metadata_map
    assert '"tta": "mirror"' in facts["members"]
    assert facts["score_on"] == '"test"'
