"""Pairs of ONNX graphs, an encoder and a decoder.

They are `vae_encoder/model.onnx` and `vae_decoder/model.onnx`, as optimum-onnx writes them, or
`encoder.onnx` and `decoder.onnx`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle import GraphName, Origin, Sizes, tensors_of
from export.errors import ExportError
from export.sources.adopt import adopt_decoder, adopt_encoder
from export.sources.files import checksums, latent_scaling, read_json, states
from export.sources.imported import GOLDEN_SIDE, Imported, ImportOptions, Posterior
from export.sources.onnx_graph import SourceGraph
from export.sources.sizes import free_sizes
from service.models.onnx import Device, Graph

Array = NDArray[np.float32]

_OPTIMUM = (Path("vae_encoder") / "model.onnx", Path("vae_decoder") / "model.onnx")
_PAIR = (Path("encoder.onnx"), Path("decoder.onnx"))
# Names of outputs that say what they are.
_MEANS = ("mean", "mu", "z_mean", "embedding")
_LOG_VARS = ("log_var", "logvar", "log_variance", "z_log_var", "log_covariance")
_IMAGES = ("image", "sample", "reconstruction", "logits")
# Batches that the adopted graphs are compared with the source at, and the allowed difference.
_BATCHES, _TOLERANCE = (1, 2, 3), 1e-5


def find(path: Path) -> bool:
    """Whether a folder holds a decoder as ONNX."""
    return any((path / decoder).is_file() for _, decoder in (_OPTIMUM, _PAIR))


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
    if options.likelihood == "bernoulli" and not pair.bernoulli:
        raise ExportError(
            f"--likelihood: got bernoulli, wanted none: {pair.decoder.file} does not end in a "
            "sigmoid" + (" of images in [0, 1]" if pair.signed else "")
        )
    shapes = pair.measure(options)
    graphs = pair.adopt(shapes, logits=options.likelihood == "bernoulli")
    pair.check_unchanged(shapes, graphs)
    scaling = latent_scaling(pair.config, options)
    notes = []
    if scaling is None and len(shapes.latent) == 3:
        notes.append(
            "no scaling_factor is known, so latents cannot be scaled for a diffusion model; "
            "wanted --scaling-factor, if there is one"
        )
    if options.likelihood is None and pair.bernoulli:
        notes.append(
            "the decoder ends in a sigmoid; if it was trained with binary cross-entropy, "
            "--likelihood bernoulli allows Score"
        )
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
        graphs=graphs,
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
        posterior: q(z|x), as in the manifest.
        heads: Outputs of the encoder that are its mean and log-variance, or one that is both.
        sizes: The sizes of images; None if all have `image`.
    """

    image: tuple[int, int, int]
    latent: tuple[int, ...]
    posterior: Posterior
    heads: tuple[str, ...]
    sizes: Sizes | None


