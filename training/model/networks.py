"""The layers between image and latents: dense ones and residual convolutional ones.

An encoder maps images [N, C, H, W] in [0, 1] to features [N, F], a decoder latents
[N, D] to what the likelihood needs of the pixels, [N, width, H, W]: for Bernoulli pixels their
logits, else their locations. Those of a conditional model also take the class of each row.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.errors import ConfigError
from training.model.by_class import Layers, by_class
from training.model.config import Conv, Counts, Dense

Shape = tuple[int, int, int]

# Only activations with ONNX operators whose result for a row is the same to the bit in every
# batch. Others are left out: onnxruntime's Elu, Selu, Mish, Softplus and Log round the tail of an
# array differently from the rest (measured on 1.32).
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def build_networks(
    config: Dense | Conv, shape: Shape, latent_dim: int, width: int = 0, classes: int = 0
) -> tuple[nn.Module, int, nn.Module]:
    """Builds an encoder and a decoder.

    Args:
        config: Layers of the networks.
        shape: C, H and W.
        latent_dim: D.
        width: Channels of the decoder's output; 0 for C.
        classes: Number of classes that the networks are conditioned on; 0 for none.

    Returns:
        The encoder, its number of output features F, and the decoder.

    Raises:
        ConfigError: The config names an unknown activation.
    """
    width = width or shape[0]
    if isinstance(config, Dense):
        widths = [units for units, _ in config.layers]
        activations = [activation for _, activation in config.layers]
        layers = _dense([math.prod(shape), *widths], activations, classes)
        encoder = Layers(nn.Flatten(1), *layers)
        decoder = DenseDecoder(
            widths[::-1], activations[::-1], (width, *shape[1:]), latent_dim, classes
        )
        return encoder, widths[-1], decoder
    levels = _Levels(shape, config)
    convolutions = ConvEncoder(config, levels, classes)
    return (
        convolutions,
        convolutions.features,
        ConvDecoder(config, levels, latent_dim, width, classes),
    )


def build_head(
    config: Dense | Conv, shape: Shape, features: int, latent_dim: int
) -> nn.Linear | nn.Conv2d:
    """Builds a layer from an encoder's features [N, F] to a value for each latent, [N, D].

    Args:
        config: Layers of the networks.
        shape: C, H and W.
        features: F.
        latent_dim: D.
    """
    if isinstance(config, Conv) and config.latents == "spatial":
        return SpatialHead(_Levels(shape, config), features, latent_dim)
    return nn.Linear(features, latent_dim)


class DenseDecoder(nn.Module):
    """Fully connected layers from latents to logits.

    Args:
        widths: Width of each hidden layer.
        activations: Name of the activation after each hidden layer.
        shape: C, H and W.
        latent_dim: D.
        classes: Number of classes that it is conditioned on; 0 for none.
    """

    def __init__(
        self,
        widths: Sequence[int],
        activations: Sequence[str],
        shape: Shape,
        latent_dim: int,
        classes: int = 0,
    ):
        super().__init__()
        self.hidden = Layers(*_dense([latent_dim, *widths], activations, classes))
        self.to_logits = nn.Linear(widths[-1], math.prod(shape))
        self.shape = shape

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Maps latents [N, D], and classes int64 [N] if conditioned, to logits [N, C, H, W]."""
        logits: Tensor = self.to_logits(self.hidden(z, label))
        return logits.reshape(-1, *self.shape)


