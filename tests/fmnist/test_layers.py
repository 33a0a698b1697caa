import pytest
import torch
from torch import nn

from fmnist.architectures.layers import Dropout, FlattenPixels


def test_flatten_keeps_every_pixel_without_a_copy() -> None:
    images = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last)
    flat = FlattenPixels()(images)
    assert flat.data_ptr() == images.data_ptr()
    assert torch.equal(flat, nn.Flatten()(images.permute(0, 2, 3, 1)))


@pytest.mark.parametrize("probability", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_the_stated_share_and_scales_the_rest(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    features = torch.ones(1001, 333, dtype=dtype, requires_grad=True)  # not a multiple of four elements
    dropped = Dropout(probability)(features)
    values = dropped.detach().float()
    assert sorted(values.unique().tolist()) == pytest.approx([0, 1 / (1 - probability)], rel=0.004)
    assert abs((values == 0).float().mean() - probability) < 0.003  # 4 standard errors
    rows = (values == 0).float().mean(dim=0)
    assert rows.std() == pytest.approx((probability * (1 - probability) / 1001) ** 0.5, rel=0.2)
    dropped.sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, dropped.detach())


def test_dropout_close_to_1_drops_nearly_everything() -> None:
    assert (Dropout(1 - 2**-20)(torch.ones(10_000)) == 0).float().mean() > 0.99


def test_dropout_does_nothing_in_evaluation_or_at_0() -> None:
    features = torch.randn(7, 9)
    assert torch.equal(Dropout(0.5).eval()(features), features)
    assert torch.equal(Dropout(0.0)(features), features)
