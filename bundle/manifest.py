"""`manifest.json`: what a bundle is, field by field."""

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

#: Major and minor version of the schema. A reader refuses another major; a minor
#: only adds fields, which an older reader passes over.
SCHEMA_VERSION = "1.1"

DeviceKind = Literal["cpu", "cuda"]
GraphName = Literal["encoder", "decoder", "prior", "prior_density"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Positive = Annotated[int, Field(ge=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class FileRef(_Record):
    """A file of the bundle and the checksum that makes it that file."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$")]
    """Plain file name, inside the bundle's folder."""
    sha256: Sha256
    """SHA-256 of its content."""
    size_bytes: Positive
    """Its length in bytes."""


class TensorSpec(_Record):
    """An input or output of a graph."""

    name: str
    """Its name in the graph."""
    dtype: Literal["float32", "int64"]
    """Its element type."""
    shape: tuple[str | int, ...]
    """Its shape; the dynamic batch axis is "N"."""


class GraphRef(FileRef):
    """An ONNX graph."""

    opset: Positive
    """Version of the standard operator set it is written in."""
    inputs: tuple[TensorSpec, ...]
    """What it takes, in order."""
    outputs: tuple[TensorSpec, ...]
    """What it answers, in order."""
    tolerances: dict[DeviceKind, float] = {}
    """Its own, where they are wider than the bundle's."""


class DatasetRef(_Record):
    """The data a model was trained on."""

    name: str
    """For example "mnist", or "folder:flowers": without the way to it."""
    spec: dict[str, Any] = {}
    """What to load it by: source (the name), image size, channels; empty before schema 1.1."""
    sha256: dict[str, Sha256]
    """SHA-256 of each source file's uncompressed content."""
    split: dict[str, int]
    """Images in each split."""


class Parity(_Record):
    """How far torch and onnxruntime were apart when the bundle was written."""

    batches: tuple[int, ...]
    """Batch sizes compared."""
    max_abs_difference: dict[str, float]
    """Largest absolute difference of each output, as "graph.output"; of the log-density for
    each latent dimension."""
    tolerance: float
    """What was allowed."""
    batch_invariant: bool
    """Whether each row was bit-equal in batches of every size, on CPU."""
    precision_difference: dict[str, float] = {}
    """How far a decoder in fewer bits is from torch at most, likewise; empty for fp32."""


class Manifest(_Record):
    """A model, its graphs and all that is known of them."""

    schema_version: str = SCHEMA_VERSION
    """Major.minor of this schema."""
    name: Name
    """Name of the model, equal to the name of its folder."""
    version: Positive
    """Version of the model, equal to the name of the bundle's folder."""
    created_at: AwareDatetime
    """When the bundle was written, with its time zone."""
    image_shape: tuple[Positive, Positive, Positive]
    """C, H and W."""
    latent_dim: Positive
    """D."""
    likelihood: Literal["bernoulli"]
    """p(x|z); its parameters are the decoder's `logits`."""
    posterior: Literal["gaussian", "delta"]
    """q(z|x); its parameters are the encoder's `mean` and `log_var`. A plain autoencoder's
    is `delta`: one point, its `mean`."""
    prior: Literal["standard", "gmm", "flow", "flow-gmm", "none"]
    """p(z): the standard normal; a mixture of Gaussians, a flow over one Gaussian or over a
    mixture, which the graphs `prior` and `prior_density` hold; or none to sample from."""
    labels: tuple[str, ...] = ()
    """Classes that can be sampled by label; empty where the prior knows none."""
    class_names: tuple[str, ...] = ()
    """Classes of the training data."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """What the decoder computes in."""
    graphs: dict[GraphName, GraphRef]
    """The graphs, by what they do."""
    golden: FileRef
    """A few real inputs and what each graph must answer."""
    tolerances: dict[DeviceKind, float]
    """Largest absolute difference from the golden answers, by device; of the log-density for
    each latent dimension."""
    preprocessing: dict[str, Any]
    """How a picture becomes the encoder's input."""
    noise: str
    """Name and version of the seeded noise, as `common.noise` defines it."""
    dataset: DatasetRef
    """What it was trained on."""
    training: dict[str, Any]
    """Preset, settings and length of the training."""
    metrics: dict[str, Any]
    """Figures on the test set and the protocol they were measured by."""
    score_percentiles: tuple[float, ...] = ()
    """The 0th to 100th percentile of the training set's scores, in nats."""
    parity: Parity
    """The check the export passed."""
    tools: dict[str, str]
    """Versions of what wrote the bundle."""

    @property
    def learned_prior(self) -> bool:
        """Whether the prior is a graph, and not the standard normal or none."""
        return self.prior not in ("standard", "none")

    @model_validator(mode="after")
    def _tensors_of_the_contract(self) -> Self:
        wanted = tensors_of(
            self.image_shape,
            self.latent_dim,
            log_var=self.posterior == "gaussian",
            prior=self.learned_prior,
        )
        if missing := wanted.keys() - self.graphs.keys():
            raise ValueError(f"graphs: no {' and no '.join(sorted(missing))}")
        if surplus := self.graphs.keys() - wanted.keys():
            raise ValueError(f"graphs: {' and '.join(sorted(surplus))} with prior {self.prior}")
        for name, (inputs, outputs) in wanted.items():
            graph = self.graphs[name]
            if (graph.inputs, graph.outputs) != (inputs, outputs):
                raise ValueError(
                    f"graphs.{name}: tensors that are not those of images {self.image_shape} and "
                    f"{self.latent_dim} latent dimensions"
                )
        return self

    @model_validator(mode="after")
    def _prior_of_the_posterior(self) -> Self:
        if (self.posterior, self.prior) in (("gaussian", "none"), ("delta", "standard")):
            # No ELBO has drawn the points of a plain autoencoder to the standard normal.
            raise ValueError(
                f"prior: got {self.prior}, which is none of a {self.posterior} posterior"
            )
        return self

    @model_validator(mode="after")
    def _labels_of_a_mixture(self) -> Self:
        if self.labels and "gmm" not in self.prior:
            raise ValueError(f"labels: got {len(self.labels)}, wanted none with prior {self.prior}")
        return self

    @field_validator("score_percentiles")
    @classmethod
    def _whole_table(cls, table: tuple[float, ...]) -> tuple[float, ...]:
        if table and (len(table) != 101 or list(table) != sorted(table)):
            raise ValueError(f"got {len(table)} values, wanted 101 ascending ones")
        return table


def tensors_of(
    image_shape: tuple[int, int, int],
    latent_dim: int,
    *,
    log_var: bool = True,
    prior: bool = False,
) -> dict[GraphName, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
    """The inputs and outputs that each graph of such a model must have, in order.

    Args:
        image_shape: C, H and W.
        latent_dim: D.
        log_var: Whether the encoder answers a log-variance.
        prior: Whether there is a learned prior.
    """

    def spec(name: str, *axes: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=("N", *axes))

    label = TensorSpec(name="label", dtype="int64", shape=("N",))
    heads = (spec("mean", latent_dim), spec("log_var", latent_dim))
    graphs: dict[GraphName, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]] = {
        "encoder": ((spec("image", *image_shape),), heads if log_var else heads[:1]),
        "decoder": (
            (spec("z", latent_dim),),
            (spec("image", *image_shape), spec("logits", *image_shape)),
        ),
    }
    if prior:
        graphs["prior"] = (
            (spec("eps", latent_dim), spec("u", 1), label),
            (spec("z", latent_dim),),
        )
        graphs["prior_density"] = ((spec("z", latent_dim), label), (spec("log_prob"),))
    return graphs
