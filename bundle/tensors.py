"""The contract of a bundle's graphs: their inputs and outputs, by name, dtype and shape."""

from typing import Literal

from pydantic import BaseModel

GraphName = Literal["encoder", "decoder", "prior", "prior_density"]


class TensorSpec(BaseModel, frozen=True, extra="ignore"):
    """An input or output of a graph."""

    name: str
    """Name in the graph."""
    dtype: Literal["float32", "int64"]
    """Element type."""
    shape: tuple[str | int, ...]
    """Shape; the dynamic batch axis is "N". Where height and width are free, those of images are
    "H" and "W", those of latents "h" and "w"."""


def likelihood_output(likelihood: str) -> str:
    """The decoder's output that parameterises a likelihood; empty for `none`."""
    return {"bernoulli": "logits", "none": ""}.get(likelihood, "parameters")


def tensors_of(
    image_shape: tuple[int, int, int],
    latent_shape: tuple[int, ...],
    *,
    free: bool = False,
    posterior: str = "gaussian",
    likelihood: str = "bernoulli",
    mixture: int = 1,
    prior: bool = False,
    conditional: bool = False,
) -> dict[GraphName, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
    """Required inputs and outputs of every graph of a model, in order, by name of the graph.

    Args:
        image_shape: C, H and W.
        latent_shape: [D] or [c, h, w].
        free: Whether height and width are free.
        posterior: `gaussian`, `delta` (the encoder has no output `log_var`) or `none` (there is
            no encoder).
        likelihood: `bernoulli` (the decoder has an output `logits`), `gaussian`, `logistic` (it has
            `parameters`) or `none`.
        mixture: Components of a logistic likelihood.
        prior: Whether the prior is learned; latents are flat then.
        conditional: Whether encoder and decoder take the class of each row.
    """

    def spec(name: str, *axes: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=("N", *axes))

    image: tuple[int | str, ...] = image_shape
    latent: tuple[int | str, ...] = latent_shape
    if free:
        image, latent = (image_shape[0], "H", "W"), (latent_shape[0], "h", "w")
    label = TensorSpec(name="label", dtype="int64", shape=("N",))
    given = (label,) if conditional else ()
    heads: tuple[TensorSpec, ...] = (spec("mean", *latent), spec("log_var", *latent))
    images = [spec("image", *image)]
    if name := likelihood_output(likelihood):
        # Weights, locations and log-scales of a mixture; else locations and log-scales.
        groups = 1 if likelihood == "bernoulli" else 2 if mixture == 1 else 3 * mixture
        images.append(spec(name, groups * image_shape[0], *image[1:]))
    graphs: dict[GraphName, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]] = {}
    if posterior != "none":
        heads = heads[: 2 if posterior == "gaussian" else 1]
        graphs["encoder"] = ((spec("image", *image), *given), heads)
    graphs["decoder"] = ((spec("z", *latent), *given), tuple(images))
    if prior:
        graphs["prior"] = ((spec("eps", *latent), spec("u", 1), label), (spec("z", *latent),))
        graphs["prior_density"] = ((spec("z", *latent), label), (spec("log_prob"),))
    return graphs
