"""Schema of `manifest.json`, field by field."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

from bundle.tensors import GraphName, TensorSpec, likelihood_output, tensors_of

#: Major and minor version of the schema. A reader refuses a major version that it does not know; a
#: minor version only adds fields, which older readers ignore.
SCHEMA_VERSION = "1.3"
#: The same of conditional models alone. A reader that does not know their input `label` would serve
#: them wrongly, so it has to refuse them.
CONDITIONAL_SCHEMA_VERSION = "2.0"
#: The major versions that are read.
MAJORS = tuple(
    version.partition(".")[0] for version in (SCHEMA_VERSION, CONDITIONAL_SCHEMA_VERSION)
)

# Largest difference of the sum of the class weights from 1: rounding, and far below a step of u.
_WEIGHT_ERROR = 1e-9

DeviceKind = Literal["cpu", "cuda"]

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
    """Result of comparing graphs with their source at export: torch, or the graphs of others."""

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


class Sizes(_Record):
    """The sizes of images that a model takes whose height and width are free."""

    factor: Positive
    """Pixels of an image per value of its latent, along each axis: H = factor * h."""
    multiple: Positive
    """Height and width are multiples of this, itself a multiple of `factor`."""
    least: Positive
    """Minimum height and minimum width."""
    most_pixels: Positive
    """Maximum of height times width."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.multiple % self.factor:
            raise ValueError(f"multiple: got {self.multiple}, wanted a multiple of {self.factor}")
        if self.least % self.multiple:
            raise ValueError(f"least: got {self.least}, wanted a multiple of {self.multiple}")
        if self.most_pixels < self.least**2:
            raise ValueError(f"most_pixels: got {self.most_pixels}, wanted {self.least**2} or more")
        return self

    def allow(self, height: int, width: int) -> bool:
        """Whether the model takes images of a size."""
        return (
            min(height, width) >= self.least
            and height % self.multiple == width % self.multiple == 0
            and height * width <= self.most_pixels
        )


class LatentScaling(_Record):
    """Scaling of latents, as a diffusion model expects them.

    (latent - shift) * scale, or (latent - mean) / std with a value for each channel.
    """

    scale: Annotated[float, Field(gt=0)] | None = None
    """The factor; None if `mean` and `std` are given."""
    shift: float = 0.0
    """Subtracted before the multiplication."""
    mean: tuple[float, ...] = ()
    """Mean of each channel."""
    std: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Standard deviation of each channel."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.scale is None) == (not self.std) or len(self.mean) != len(self.std):
            raise ValueError("wanted a scale, or a mean and a std for each channel")
        return self


class Origin(_Record):
    """Where an imported model comes from."""

    kind: str
    """Kind of source, for example "diffusers", "taesd", "pythae", "onnx" or "torch"."""
    class_name: str = ""
    """Class of the model in its library, for example "AutoencoderKL"."""
    configuration: dict[str, Any] = {}
    """Its configuration there."""
    sha256: dict[str, Sha256] = {}
    """SHA-256 of each source file, by file name."""
    licence: str = ""
    """Its licence, for example "MIT"; empty if it is not known."""


