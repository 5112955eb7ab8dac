"""Pairs of ONNX graphs: `vae_encoder/model.onnx` and `vae_decoder/model.onnx`, as optimum-onnx
writes them, or `encoder.onnx` and `decoder.onnx`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bundle import GraphName, Origin, Sizes, tensors_of
from export.errors import ExportError
from export.sources.adopt import (
    adopt_decoder,
    adopt_encoder,
    inputs_of,
    last_sigmoid,
    read_model,
)
from export.sources.files import checksums, latent_scaling, read_json, states
from export.sources.imported import GOLDEN_SIDE, MOST_PIXELS, Imported, ImportOptions, Posterior
from service.models.onnx import Device, Graph

Array = NDArray[np.float32]

_OPTIMUM = {name: Path(f"vae_{name}") / "model.onnx" for name in ("encoder", "decoder")}
_PAIR = {name: Path(f"{name}.onnx") for name in ("encoder", "decoder")}
_MEANS = ("mean", "mu", "z_mean", "embedding")
_LOG_VARS = ("log_var", "logvar", "log_variance", "z_log_var", "log_covariance")
_FLOATS = {
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.DOUBLE: "float64",
}
# Batches that the adopted graphs are compared with the source at, and the allowed difference.
_BATCHES, _TOLERANCE = (1, 2, 3), 1e-5


def find(path: Path) -> bool:
    """Whether a folder holds a decoder, and with it an encoder, as ONNX."""
    return any((path / layout["decoder"]).is_file() for layout in (_OPTIMUM, _PAIR))


def load(path: Path, options: ImportOptions) -> Imported:
    """Reads a pair of ONNX graphs.

    Args:
        path: The folder of both.
        options: What the command line says.

    Raises:
        ExportError: A graph is missing, damaged, of a structure that cannot be adopted, or does
            not fit the other.
    """
    pair = _Pair.read(path, options)
    shapes = pair.measure(options)
    if options.likelihood == "bernoulli":
        pair.check_bernoulli(shapes)
    contents = _adopt(pair, shapes, logits=options.likelihood == "bernoulli")
    _check_unchanged(pair, shapes, contents)
    notes = []
    scaling = latent_scaling(pair.config, options)
    if scaling is None and len(shapes.latent) == 3:
        notes.append("No scaling_factor is known, so latents cannot be scaled for a diffusion "
                     "model; wanted --scaling-factor, if there is one.")  # fmt: skip
    if options.likelihood is None and not pair.signed and pair.ends_in_sigmoid:
        notes.append("The decoder ends in a sigmoid. If it was trained with binary cross-entropy, "
                     "--likelihood bernoulli allows Score.")  # fmt: skip
    return Imported(
        image_shape=shapes.image,
        latent_shape=shapes.latent,
        origin=Origin(
            kind="onnx",
            class_name=str(pair.config.get("_class_name", "")),
            configuration={k: v for k, v in pair.config.items() if not k.startswith("_")},
            sha256=checksums(pair.files, path),
            licence=options.licence,
        ),
        graphs=contents,
        sizes=shapes.sizes,
        posterior=shapes.posterior,
        likelihood=options.likelihood or "none",
        prior=options.prior or "none",
        latent_scaling=scaling,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Shapes:
    """What the graphs of a pair map to what.

    Attributes:
        image: C, H and W; with `sizes`, of the golden rows.
        latent: [D] or [c, h, w]; with `sizes`, of the golden rows.
        sizes: The sizes of images; None if all have `image`.
        posterior: q(z|x), as in the manifest.
        heads: Outputs of the encoder that are its mean and log-variance, or one that is both.
    """

    image: tuple[int, int, int]
    latent: tuple[int, ...]
    sizes: Sizes | None
    posterior: Posterior
    heads: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Pair:
    """The graphs of a folder as they are.

    Attributes:
        encoder: None if it is left out.
        decoder: The decoder.
        files: All files that they were read from.
        config: The configuration of the model in diffusers; empty if there is none.
        signed: Whether images are in [-1, 1], as diffusers has them.
        names: Paths in the folder, for errors.
    """

    encoder: onnx.ModelProto | None
    decoder: onnx.ModelProto
    files: tuple[Path, ...]
    config: Mapping[str, Any]
    signed: bool
    names: Mapping[str, Path]

    @classmethod
    def read(cls, path: Path, options: ImportOptions) -> "_Pair":
        """Reads the graphs of a folder, and checks what each is by itself."""
        names = _OPTIMUM if (path / _OPTIMUM["decoder"]).is_file() else _PAIR
        if not (path / names["decoder"]).is_file():
            raise ExportError(f"{path}: no {_OPTIMUM['decoder']} and no {_PAIR['decoder']}")
        decoder, files = read_model(path / names["decoder"])
        encoder = None
        if not options.decoder_only:
            if not (path / names["encoder"]).is_file():
                raise ExportError(
                    f"{path}: no {names['encoder']}; wanted --decoder-only to do without it"
                )
            encoder, more = read_model(path / names["encoder"])
            files = [*more, *files]
        config: dict[str, Any] = {}
        stated = options.config or (path / names["decoder"]).parent / "config.json"
        if options.config is not None or states(stated, "_class_name"):
            config = read_json(stated)
            files.append(stated)
        signed = names is _OPTIMUM or "_class_name" in config
        if (chosen := getattr(options, "signed", None)) is not None:
            signed = chosen
        pair = cls(encoder, decoder, tuple(files), config, signed, names)
        for name, model in (("encoder", encoder), ("decoder", decoder)):
            if model is not None:
                pair._check(name, model)
        return pair

    def _check(self, name: str, model: onnx.ModelProto) -> None:
        where, inputs = self.names[name], inputs_of(model)
        if len(inputs) != 1:
            got = ", ".join(value.name for value in inputs) or "none"
            raise ExportError(f"{where}: inputs {got}, wanted one: the {_INPUTS[name]}")
        for value in (inputs[0], *model.graph.output):
            kind = value.type.tensor_type.elem_type
            if kind in _FLOATS:
                raise ExportError(
                    f"{where}: {value.name} is {_FLOATS[kind]}, wanted float32; export it again in "
                    "float32"
                )
        axes = _axes(inputs[0])
        if len(axes) not in ((4,) if name == "encoder" else (2, 4)):
            raise ExportError(
                f"{where}: {inputs[0].name} has {len(axes)} axes, wanted {_AXES[name]}"
            )
        if isinstance(axes[0], int):
            raise ExportError(
                f"{where}: the batch axis of {inputs[0].name} is fixed at {axes[0]}; export it "
                "again with a dynamic batch axis"
            )

    @property
    def ends_in_sigmoid(self) -> bool:
        """Whether the decoder's images come from a sigmoid."""
        return last_sigmoid(self.decoder, self.head) is not None

    @property
    def head(self) -> str:
        """The decoder's output that is the image; with a likelihood, or its logits."""
        names = [value.name for value in self.decoder.graph.output]
        for name in ("image", "sample", "reconstruction", "logits"):
            if name in names:
                return name
        if len(names) == 1:
            return names[0]
        raise ExportError(
            f"{self.names['decoder']}: outputs {', '.join(names)}, wanted one, or one named image"
        )

    def check_bernoulli(self, shapes: _Shapes) -> None:
        """Refuses a likelihood that the decoder does not have."""
        if self.signed or not (self.ends_in_sigmoid or self.head == "logits"):
            raise ExportError(
                f"--likelihood: got bernoulli, wanted none: {self.names['decoder']} does not end "
                "in a sigmoid" + (" of images in [0, 1]" if self.signed else "")
            )

    def measure(self, options: ImportOptions) -> _Shapes:
        """Runs both graphs, and compares their shapes.

        Raises:
            ExportError: One cannot be run, or the shapes do not fit each other.
        """
        source = inputs_of(self.decoder)[0]
        flat = len(_axes(source)) == 2
        if self.encoder is None:
            return self._measure_decoder(options, flat)
        axes = _axes(inputs_of(self.encoder)[0])
        channels = _channels(self.encoder, axes, self.config, self.names["encoder"])
        free = not isinstance(axes[2], int) and not isinstance(axes[3], int)
        size = _size(options, axes, free, self.names["encoder"])
        image = (channels, *size)
        answers = _run(self.encoder, np.zeros((2, *image), np.float32), self.names["encoder"])
        heads, latent, posterior = self._heads(answers)
        z = np.zeros((2, *latent), np.float32)
        pictures = _run(self.decoder, z, self.names["decoder"])[self.head]
        if pictures.shape != (2, *image):
            raise self._misfit(image, latent, pictures.shape[1:])
        free = free and not flat and options.size in (None, "any")
        free = free and not any(isinstance(axis, int) for axis in _axes(source)[2:])
        if options.size == "any" and not free:
            raise ExportError(
                f"--size: got any, wanted {image[1]}x{image[2]}: height and width of "
                f"{self.names['decoder']} are fixed"
            )
        return _Shapes(image, latent, _sizes(image, latent) if free else None, posterior, heads)

    def _measure_decoder(self, options: ImportOptions, flat: bool) -> _Shapes:
        where = self.names["decoder"]
        axes = _axes(inputs_of(self.decoder)[0])
        free = not flat and not any(isinstance(axis, int) for axis in axes[2:])
        latents = _channels(self.decoder, axes, self.config, where, latent=True)
        latent: tuple[int, ...] = (latents,)
        if not flat:
            rest = (8, 8) if free else tuple(axis for axis in axes[2:] if isinstance(axis, int))
            latent = (latents, *rest)
        image = _run(self.decoder, np.zeros((2, *latent), np.float32), where)[self.head].shape[1:]
        if len(image) != 3:
            raise ExportError(f"{where}: images {list(image)}, wanted [C, H, W]")
        if free:
            factor = _factor(image, latent, where)
            size = options.size
            if isinstance(size, tuple):
                _check_multiple(size, factor)
                image, latent = (image[0], *size), (latents, *(side // factor for side in size))
            else:
                side = -(-GOLDEN_SIDE // factor)
                latent, image = (latents, side, side), (image[0], side * factor, side * factor)
            free = not isinstance(size, tuple)
        elif options.size not in (None, image[1:]):
            raise ExportError(f"--size: wanted {image[1]}x{image[2]}, which {where} is fixed at")
        return _Shapes(image, latent, _sizes(image, latent) if free else None, "none")

    def _heads(
        self, answers: Mapping[str, Array]
    ) -> tuple[tuple[str, ...], tuple[int, ...], Posterior]:
        """The encoder's outputs that are used, the shape of a latent, and the posterior."""
        where, axes = self.names["encoder"], _axes(inputs_of(self.decoder)[0])
        mean = next((name for name in _MEANS if name in answers), None)
        log_var = next((name for name in _LOG_VARS if name in answers), None)
        if mean is not None and log_var is not None:
            return (mean, log_var), answers[mean].shape[1:], "gaussian"
        if mean is None and len(answers) > 1:
            raise ExportError(
                f"{where}: outputs {', '.join(answers)}; wanted one, or two named mean and log_var"
            )
        head = mean or next(iter(answers))
        shape = answers[head].shape[1:]
        wanted = axes[1]
        if not isinstance(wanted, int):
            wanted = _channels(self.decoder, axes, self.config, self.names["decoder"], latent=True)
        if len(shape) == len(axes) - 1 and shape[0] == wanted:
            return (head,), shape, "delta"
        if mean is None and len(shape) == len(axes) - 1 and shape[0] == 2 * wanted:
            return (head,), (wanted, *shape[1:]), "gaussian"
        raise ExportError(
            f"{where} returns {head} {list(shape)}, and {self.names['decoder']} takes "
            f"{['any' if isinstance(axis, str) else axis for axis in (wanted, *axes[2:])]}: they "
            "do not fit each other"
        )

    def _misfit(
        self, image: tuple[int, ...], latent: tuple[int, ...], got: tuple[int, ...]
    ) -> ExportError:
        return ExportError(
            f"{self.names['encoder']} maps an image {list(image)} to a latent {list(latent)}, from "
            f"which {self.names['decoder']} makes {list(got)}: they do not fit each other"
        )


_INPUTS = {"encoder": "image", "decoder": "latent"}
_AXES = {"encoder": "[N, C, H, W]", "decoder": "[N, D] or [N, c, h, w]"}


def _axes(value: onnx.ValueInfoProto) -> list[int | str]:
    """Length of each axis of a tensor, or its name if it is dynamic."""
    return [
        axis.dim_value if axis.dim_value > 0 else axis.dim_param
        for axis in value.type.tensor_type.shape.dim
    ]


def _channels(
    model: onnx.ModelProto,
    axes: list[int | str],
    config: Mapping[str, Any],
    where: Path,
    *,
    latent: bool = False,
) -> int:
    """Channels of a graph's input: as it says, as its configuration or first convolution does."""
    if isinstance(axes[1], int):
        return axes[1]
    name = inputs_of(model)[0].name
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] == name and node.input[1] in weights:
            return int(weights[node.input[1]].dims[1])
    stated = config.get("latent_channels" if latent else "in_channels")
    if isinstance(stated, int):
        return stated
    raise ExportError(f"{where}: axis 1 of {name} is dynamic; wanted a number of channels")


def _size(
    options: ImportOptions, axes: list[int | str], free: bool, where: Path
) -> tuple[int, int]:
    """Height and width of the golden rows."""
    if free:
        return options.size if isinstance(options.size, tuple) else (GOLDEN_SIDE, GOLDEN_SIDE)
    height, width = axes[2:]
    if not isinstance(height, int) or not isinstance(width, int):
        raise ExportError(f"{where}: wanted height and width either both fixed or both dynamic")
    if options.size not in (None, (height, width)):
        raise ExportError(f"--size: wanted {height}x{width}, which {where} is fixed at")
    return height, width


def _factor(image: tuple[int, ...], latent: tuple[int, ...], where: Path) -> int:
    factor = image[1] // latent[1]
    if image[1:] != tuple(side * factor for side in latent[1:]):
        raise ExportError(f"{where}: a latent {list(latent)} becomes an image {list(image)}")
    return factor


def _check_multiple(size: tuple[int, int], factor: int) -> None:
    if any(side % factor for side in size):
        raise ExportError(f"--size: got {size[0]}x{size[1]}, wanted multiples of {factor}")


def _sizes(image: tuple[int, int, int], latent: tuple[int, ...]) -> Sizes:
    factor = _factor(image, latent, _PAIR["decoder"])
    return Sizes(factor=factor, multiple=factor, least=factor, most_pixels=MOST_PIXELS)


def _run(model: onnx.ModelProto, rows: Array, where: Path) -> dict[str, Array]:
    """Outputs of a graph of one input, by name."""
    name = inputs_of(model)[0].name
    try:
        answers = Graph(model.SerializeToString(), Device("cpu"), rows=len(rows)).run({name: rows})
    except Exception as error:  # onnxruntime's errors have no common base
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(f"{where}: cannot compute {list(rows.shape)}: {first}") from error
    return dict(answers)


def _adopt(pair: _Pair, shapes: _Shapes, *, logits: bool) -> dict[GraphName, bytes]:
    specs = tensors_of(
        shapes.image,
        shapes.latent,
        free=shapes.sizes is not None,
        posterior=shapes.posterior,
        logits=logits,
    )
    contents: dict[GraphName, bytes] = {}
    if pair.encoder is not None:
        inputs, outputs = specs["encoder"]
        contents["encoder"] = adopt_encoder(
            pair.encoder, (*inputs, *outputs), shapes.heads, signed=pair.signed
        )
    inputs, outputs = specs["decoder"]
    contents["decoder"] = adopt_decoder(
        pair.decoder, (*inputs, *outputs), pair.head, signed=pair.signed, logits=logits
    )
    return contents


def _check_unchanged(pair: _Pair, shapes: _Shapes, contents: Mapping[GraphName, bytes]) -> None:
    """Compares the adopted graphs with the source's.

    Raises:
        ExportError: They differ.
    """
    rng = np.random.default_rng(0)
    sizes = [shapes.image[1:]]
    if shapes.sizes is not None:
        sizes.append((3 * shapes.sizes.multiple, 5 * shapes.sizes.multiple))
    for height, width in sizes:
        latent = shapes.latent
        if shapes.sizes is not None:
            factor = shapes.sizes.factor
            latent = (latent[0], height // factor, width // factor)
        for rows in _BATCHES:
            if pair.encoder is not None:
                image = rng.random((rows, shapes.image[0], height, width), np.float32)
                source = _run(
                    pair.encoder, 2 * image - 1 if pair.signed else image, pair.names["encoder"]
                )
                wanted = [source[name] for name in shapes.heads]
                if shapes.posterior == "gaussian":
                    mean, log_var = wanted if len(wanted) == 2 else np.split(wanted[0], 2, axis=1)
                    wanted = [mean, np.clip(log_var, -30, 20)]
                _compare(contents["encoder"], {"image": image}, wanted, pair.names["encoder"])
            z = rng.standard_normal((rows, *latent), np.float32)
            picture = _run(pair.decoder, z, pair.names["decoder"])[pair.head]
            if pair.signed:
                picture = (picture + 1) / 2
            elif pair.head == "logits":
                picture = 1 / (1 + np.exp(-picture))
            _compare(contents["decoder"], {"z": z}, [picture], pair.names["decoder"])


def _compare(content: bytes, inputs: Mapping[str, Array], wanted: list[Array], where: Path) -> None:
    try:
        graph = Graph(content, Device("cpu"), rows=len(next(iter(inputs.values()))))
        answers = graph.run(inputs)
    except Exception as error:  # onnxruntime's errors have no common base
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(f"{where}: cannot be adopted: {first}") from error
    names = ("image",) if "z" in inputs else ("mean", "log_var")[: len(wanted)]
    for name, value in zip(names, wanted, strict=True):
        if answers[name].shape != value.shape:
            raise ExportError(
                f"{where}: {name} is {list(answers[name].shape)}, wanted {list(value.shape)}"
            )
        share = float(np.max(np.abs(answers[name] - value))) / max(1, float(np.abs(value).max()))
        if not share <= _TOLERANCE:
            raise ExportError(f"{where}: the adopted graph differs by {share:.3g} in {name}")
