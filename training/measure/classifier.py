"""The MNIST classifier whose features and predictions measure the quality of samples.

A small convolutional network, trained on grey and on binarized digits. Its weights are
kept next to the code and pinned by their checksum, because Fréchet distances are
comparable only between features of the same classifier. `make classifier` retrains it, and
gives the same bytes on the same type of CPU and version of torch. If the weights change,
all published figures have to be measured again.
"""

import copy
import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from common.pixels import to_unit
from latentserve._files import atomic_write
from training.data.datasets import Dataset, Split, load_dataset
from training.data.targets import binarize
from training.errors import DataError, TrainingError
from training.measure.fid import frechet_distance

Array = NDArray[np.float32]

WEIGHTS = Path(__file__).parent / "classifiers" / "mnist.npz"
SHA256 = "ce47cbe1f475ed94655c4209ab91d85276922e747d02095acc347aef634aa9b9"

#: Fréchet distance between the first 10,000 training images and the 10,000 test images.
#: The features are scaled so that the distance has this value, which only sets their unit.
FLOOR = 0.10

STEPS = 7_722  # 18 epochs of the training split

_CHUNK = 100  # larger chunks do not fit in the CPU's caches
_BATCH = 128
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 0.05
_VALIDATION_SEED = 1
_TEST_SEED = 0

# Bounds of the random affine maps: each parameter is uniform in [-bound, bound].
_TURN = 0.2  # radians
_STRETCH = 0.12  # logarithm of the scale of each axis
_SHEAR = 0.15
_SHIFT = 2.0 / 14.0  # two pixels, as a share of half the image


class Network(nn.Module):
    """Four convolutions and two dense layers, from digits to features and logits."""

    feature_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(1, 32, 5),
            nn.MaxPool2d(2),
            *_convolution(32, 32, 3),
            nn.MaxPool2d(2),
            *_convolution(32, 64, 3),
            *_convolution(64, 64, 3),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 96),
            nn.ReLU(),
        )
        self.head = nn.Linear(96, 10)
        self.register_buffer("feature_scale", torch.ones(()))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images [N, 1, 28, 28] in [0, 1] to features [N, 96] and logits [N, 10]."""
        hidden = self.body(images)
        return hidden * self.feature_scale, self.head(hidden)


class Classifier:
    """Classifies digits, grey or binarized.

    Args:
        network: The trained network; it is copied.
    """

    def __init__(self, network: Network):
        self._network = copy.deepcopy(network).eval()
        layers: list[nn.Module] = []
        for layer in self._network.body:
            # Batch normalization took half the time; folded into the convolutions, none.
            if isinstance(layer, nn.BatchNorm2d):
                convolution = layers.pop()
                assert isinstance(convolution, nn.Conv2d)
                layer = fuse_conv_bn_eval(convolution, layer)
            layers.append(layer)
        self._network.body = nn.Sequential(*layers)

    @torch.inference_mode()
    def __call__(self, images: Array) -> tuple[Array, Array]:
        """Classifies images.

        Args:
            images: float32 [N, 1, 28, 28] in [0, 1].

        Returns:
            The features, float32 [N, 96]: activations before the last layer, scaled so that
            the distance described at `FLOOR` has that value. And the probabilities of the ten
            digits, float32 [N, 10].
        """
        # torch warns of arrays that are not writable.
        rows = torch.from_numpy(np.require(images, np.float32, ["C", "W"]))
        chunks = [self._network(chunk) for chunk in torch.split(rows, _CHUNK)]
        features = torch.cat([part for part, _ in chunks])
        logits = torch.cat([part for _, part in chunks])
        return features.numpy(), logits.softmax(dim=1).numpy()


def load_classifier(path: Path = WEIGHTS) -> Classifier:
    """Loads the classifier, after checking the SHA-256 of its weights.

    Args:
        path: Path of the weights.

    Raises:
        DataError: The file cannot be read or has another checksum.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    sha256 = hashlib.sha256(raw).hexdigest()
    if sha256 != SHA256:
        raise DataError(f"{path}: got SHA-256 {sha256}, wanted {SHA256}; damaged or another file")
    return Classifier(unpack(raw))


def accuracy(judge: Classifier, images: Array, labels: NDArray[np.int64]) -> float:
    """Share of images float32 [N, 1, 28, 28] classified as their labels, int64 [N]."""
    return float((judge(images)[1].argmax(axis=1) == labels).mean())


