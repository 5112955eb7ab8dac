"""Exports runs and imported models as verified bundles; needs torch, onnx and onnxruntime."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.autoencoder import export_autoencoder as export_autoencoder

__all__ = ["export_autoencoder"]


def __getattr__(name: str) -> Any:
    # On first use, since it imports torch, which not all modules of this package need.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from export.autoencoder import export_autoencoder

    return export_autoencoder