class _Levels:
    """The resolutions of an image down to its coarsest level, each half of the previous one.

    Args:
        shape: C, H and W of the image.
        config: Its `patch` and `coarsest`.

    Attributes:
        shape: C, H and W of the image.
        patch: Side of the squares of pixels that become channels before the first level: the
            configured one, or less if the image is so small.
        count: Number of levels.
        coarse: Height and width of the coarsest level.
        padding: Rows and columns to add to the image so that every halving is exact.
    """

    def __init__(self, shape: Shape, config: Conv):
        self.shape = shape
        halvings = max(0, math.ceil(math.log2(max(shape[1:]) / config.coarsest)))
        unit: int = 2**halvings
        self.patch = min(config.patch, unit)
        self.count: int = round(math.log2(unit // self.patch)) + 1
        self.coarse: tuple[int, int] = (
            math.ceil(shape[1] / unit),
            math.ceil(shape[2] / unit),
        )
        self.padding = (self.coarse[0] * unit - shape[1], self.coarse[1] * unit - shape[2])

    def features(self, width: int) -> int:
        """Number of elements of the coarsest level with `width` channels."""
        height, breadth = self.coarse
        return width * height * breadth

    def channels(self, latent_dim: int) -> int:
        """Number of channels that D latents take as one value for each position.

        Raises:
            ConfigError: There are fewer latents than positions.
        """
        positions = math.prod(self.coarse)
        if latent_dim < positions:
            height, width = self.coarse
            raise ConfigError(
                f"latent_dim: got {latent_dim}, wanted at least {positions}, one for each of the "
                f"{height} x {width} positions of spatial latents"
            )
        return math.ceil(latent_dim / positions)


class SpatialHead(nn.Conv2d):
    """A layer from the features of each position to the latents of that position."""

    def __init__(self, levels: _Levels, features: int, latent_dim: int):
        super().__init__(features // math.prod(levels.coarse), levels.channels(latent_dim), 1)
        self.coarse, self.latent_dim = levels.coarse, latent_dim

    def forward(self, features: Tensor) -> Tensor:
        """Maps features [N, F] to [N, D]."""
        values = super().forward(features.reshape(-1, self.in_channels, *self.coarse)).flatten(1)
        return values[:, : self.latent_dim]


class SpatialStem(nn.Conv2d):
    """A layer from the latents of each position and its neighbours to features of it."""

    def __init__(self, levels: _Levels, latent_dim: int, width: int):
        super().__init__(levels.channels(latent_dim), width, 3, padding=1)
        self.coarse = levels.coarse
        self.missing = self.in_channels * math.prod(levels.coarse) - latent_dim

    def forward(self, z: Tensor) -> Tensor:
        """Maps latents [N, D] to features [N, F]."""
        if self.missing:
            z = F.pad(z, (0, self.missing))
        return super().forward(z.reshape(-1, self.in_channels, *self.coarse)).flatten(1)


class ConvEncoder(nn.Module):
    """Residual blocks at each resolution; from one to the next, 2 x 2 pixels become channels.

    If it is conditioned on the class, this scales and shifts the channels of each level, and the
    features.

    Args:
        config: Widths and blocks.
        levels: The resolutions.
        classes: Number of classes that it is conditioned on; 0 for none.

    Attributes:
        features: F, the number of output features.
    """

    def __init__(self, config: Conv, levels: _Levels, classes: int = 0):
        super().__init__()
        self.padding = levels.padding
        coarsest_first = range(levels.count)
        widths = [_at(config.widths, level) for level in coarsest_first][::-1]
        blocks = [_at(config.encoder_blocks, level) for level in coarsest_first][::-1]
        self.patch = levels.patch
        self.stem = nn.Conv2d(levels.shape[0] * levels.patch**2, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            _blocks(count, width, config.activation)
            for width, count in zip(widths, blocks, strict=True)
        )
        self.downs = nn.ModuleList(
            nn.Conv2d(4 * fine, coarse, 1) for fine, coarse in pairwise(widths)
        )
        self.activation = _activation(config.activation)
        self.transition = _transition(config)
        # Half of the channels suffice for the dense layer, which has most of the weights.
        self.squeeze = nn.Conv2d(widths[-1], widths[-1] // 2, 1)
        squeezed = levels.features(widths[-1] // 2)
        self.features = config.encoder_trunk or squeezed
        self.trunk = nn.Linear(squeezed, config.encoder_trunk) if config.encoder_trunk else None
        self.by_class = by_class(classes, [*widths, self.features])

    def forward(self, images: Tensor, label: Tensor | None = None) -> Tensor:
        """Maps images [N, C, H, W], and classes int64 [N] if conditioned, to features [N, F]."""
        rows, columns = self.padding
        if rows or columns:
            images = F.pad(images, (0, columns, 0, rows))
        hidden = self.stem(F.pixel_unshuffle(images, self.patch) if self.patch > 1 else images)
        for index, stage in enumerate(self.stages):
            if index:
                hidden = self.downs[index - 1](F.pixel_unshuffle(self.transition(hidden), 2))
            hidden = stage(self._given(hidden, label, index))
        squeezed: Tensor = self.squeeze(self.transition(hidden))
        if self.trunk is None:
            return self._given(squeezed.flatten(1), label, -1)
        features: Tensor = self.trunk(self.activation(squeezed).flatten(1))
        activated: Tensor = self.activation(self._given(features, label, -1))
        return activated

    def _given(self, x: Tensor, label: Tensor | None, index: int) -> Tensor:
        """Features of a level, or the last ones, by the class if there is one."""
        given: Tensor = self.by_class[index](x, label) if len(self.by_class) else x
        return given


class ConvDecoder(nn.Module):
    """Residual blocks at each resolution; from one to the next, channels become 2 x 2 pixels.

    It is the encoder's mirror image. Channels become pixels by pixel shuffle (Shi et al. 2016).
    If it is conditioned on the class, this scales and shifts the features of the hidden layer, each
    value of the coarsest level, where a class has a shape, and the channels of the finer levels.

    Args:
        config: Widths and blocks.
        levels: The resolutions.
        latent_dim: D.
        width: Channels of the output.
        classes: Number of classes that it is conditioned on; 0 for none.
    """

    def __init__(
        self, config: Conv, levels: _Levels, latent_dim: int, width: int, classes: int = 0
    ):
        super().__init__()
        self.shape = levels.shape
        self.coarse = levels.coarse
        coarsest_first = range(levels.count)
        widths = [_at(config.widths, level) for level in coarsest_first]
        blocks = [_at(config.decoder_blocks, level) for level in coarsest_first]
        self.patch = levels.patch
        # The ELBO is 1.9 nats worse on MNIST after seven epochs without the hidden layer, as the
        # blocks alone then have to place the strokes.
        trunk = config.decoder_trunk
        hidden = _dense([latent_dim, trunk], [config.activation], classes) if trunk else []
        coarse = levels.features(widths[0])
        first = (
            SpatialStem(levels, latent_dim, widths[0])
            if config.latents == "spatial"
            else nn.Linear(trunk or latent_dim, coarse)
        )
        self.stem = Layers(*hidden, first, *by_class(classes, [coarse]))
        self.stages = nn.ModuleList(
            _blocks(count, width, config.activation)
            for width, count in zip(widths, blocks, strict=True)
        )
        self.ups = nn.ModuleList(
            nn.Conv2d(coarse, 4 * fine, 1) for coarse, fine in pairwise(widths)
        )
        self.to_logits = nn.Conv2d(widths[-1], width * levels.patch**2, 3, padding=1)
        self.activation = _activation(config.activation)
        self.transition = _transition(config)
        self.by_class = by_class(classes, widths[1:])

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Maps latents [N, D], and classes int64 [N] if conditioned, to logits [N, C, H, W]."""
        hidden = self.stem(z, label).unflatten(1, (-1, *self.coarse))
        for index, stage in enumerate(self.stages):
            if index:
                hidden = F.pixel_shuffle(self.ups[index - 1](self.transition(hidden)), 2)
                if len(self.by_class):
                    hidden = self.by_class[index - 1](hidden, label)
            hidden = stage(hidden)
        logits: Tensor = self.to_logits(self.activation(hidden))
        if self.patch > 1:
            logits = F.pixel_shuffle(logits, self.patch)
        _, height, width = self.shape
        return logits[:, :, :height, :width] if logits.shape[2:] != (height, width) else logits


class _Block(nn.Module):
    """A residual block, x + f(x). Its last convolution begins at zero, so f(x) is 0 at first."""

    def __init__(self, width: int, activation: str):
        super().__init__()
        self.activation = _activation(activation)
        self.first = nn.Conv2d(width, width // 2, 3, padding=1)
        self.last = nn.Conv2d(width // 2, width, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.last(self.activation(self.first(self.activation(x))))
        return x + change


def count_multiply_adds(network: nn.Module, example: Tensor) -> int:
    """Counts the multiply-adds of a forward pass; each is two floating-point operations.

    Args:
        network: A network; only its linear and convolutional layers are counted.
        example: An input of one row.
    """
    total = 0

    def count(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        per_output = layer.weight[0].numel()
        total += per_output * output.numel()

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.inference_mode():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return total


def _at(values: Counts, level: int) -> int:
    """The value of a level, counted from the coarsest; finer levels have the last value."""
    return values[min(level, len(values) - 1)]


def _blocks(count: int, width: int, activation: str) -> nn.Sequential:
    return nn.Sequential(*(_Block(width, activation) for _ in range(count)))


def _transition(config: Conv) -> nn.Module:
    linear = config.transitions == "linear"
    return nn.Identity() if linear else _activation(config.activation)


def _activation(name: str) -> nn.Module:
    if name not in _ACTIVATIONS:
        raise ConfigError(f"activation: got {name!r}, wanted one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def _dense(widths: Sequence[int], activations: Sequence[str], classes: int = 0) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs, name in zip(widths[:-1], widths[1:], activations, strict=True):
        layers += [nn.Linear(inputs, outputs), *by_class(classes, [outputs]), _activation(name)]
    return layers
