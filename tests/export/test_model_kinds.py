"""Every kind of model: its graphs against torch and against independent arithmetic."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bundle import Bundle, GraphName, open_bundle
from common import noise
from export.verify import ALLOWED_OPERATORS
from service.models.onnx import Device, Graph
from tests.support.untrained import KINDS
from training.model.prior import Prior, Sampler
from training.model.vae import Vae
from training.run_folder import RunFolder

TOLERANCE = 1e-4
LEARNED = [name for name, kind in KINDS.items() if kind.model.prior.learned]
MIXTURES = [name for name in LEARNED if "gmm" in KINDS[name].model.prior.kind]
#: Those whose prior is conditional on the class: that of a conditional model is of all classes.
BY_CLASS = [name for name in MIXTURES if not KINDS[name].model.conditional]

Array = NDArray[np.float32]
Wide = NDArray[np.float64]


class Subject:
    """One kind of model: the torch model, its bundle and sessions of its graphs."""

    def __init__(self, name: str, folder: Path):
        self.kind = KINDS[name]
        self.torch: Vae = RunFolder(folder / "runs" / name).load_model()
        self.bundle: Bundle = open_bundle(folder / "models" / name / "1")
        self.graphs = {
            graph: Graph(raw, Device("cpu"), rows=10_000)
            for graph, raw in self.bundle.graphs.items()
        }

    @property
    def dim(self) -> int:
        return self.kind.model.latent_dim

    @property
    def prior(self) -> Prior:
        assert self.torch.prior is not None
        return self.torch.prior

    def noise(self, rows: int, seed: int = 3, offset: int = 0) -> dict[str, NDArray[Any]]:
        return {
            "eps": noise.standard_normal(seed, offset, rows, self.dim),
            "u": noise.uniform(seed, offset, rows),
        }

    def draw(self, rows: int, label: int = -1, seed: int = 3) -> Array:
        labels = np.full(rows, label, np.int64)
        return self.graphs["prior"].run({**self.noise(rows, seed), "label": labels})["z"]

    def log_prob(self, z: Array, label: int = -1) -> Array:
        labels = np.full(len(z), label, np.int64)
        return self.graphs["prior_density"].run({"z": z, "label": labels})["log_prob"]

    def labels(self) -> list[int]:
        """The labels that the prior takes."""
        if self.kind.model.conditional:
            return [-1]
        return [-1, *range(len(self.bundle.manifest.labels))]


@cache
def _subject(name: str, folder: Path) -> Subject:
    return Subject(name, folder)


@pytest.fixture(params=KINDS)
def subject(request: pytest.FixtureRequest, kinds: Path) -> Subject:
    return _subject(request.param, kinds)


@pytest.fixture(params=LEARNED)
def learned(request: pytest.FixtureRequest, kinds: Path) -> Subject:
    return _subject(request.param, kinds)


@pytest.fixture(params=MIXTURES)
def mixture(request: pytest.FixtureRequest, kinds: Path) -> Subject:
    return _subject(request.param, kinds)


@pytest.fixture(params=BY_CLASS)
def by_class(request: pytest.FixtureRequest, kinds: Path) -> Subject:
    return _subject(request.param, kinds)


def inputs_of(subject: Subject, graph: GraphName, rows: int) -> dict[str, NDArray[Any]]:
    """Inputs of a graph: grey and binary images, latents in and off the prior, every label."""
    draw = np.random.default_rng(rows)
    image = draw.random((rows, *subject.kind.shape), np.float32)
    image[::2] = image[::2] > 0.5
    labels = np.arange(rows, dtype=np.int64) % len(subject.labels()) - 1
    z = draw.standard_normal((rows, subject.dim), np.float32)
    if "prior" in subject.graphs:
        drawn = subject.graphs["prior"].run({**subject.noise(rows), "label": labels})["z"]
        z[::2] = drawn[::2]
    if subject.kind.model.conditional and graph in ("encoder", "decoder"):
        labels = np.arange(rows, dtype=np.int64) % subject.kind.classes
    everything = {
        "image": image,
        "z": z,
        "label": labels,
        **subject.noise(rows),
    }
    return {
        tensor.name: everything[tensor.name]
        for tensor in subject.bundle.manifest.graphs[graph].inputs
    }


@torch.inference_mode()
def torch_answers(
    subject: Subject, graph: GraphName, inputs: dict[str, NDArray[Any]]
) -> dict[str, Array]:
    """Outputs of the run's model, computed by its own methods and not by exported modules."""
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    if graph == "encoder":
        posterior = subject.torch.encode(tensors["image"], tensors.get("label"))
        answers = {"mean": posterior.mean}
        if posterior.log_var is not None:
            answers["log_var"] = posterior.log_var
    elif graph == "decoder":
        output = subject.torch.decode(tensors["z"], tensors.get("label"))
        likelihood = subject.torch.likelihood
        named = "logits" if likelihood.name == "bernoulli" else "parameters"
        answers = {named: likelihood.parameters_of(output), "image": likelihood.mean(output)}
    elif graph == "prior":
        answers = {"z": Sampler(subject.prior)(tensors["eps"], tensors["u"], tensors["label"])}
    else:
        label = tensors["label"] if subject.prior.classes else None
        answers = {"log_prob": subject.prior.log_prob(tensors["z"], label)}
    return {name: answer.numpy() for name, answer in answers.items()}


