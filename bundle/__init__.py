"""The on-disk contract between export and server: `models/<name>/<version>/`.

`export` writes bundles, `service` reads them. Depends on NumPy, pydantic and the standard
library only.
"""

from bundle.errors import BundleError
from bundle.latent_map import LatentMap
from bundle.layout import ModelFolder, check_name, find_models, find_others
from bundle.manifest import (
    CONDITIONAL_SCHEMA_VERSION,
    SCHEMA_VERSION,
    DatasetRef,
    DeviceKind,
    FileRef,
    GraphName,
    GraphRef,
    LatentScaling,
    Manifest,
    Origin,
    Parity,
    Sizes,
    TensorSpec,
    likelihood_output,
    schema_version_of,
    tensors_of,
)
from bundle.pin import PIN, read_pin, write_pin
from bundle.reader import Bundle, open_bundle, open_version
from bundle.writer import write_bundle

__all__ = [
    "CONDITIONAL_SCHEMA_VERSION",
    "PIN",
    "SCHEMA_VERSION",
    "Bundle",
    "BundleError",
    "DatasetRef",
    "DeviceKind",
    "FileRef",
    "GraphName",
    "GraphRef",
    "LatentMap",
    "LatentScaling",
    "Manifest",
    "ModelFolder",
    "Origin",
    "Parity",
    "Sizes",
    "TensorSpec",
    "check_name",
    "find_models",
    "find_others",
    "likelihood_output",
    "open_bundle",
    "open_version",
    "read_pin",
    "schema_version_of",
    "tensors_of",
    "write_bundle",
    "write_pin",
]
