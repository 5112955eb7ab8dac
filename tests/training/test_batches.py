"""Batches of training images: from memory or disk, and augmented by seed and step."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.blobs import blobs
from tests.support.tiny_runs import MODEL, PHASES, assert_same, step_to, torch_copy, trainer_of
from training.batches import Batches, corrupted, distorted, flipped, shifted, warped
from training.data.datasets import Dataset, Split
from training.data.rows import Rows
from training.model.train_config import TrainConfig
from training.parallel import Parallel

pytest_plugins = ["tests.support.run_fixtures"]

CPU = torch.device("cpu")
ALL = ("flip", "shift", "warp", "elastic")


def on_disk(dataset: Dataset, folder: Path) -> Dataset:
    """The same data set, with its images behind one memory map in another order."""
    splits = [dataset.train, dataset.validation, dataset.test]
    together = np.concatenate([split.images[:] for split in splits])
    order = np.random.default_rng(0).permutation(len(together))
    together[order].tofile(folder / "images")
    images = np.memmap(folder / "images", np.uint8, "r", shape=together.shape)
    ends = np.cumsum([len(split.labels) for split in splits])
    rows = np.split(np.argsort(order), ends[:-1])
    mapped = (
        Split(Rows(images, part), split.labels) for part, split in zip(rows, splits, strict=True)
    )
    return Dataset("blobs", *mapped, class_names=dataset.class_names, sha256={})


def test_batches_from_disk_are_those_from_memory(few: Dataset, tmp_path: Path) -> None:
    disk = on_disk(few, tmp_path)
    rows = torch.randperm(len(few.train.images))[:50]
    config = TrainConfig(augment=ALL, augment_share=0.7)
    for step in range(3):
        (images, labels), (others, same) = (
            Batches(data.train, config, CPU).read(rows, step) for data in (few, disk)
        )
        assert torch.equal(images, others)
        assert torch.equal(labels, same)


@pytest.mark.parametrize("world", [2, 4])
def test_each_process_reads_its_slice_of_the_batch_alone(few: Dataset, world: int) -> None:
    class Recorded(Rows):
        def __getitem__(self, index: Any) -> Any:
            read.append(index.tolist())
            return super().__getitem__(index)

    read: list[list[int]] = []
    images = Recorded(few.train.images, np.arange(len(few.train.images)))
    config = TrainConfig(augment=ALL, augment_share=0.7)
    batches = Batches(Split(images, few.train.labels), config, CPU)
    rows = torch.randperm(len(images))[:48]
    whole = batches.read(rows, 3)
    parts = [batches.read(rows, 3, Parallel(rank, world)) for rank in range(world)]
    for one, together in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(one), together)
    assert read == [rows.tolist(), *(part.tolist() for part in rows.chunk(world))]


@pytest.mark.parametrize("kind", ["gaussian", "mask"])
def test_the_noise_of_slices_is_that_of_the_batch(kind: str) -> None:
    images, middle = torch.rand(8, 3, 5, 7), torch.zeros(3, 1, 1)
    config = TrainConfig(noise=0.3, noise_kind=kind)
    whole, *parts = (
        corrupted(each.slice(images), config, middle, torch.Generator().manual_seed(0), each)
        for each in (Parallel(), Parallel(0, 2), Parallel(1, 2))
    )
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.usefixtures("one_thread")
def test_a_trainer_steps_and_validates_alike_on_images_on_disk(
    few: Dataset, tmp_path: Path
) -> None:
    for binarize in (True, False):
        folder = tmp_path / str(binarize)
        folder.mkdir()
        one, other = (
            trainer_of(data, 12, MODEL, **PHASES, augment=("flip",), binarize=binarize)
            for data in (few, on_disk(few, folder))
        )
        assert step_to(one, one.total_steps) == step_to(other, other.total_steps)
        assert one.validate() == other.validate()
        assert_same(one.state_dict(), other.state_dict())


@pytest.mark.usefixtures("one_thread")
def test_an_augmented_run_is_resumed_exactly(few: Dataset) -> None:
    changes = {"augment": ALL, "augment_share": 0.8, "augment_until": 0.7, **PHASES}
    whole = trainer_of(few, 12, MODEL, **changes)
    numbers = step_to(whole, whole.total_steps)
    first, second = (trainer_of(few, 12, MODEL, **changes) for _ in range(2))
    step_to(first, 5)
    second.load_state_dict(torch_copy(first.state_dict()))
    assert step_to(second, whole.total_steps) == numbers[5:]
    assert_same(second.state_dict(), whole.state_dict())
    plain = step_to(trainer_of(few, 12, MODEL, **PHASES), 1)
    assert plain[0]["elbo"] != numbers[0]["elbo"]


def test_augmentation_depends_on_the_seed_and_the_step_alone(few: Dataset) -> None:
    rows = torch.arange(64)

    def read(names: tuple[str, ...], seed: int, step: int) -> torch.Tensor:
        config = TrainConfig(augment=names, seed=seed)  # type: ignore[arg-type]
        return Batches(few.train, config, CPU).read(rows, step)[0]

    for names in (("flip",), ("shift",), ("warp",), ("elastic",), ("flip", "shift")):
        assert torch.equal(read(names, 1, 7), read(names, 1, 7))
        assert not torch.equal(read(names, 1, 7), read(names, 1, 8))
        assert not torch.equal(read(names, 1, 7), read(names, 2, 7))
    assert torch.equal(read((), 1, 7), torch.from_numpy(few.train.images[:64]))


@pytest.mark.parametrize("channels", [1, 3])
def test_flipped_images_are_mirrored_or_as_they_were(channels: int) -> None:
    images = torch.randint(0, 256, (200, channels, 5, 7), dtype=torch.uint8)
    changed = flipped(images, torch.Generator().manual_seed(0))
    same = (changed == images).flatten(1).all(dim=1)
    mirrored = (changed == images.flip(3)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all()
    assert 70 <= mirrored.sum() <= 130


@pytest.mark.parametrize("shape", [(3, 32, 48), (1, 8, 8), (1, 1, 5)])
def test_shifted_images_are_moved_and_their_edges_repeated(shape: tuple[int, int, int]) -> None:
    _, height, width = shape
    images = torch.randint(0, 256, (100, *shape), dtype=torch.uint8)
    changed = shifted(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    most = [max(1, round(side / 16)) for side in (height, width)]
    found = set()
    for image, moved in zip(images, changed, strict=True):
        edged = np.pad(image.numpy(), ((0, 0), (most[0], most[0]), (most[1], most[1])), mode="edge")
        offsets = [
            (down, across)
            for down in range(2 * most[0] + 1)
            for across in range(2 * most[1] + 1)
            if np.array_equal(
                edged[:, down : down + height, across : across + width], moved.numpy()
            )
        ]
        assert offsets
        found.add(offsets[0])
    assert len(found) > 1


def test_gaussian_noise_has_its_deviation_and_is_not_clipped() -> None:
    images = torch.full((200, 3, 5, 7), 0.9)
    config = TrainConfig(noise=0.3)
    seen = corrupted(images, config, torch.zeros(3, 1, 1), torch.Generator().manual_seed(0))
    change = seen - images
    assert change.mean().abs() < 0.01
    assert change.std().item() == pytest.approx(0.3, rel=0.02)
    assert (seen > 1).any()
    assert (images == 0.9).all()


def test_a_mask_hides_its_share_of_the_pixels_in_all_channels() -> None:
    images, middle = torch.rand(100, 3, 9, 11), torch.tensor([0.2, 0.4, 0.6]).reshape(3, 1, 1)
    config = TrainConfig(noise=0.25, noise_kind="mask")
    seen = corrupted(images, config, middle, torch.Generator().manual_seed(0))
    hidden = (seen == middle).all(dim=1)
    kept = (seen == images).all(dim=1)
    assert (hidden ^ kept).all()
    assert hidden.float().mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("kind", ["gaussian", "mask"])
@pytest.mark.usefixtures("one_thread")
def test_noise_changes_training_alone(kind: str, few: Dataset) -> None:
    plain, noisy = (
        trainer_of(few, 3, MODEL, **PHASES, noise=noise, noise_kind=kind) for noise in (0.0, 0.4)
    )
    assert noisy.validate() == plain.validate()
    first = [trainer.train_step() for trainer in (plain, noisy)]
    assert first[0]["kl"] != first[1]["kl"]
    # The bits that are drawn from the grey values, and the draws of z, are those without noise.
    again = trainer_of(few, 3, MODEL, **PHASES, noise=1e-12)
    assert again.train_step()["elbo"] == pytest.approx(first[0]["elbo"], rel=1e-5)


def test_a_batch_does_not_change_the_images(few: Dataset) -> None:
    data = blobs()
    batches = Batches(data.train, TrainConfig(augment=("flip", "shift")), CPU)
    images, _ = batches.read(torch.arange(len(batches)), 0)
    images.zero_()
    assert np.array_equal(data.train.images, few.train.images)


def middle(image: torch.Tensor) -> tuple[float, float]:
    """Centre of mass of an image [C, H, W], from the centre of the image: down and across."""
    mass = image.float().sum(dim=0)
    places = (torch.arange(side) - (side - 1) / 2 for side in mass.shape)
    down, across = places
    whole = mass.sum()
    return float((mass.sum(dim=1) * down).sum() / whole), float(
        (mass.sum(dim=0) * across).sum() / whole
    )


@pytest.mark.parametrize("change", [warped, distorted])
@pytest.mark.parametrize("shape", [(3, 32, 48), (1, 28, 28), (1, 1, 5)])
def test_warped_images_keep_their_shape_and_constant_ones_their_values(
    shape: tuple[int, int, int], change: Callable[..., torch.Tensor]
) -> None:
    noise = torch.Generator().manual_seed(0)
    values = torch.arange(0, 250, 10, dtype=torch.uint8)
    images = values[:, None, None, None].expand(-1, *shape)
    assert torch.equal(change(images, noise), images)
    images = torch.randint(0, 256, (50, *shape), dtype=torch.uint8)
    changed = change(images, noise)
    assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)


def test_a_warp_is_a_small_linear_map_about_the_centre() -> None:
    """A blot at a corner of a wide image moves by no more than the largest map moves it."""
    images = torch.zeros(300, 1, 33, 65, dtype=torch.uint8)
    down, across = -10.0, 20.0
    images[:, 0, 16 - 12 : 16 - 7, 32 + 18 : 32 + 23] = 255
    changed = warped(images, torch.Generator().manual_seed(0))
    places = np.array([middle(image) for image in changed])
    moved = places - (down, across)
    assert 0.5 < np.abs(moved).mean() < 3
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=0.5)
    # Rotated by 0.15, sheared by 0.15 and stretched by 8 %, with half a pixel for the rounding.
    most = np.hypot(down, across) * (0.15 + 0.15 + 0.084) + 0.5
    assert np.hypot(*moved.T).max() < most
    # A blot at the centre stays there.
    images = torch.zeros(50, 1, 33, 65, dtype=torch.uint8)
    images[:, 0, 14:19, 30:35] = 255
    changed = warped(images, torch.Generator().manual_seed(0))
    np.testing.assert_allclose([middle(image) for image in changed], 0, atol=0.1)


def test_an_elastic_distortion_moves_neighbours_alike_and_parts_of_an_image_apart() -> None:
    """Of three dots, two are close together and one is far; an image may be wider than high."""
    images = torch.zeros(400, 3, 40, 80, dtype=torch.uint8)
    dots = [(20, 20), (20, 24), (20, 60)]
    places = []
    for row, column in dots:
        images.zero_()[:, 0, row - 1 : row + 2, column - 1 : column + 2] = 255
        changed = distorted(images, torch.Generator().manual_seed(0))
        assert not changed[:, 1:].any()
        places.append([middle(image[:1]) for image in changed])
    moved = np.array(places) - (np.array(dots) - (20, 40))[:, None] - 0.5
    # In pixels along each side, of 3 % of it at a knot and somewhat less between knots.
    deviations = moved.std(axis=(0, 1)) / (40, 80)
    assert (deviations > 0.015).all()
    assert (deviations < 0.035).all()
    near, far = (np.abs(moved[0] - moved[other]).mean() for other in (1, 2))
    assert near < 0.5 * far
    assert abs(np.corrcoef(moved[0, :, 1], moved[2, :, 1])[0, 1]) < 0.2


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_images_is_changed(few: Dataset, share: float) -> None:
    config = TrainConfig(augment=("warp", "shift"), augment_share=share)
    batches, rows = Batches(few.train, config, CPU), torch.arange(100)
    whole = Batches(few.train, TrainConfig(augment=("warp", "shift")), CPU)
    originals = torch.from_numpy(few.train.images[:100])
    counts = []
    for step in range(8):
        images, changed = batches.read(rows, step)[0], whole.read(rows, step)[0]
        same = (images == originals).flatten(1).all(dim=1)
        alike = (images == changed).flatten(1).all(dim=1)
        assert (same | alike).all()
        counts.append(int((~same).sum()))
    differ = (changed != originals).flatten(1).any(dim=1).float().mean()
    assert np.mean(counts) / 100 == pytest.approx(share * float(differ), abs=0.06)


@pytest.mark.parametrize("from_disk", [False, True])
@pytest.mark.usefixtures("one_thread")
def test_the_validation_images_are_trained_on_if_that_is_wanted(
    few: Dataset, tmp_path: Path, from_disk: bool
) -> None:
    data = on_disk(few, tmp_path) if from_disk else few
    together = few.train.and_(few.validation)
    more = dataclasses.replace(data, train=data.train.and_(data.validation))
    assert np.array_equal(more.train.images[:], together.images[:])
    assert np.array_equal(more.train.labels, together.labels)
    wanted, run = (
        trainer_of(each, 12, MODEL, **PHASES, train_on_validation=each is data)
        for each in (more, data)
    )
    assert run.images == len(few.train.images) + len(few.validation.images)
    assert step_to(run, run.total_steps) == step_to(wanted, wanted.total_steps)
    assert run.validate() == wanted.validate()
    assert trainer_of(data, 12, MODEL, **PHASES).images == len(few.train.images)


def test_the_groups_of_two_splits_are_those_of_each() -> None:
    one, other = (
        Split(np.zeros((count, 1, 2, 2), np.uint8), np.zeros(count, np.int64), groups)
        for count, groups in ((3, np.array([4, 4, 7])), (2, np.array([5, 6])))
    )
    groups = one.and_(other).groups
    assert groups is not None
    assert groups.tolist() == [4, 4, 7, 5, 6]


def test_images_are_left_as_they_are_after_a_share_of_the_steps(few: Dataset) -> None:
    read = []

    class Recorded(Batches):
        def read(self, *arguments: Any, augmented: bool = True, **more: Any) -> Any:
            read.append(augmented)
            return super().read(*arguments, augmented=augmented, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.trainer.Batches", Recorded)
        trainer = trainer_of(few, 10, augment=("warp",), augment_until=0.55)
        step_to(trainer, 10)
    assert read == [True] * 6 + [False] * 4
    rows = torch.arange(20)
    images, _ = Batches(few.train, TrainConfig(augment=("warp",)), CPU).read(
        rows, 0, augmented=False
    )
    assert torch.equal(images, torch.from_numpy(few.train.images[:20]))
