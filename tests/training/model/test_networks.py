"""Dense and convolutional networks: shapes, receptive fields, widths, cost, activations."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.untrained import PATCHES
from training.errors import ConfigError
from training.model.config import Conv, Dense
from training.model.networks import _ACTIVATIONS, build_networks, count_multiply_adds
from training.presets import PRESETS

CONV = Conv((6, 4), (1, 1), (1, 1), encoder_trunk=9, decoder_trunk=7)
DENSE = Dense(((11, "relu"), (7, "tanh"), (5, "gelu")))

shapes = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))
counts = st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple)
convs = st.builds(
    Conv,
    widths=st.lists(st.integers(2, 6), min_size=1, max_size=4).map(tuple),
    encoder_blocks=counts,
    decoder_blocks=counts,
    encoder_trunk=st.integers(0, 5),
    decoder_trunk=st.integers(0, 5),
    activation=st.sampled_from(sorted(_ACTIVATIONS)),
    patch=st.sampled_from([1, 2, 4, 8]),
    coarsest=st.integers(1, 8),
    transitions=st.sampled_from(["activated", "linear"]),
)


def seeded(config: Dense | Conv, shape: tuple[int, int, int], latent_dim: int):
    torch.manual_seed(0)
    return build_networks(config, shape, latent_dim)


@settings(max_examples=60)
@given(st.just(DENSE) | convs, shapes, st.integers(1, 4), st.integers(1, 3))
def test_networks_take_images_of_any_shape_and_return_logits_of_that_shape(
    config: Dense | Conv, shape: tuple[int, int, int], latent_dim: int, rows: int
) -> None:
    encoder, features, decoder = seeded(config, shape, latent_dim)
    with torch.inference_mode():
        assert encoder(torch.rand(rows, *shape)).shape == (rows, features)
        assert decoder(torch.randn(rows, latent_dim)).shape == (rows, *shape)


@settings(max_examples=25)
@given(st.sampled_from([DENSE, CONV, PATCHES]), shapes)
def test_every_pixel_affects_the_features_and_depends_on_the_latents(
    config: Dense | Conv, shape: tuple[int, int, int]
) -> None:
    """At the edges too, where the encoder pads and the decoder crops."""
    encoder, _, decoder = seeded(config, shape, 3)
    encoder, decoder = encoder.double(), decoder.double()
    for module in [*encoder.modules()]:
        # An activation with a non-zero gradient everywhere, so that no path is cut by chance.
        for name, child in module.named_children():
            if type(child) in (nn.ReLU, nn.SiLU, nn.GELU):
                setattr(module, name, nn.Tanh())
    images = torch.rand(2, *shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(encoder(images).shape, dtype=torch.float64)
    (encoder(images) * weights).sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).all()
    logits = decoder(torch.randn(50, 3, dtype=torch.float64))
    assert (logits.std(dim=0) > 0).all()


@pytest.mark.parametrize(
    ("shape", "coarse", "stages"),
    [
        ((1, 28, 28), (7, 7), 2),
        ((3, 32, 32), (8, 8), 2),
        ((1, 33, 33), (5, 5), 3),
        ((1, 16, 16), (8, 8), 1),
        ((1, 9, 3), (5, 2), 1),
        ((1, 8, 8), (8, 8), 1),
        ((1, 1, 1), (1, 1), 1),
        ((1, 1, 64), (1, 8), 3),
    ],
)
def test_an_image_is_halved_until_it_is_at_most_8_wide(
    shape: tuple[int, int, int], coarse: tuple[int, int], stages: int
) -> None:
    encoder, _, decoder = build_networks(CONV, shape, 2)
    assert decoder.coarse == coarse
    assert len(encoder.stages) == len(decoder.stages) == stages


@pytest.mark.parametrize(
    ("shape", "patch", "folded", "coarse", "stages"),
    [
        ((3, 64, 64), 1, 1, (4, 4), 5),
        ((3, 64, 64), 4, 4, (4, 4), 3),
        ((3, 64, 64), 32, 16, (4, 4), 1),
        ((3, 128, 128), 4, 4, (4, 4), 4),
        ((3, 32, 32), 4, 4, (4, 4), 2),
        ((3, 40, 72), 4, 4, (2, 3), 4),
        ((1, 4, 4), 4, 1, (4, 4), 1),
        ((1, 6, 3), 4, 2, (3, 2), 1),
    ],
)
def test_patches_become_channels_before_the_first_layer_and_pixels_after_the_last(
    shape: tuple[int, int, int], patch: int, folded: int, coarse: tuple[int, int], stages: int
) -> None:
    config = dataclasses.replace(PATCHES, patch=patch)
    encoder, _, decoder = build_networks(config, shape, 2)
    assert decoder.coarse == coarse
    assert len(encoder.stages) == len(decoder.stages) == stages
    channels = shape[0] * folded**2
    assert encoder.stem.in_channels == decoder.to_logits.out_channels == channels


def test_without_trunks_the_latents_are_next_to_the_coarsest_level() -> None:
    encoder, features, decoder = build_networks(PATCHES, (3, 40, 72), 5)
    assert features == 6 * 2 * 3  # half of the 12 channels, 2 x 3 positions
    assert shape_of(decoder.stem) == [(5, 12 * 2 * 3)]
    assert not [layer for layer in encoder.modules() if isinstance(layer, nn.Linear)]


def test_linear_transitions_lead_through_linear_layers_alone() -> None:
    """Without blocks, whose ends are zero at first, the features are linear in the image."""
    encoder, _, decoder = seeded(PATCHES, (3, 20, 20), 5)
    one, other = torch.rand(2, 1, 3, 20, 20)
    mean = encoder((one + other) / 2)
    torch.testing.assert_close(mean, (encoder(one) + encoder(other)) / 2)
    assert not [layer for layer in decoder.stem.modules() if isinstance(layer, nn.SiLU)]
    activated = dataclasses.replace(PATCHES, transitions="activated")
    encoder, _, _ = seeded(activated, (3, 20, 20), 5)
    mean = encoder((one + other) / 2)
    assert not torch.allclose(mean, (encoder(one) + encoder(other)) / 2, atol=1e-3)


def test_widths_and_blocks_belong_to_the_coarsest_level_first_and_the_last_to_the_rest() -> None:
    config = Conv((8, 6, 4), (3, 0), (2, 1, 0), encoder_trunk=9, decoder_trunk=7)
    encoder, _, decoder = build_networks(config, (1, 128, 128), 2)  # four halvings
    assert [len(stage) for stage in decoder.stages] == [2, 1, 0, 0]
    assert [len(stage) for stage in encoder.stages] == [0, 0, 0, 3]
    assert [up.in_channels for up in decoder.ups] == [8, 6, 4]
    assert decoder.to_logits.in_channels == encoder.stem.out_channels == 4
    assert encoder.squeeze.in_channels == 8


def test_residual_blocks_begin_as_the_identity_and_have_gradients() -> None:
    shape = (1, 28, 28)
    encoder, _, decoder = seeded(CONV, shape, 2)
    images, z = torch.rand(3, *shape), torch.randn(3, 2)
    networks = (encoder, decoder)
    blocks = [block for network in networks for stage in network.stages for block in stage]
    assert len(blocks) == 4
    before = [encoder(images), decoder(z)]
    for block in blocks:
        assert block.last.weight.abs().sum() == block.last.bias.abs().sum() == 0
        x = torch.randn(2, block.first.in_channels, 7, 7)
        assert torch.equal(block(x), x)
    sum(output.square().sum() for output in before).backward()
    for block in blocks:
        assert block.last.weight.grad.abs().sum() > 0
    for network in networks:
        for index in range(len(network.stages)):
            network.stages[index] = nn.Sequential()
    for old, new in zip(before, (encoder(images), decoder(z)), strict=True):
        assert torch.equal(old, new)


def shape_of(stack: nn.Sequential) -> list[tuple[int, int] | str]:
    return [
        (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear)
        else type(layer).__name__
        for layer in stack
    ]  # fmt: skip


def test_a_dense_decoder_is_the_mirror_image_of_the_encoder() -> None:
    encoder, features, decoder = build_networks(DENSE, (1, 4, 3), 3)
    assert shape_of(encoder) == ["Flatten", (12, 11), "ReLU", (11, 7), "Tanh", (7, 5), "GELU"]
    assert features == 5
    assert shape_of(decoder.hidden) == [(3, 5), "GELU", (5, 7), "Tanh", (7, 11), "ReLU"]
    assert shape_of([decoder.to_logits]) == [(11, 12)]


def test_multiply_adds_are_those_counted_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1),  # 4 x 6 positions, 5 channels of 2 x 3 x 3
        nn.ReLU(),
        nn.Conv2d(5, 3, 1),  # 4 x 6 positions, 3 channels of 5
        nn.Flatten(),
        nn.Linear(72, 10),
    )
    wanted = 24 * 5 * 18 + 24 * 3 * 5 + 72 * 10
    assert count_multiply_adds(network, torch.zeros(1, 2, 4, 6)) == wanted
    assert count_multiply_adds(network, torch.zeros(1, 2, 4, 6)) == wanted
    assert not any(layer._forward_hooks for layer in network)


def test_the_flagship_decoder_is_at_most_10_mflop() -> None:
    model = PRESETS["conv"].model
    _, _, decoder = build_networks(model.network, (1, 28, 28), model.latent_dim)
    cost = count_multiply_adds(decoder, torch.zeros(1, model.latent_dim))
    assert 2_000_000 < cost <= 5_000_000


@pytest.mark.parametrize("shape", [(3, 64, 64), (3, 128, 128)])
def test_photo_has_at_most_three_fifths_of_the_multiply_adds_of_conv(
    shape: tuple[int, int, int],
) -> None:
    costs = {}
    for name in ("conv", "photo"):
        model = PRESETS[name].model
        encoder, _, decoder = build_networks(model.network, shape, model.latent_dim)
        costs[name] = count_multiply_adds(encoder, torch.zeros(1, *shape))
        costs[name] += count_multiply_adds(decoder, torch.zeros(1, model.latent_dim))
    assert costs["photo"] <= 0.6 * costs["conv"]


@pytest.mark.parametrize("name", ["elu", "selu", "mish", "softplus", "swishy", "", "ReLU"])
@pytest.mark.parametrize("kind", [Dense, Conv])
def test_an_activation_that_is_unknown_or_not_batch_invariant_is_refused(
    name: str, kind: type
) -> None:
    config = (
        Dense(((8, "relu"), (8, name))) if kind is Dense else Conv((4,), (1,), (1,), 3, 3, name)
    )
    with pytest.raises(ConfigError, match=r"activation: got .*, wanted one of gelu") as caught:
        build_networks(config, (1, 28, 28), 2)
    assert repr(name) in str(caught.value)
