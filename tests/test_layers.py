import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fmnist.architectures.layers import Dropout, FlattenPixels, MaxPool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 28, 28), (2, 16, 14, 6), (2, 3, 7, 7)])
def test_max_pool_and_its_gradient_equal_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images = torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)
    ours, theirs = (images.clone().requires_grad_() for _ in range(2))
    pooled, expected = MaxPool()(ours), F.max_pool2d(theirs, 2)
    assert torch.equal(pooled, expected)
    assert pooled.is_contiguous(memory_format=torch.channels_last)
    gradient = torch.randn_like(expected)
    pooled.backward(gradient)
    expected.backward(gradient)
    windows = expected.detach().repeat_interleave(2, 2).repeat_interleave(2, 3)
    height, width = windows.shape[2:]
    alone = (images[:, :, :height, :width] == windows).to(torch.float32)
    single = (F.avg_pool2d(alone, 2) == 0.25).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert single.float().mean() > 0.9
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad[:, :, :height, :width][single], theirs.grad[:, :, :height, :width][single])
    assert torch.equal(F.avg_pool2d(ours.grad.float(), 2) * 4, gradient.float())


def test_max_pool_gives_the_gradient_to_one_of_equal_pixels() -> None:
    images = torch.zeros(1, 1, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    MaxPool()(images).backward(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    assert images.grad is not None
    assert sorted(images.grad.flatten().tolist()) == [0] * 12 + [1, 2, 3, 4]
    assert torch.equal(F.avg_pool2d(images.grad, 2) * 4, torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))


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


def test_dropout_does_nothing_in_evaluation_or_at_0() -> None:
    features = torch.randn(7, 9)
    assert torch.equal(Dropout(0.5).eval()(features), features)
    assert torch.equal(Dropout(0.0)(features), features)
