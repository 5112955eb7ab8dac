"""What the benchmark of conditional models measures, on latents and images that are known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.style import encode, measure, probe, read_as_asked
from bundle import open_bundle
from export.subject import subject_of_bundle
from training.data.datasets import Split, load_dataset


def test_a_probe_finds_classes_that_are_apart_and_none_in_noise() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 3
    noise = rng.standard_normal((600, 4), np.float32)
    apart = noise + 8 * np.eye(3, 4, dtype=np.float32)[labels]
    half = slice(0, 300), slice(300, 600)
    accuracies = {
        name: probe(*((latents[part], labels[part]) for part in half))
        for name, latents in (("apart", apart), ("noise", noise))
    }
    assert accuracies["apart"] > 0.99
    assert accuracies["noise"] < 0.45


def test_restyled_images_are_read_by_the_class_that_they_were_decoded_as(kinds: Path) -> None:
    subject = subject_of_bundle(open_bundle(kinds / "models" / "cvae" / "1"))
    asked = []

    def decode(_z: np.ndarray, labels: np.ndarray) -> np.ndarray:
        asked.append(labels)
        return labels.astype(np.float32)

    def judge(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Takes every image of class 2 for one of class 0."""
        return images, np.eye(3)[np.where(images == 2, 0, images).astype(int)]

    means = np.zeros((5, subject.latent_dim), np.float32)
    shares = read_as_asked(dataclasses.replace(subject, decode=decode), judge, means)
    assert shares.tolist() == [1, 1, 0]
    assert [labels.tolist() for labels in asked] == [[0] * 5, [1] * 5, [2] * 5]


def test_draws_have_the_variance_of_their_posteriors(kinds: Path) -> None:
    subject = subject_of_bundle(open_bundle(kinds / "models" / "cvae" / "1"))
    images = np.random.default_rng(0).integers(0, 256, (900, 1, 8, 8), np.uint8)
    labels = np.arange(900) % 3
    latents = encode(subject, images, labels)
    _, log_var = subject.autoencoder.encode(images / np.float32(255), labels)
    assert log_var is not None
    scaled = (latents.draws - latents.means) / np.exp(0.5 * log_var)
    assert scaled.mean() == pytest.approx(0, abs=0.05)
    assert scaled.std() == pytest.approx(1, abs=0.05)


def test_a_model_without_labels_is_probed_alone(models: Path) -> None:
    mnist = load_dataset("mnist")
    few = Split(mnist.test.images[:600], mnist.test.labels[:600])
    figures = measure(models / "mnist" / "1", few, few)
    assert list(figures) == ["probe of draws", "probe of means"]
    assert 0.4 < figures["probe of draws"] <= 1