# ------------------------------------------------------------------- the graphs


def test_a_bundle_has_the_graphs_of_its_posterior_and_prior(subject: Subject) -> None:
    manifest, model = subject.bundle.manifest, subject.kind.model
    wanted = {"encoder", "decoder"} | ({"prior", "prior_density"} if model.prior.learned else set())
    assert manifest.graphs.keys() == subject.bundle.graphs.keys() == wanted
    assert (manifest.posterior, manifest.prior) == (model.posterior, model.prior.kind)
    heads = [tensor.name for tensor in manifest.graphs["encoder"].outputs]
    assert heads == (["mean", "log_var"] if model.posterior == "gaussian" else ["mean"])
    knows = "gmm" in model.prior.kind or model.conditional
    assert manifest.labels == (manifest.class_names if knows else ())
    assert len(manifest.class_names) == subject.kind.classes


@pytest.mark.parametrize("rows", [1, 2, 3, 64, 100])
def test_onnxruntime_agrees_with_torch(rows: int, subject: Subject) -> None:
    for name, graph in subject.graphs.items():
        inputs = inputs_of(subject, name, rows)
        answers, wanted = graph.run(inputs), torch_answers(subject, name, inputs)
        assert answers.keys() == wanted.keys()
        for output, array in wanted.items():
            assert (answers[output].dtype, answers[output].shape) == (np.float32, array.shape)
            # A log-density is compared per latent dimension.
            scale = subject.dim if output == "log_prob" else 1
            assert np.abs(answers[output] - array).max() / scale <= TOLERANCE, (name, output)


def test_graphs_hold_only_allowed_operators(subject: Subject) -> None:
    for content in subject.bundle.graphs.values():
        model = onnx.load_from_string(content)
        assert {node.op_type for node in model.graph.node} <= ALLOWED_OPERATORS
        assert {node.domain for node in model.graph.node} == {""}
        assert [opset.domain for opset in model.opset_import] == [""]


@settings(max_examples=40)
@given(data=st.data())
def test_a_row_of_every_kind_has_the_same_bits_in_every_batch(
    data: st.DataObject, kinds: Path
) -> None:
    subject = _subject(data.draw(st.sampled_from(sorted(KINDS))), kinds)
    name: GraphName = data.draw(st.sampled_from(sorted(subject.graphs)))
    chosen = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=100))
    inputs = inputs_of(subject, name, 100)
    whole = subject.graphs[name].run(inputs)
    part = subject.graphs[name].run({key: array[chosen] for key, array in inputs.items()})
    for output, answers in whole.items():
        assert part[output].tobytes() == answers[chosen].tobytes()


def test_manifest_states_the_parity_of_every_output(subject: Subject) -> None:
    parity = subject.bundle.manifest.parity
    outputs = {
        f"{name}.{tensor.name}"
        for name, graph in subject.bundle.manifest.graphs.items()
        for tensor in graph.outputs
    }
    assert parity.max_abs_difference.keys() == outputs
    assert max(parity.max_abs_difference.values()) <= TOLERANCE == parity.tolerance


# ------------------------------------------- the sampler against its own density


def test_density_of_prior_samples_is_that_of_torch(learned: Subject) -> None:
    exact = copy.deepcopy(learned.prior).double()
    for label in learned.labels():
        z = learned.draw(500, label)
        given = torch.full((500,), label) if label >= 0 else None
        with torch.inference_mode():
            wanted = exact.log_prob(torch.from_numpy(z).double(), given).numpy()
        assert np.abs(learned.log_prob(z, label) - wanted).max() <= 1e-3


def components_of(subject: Subject) -> tuple[Wide, Wide, Wide, NDArray[np.int64]]:
    """Weights within the class, means, covariances and classes, from the raw parameters."""
    state = {name: value.double().numpy() for name, value in subject.prior.state_dict().items()}
    group = subject.prior.group.numpy()
    weights = np.exp(state["logits"])
    for label in np.unique(group):
        weights[group == label] /= weights[group == label].sum()
    precisions = np.tril(state["lower"], -1)
    precisions += np.exp(state["log_diagonal"])[:, :, None] * np.eye(subject.dim)
    covariances = np.linalg.inv(np.swapaxes(precisions, 1, 2) @ precisions)
    return weights, state["means"], covariances, group


@pytest.fixture
def plain_mixture(kinds: Path) -> Subject:
    return _subject("gmm", kinds)


