"""Reads a bundle and verifies it against the checksums of its manifest."""

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from bundle.errors import BundleError
from bundle.latent_map import LatentMap
from bundle.layout import MANIFEST, ModelFolder
from bundle.manifest import (
    CONDITIONAL_SCHEMA_VERSION,
    MAJORS,
    SCHEMA_VERSION,
    FileRef,
    Manifest,
)
from bundle.tensors import GraphName, TensorSpec


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: sizes and checksums of its files match the manifest.

    Holds the verified bytes, so that a file that changes later cannot be loaded unverified.

    Attributes:
        path: Its folder.
        manifest: Its manifest.
        graphs: Content of the ONNX files by name of the graph.
        golden: The golden rows by "graph.tensor", float32 or int64.
        latent_map: The map of the latent space, if it has one.
        manifest_sha256: SHA-256 of the manifest's bytes as they were read, in hexadecimal. With the
            checksums in the manifest, it stands for all of the bundle (`bundle.signing`).
    """

    path: Path
    manifest: Manifest
    graphs: dict[GraphName, bytes]
    golden: dict[str, NDArray[Any]]
    latent_map: LatentMap | None = None
    manifest_sha256: str = ""


def open_bundle(path: Path) -> Bundle:
    """Reads and verifies the bundle in a folder.

    Args:
        path: `models/<name>/<version>`.

    Raises:
        BundleError: The schema's major version is not supported, a file is missing,
            damaged or outside the folder, or the manifest's name or version differs from
            the folders' names.
    """
    bundle = read_bundle(path)
    manifest = bundle.manifest
    # The names as given, and not those that links lead to: by these the model is served.
    named = Path(os.path.abspath(path))  # noqa: PTH100 - unlike `resolve`, follows no link
    if (named.parent.name, named.name) != (manifest.name, str(manifest.version)):
        raise BundleError(
            f"{path}: the manifest says {manifest.name}/{manifest.version}, wanted the names of "
            "the two folders it is in"
        )
    return bundle


def open_version(model: ModelFolder, version: int) -> Bundle:
    """Reads and verifies the bundle of a version of a model.

    Raises:
        BundleError: As for `open_bundle`. Where the folders' names say nothing, since `model` was
            found as its own folder, the manifest has to agree with those of its other versions.
    """
    path = model.bundle(version)
    if model.found_as == "one of models":
        return open_bundle(path)
    bundle = read_bundle(path)
    manifest = bundle.manifest
    if (manifest.name, manifest.version) != (model.name, version):
        raise BundleError(
            f"{path}: the manifest says {manifest.name}/{manifest.version}, wanted "
            f"{model.name}/{version}"
        )
    return bundle


def read_bundle(path: Path) -> Bundle:
    """Reads and verifies a bundle whose folder may have any name.

    Raises:
        BundleError: As for `open_bundle`, except for the folders' names.
    """
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}") from error
    manifest = parse_manifest(raw, file)
    return Bundle(
        path=path,
        manifest=manifest,
        graphs={name: _read(path, ref) for name, ref in manifest.graphs.items()},
        golden=_read_golden(path, manifest),
        latent_map=_read_map(path, manifest),
        manifest_sha256=hashlib.sha256(raw).hexdigest(),
    )


def parse_manifest(raw: bytes, where: object) -> Manifest:
    """Reads a manifest from its bytes.

    Args:
        raw: Content of the file.
        where: Its path or URL, for messages.

    Raises:
        BundleError: It is no manifest, or its schema's major version is not supported.
    """
    try:
        stated = pydantic.TypeAdapter(dict[str, object]).validate_json(raw).get("schema_version")
        if str(stated).partition(".")[0] not in MAJORS:
            wanted = " or ".join((SCHEMA_VERSION, CONDITIONAL_SCHEMA_VERSION))
            raise BundleError(f"{where}: schema {stated}, wanted major of {wanted}")
        return Manifest.model_validate_json(raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "content"
        raise BundleError(f"{where}: {key}: got {first['input']!r:.80}, {first['msg']}") from error


def _read(path: Path, ref: FileRef) -> bytes:
    file = path / ref.file
    try:
        # A symbolic link in the folder may point out of it.
        if not file.resolve(strict=True).is_relative_to(path.resolve()):
            raise BundleError(f"{file}: a link that leaves the folder")
        raw = file.read_bytes()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise BundleError(f"{file}: {error}") from error
    if len(raw) != ref.size_bytes:
        raise BundleError(f"{file}: {len(raw)} bytes, wanted {ref.size_bytes}")
    digest = hashlib.sha256(raw).hexdigest()
    if digest != ref.sha256:
        raise BundleError(f"{file}: SHA-256 {digest}, wanted {ref.sha256}")
    return raw


def _read_golden(path: Path, manifest: Manifest) -> dict[str, NDArray[Any]]:
    raw = _read(path, manifest.golden)
    wanted = {
        f"{name}.{tensor.name}": tensor
        for name, graph in manifest.graphs.items()
        for tensor in (*graph.inputs, *graph.outputs)
    }
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as file:
            golden = {key: np.asarray(file[key]) for key in file.files}
    except Exception as error:  # numpy and zipfile raise many types on damaged bytes
        raise BundleError(f"{path / manifest.golden.file}: {error}") from error
    if golden.keys() != wanted.keys():
        raise BundleError(
            f"{path / manifest.golden.file}: {sorted(golden)}, wanted {sorted(wanted)}"
        )
    for key, array in golden.items():
        dtype, shape = wanted[key].dtype, _golden_shape(wanted[key], manifest)
        same_axes = array.ndim == len(shape) and array.shape[1:] == shape[1:]
        if array.dtype != dtype or not same_axes or array.size == 0:
            raise BundleError(
                f"{path / manifest.golden.file}: {key} is {array.dtype} {list(array.shape)}, "
                f"wanted {dtype} {list(shape)}"
            )
    return golden


def _golden_shape(tensor: TensorSpec, manifest: Manifest) -> tuple[str | int, ...]:
    """Shape of a tensor at the size of the golden rows; its first axis stays "N"."""
    sizes = dict(zip("HW", manifest.image_shape[1:], strict=True))
    if manifest.spatial:
        sizes |= zip("hw", manifest.latent_shape[1:], strict=True)
    return tuple(sizes.get(str(axis), axis) for axis in tensor.shape)


def _read_map(path: Path, manifest: Manifest) -> LatentMap | None:
    if manifest.latent_map is None:
        return None
    content = _read(path, manifest.latent_map)
    try:
        return LatentMap.from_bytes(content, manifest.latent_dim, len(manifest.class_names))
    except BundleError as error:
        raise BundleError(f"{path / manifest.latent_map.file}: {error}") from error
