"""Names of models in the protocol: NAME.OPERATION for each operation that a model has."""

from collections.abc import Sequence
from typing import Final

from bundle import Manifest
from bundle.layout import OPERATIONS, version_of
from service.errors import ModelNotFound, shortened
from service.models.repository import Models

ENCODE: Final = "encode"
DECODE: Final = "decode"
SAMPLE: Final = "sample"
RECONSTRUCT: Final = "reconstruct"
SCORE: Final = "score"


def operations_of(manifest: Manifest) -> Sequence[str]:
    """The operations that a model has, in alphabetical order."""
    encodes = manifest.posterior != "none"
    has = {
        DECODE: True,
        ENCODE: encodes,
        RECONSTRUCT: encodes,
        SAMPLE: manifest.prior != "none",
        SCORE: manifest.posterior == "gaussian"
        and "none" not in (manifest.likelihood, manifest.prior),
    }
    return [operation for operation, there in has.items() if there]


def split(name: str, field: str) -> tuple[str, str]:
    """Splits NAME.OPERATION.

    Args:
        name: The name of a model in the protocol.
        field: The field that it is in, for errors.

    Raises:
        ModelNotFound: It does not end in an operation.
    """
    model, _, operation = name.rpartition(".")
    if not model or operation not in OPERATIONS:
        operations = ", ".join(sorted(OPERATIONS))
        raise ModelNotFound(
            f"{field}: got {shortened(repr(name))}, wanted NAME.OPERATION, with one of {operations}"
        )
    return model, operation


def number(version: str, field: str) -> int:
    """The version that a request names; 0 for the one that is served by default.

    Args:
        version: The version in the request; empty for the default.
        field: The field that it is in, for errors.

    Raises:
        ModelNotFound: It is no version.
    """
    if not version:
        return 0
    found = version_of(version)
    if found is None:
        raise ModelNotFound(
            f"{field}: got {shortened(repr(version))}, wanted a whole number above 0"
        )
    return found


def check_served(models: Models, name: str, operation: str, version: int, prefix: str) -> None:
    """Checks that a model and a version are served.

    Args:
        models: Models that are loaded.
        name: The model's name.
        operation: The operation that is asked for.
        version: The version; 0 for the one that is served by default.
        prefix: Prefix of the fields `name` and `version`, for errors.

    Raises:
        ModelNotFound: One of them is not, although some model is.
    """
    served = models.loaded.get(name)
    if served is None and models.loaded:
        wanted = shortened(", ".join(f"{loaded}.{operation}" for loaded in models.loaded))
        got = shortened(f"'{name}.{operation}'")
        raise ModelNotFound(f"{prefix}name: got {got}, wanted one of {wanted}")
    if served is not None and version and version not in served:
        wanted = shortened(", ".join(map(str, served)))
        raise ModelNotFound(
            f"{prefix}version: got '{version}', wanted one of {wanted} of {name}, or none"
        )


def check_operation(manifest: Manifest, operation: str, field: str) -> None:
    """Checks that a model has an operation.

    Args:
        manifest: Manifest of the model.
        operation: The operation.
        field: The field that names it, for errors.

    Raises:
        ModelNotFound: The model does not have it.
    """
    has = operations_of(manifest)
    if operation not in has:
        wanted = ", ".join(f"{manifest.name}.{name}" for name in has)
        raise ModelNotFound(f"{field}: got '{manifest.name}.{operation}', wanted one of {wanted}")


def versions_of(models: Models, name: str, operation: str) -> list[str]:
    """The served versions of a model that have an operation, in ascending order."""
    return [
        str(version)
        for version, model in sorted(models.loaded.get(name, {}).items())
        if operation in operations_of(model.manifest)
    ]
