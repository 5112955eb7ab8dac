"""An autoencoder of the user's own code: `FILE.py:FACTORY`."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bundle import Origin, Sizes
from export.errors import ExportError
from export.sources.files import checksums, latent_scaling
from export.sources.imported import GOLDEN_SIDE, MOST_PIXELS, Imported, ImportOptions, Likelihood
from export.sources.wrap import BernoulliDecoder, Tupled, UnitDecoder, UnitEncoder, cut_sigmoid

_CHANNELS = 3
# A free size that is tried beside the golden one, in golden heights and widths.
_OTHER = (2, 3)


def find(path: Path) -> bool:
    """Whether a path has the form `FILE.py:FACTORY`."""
    file, _, factory = path.name.partition(":")
    return file.endswith(".py") and factory.isidentifier()


def load(source: Path, options: ImportOptions) -> Imported:
    """Runs a factory, which returns an object with `encode` and `decode`.

    Args:
        source: `FILE.py:FACTORY`.
        options: What the command line says about it.

    Raises:
        ExportError: The code is not trusted, fails, or returns something else.
    """
    if not find(source):
        raise ExportError(f"{source}: wanted FILE.py:FACTORY")
    file, _, factory = source.name.partition(":")
    path = source.with_name(file)
    if not path.is_file():
        raise ExportError(f"{path}: there is no such file")
    if not options.trust_code:
        raise ExportError(
            f"{source}: to import it, its Python code is run, which may do all that you may do on "
            "this machine. If you trust whoever wrote it, add --trust-code"
        )
    model = _made(path, factory)
    encodes = not options.decoder_only and callable(getattr(model, "encode", None))
    if not encodes and not options.decoder_only:
        raise ExportError(
            f"{source}: the object has no encode; for a decoder alone: --decoder-only"
        )
    image_shape = _image_shape(source, model, options)
    encoder = _Method(model, "encode") if encodes else None
    posterior, latent_shape = _posterior(source, model, encoder, image_shape)
    decoder, likelihood = _decoder(source, model, torch.randn(2, *latent_shape), options)
    sizes = None
    if options.size == "any":
        sizes = _sizes(source, decoder, image_shape, latent_shape)
    return Imported(
        image_shape=image_shape,
        latent_shape=latent_shape,
        origin=Origin(
            kind="torch",
            class_name=type(model).__name__,
            sha256=checksums([path], path.parent),
            licence=options.licence,
        ),
        encoder=None
        if encoder is None
        else UnitEncoder(encoder, gaussian=posterior == "gaussian", signed=bool(options.signed)),
        decoder=decoder,
        sizes=sizes,
        posterior=posterior,
        likelihood=likelihood,
        prior=options.prior or "none",
        latent_scaling=latent_scaling({}, options),
    )


class _Method(nn.Module):
    """A method of a module, as a module."""

    def __init__(self, model: Any, name: str):
        super().__init__()
        self.model = model
        self._call: Callable[[Tensor], Any] = getattr(model, name)

    def forward(self, x: Tensor) -> Any:
        answer = self._call(x)
        return tuple(answer) if isinstance(answer, list) else answer


class _Image(nn.Module):
    """The image of a decoder that may return logits as well."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Any:
        answer = self.net(z)
        return answer[0] if isinstance(answer, tuple) else answer


def _made(path: Path, factory: str) -> Any:
    """Runs a file and its factory.

    Raises:
        ExportError: The code fails, or the object has no `decode`.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # The file may import its neighbours, and dataclasses look up their module by name.
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
        make = getattr(module, factory, None)
        if not callable(make):
            raise ExportError(f"{path}: has no function {factory}")
        model = make()
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{path}:{factory}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    if not callable(getattr(model, "decode", None)):
        raise ExportError(f"{path}:{factory}: returns a {type(model).__name__} without decode")
    if isinstance(model, nn.Module):
        model.float().eval()
    return model


def _image_shape(source: Path, model: Any, options: ImportOptions) -> tuple[int, int, int]:
    """C, H and W: of the object's `image_shape`, and of --size."""
    stated = getattr(model, "image_shape", None)
    if isinstance(options.size, tuple):
        return (stated[0] if stated else _CHANNELS, *options.size)
    if stated:
        channels, height, width = stated
        return (int(channels), int(height), int(width))
    if options.size == "any":
        return (_CHANNELS, GOLDEN_SIDE, GOLDEN_SIDE)
    raise ExportError(
        f"{source}: of which size are its images? Wanted --size, or an attribute image_shape (C, "
        "H, W) of the object"
    )


