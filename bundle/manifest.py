"""Schema of `manifest.json`, field by field."""

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

#: Major and minor version of the schema. A reader refuses another major version; a minor
#: version only adds fields, which older readers ignore.
SCHEMA_VERSION = "1.1"

DeviceKind = Literal["cpu", "cuda"]
GraphName = Literal["encoder", "decoder", "prior", "prior_density"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Positive = Annotated[int, Field(ge=1)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class FileRef(_Record):
    """A file of the bundle, with its checksum."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$")]
    """Plain file name in the bundle's folder."""
    sha256: Sha256
    """SHA-256 of its content, in hexadecimal."""
    size_bytes: Positive
    """Size in bytes."""


class TensorSpec(_Record):
    """An input or output of a graph."""

    name: str
    """Name in the graph."""
    dtype: Literal["float32", "int64"]
    """Element type."""
    shape: tuple[str | int, ...]
    """Shape; the dynamic batch axis is "N"."""


class GraphRef(FileRef):
    """An ONNX graph."""

    opset: Positive
    """Version of the standard ONNX operator set."""
    inputs: tuple[TensorSpec, ...]
    """Inputs, in order."""
    outputs: tuple[TensorSpec, ...]
    """Outputs, in order."""
    tolerances: dict[DeviceKind, float] = {}
    """Tolerances of this graph, for the devices where they are wider than `Manifest.tolerances`."""


class DatasetRef(_Record):
    """The data set a model was trained on."""

    name: str
    """Name without a path, for example "mnist" or "folder:flowers"."""
    spec: dict[str, Any] = {}
    """Fields that select and load it: source, image size, channels; empty before schema 1.1."""
    sha256: dict[str, Sha256]
    """SHA-256 of each source file's uncompressed content, by file name."""
    split: dict[str, int]
    """Number of images by split."""


class Parity(_Record):
    """Result of comparing torch with onnxruntime at export."""

    batches: tuple[int, ...]
    """Batch sizes compared."""
    max_abs_difference: dict[str, float]
    """Largest absolute difference by "graph.output". A difference of the log-density is divided by
    the number of latent dimensions."""
    tolerance: float
    """Largest difference allowed."""
    batch_invariant: bool
    """Whether each row had the same bits in batches of every size, on CPU."""
    precision_difference: dict[str, float] = {}
    """Largest absolute difference between torch and a decoder in reduced precision, by
    "graph.output"; empty for fp32."""


class Manifest(_Record):
    """A model and its graphs: contract, provenance, metrics and checksums."""

    schema_version: str = SCHEMA_VERSION
    """Major.minor of this schema."""
    name: Name
    """Name of the model and of its folder."""
    version: Positive
    """Version of the model; the name of the bundle's folder."""
    created_at: AwareDatetime
    """Time of the export, with a time zone."""
    image_shape: tuple[Positive, Positive, Positive]
    """C, H and W."""
    latent_dim: Positive
    """D."""
    likelihood: Literal["bernoulli"]
    """p(x|z), parameterised by the decoder's `logits`."""
    posterior: Literal["gaussian", "delta"]
    """q(z|x), parameterised by the encoder's `mean` and `log_var`; `delta` for a plain
    autoencoder, which encodes to one point, its `mean`."""
    prior: Literal["standard", "gmm", "flow", "flow-gmm", "none"]
    """p(z): the standard normal (`standard`); a learned prior, exported as graphs `prior` and
    `prior_density`: a mixture of Gaussians (`gmm`), a flow over one Gaussian (`flow`) or over a
    mixture (`flow-gmm`); or `none` for a model that cannot be sampled from."""
    labels: tuple[str, ...] = ()
    """Names of the classes the prior can be conditioned on; empty if it is unconditional."""
    class_names: tuple[str, ...] = ()
    """Names of the classes of the training data."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """Precision of the decoder."""
    graphs: dict[GraphName, GraphRef]
    """The graphs by name."""
    golden: FileRef
    """The golden rows: real inputs of every graph with their expected outputs."""
    tolerances: dict[DeviceKind, float]
    """Largest allowed absolute difference from the golden outputs, by device. A difference of the
    log-density is first divided by the number of latent dimensions."""
    preprocessing: dict[str, Any]
    """How an image file becomes the encoder's input: channels, size, scale."""
    noise: str
    """Name and version of the seeded noise scheme, `common.noise.NAME`."""
    dataset: DatasetRef
    """The data set that the model was trained on."""
    training: dict[str, Any]
    """Preset, settings and length of the training."""
    metrics: dict[str, Any]
    """Metrics on the test set and the protocol of their measurement."""
    score_percentiles: tuple[float, ...] = ()
    """The 0th to 100th percentile of the training images' anomaly scores, in nats."""
    parity: Parity
    """Result of the comparison with torch at export."""
    tools: dict[str, str]
    """Versions of the software that wrote the bundle, by name."""

    @property
    def learned_prior(self) -> bool:
        """Whether the prior is learned and therefore has graphs."""
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
                    f"graphs.{name}: tensors do not match image_shape {self.image_shape} and "
                    f"latent_dim {self.latent_dim}"
                )
        return self

    @model_validator(mode="after")
    def _prior_of_the_posterior(self) -> Self:
        if (self.posterior, self.prior) in (("gaussian", "none"), ("delta", "standard")):
            # Nothing pulls the latents of a plain autoencoder towards the standard normal.
            raise ValueError(
                f"prior: got {self.prior}, which a {self.posterior} posterior cannot have"
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
    """Required inputs and outputs of every graph of a model, in order, by name of the graph.

    Args:
        image_shape: C, H and W.
        latent_dim: D.
        log_var: Whether the encoder has an output `log_var`.
        prior: Whether the prior is learned.
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
