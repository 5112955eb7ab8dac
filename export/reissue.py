"""Writes a bundle again with today's schema: the same graphs, and what is measured of them now."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from bundle import Manifest, check_private_key, open_bundle, schema_version_of, write_bundle
from export.card import model_card
from export.errors import ExportError
from export.evaluate import find_training_data
from export.export import check_servable
from export.invariance import measure_rows
from export.latent_map import build_map
from export.manifest import file_ref
from export.memory import bytes_per_pixel
from export.subject import subject_of_bundle


def reissue(
    path: Path,
    model: Path,
    *,
    data: str | None = None,
    key: Path | None = None,
    report: Callable[[str], None] = print,
) -> Path:
    """Writes the next version of a model with the graphs, golden rows and pictures of a bundle.

    Args:
        path: `MODELS/NAME/VERSION` of a model that was trained here.
        model: `MODELS/NAME` of the new version.
        data: Current source of the data, in the syntax of `DataSpec.parse`; None if the data is
            where it was when the model was trained.
        key: File of the private key to sign the bundle with; None to leave it unsigned, even if
            the old one was signed.
        report: Called with a line for each step.

    Returns:
        The new bundle's folder.

    Raises:
        ExportError: The bundle names no data set, or the data is another.
        DataMissing: The data is not available.
        BundleError: The bundle is damaged, or the new one cannot be written.
    """
    if key is not None:
        check_private_key(key)
    bundle = open_bundle(path.resolve())
    old = bundle.manifest
    if old.dataset is None:
        raise ExportError(f"{path}: its manifest names no data set for a map")
    subject = subject_of_bundle(bundle)
    dataset = find_training_data(
        {"source": old.dataset.name} | old.dataset.spec,
        old.dataset.sha256,
        data,
        report=report,
    )
    latent_map = build_map(subject, dataset).to_bytes()
    cases = {
        name: [{spec.name: bundle.golden[f"{name}.{spec.name}"] for spec in ref.inputs}]
        for name, ref in old.graphs.items()
    }
    limit = measure_rows(bundle.graphs, cases)
    report(limit.reason or "rows have the same bits in every batch")
    kept = {ref.file for ref in (*old.graphs.values(), old.golden)}
    files = {name: (path / name).read_bytes() for name in kept}
    files |= {file.name: file.read_bytes() for file in path.glob("*.png")}
    files["map.npz"] = latent_map
    fields = old.model_dump() | {
        "schema_version": schema_version_of(conditional=old.conditional),
        "name": model.name,
        "tolerance_kind": "relative",
        "rows_at_once": limit.rows,
        "parity": old.parity
        and old.parity.model_copy(update={"batch_invariant": limit.bit_invariant}),
        "bytes_per_pixel": bytes_per_pixel(bundle.graphs, old),
        "latent_map": file_ref("map.npz", latent_map),
        "created_at": datetime.now(UTC).replace(microsecond=0),
    }
    return write_bundle(
        model,
        files,
        lambda version: Manifest(**fields | {"version": version}),
        {"README.md": model_card},
        check=check_servable,
        key=key,
    )
