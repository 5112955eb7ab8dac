"""The on-disk contract between export and server: `models/<name>/<version>/`.

`export` writes bundles, `service` reads them. Depends on NumPy, pydantic and the standard library
only; on model-signing where a bundle is signed or verified (`bundle.signing`).
"""

from bundle.errors import BundleError, SignatureError
from bundle.latent_map import LatentMap
from bundle.layout import (
    MANIFEST,
    SIGNATURE,
    ModelFolder,
    check_name,
    find_models,
    find_others,
    is_name,
    version_of,
)
from bundle.manifest import (
    CONDITIONAL_SCHEMA_VERSION,
    SCHEMA_VERSION,
    DatasetRef,
    DeviceKind,
    FileRef,
    GraphRef,
    LatentScaling,
    Manifest,
    Origin,
    Parity,
    Sizes,
    schema_version_of,
)
from bundle.pin import PIN, parse_pin, read_pin, write_pin
from bundle.reader import Bundle, open_bundle, open_version, parse_manifest, read_bundle
from bundle.signing import check_private_key, check_public_keys, sign, verify, verify_bundle
from bundle.tensors import GraphName, TensorSpec, likelihood_output, tensors_of
from bundle.writer import write_bundle

__all__ = [
    "CONDITIONAL_SCHEMA_VERSION",
    "MANIFEST",
    "PIN",
    "SCHEMA_VERSION",
    "SIGNATURE",
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
    "SignatureError",
    "Sizes",
    "TensorSpec",
    "check_name",
    "check_private_key",
    "check_public_keys",
    "find_models",
    "find_others",
    "is_name",
    "likelihood_output",
    "open_bundle",
    "open_version",
    "parse_manifest",
    "parse_pin",
    "read_bundle",
    "read_pin",
    "schema_version_of",
    "sign",
    "tensors_of",
    "verify",
    "verify_bundle",
    "version_of",
    "write_bundle",
    "write_pin",
]
