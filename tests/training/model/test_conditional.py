"""Conditional models: what the class changes, and what it leaves as it is."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.untrained import CONV, DENSE, PATCHES
from training.errors import ConfigError
from training.model.by_class import ByClass
from training.model.config import Conv, Dense, ModelConfig, PriorConfig
from training.model.likelihood import level_counts
from training.model.vae import Vae

SHAPE, CLASSES = (1, 9, 6), 4
NETWORKS = {"dense": DENSE, "conv": CONV, "without trunks": PATCHES}


def vae(network: Dense | Conv, *, conditional: bool = True, **changes: Any) -> Vae:
    torch.manual_seed(0)
    config = ModelConfig(network, 3, conditional=conditional, **changes)
    model = Vae(config, SHAPE, CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("spatial", [False, True])
def test_features_are_scaled_and_shifted_by_the_row_of_their_class(spatial: bool) -> None:
    layer = ByClass(3, 5)
    nn.init.normal_(layer.scale)
    x = torch.randn(7, 5, 2, 3) if spatial else torch.randn(7, 5)
    label = torch.tensor([2, 0, 1, 1, 2, 0, 2])
    got = layer(x, label)
    for row, each in enumerate(label):
        for channel in range(5):
            scale, shift = layer.scale[each, channel], layer.shift[each, channel]
            torch.testing.assert_close(got[row, channel], x[row, channel] * (1 + scale) + shift)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_encoder_and_decoder_depend_on_the_class_of_each_row_alone(network: Dense | Conv) -> None:
    model = vae(network)
    images, z = torch.rand(1, *SHAPE), torch.randn(1, 3)
    every = torch.arange(CLASSES)
    with torch.inference_mode():
        mean = model.encode(images.repeat(CLASSES, 1, 1, 1), every).mean
        output = model.decode(z.repeat(CLASSES, 1), every)
        for label in range(CLASSES):
            alone = torch.tensor([label])
            torch.testing.assert_close(model.encode(images, alone).mean[0], mean[label])
            torch.testing.assert_close(model.decode(z, alone)[0], output[label])
            for other in range(label):
                assert (mean[label] - mean[other]).abs().max() > 1e-3
                assert (output[label] - output[other]).abs().max() > 1e-3


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_a_class_without_rows_gets_no_gradient(network: Dense | Conv) -> None:
    model = vae(network)
    label = torch.tensor([0, 2, 2])
    z = model.encode(torch.rand(3, *SHAPE), label).mean
    model.decode(z, label).square().sum().backward()
    tables = [layer for layer in model.modules() if isinstance(layer, ByClass)]
    assert tables
    for table in tables:
        for weight in (table.scale, table.shift):
            assert weight.grad is not None
            rows = weight.grad.abs().amax(dim=1) > 0
            assert rows.tolist() == [True, False, True, False]


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_other_models_have_the_weights_they_had_and_look_at_no_class(
    network: Dense | Conv,
) -> None:
    plain, conditional = vae(network, conditional=False), vae(network)
    assert not [layer for layer in plain.modules() if isinstance(layer, ByClass)]
    assert "class_counts" not in plain.state_dict()
    assert (plain.labels, plain.class_weights) == (0, ())
    sizes = [sum(p.numel() for p in model.parameters()) for model in (plain, conditional)]
    tables = [layer for layer in conditional.modules() if isinstance(layer, ByClass)]
    assert sizes[1] - sizes[0] == sum(2 * layer.scale.numel() for layer in tables)
    images, label = torch.rand(2, *SHAPE), torch.tensor([0, 3])
    with torch.inference_mode():
        assert torch.equal(plain.encode(images, label).mean, plain.encode(images).mean)
        z = plain.encode(images).mean
        assert torch.equal(plain.decode(z, label), plain.decode(z))


def test_the_prior_of_a_conditional_model_is_of_all_classes() -> None:
    prior = PriorConfig("gmm", components=8)
    conditional, plain = (vae(DENSE, conditional=each, prior=prior) for each in (True, False))
    assert conditional.prior is not None
    assert plain.prior is not None
    assert (conditional.prior.classes, conditional.labels) == (0, CLASSES)
    assert len(conditional.prior.logits) == 8
    assert (plain.prior.classes, plain.labels) == (CLASSES, CLASSES)


def test_the_shares_of_the_classes_are_those_of_the_training_images() -> None:
    model = vae(DENSE)
    images = np.zeros((10, *SHAPE), np.uint8)
    labels = np.array([0, 3, 3, 1, 0, 3, 3, 3, 0, 3])
    model.begin(level_counts(images), labels)
    assert model.class_counts.tolist() == [3, 1, 0, 6]
    assert model.class_weights == (0.3, 0.1, 0.0, 0.6)
    again = vae(DENSE)
    again.load_state_dict(model.state_dict())
    assert again.class_weights == model.class_weights


def test_data_without_classes_is_refused() -> None:
    config = dataclasses.replace(ModelConfig(DENSE, 2), conditional=True)
    wanted = "conditional: got true, wanted false: the data has no classes"
    with pytest.raises(ConfigError, match=wanted):
        Vae(config, SHAPE, 0)
