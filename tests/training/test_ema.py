"""The moving average of weights, compared with torch's AveragedModel."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from training.ema import MovingAverage

DECAY = 0.9


def torchs(model: nn.Module) -> AveragedModel:
    def update(average, current, count):
        memory = min(DECAY, (1.0 + float(count)) / (10.0 + float(count)))
        torch._foreach_lerp_(average, current, 1.0 - memory)

    return AveragedModel(model, multi_avg_fn=update)


def test_the_average_has_the_bits_and_the_state_of_torchs_averaged_model():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    own, other = MovingAverage(model, DECAY), torchs(model)
    for _ in range(30):
        model(torch.randn(8, 4))  # changes the buffers
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        own.update()
        other.update_parameters(model)
        for name, value in other.state_dict().items():
            assert torch.equal(own.state_dict()[name], value), name
    assert list(own.state_dict()) == list(other.state_dict())
    fresh = MovingAverage(model, DECAY)
    fresh.load_state_dict(other.state_dict())
    own.update()
    fresh.update()
    for name, value in own.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_the_average_with_decay_0_is_the_model():
    model = nn.Linear(2, 2)
    own = MovingAverage(model, 0.0)
    for _ in range(3):
        with torch.no_grad():
            model.weight.add_(1.0)
        own.update()
    assert torch.equal(own.module.weight, model.weight)
    assert not own.training