@dataclass(frozen=True)
class _Pair:
    """The graphs of a folder as they are.

    Attributes:
        encoder: None if it is left out.
        decoder: The decoder.
        head: The decoder's output that is the image, or its logits.
        config: The configuration of the model in diffusers; empty if there is none.
        signed: Whether images are in [-1, 1], as diffusers has them.
        files: All files that they were read from.
    """

    encoder: SourceGraph | None
    decoder: SourceGraph
    head: str
    config: Mapping[str, Any]
    signed: bool
    files: tuple[Path, ...]

    @classmethod
    def read(cls, path: Path, options: ImportOptions) -> "_Pair":
        """Reads the graphs of a folder, and checks what each is by itself."""
        layout = _OPTIMUM if (path / _OPTIMUM[1]).is_file() else _PAIR
        first, second = (path / name for name in layout)
        if not second.is_file():
            raise ExportError(f"{path}: no {_OPTIMUM[1]} and no {_PAIR[1]}")
        if not first.is_file() and not options.decoder_only:
            raise ExportError(f"{path}: no {layout[0]}; wanted --decoder-only to do without it")
        config: dict[str, Any] = {}
        stated = options.config or second.parent / "config.json"
        if options.config is not None or states(stated, "_class_name"):
            config = read_json(stated)
        encoder = None if options.decoder_only else SourceGraph(first, "encoder", config)
        decoder = SourceGraph(second, "decoder", config)
        signed = layout is _OPTIMUM or "_class_name" in config
        if options.signed is not None:
            signed = options.signed
        head = next((name for name in _IMAGES if name in decoder.outputs), decoder.outputs[0])
        if head not in _IMAGES and len(decoder.outputs) > 1:
            names = ", ".join(decoder.outputs)
            raise ExportError(f"{second}: outputs {names}; wanted one, or one named image")
        return cls(
            encoder,
            decoder,
            head,
            config,
            signed,
            (
                *(() if encoder is None else encoder.files),
                *decoder.files,
                *([stated] if config else ()),
            ),
        )

    @property
    def bernoulli(self) -> bool:
        """Whether the images can be taken for probabilities."""
        ends = self.head == "logits" or self.decoder.sigmoid_before(self.head) is not None
        return ends and not self.signed

    def measure(self, options: ImportOptions) -> _Shapes:
        """Runs the graphs on zeros.

        Raises:
            ExportError: One cannot be run, or their shapes do not fit each other or `--size`.
        """
        decoder, encoder = self.decoder, self.encoder
        free = decoder.free and (encoder is None or encoder.free)
        image: tuple[int, ...] = ()
        heads: tuple[str, ...] = ()
        posterior: Posterior = "none"
        if encoder is None:
            latent = self._latent_alone(options)
        else:
            size = options.size if isinstance(options.size, tuple) else (GOLDEN_SIDE, GOLDEN_SIDE)
            image = (encoder.channels, *(size if encoder.free else encoder.size))
            answers = encoder.run(np.zeros((2, *image), np.float32))
            heads, latent, posterior = self._heads(encoder, answers)
        try:
            made = decoder.run(np.zeros((2, *latent), np.float32))[self.head].shape[1:]
        except ExportError as error:
            if encoder is None:
                raise
            raise ExportError(
                f"{encoder.file} makes latents {list(latent)}, and {decoder.file} takes "
                f"{self._taken()}: they do not fit each other"
            ) from error
        if encoder is not None and made != image:
            raise ExportError(
                f"{encoder.file} maps an image {list(image)} to a latent {list(latent)}, from "
                f"which {decoder.file} makes {list(made)}: they do not fit each other"
            )
        if len(made) != 3:
            raise ExportError(f"{decoder.file}: images {list(made)}, wanted [C, H, W]")
        channels, height, width = made
        if options.size not in ((None, "any") if free else (None,)) and options.size != (
            height,
            width,
        ):
            raise ExportError(f"--size: wanted {height}x{width}, which {decoder.file} is fixed at")
        sizes = None
        if free and not isinstance(options.size, tuple):
            factor = height // latent[1]
            if (height, width) != (factor * latent[1], factor * latent[2]):
                raise ExportError(
                    f"{decoder.file}: makes an image {list(made)} of a latent {list(latent)}, "
                    "wanted one larger by a whole number"
                )
            sizes = free_sizes(factor, attends=decoder.attends)
        return _Shapes((channels, height, width), latent, posterior, heads, sizes)

    def _latent_alone(self, options: ImportOptions) -> tuple[int, ...]:
        """Shape of a latent of a decoder without encoder, at the golden size."""
        decoder = self.decoder
        if len(decoder.axes) == 2:
            return (decoder.channels,)
        if not decoder.free:
            return (decoder.channels, *decoder.size)
        tried = np.zeros((2, decoder.channels, 8, 8), np.float32)
        factor = max(1, decoder.run(tried)[self.head].shape[2] // 8)
        if not isinstance(options.size, tuple):
            side = -(-GOLDEN_SIDE // factor)
            return (decoder.channels, side, side)
        if any(side % factor for side in options.size):
            raise ExportError(
                f"--size: got {options.size[0]}x{options.size[1]}, wanted multiples of {factor}"
            )
        return (decoder.channels, *(side // factor for side in options.size))

    def _heads(
        self, encoder: SourceGraph, answers: Mapping[str, Array]
    ) -> tuple[tuple[str, ...], tuple[int, ...], Posterior]:
        """The encoder's outputs that are used, the shape of a latent, and the posterior."""
        mean = next((name for name in _MEANS if name in answers), None)
        log_var = next((name for name in _LOG_VARS if name in answers), None)
        if mean is None and len(answers) > 1:
            raise ExportError(
                f"{encoder.file}: outputs {', '.join(answers)}; wanted one, or two named mean and "
                "log_var"
            )
        head = mean or next(iter(answers))
        shape, latents = answers[head].shape[1:], self.decoder.channels
        if len(shape) == len(self.decoder.axes) - 1:
            if shape[0] == latents and log_var is not None:
                return (head, log_var), shape, "gaussian"
            if shape[0] == latents:
                return (head,), shape, "delta"
            if shape[0] == 2 * latents and mean is None:
                return (head,), (latents, *shape[1:]), "gaussian"
        raise ExportError(
            f"{encoder.file} returns {head} {list(shape)}, and {self.decoder.file} takes "
            f"{self._taken()}: they do not fit each other"
        )

    def _taken(self) -> str:
        """Shape of the latents that the decoder takes, for errors."""
        axes = [self.decoder.channels, *(axis or "any" for axis in self.decoder.axes[2:])]
        return f"[{', '.join(map(str, axes))}]"

    def adopt(self, shapes: _Shapes, *, logits: bool) -> dict[GraphName, bytes]:
        """The graphs with the tensors of the contract."""
        specs = tensors_of(
            shapes.image,
            shapes.latent,
            free=shapes.sizes is not None,
            posterior=shapes.posterior,
            likelihood="bernoulli" if logits else "none",
        )
        graphs: dict[GraphName, bytes] = {}
        if self.encoder is not None:
            inputs, outputs = specs["encoder"]
            graphs["encoder"] = adopt_encoder(
                self.encoder.model, (*inputs, *outputs), shapes.heads, signed=self.signed
            )
        inputs, outputs = specs["decoder"]
        graphs["decoder"] = adopt_decoder(
            self.decoder.model, (*inputs, *outputs), self.head, signed=self.signed, logits=logits
        )
        return graphs

    def check_unchanged(self, shapes: _Shapes, graphs: Mapping[GraphName, bytes]) -> None:
        """Compares adopted graphs with the source's, at two sizes where they are free.

        Raises:
            ExportError: They differ.
        """
        rng = np.random.default_rng(0)
        cases = [(shapes.image, shapes.latent)]
        if shapes.sizes is not None:
            height, width = 3, 5
            factor = shapes.sizes.factor
            cases.append(
                (
                    (shapes.image[0], factor * height, factor * width),
                    (shapes.latent[0], height, width),
                )
            )
        for image_shape, latent_shape in cases:
            for rows in _BATCHES:
                if self.encoder is not None:
                    image = rng.random((rows, *image_shape), np.float32)
                    wanted = self._encode(self.encoder, image, shapes)
                    _compare(graphs["encoder"], {"image": image}, wanted, self.encoder.file)
                z = rng.standard_normal((rows, *latent_shape), np.float32)
                _compare(graphs["decoder"], {"z": z}, self._decode(z), self.decoder.file)

    def _encode(self, encoder: SourceGraph, image: Array, shapes: _Shapes) -> dict[str, Array]:
        answers = encoder.run(2 * image - 1 if self.signed else image)
        heads = [answers[name] for name in shapes.heads]
        if shapes.posterior == "delta":
            return {"mean": heads[0]}
        mean, log_var = heads if len(heads) == 2 else np.split(heads[0], 2, axis=1)
        return {"mean": mean, "log_var": np.clip(log_var, -30, 20)}

    def _decode(self, z: Array) -> dict[str, Array]:
        image: NDArray[np.floating] = self.decoder.run(z)[self.head]
        if self.head == "logits":
            image = 1 / (1 + np.exp(-image))
        elif self.signed:
            image = (image + 1) / 2
        return {"image": image.astype(np.float32)}


def _compare(
    content: bytes, inputs: Mapping[str, Array], wanted: Mapping[str, Array], where: Path
) -> None:
    try:
        answers = Graph(content, Device("cpu")).run(inputs)
    except Exception as error:  # onnxruntime's errors have no common base
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(f"{where}: cannot be adopted: {first}") from error
    for name, value in wanted.items():
        got = answers[name]
        difference = float(np.abs(got - value).max()) if got.shape == value.shape else np.inf
        share = difference / max(1.0, float(np.abs(value).max()))
        if not share <= _TOLERANCE:
            raise ExportError(f"{where}: the adopted graph differs by {share:.3g} in {name}")