def test_density_of_a_mixture_is_the_weighted_sum_of_gaussians(plain_mixture: Subject) -> None:
    weights, means, covariances, group = components_of(plain_mixture)
    frequency = plain_mixture.prior.class_weights.double().numpy()
    z = plain_mixture.draw(200).astype(np.float64)
    around = z[:, None] - means
    square = np.einsum("nki,kij,nkj->nk", around, np.linalg.inv(covariances), around)
    norms = np.linalg.slogdet(2 * np.pi * covariances)[1]
    densities = np.exp(-0.5 * (square + norms))
    for label in plain_mixture.labels():
        share = weights * (frequency[group] if label < 0 else group == label)
        wanted = np.log(densities @ share)
        got = plain_mixture.log_prob(z.astype(np.float32), label)
        np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize(("name", "label"), [("delta-gmm", 0), ("delta-gmm", 2), ("flow", -1)])
def test_density_follows_from_the_sampler_by_change_of_variables(
    name: str, label: int, kinds: Path
) -> None:
    """With one component per class: log p(z | label) = log N(eps) - log |det dz/deps|."""
    subject, rows = _subject(name, kinds), 20
    sampler = Sampler(copy.deepcopy(subject.prior)).double()
    inputs = {**subject.noise(rows, seed=11), "label": np.full(rows, label)}
    eps, u = (torch.from_numpy(inputs[name]).double() for name in ("eps", "u"))

    def draw(eps: torch.Tensor) -> torch.Tensor:
        # Rows are independent, so that the derivative of their sum is each row's own.
        z: torch.Tensor = sampler(eps, u, torch.full((rows,), label)).sum(dim=0)
        return z

    jacobians = torch.autograd.functional.jacobian(draw, eps).transpose(0, 1)
    log_det = torch.linalg.slogdet(jacobians).logabsdet
    normal = -0.5 * (eps.square() + np.log(2 * np.pi)).sum(dim=1)
    got = subject.log_prob(subject.graphs["prior"].run(inputs)["z"], label)
    assert np.abs(got - (normal - log_det).numpy()).max() <= 1e-3


def test_density_without_a_label_is_the_class_weighted_mixture(by_class: Subject) -> None:
    z = by_class.draw(300)
    frequency = by_class.prior.class_weights.double().numpy()
    labelled = [by_class.log_prob(z, label).astype(np.float64) for label in by_class.labels()[1:]]
    wanted = np.log(sum(w * np.exp(rows) for w, rows in zip(frequency, labelled, strict=True)))
    np.testing.assert_allclose(by_class.log_prob(z), wanted, atol=2e-4)


def nearest_components(subject: Subject, z: Array, eps: Array) -> tuple[NDArray[Any], Array]:
    """The component that best maps `eps` to each z, and its distance from it."""
    _, means, covariances, _ = components_of(subject)
    with torch.inference_mode():
        y = subject.prior.to_base(torch.from_numpy(z))[0].numpy().astype(np.float64)
    state = subject.prior.state_dict()
    factors = np.tril(state["lower"].double().numpy(), -1)
    factors += np.exp(state["log_diagonal"].double().numpy())[:, :, None] * np.eye(subject.dim)
    scales = np.linalg.inv(factors)
    np.testing.assert_allclose(scales @ np.swapaxes(scales, 1, 2), covariances, rtol=1e-6)
    guesses = means + np.einsum("kij,nj->nki", scales, eps.astype(np.float64))
    distances = np.abs(guesses - y[:, None]).max(axis=2)
    return distances.argmin(axis=1), distances.min(axis=1)


def test_a_label_samples_only_the_components_of_its_class(mixture: Subject) -> None:
    weights, *_, group = components_of(mixture)
    for label in mixture.labels():
        eps, u = mixture.noise(2000)["eps"], mixture.noise(2000)["u"][:, 0]
        chosen, distances = nearest_components(mixture, mixture.draw(2000, label), eps)
        assert distances.max() < 1e-3
        frequency = mixture.prior.class_weights.double().numpy()
        share = weights * (frequency[group] if label < 0 else group == label)
        if label >= 0:
            assert set(group[chosen]) == {label}
        # By the inverse of the cumulative weights; rounding may decide next to a step.
        steps = np.cumsum(share)
        wanted = np.searchsorted(steps, u, side="right")
        clear = np.abs(u[:, None] - steps).min(axis=1) > 1e-6
        assert (chosen == wanted)[clear].all()
        np.testing.assert_allclose(
            np.bincount(chosen, minlength=len(share)) / 2000, share, atol=0.05
        )


def test_extreme_uniforms_select_the_first_and_the_last_component(
    mixture: Subject,
) -> None:
    group = mixture.prior.group.numpy()
    eps = np.zeros((2, mixture.dim), np.float32)
    u = np.array([[0.0], [1 - 2.0**-24]], np.float32)
    for label in mixture.labels():
        z = mixture.graphs["prior"].run({"eps": eps, "u": u, "label": np.full(2, label)})["z"]
        chosen, distances = nearest_components(mixture, z, eps)
        assert distances.max() < 1e-3
        if label >= 0:
            mine = np.flatnonzero(group == label)
            assert chosen.tolist() == [mine[0], mine[-1]]
        else:
            assert chosen.tolist() == [0, len(group) - 1]
