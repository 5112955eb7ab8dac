"""The manifest of a dataset job, and how a job differs from the one that a folder holds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentserve._client.values import ModelInfo
from latentserve._jobs.folder import MANIFEST, parsed_manifest
from latentserve._jobs.labels import FOLDERS
from latentserve._jobs.layout import Group, description
from latentserve._jobs.places import Place
from latentserve._jobs.tasks import Task

# Version of the manifest's schema; a job of another version is not resumed.
_SCHEMA = 1


def wanted_of(
    task: Task,
    *,
    model: str,
    version: int,
    seed: int | None,
    shard_rows: int,
    shard_format: str,
    writer: str,
    engine: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Returns the manifest as far as task and options determine it; the source is added later.

    Args:
        task: The job.
        model: Name of the model; empty for any.
        version: Version of the model; 0 for any.
        seed: Seed of the draws; None for any.
        shard_rows: Rows per shard.
        shard_format: Format of the shards' files.
        writer: Name of the format's writer.
        engine: What computes the job if it is this process and no server: `device` and
            `onnxruntime`, its version.
    """
    wanted: dict[str, Any] = {
        "schema": _SCHEMA,
        "kind": task.kind,
        "rows": task.rows,
        "shard_rows": shard_rows,
        "format": shard_format,
        "writer": writer,
        "settings": task.settings,
    }
    if engine is not None:
        wanted["in_process"] = dict(engine)
    named = {"name": model or None, "version": version or None}
    wanted["model"] = {name: value for name, value in named.items() if value is not None}
    if seed is not None:
        wanted["seed"] = seed
    return wanted


def manifest_of(
    task: Task,
    wanted: Mapping[str, Any],
    seed: int | None,
    model: ModelInfo,
    groups: Sequence[Group],
) -> dict[str, Any]:
    """Returns the whole manifest of a new job.

    Args:
        task: The job.
        wanted: The manifest as `wanted_of` returns it, with the source.
        seed: Seed of the draws; None if nothing is drawn.
        model: The model.
        groups: The rows of each size.
    """
    identity = identity_of(model, task)
    if any(isinstance(task.settings.get(name), int) for name in ("label", "labels")):
        # By these the commands understand the name of a class, without a server. Not compared.
        identity["labels"] = list(model.labels)
    return {
        **wanted,
        "seed": seed,
        "model": identity,
        **description(groups),
    }


@dataclass(frozen=True)
class StoredModel:
    """The model of a job that is there.

    Attributes:
        name: Its name.
        version: Its version.
        labels: Names of its classes; None if the job does not have them.
    """

    name: str
    version: int
    labels: tuple[str, ...] | None


def stored_model(folder: Place) -> StoredModel | None:
    """Returns the model of the job in a folder; None if there is no job that says it.

    Raises:
        JobError: The job's manifest is damaged.
        OSError: It cannot be read.
    """
    path = folder / MANIFEST
    try:
        manifest = parsed_manifest(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    match manifest.get("model"):
        case {"name": str(name), "version": int(version), "labels": list(labels)}:
            return StoredModel(name, version, tuple(map(str, labels)))
        case {"name": str(name), "version": int(version)}:
            return StoredModel(name, version, None)
    return None


def job_differences(wanted: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Returns a message for each field in which the job of a folder differs from a wanted one."""
    # Jobs that a server computes do not have the field.
    both = {"in_process": None}
    return list(differences({**wanted, **(both if "in_process" not in wanted else {})}, stored))


def differences(wanted: Any, stored: Any, path: str = "") -> Iterator[str]:
    """Yields a message per field of `wanted` whose value differs in a stored manifest.

    All settings are compared, since those of their default value may be absent.
    """
    if isinstance(wanted, dict) and isinstance(stored, dict):
        names = dict.fromkeys([*wanted, *stored]) if path == "settings" else wanted
        for name in names:
            inner = f"{path}.{name}" if path else name
            yield from differences(wanted.get(name), stored.get(name), inner)
    elif wanted != stored:
        yield f"{path}: got {wanted}, the job has {stored}"


def identity_of(model: ModelInfo, task: Task) -> dict[str, Any]:
    """Returns the identity of a model for the manifest."""
    identity: dict[str, Any] = {
        "name": model.name,
        "version": model.version,
        "noise": model.noise,
        "graphs": model.checksums,
    }
    if task.settings.get("labels") == FOLDERS:
        identity["labels"] = list(model.labels)
    if task.settings.get("scaled") and model.latent_scaling is not None:
        scaling = model.latent_scaling
        identity["latent_scaling"] = {
            "scale": scaling.scale,
            "shift": scaling.shift,
            "mean": list(scaling.mean),
            "std": list(scaling.std),
        }
    return identity
