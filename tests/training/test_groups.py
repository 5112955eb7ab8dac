"""Batches of groups: whose turn it is, which of their images, how many are shown."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.things import CLASSES, draw_things, things, write_things
from tests.support.tiny_runs import PLAIN, step_to, trainer_of
from training.cli import main
from training.data.datasets import Split
from training.errors import ConfigError
from training.groups import GroupBatch, Groups
from training.model.joined import joined
from training.model.train_config import TrainConfig
from training.run_folder import RunFolder
from training.trainer import Trainer

pytest_plugins = ["tests.support.run_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = dataclasses.replace(PLAIN, conditional=True, likelihood="gaussian")
GREY = {"binarize": False, "learning_rate": 5e-3, "batch_size": 64}


def split_of(*sizes: int) -> Split:
    """Images of groups of these sizes, in no order."""
    groups = np.repeat(np.arange(len(sizes)) * 10, sizes)
    groups = np.random.default_rng(0).permutation(groups)
    return Split(np.zeros((len(groups), 1, 2, 2), np.uint8), np.zeros_like(groups), groups)


def batches(split: Split, count: int, joined: int = 3, **changes: int) -> list[GroupBatch]:
    groups = Groups(split, TrainConfig(joined=joined, **changes))
    return [groups.batch(index) for index in range(count)]


def test_groups_take_turns_and_each_batch_is_of_whole_ones() -> None:
    split = split_of(*[9] * 10)
    taken = []
    for batch in batches(split, 6, joined=3, batch_size=40):
        assert batch.shown.shape == (5, 3)
        rows = batch.rows.reshape(5, 3 + 8)
        assert split.groups is not None
        of_groups = split.groups[rows.numpy()]
        assert (of_groups == of_groups[:, :1]).all()
        assert batch.sizes.tolist() == [9.0] * 5
        # None of the images that are shown is shown twice, and no target is one twice.
        assert all(len(set(group[:3])) == 3 and len(set(group[3:])) == 8 for group in rows.tolist())
        taken.append(of_groups[:, 0])
    for start in range(0, 6, 2):
        assert set(np.concatenate(taken[start : start + 2])) == set(range(0, 100, 10))
    assert taken[0].tolist() != taken[2].tolist()


def test_a_small_group_repeats_targets_but_is_never_shown_twice() -> None:
    split = split_of(1, 2, 20, 20, 20)
    assert split.groups is not None
    for batch in batches(split, 50, joined=5, batch_size=40):
        for row, rows in enumerate(batch.rows.reshape(5, 5 + 8)):
            size = int(batch.sizes[row])
            assert size == (split.groups == split.groups[rows[0]]).sum()
            shown = rows[:5][batch.shown[row]].tolist()
            assert 1 <= len(shown) <= size
            assert len(set(shown)) == len(shown)
            assert len(set(rows[5:].tolist())) == min(8, size)


def test_half_of_the_groups_show_one_image_and_the_others_two_or_more() -> None:
    found = torch.cat(
        [batch.shown.sum(dim=1) for batch in batches(split_of(*[9] * 20), 100, joined=5)]
    )
    shares = torch.bincount(found, minlength=6) / len(found)
    assert shares[0] == 0
    np.testing.assert_allclose(shares[1:], [0.5, 0.125, 0.125, 0.125, 0.125], atol=0.05)


def test_targets_are_chosen_whether_they_are_shown_or_not() -> None:
    among = 0
    for batch in batches(split_of(*[40] * 16), 50, joined=2):
        for rows in batch.rows.reshape(16, 2 + 8).tolist():
            among += rows[0] in rows[2:]
    # Eight of forty targets; five standard errors.
    assert among / 800 == pytest.approx(8 / 40, abs=0.07)


def test_batches_depend_on_the_seed_and_the_step_alone() -> None:
    split = split_of(*[9] * 10)

    def rows(index: int, seed: int = 0) -> list[int]:
        listed: list[int] = (
            Groups(split, TrainConfig(joined=3, seed=seed)).batch(index).rows.tolist()
        )
        return listed

    assert rows(7) == rows(7) == batches(split, 8)[7].rows.tolist()
    assert rows(7) != rows(8)
    assert rows(7) != rows(7, seed=1)


@pytest.mark.parametrize(
    ("sizes", "batch_size", "targets", "images"),
    [
        ((9,) * 30, 128, 8, 128),
        ((9,) * 30, 100, 8, 96),
        ((9,) * 10, 128, 8, 80),
        ((2,) * 100, 128, 2, 128),
        ((2,) * 10 + (50,) * 2, 16, 2, 16),
        ((9,) * 30, 5, 5, 5),
        ((1,) * 30, 8, 1, 8),
    ],
)
def test_the_batch_size_counts_targets_of_whole_groups(
    sizes: tuple[int, ...], batch_size: int, targets: int, images: int
) -> None:
    groups = Groups(split_of(*sizes), TrainConfig(joined=2, batch_size=batch_size))
    assert (groups.targets, groups.images) == (targets, images)
    assert len(groups.batch(0).rows) == images // targets * (2 + targets)


def test_data_without_groups_is_refused() -> None:
    split = dataclasses.replace(split_of(9, 9), groups=None)
    with pytest.raises(ConfigError, match="joined: got 3, wanted 1: the data does not say which"):
        Groups(split, TrainConfig(joined=3))


def predicted(trainer: Trainer, shown: int) -> float:
    """Error of test things' other images without noise, given their first `shown` with noise."""
    model = trainer.ema_model
    (images, clean), (labels, _), _ = (
        [torch.from_numpy(array) for array in pair]
        for pair in zip(
            *(draw_things(20, seed=2, noise=noise) for noise in (0.1, 0.0)), strict=True
        )
    )
    images, clean = images.float() / 255, clean.float() / 255
    with torch.inference_mode():
        chosen = torch.arange(len(labels)) % CLASSES < shown
        posteriors = model.encode(images[chosen], labels[chosen])
        z = joined(posteriors, torch.ones(len(labels) // CLASSES, shown, dtype=torch.bool)).mean
        made = model.likelihood.mean(model.decode(z.repeat_interleave(CLASSES, dim=0), labels))
    error = (made - clean).square().reshape(-1, CLASSES, *images.shape[1:])
    return float(error[:, shown:].mean())


def test_a_model_of_things_predicts_their_other_images_better_than_one_of_images() -> None:
    dataset = things()
    apart, together = (
        trainer_of(dataset, 300, MODEL, **GREY, joined=most, class_offset_weight=0.0)
        for most in (1, 3)
    )
    numbers = [step_to(trainer, 300) for trainer in (apart, together)]
    assert numbers[0][0].keys() == numbers[1][0].keys()
    for entry in numbers[1]:
        assert entry["elbo"] == pytest.approx(entry["reconstruction"] + entry["kl"], abs=1e-4)
    assert together.validate().keys() == apart.validate().keys()
    assert predicted(together, 1) < 0.85 * predicted(apart, 1)
    assert predicted(together, 3) < predicted(together, 1)


@pytest.mark.usefixtures("no_pictures", "signal_handlers")
def test_a_run_on_files_of_groups_is_trained_and_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = write_things(tmp_path / "data", 80), tmp_path / "run"
    settings = ("joined=3", "conditional=true", "latent_dim=2", "layers=16:relu", "batch_size=32")
    command = ["--preset", "dense", "--data", data, "--steps", "30", "--device", "cpu"]
    command += [word for setting in settings for word in ("--set", setting)]
    assert main([*command, "--out", str(run)]) == 0
    assert "30 steps of 32 images" in capsys.readouterr().err
    folder = RunFolder(run)
    assert folder.complete
    assert folder.read_config().train.joined == 3
    assert len(folder.read_config().data_sha256) == 3