def train(
    dataset: Dataset,
    *,
    steps: int = STEPS,
    seed: int = 0,
    report: Callable[[str], None] = lambda _line: None,
) -> Network:
    """Trains a classifier on the training split, half of each batch freshly binarized.

    Args:
        dataset: MNIST.
        steps: Length of the training, in batches of 128.
        seed: Seed of the initial weights, the batches, the affine maps and the binarization.
        report: Called after each epoch with the accuracy on the validation split.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network()
    random = torch.Generator().manual_seed(seed)
    images = torch.from_numpy(dataset.train.images[:].copy())
    labels = torch.from_numpy(np.array(dataset.train.labels))
    steps_per_epoch = len(images) // _BATCH
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=_WEIGHT_DECAY, fused=True)
    # Warm-up, then annealing to nearly 0 (Smith and Topin 2018).
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.2
    )
    for step in range(steps):
        index = step % steps_per_epoch
        if index == 0:
            order = torch.randperm(len(images), generator=random)
        chosen = order[index * _BATCH : (index + 1) * _BATCH]
        batch = _augmented(images[chosen].float().div_(255.0), random)
        loss = F.cross_entropy(network(batch)[1], labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if index == steps_per_epoch - 1:
            accuracies = _accuracies(Classifier(network), dataset.validation, _VALIDATION_SEED)
            report(f"step {step + 1} of {steps}: validation accuracy {accuracies}")
    return network


def pack(network: Network) -> bytes:
    """Serialises the weights as an .npz file, rounded to half precision."""
    buffer = io.BytesIO()
    state = {
        name: value.numpy().astype(np.float16)
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")  # unused after training
    }
    np.savez_compressed(buffer, **state)
    return buffer.getvalue()


def unpack(raw: bytes) -> Network:
    """Deserialises the weights, the inverse of `pack`."""
    network = Network()
    with np.load(io.BytesIO(raw), allow_pickle=False) as state:
        network.load_state_dict(
            {name: torch.from_numpy(value.astype(np.float32)) for name, value in state.items()}
        )
    return network


def main() -> int:
    """`python -m training.measure.classifier`: trains, writes and measures the classifier.

    Returns:
        The exit status: 0, or 1 if there is no data or the file cannot be written.
    """
    # The last bits of the weights depend on the number of threads.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        dataset = load_dataset("mnist", report=print)
        raw = pack(_scaled(unpack(pack(train(dataset, report=print))), dataset))
        WEIGHTS.parent.mkdir(exist_ok=True)
        atomic_write(WEIGHTS, raw)
    except (TrainingError, OSError) as error:
        print(f"training.measure.classifier: {error}", file=sys.stderr)
        return 1
    judge = Classifier(unpack(raw))
    sha256 = hashlib.sha256(raw).hexdigest()
    print(f"test accuracy {_accuracies(judge, dataset.test, _TEST_SEED)}")
    print(f"floor {_floor(judge, dataset):.4f}")
    print(f"{WEIGHTS}: {len(raw)} bytes, SHA-256 {sha256}")
    if sha256 != SHA256:
        print(f"The weights differ from the pinned {SHA256}: update SHA256 in {__file__}")
    return 0


def _convolution(inputs: int, outputs: int, size: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def _augmented(images: Tensor, random: torch.Generator) -> Tensor:
    """Grey images [N, 1, 28, 28] under random affine maps, about half of them binarized."""
    rows = len(images)

    def within(bound: float) -> Tensor:
        return bound * (2.0 * torch.rand(rows, generator=random) - 1.0)

    cos, sin = (angle := within(_TURN)).cos(), angle.sin()
    wide, high, shear = within(_STRETCH).exp(), within(_STRETCH).exp(), within(_SHEAR)
    # The rotation times [[wide, shear * wide], [0, high]], then the translation.
    maps = torch.stack(
        [
            torch.stack([cos * wide, cos * wide * shear - sin * high, within(_SHIFT)], dim=1),
            torch.stack([sin * wide, sin * wide * shear + cos * high, within(_SHIFT)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    grey = F.grid_sample(images, grid, align_corners=False)
    bits = (torch.rand(grey.shape, generator=random) < grey).float()
    return torch.where(torch.rand(rows, 1, 1, 1, generator=random) < 0.5, bits, grey)


def _scaled(network: Network, dataset: Dataset) -> Network:
    """Scales the features of the network so that the distance `FLOOR` has that value."""
    network.feature_scale *= (FLOOR / _floor(Classifier(network), dataset)) ** 0.5
    return network


def _floor(judge: Classifier, dataset: Dataset) -> float:
    test = dataset.test.images[:]
    train_features, test_features = (
        judge(to_unit(images))[0] for images in (dataset.train.images[: len(test)], test)
    )
    return frechet_distance(train_features, test_features)


def _accuracies(judge: Classifier, split: Split, seed: int) -> str:
    images = split.images[:]
    grey = accuracy(judge, to_unit(images), split.labels)
    bits = accuracy(judge, binarize(images, seed), split.labels)
    return f"{grey:.2%} of grey digits, {bits:.2%} of binarized ones"


if __name__ == "__main__":
    sys.exit(main())
