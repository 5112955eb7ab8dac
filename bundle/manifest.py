"""`manifest.json`: what a bundle is, field by field."""

from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

#: Major and minor version of the schema. A reader refuses another major; a minor
#: only adds fields, which an older reader passes over.
SCHEMA_VERSION = "1.0"

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


class DatasetRef(_Record):
    """The data a model was trained on."""

    name: str
    """For example "mnist"."""
    sha256: dict[str, Sha256]
    """SHA-256 of each source file's uncompressed content."""
    split: dict[str, int]
    """Images in each split."""


class Parity(_Record):
    """How far torch and onnxruntime were apart when the bundle was written."""

    batches: tuple[int, ...]
    """Batch sizes compared."""
    max_abs_difference: dict[str, float]
    """Largest absolute difference of each output, as "graph.output"."""
    tolerance: float
    """What was allowed."""
    batch_invariant: bool
    """Whether each row was bit-equal in batches of every size, on CPU."""


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
    posterior: Literal["gaussian"]
    """q(z|x); its parameters are the encoder's `mean` and `log_var`."""
    prior: Literal["standard"]
    """p(z): the standard normal."""
    labels: tuple[str, ...] = ()
    """Classes that can be sampled by label; empty where the prior knows none."""
    class_names: tuple[str, ...] = ()
    """Classes of the training data."""
    graphs: dict[Literal["encoder", "decoder"], GraphRef]
    """The graphs, by what they do."""
    golden: FileRef
    """A few real inputs and what each graph must answer."""
    tolerances: dict[Literal["cpu", "cuda"], float]
    """Largest absolute difference from the golden answers, by device."""
    preprocessing: dict[str, Any]
    """How a picture becomes the encoder's input."""
    noise: str
    """Name and version of the seeded noise, as `service.noise` defines it."""
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

    @field_validator("graphs")
    @classmethod
    def _both_graphs(cls, graphs: dict[str, GraphRef]) -> dict[str, GraphRef]:
        if missing := {"encoder", "decoder"} - set(graphs):
            raise ValueError(f"no {' and no '.join(sorted(missing))}")
        return graphs

    @model_validator(mode="after")
    def _tensors_of_the_contract(self) -> Self:
        for name, (inputs, outputs) in tensors_of(self.image_shape, self.latent_dim).items():
            graph = self.graphs[name]
            if (graph.inputs, graph.outputs) != (inputs, outputs):
                raise ValueError(
                    f"graphs.{name}: tensors that are not those of images {self.image_shape} and "
                    f"{self.latent_dim} latent dimensions"
                )
        return self

    @field_validator("score_percentiles")
    @classmethod
    def _whole_table(cls, table: tuple[float, ...]) -> tuple[float, ...]:
        if table and (len(table) != 101 or list(table) != sorted(table)):
            raise ValueError(f"got {len(table)} values, wanted 101 ascending ones")
        return table


def tensors_of(
    image_shape: tuple[int, int, int], latent_dim: int
) -> dict[Literal["encoder", "decoder"], tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
    """The inputs and outputs that each graph of such a model must have, in order.

    Args:
        image_shape: C, H and W.
        latent_dim: D.
    """

    def spec(name: str, *axes: int) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=("N", *axes))

    return {
        "encoder": (
            (spec("image", *image_shape),),
            (spec("mean", latent_dim), spec("log_var", latent_dim)),
        ),
        "decoder": (
            (spec("z", latent_dim),),
            (spec("image", *image_shape), spec("logits", *image_shape)),
        ),
    }