class Manifest(_Record):
    """A model and its graphs: contract, provenance, metrics and checksums."""

    schema_version: str = SCHEMA_VERSION
    """Major.minor of this schema; the major version is 2 if and only if the model is
    conditional."""
    name: Name
    """Name of the model and of its folder."""
    version: Positive
    """Version of the model; the name of the bundle's folder."""
    created_at: AwareDatetime
    """Time of the export, with a time zone."""
    image_shape: tuple[Positive, Positive, Positive]
    """C, H and W; with `sizes`, those of the golden rows."""
    latent_dim: Positive
    """D, the product of `latent_shape`."""
    latent_shape: tuple[Positive, ...] = ()
    """[D], or [c, h, w] of spatial latents; with `sizes`, of the golden rows. Filled in from
    `latent_dim` before schema 1.2."""
    sizes: Sizes | None = None
    """The sizes of images that the model takes; None if all have `image_shape`."""
    latent_scaling: LatentScaling | None = None
    """How a diffusion model expects the latents to be scaled; None if it is not known."""
    likelihood: Literal["bernoulli", "gaussian", "logistic", "none"]
    """p(x|z), parameterised by the decoder's `logits` (`bernoulli`) or `parameters` (`gaussian`, or
    `logistic`: discretized to the 256 levels of a byte); `none` for a decoder that returns images
    only."""
    mixture: Positive = 1
    """Components of the `logistic` likelihood of each pixel."""
    posterior: Literal["gaussian", "delta", "none"]
    """q(z|x), parameterised by the encoder's `mean` and `log_var`; `delta` for a plain
    autoencoder, which encodes to one point, its `mean`; `none` for a decoder without an encoder."""
    prior: Literal["standard", "gmm", "flow", "flow-gmm", "none"]
    """p(z): the standard normal (`standard`); a learned prior, exported as graphs `prior` and
    `prior_density`: a mixture of Gaussians (`gmm`), a flow over one Gaussian (`flow`) or over a
    mixture (`flow-gmm`); or `none` for a model that cannot be sampled from."""
    conditional: bool = False
    """Whether encoder and decoder take the class of each row as an input `label`, an index into
    `labels`. The prior of such a model is of all classes: its graphs are given the label -1."""
    labels: tuple[str, ...] = ()
    """Names of the classes that the model, or of another than a conditional one the prior, is
    conditioned on; empty if there are none."""
    class_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """How often each class of `labels` is in the training data, in numbers that sum to 1; empty if
    the model is not conditional. Samples without a label are drawn by them (`common.classes`)."""
    class_names: tuple[str, ...] = ()
    """Names of the classes of the training data."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """Precision of the decoder."""
    weights: Literal["fp32", "fp16"] = "fp32"
    """Precision in which weights are stored; graphs compute in fp32, but for the decoder's
    `precision`."""
    graphs: dict[GraphName, GraphRef]
    """The graphs by name."""
    golden: FileRef
    """The golden rows: real inputs of every graph with their expected outputs."""
    tolerances: dict[DeviceKind, float]
    """Largest allowed difference from the golden outputs, by device. A difference of the
    log-density is first divided by the number of latent dimensions."""
    tolerance_kind: Literal["absolute", "relative"] = "absolute"
    """Whether `tolerances` are multiplied by max(1, largest absolute golden value) of the output
    that is compared (`relative`)."""
    rows_at_once: Annotated[int, Field(ge=0)] = 0
    """Maximum rows to compute at once; 0 for no limit. 1 if rows are not equal to the bit in
    batches of every size, or too slow to be worth a batch."""
    bytes_per_pixel: Annotated[float, Field(ge=0)] = 0.0
    """Peak memory of computing a row, in bytes per pixel of its image, of the graph that takes
    more; 0 if it was not measured."""
    preprocessing: dict[str, Any]
    """How an image file becomes the encoder's input: channels, size, scale."""
    noise: str
    """Name and version of the seeded noise scheme, `common.noise.NAME`."""
    dataset: DatasetRef | None = None
    """The data set that the model was trained on; None if it is not known."""
    training: dict[str, Any] = {}
    """Preset, settings and length of the training."""
    metrics: dict[str, Any] = {}
    """Metrics on the test set and the protocol of their measurement."""
    origin: Origin | None = None
    """Where the model comes from, if it was not trained and exported here."""
    latent_map: FileRef | None = None
    """Test images in the latent space (`bundle.latent_map`); None if there is no map."""
    score_percentiles: tuple[float, ...] = ()
    """The 0th to 100th percentile of the training images' anomaly scores, in nats."""
    parity: Parity | None = None
    """Result of the comparison at export; None if there was none."""
    tools: dict[str, str]
    """Versions of the software that wrote the bundle, by name."""

    @property
    def learned_prior(self) -> bool:
        """Whether the prior is learned and therefore has graphs."""
        return self.prior not in ("standard", "none")

    @property
    def likelihood_output(self) -> str:
        """The decoder's output that parameterises p(x|z); empty if there is no likelihood."""
        return likelihood_output(self.likelihood)

    @property
    def spatial(self) -> bool:
        """Whether latents are spatial, [c, h, w], rather than flat, [D]."""
        return len(self.latent_shape) == 3

    def latent_shape_of(self, height: int, width: int) -> tuple[int, ...]:
        """Shape of the latent of an image of a size that the model takes.

        Args:
            height: H, in pixels.
            width: W, in pixels.

        Returns:
            (c, H / factor, W / factor) with `sizes`, else `latent_shape`.
        """
        if self.sizes is None:
            return self.latent_shape
        factor = self.sizes.factor
        return (self.latent_shape[0], height // factor, width // factor)

    @model_validator(mode="before")
    @classmethod
    def _flat_unless_stated(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and not fields.get("latent_shape") and "latent_dim" in fields:
            return fields | {"latent_shape": (fields["latent_dim"],)}
        return fields

    @model_validator(mode="after")
    def _shapes(self) -> Self:
        shape = self.latent_shape
        if len(shape) not in (1, 3) or math.prod(shape) != self.latent_dim:
            raise ValueError(
                f"latent_shape: got {list(shape)}, wanted [D] or [c, h, w] of {self.latent_dim} "
                "values"
            )
        if self.sizes is not None:
            _, height, width = self.image_shape
            factor = self.sizes.factor
            if not self.spatial or (height, width) != (factor * shape[1], factor * shape[2]):
                raise ValueError(
                    f"sizes: factor {factor} with image_shape {list(self.image_shape)} and "
                    f"latent_shape {list(shape)}"
                )
            if not self.sizes.allow(height, width):
                raise ValueError(f"image_shape: got {list(self.image_shape)}, which sizes exclude")
        scaling = self.latent_scaling
        if scaling is not None and scaling.std and len(scaling.std) != shape[0]:
            raise ValueError(f"latent_scaling: got {len(scaling.std)} channels, wanted {shape[0]}")
        return self

    @model_validator(mode="after")
    def _tensors_of_the_contract(self) -> Self:
        wanted = tensors_of(
            self.image_shape,
            self.latent_shape,
            free=self.sizes is not None,
            posterior=self.posterior,
            likelihood=self.likelihood,
            mixture=self.mixture,
            prior=self.learned_prior,
            conditional=self.conditional,
        )
        if missing := wanted.keys() - self.graphs.keys():
            raise ValueError(f"graphs: no {' and no '.join(sorted(missing))}")
        if surplus := self.graphs.keys() - wanted.keys():
            raise ValueError(
                f"graphs: {' and '.join(sorted(surplus))} with prior {self.prior} and posterior "
                f"{self.posterior}"
            )
        for name, (inputs, outputs) in wanted.items():
            graph = self.graphs[name]
            if (graph.inputs, graph.outputs) != (inputs, outputs):
                raise ValueError(
                    f"graphs.{name}: tensors do not match image_shape {self.image_shape}, "
                    f"latent_shape {self.latent_shape}, posterior {self.posterior} and likelihood "
                    f"{self.likelihood} (mixture {self.mixture}), conditional {self.conditional}"
                )
        return self

    @model_validator(mode="after")
    def _mixture_of_logistics(self) -> Self:
        if self.mixture > 1 and self.likelihood != "logistic":
            raise ValueError(f"mixture: got {self.mixture}, wanted 1 of {self.likelihood}")
        return self

    @model_validator(mode="after")
    def _flat_for_a_learned_prior(self) -> Self:
        if self.learned_prior and self.spatial:
            raise ValueError(f"prior: got {self.prior}, wanted standard or none of spatial latents")
        return self

    @model_validator(mode="after")
    def _labels_of_a_mixture(self) -> Self:
        if self.labels and "gmm" not in self.prior and not self.conditional:
            raise ValueError(f"labels: got {len(self.labels)}, wanted none with prior {self.prior}")
        return self

    @model_validator(mode="after")
    def _classes_of_a_conditional_model(self) -> Self:
        wanted = schema_version_of(conditional=self.conditional)
        if self.schema_version.partition(".")[0] != wanted.partition(".")[0]:
            raise ValueError(
                f"schema_version: got {self.schema_version}, wanted {wanted} with conditional "
                f"{str(self.conditional).lower()}"
            )
        if self.conditional and not self.labels:
            raise ValueError("labels: got none, wanted the names of the classes with conditional")
        classes = len(self.labels) if self.conditional else 0
        if len(self.class_weights) != classes:
            raise ValueError(f"class_weights: got {len(self.class_weights)}, wanted {classes}")
        total = math.fsum(self.class_weights)
        if classes and abs(total - 1.0) > _WEIGHT_ERROR:
            raise ValueError(f"class_weights: got a sum of {total!r}, wanted 1")
        return self

    @field_validator("score_percentiles")
    @classmethod
    def _whole_table(cls, table: tuple[float, ...]) -> tuple[float, ...]:
        if table and (len(table) != 101 or list(table) != sorted(table)):
            raise ValueError(f"got {len(table)} values, wanted 101 ascending ones")
        return table


def schema_version_of(*, conditional: bool) -> str:
    """The schema version that a bundle is written with."""
    return CONDITIONAL_SCHEMA_VERSION if conditional else SCHEMA_VERSION