def _posterior(
    source: Path, model: Any, encoder: nn.Module | None, image_shape: tuple[int, int, int]
) -> tuple[Any, tuple[int, ...]]:
    """Kind of the posterior, and shape of a latent."""
    if encoder is None:
        stated = getattr(model, "latent_shape", None)
        if not stated:
            raise ExportError(
                f"{source}: a decoder alone needs an attribute latent_shape of the object"
            )
        return "none", tuple(int(side) for side in stated)
    answers = _run(source, "encode", encoder, torch.rand(2, *image_shape))
    answers = answers if isinstance(answers, tuple) else (answers,)
    if len(answers) > 2 or not all(isinstance(answer, Tensor) for answer in answers):
        raise ExportError(
            f"{source}: encode returns {len(answers)} things, wanted the mean, or a tuple of mean "
            "and log_var"
        )
    return ("gaussian" if len(answers) == 2 else "delta"), tuple(answers[0].shape[1:])


def _decoder(
    source: Path, model: Any, z: Tensor, options: ImportOptions
) -> tuple[nn.Module, Likelihood]:
    """The module of the decoder's graph, and the likelihood that it has."""
    decode = _Method(model, "decode")
    answers = _run(source, "decode", Tupled(decode), z)
    if len(answers) > 2 or not all(isinstance(answer, Tensor) for answer in answers):
        raise ExportError(
            f"{source}: decode returns {len(answers)} things, wanted the image, or a tuple of "
            "image and logits"
        )
    likelihood = options.likelihood or ("bernoulli" if len(answers) == 2 else "none")
    if likelihood == "none":
        return UnitDecoder(_Image(decode), signed=bool(options.signed)), likelihood
    if options.signed:
        raise ExportError(f"{source}: --range signed: Bernoulli pixels are in [0, 1]")
    if len(answers) == 2:
        return decode, likelihood
    if not cut_sigmoid(decode, z):
        raise ExportError(
            f"{source}: --likelihood bernoulli: wanted a decode that ends in an nn.Sigmoid, or "
            "returns a tuple of image and logits"
        )
    return BernoulliDecoder(decode), likelihood


def _run(source: Path, name: str, module: nn.Module, x: Tensor) -> Any:
    try:
        with torch.inference_mode():
            return module(x)
    except Exception as error:
        raise ExportError(
            f"{source}: {name} of a tensor {list(x.shape)}: {type(error).__name__}: {error}"
        ) from error


def _sizes(
    source: Path,
    decoder: nn.Module,
    image_shape: tuple[int, int, int],
    latent_shape: tuple[int, ...],
) -> Sizes:
    """The sizes that a model of free size takes: multiples of the factor of its latents."""
    _, height, width = image_shape
    if len(latent_shape) != 3 or height % latent_shape[1] or width % latent_shape[2]:
        raise ExportError(
            f"{source}: --size any: latents have shape {list(latent_shape)}, wanted [c, h, w] that "
            f"divide {height}x{width}"
        )
    factor = height // latent_shape[1]
    down, across = _OTHER
    z = torch.randn(2, latent_shape[0], down * latent_shape[1], across * latent_shape[2])
    got = tuple(_run(source, "decode", decoder, z)[0].shape[2:])
    if got != (down * height, across * width) or factor != width // latent_shape[2]:
        raise ExportError(f"{source}: --size any: decode of {list(z.shape)} returns {got}")
    return Sizes(factor=factor, multiple=factor, least=factor, most_pixels=MOST_PIXELS)
