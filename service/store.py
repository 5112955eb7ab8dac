"""The models a server serves: found, verified, loaded and looked up by name."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from bundle import BundleError, ModelFolder, find_models, open_bundle
from service.errors import ModelNotFound, NotReady, StartError
from service.model import Model, load_model
from service.runtime import Device

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """An immutable set of loaded models; replaced as a whole.

    Attributes:
        default: Name that an empty name means, or empty where no model is loaded.
        loaded: The models by name, in alphabetical order.
        refused: Why each model that is there could not be loaded, by name.
    """

    default: str = ""
    loaded: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    refused: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def find(self, name: str, version: int) -> Model:
        """Returns the model asked for.

        Args:
            name: Its name; empty for the default model.
            version: Its version; 0 for the one being served.

        Raises:
            NotReady: No model is loaded.
            ModelNotFound: This one is not.
        """
        if not self.loaded:
            raise NotReady("no model is loaded; the server's log says why")
        model = self.loaded.get(name or self.default)
        if model is None:
            raise ModelNotFound(
                f"model.name: got {name or self.default!r}, wanted one of {', '.join(self.loaded)}"
            )
        if version not in (0, model.manifest.version):
            raise ModelNotFound(
                f"model.version: got {version}, wanted {model.manifest.version} of "
                f"{model.manifest.name} (or 0 for the one being served)"
            )
        return model


def load_models(root: Path, device: Device, threads: int = 0, default: str = "") -> Models:
    """Loads the highest sound version of every model in a folder.

    A model whose versions are all refused is left out and logged: one bad model
    must not take down a good one.

    Args:
        root: The models folder.
        device: Where to run the graphs.
        threads: Threads a run may use; 0 for as many as this process has CPUs.
        default: The default model; empty for the first in alphabetical order.

    Raises:
        StartError: The folder cannot be read, or holds no model named `default`.
    """
    try:
        folders = find_models(root)
    except BundleError as error:
        raise StartError(str(error)) from error
    names = [folder.name for folder in folders]
    if default and default not in names:
        raise StartError(f"default-model: got {default!r}, wanted one of {', '.join(names)}")
    loaded: dict[str, Model] = {}
    refused: dict[str, str] = {}
    for folder in folders:
        model = _load_highest(folder, device, threads, refused)
        if model is not None:
            loaded[folder.name] = model
    if not folders:
        _log.error("no model in %s; wanted <name>/<version>/manifest.json", root)
    chosen = default or next(iter(loaded), "")
    return Models(chosen, MappingProxyType(loaded), MappingProxyType(refused))


def _load_highest(
    folder: ModelFolder, device: Device, threads: int, refused: dict[str, str]
) -> Model | None:
    for version in reversed(folder.versions):
        try:
            model = load_model(open_bundle(folder.path / str(version)), device, threads)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it is refused
            _log.error("refused %s/%d: %s", folder.name, version, error)
            refused.setdefault(folder.name, str(error))
            continue
        _log.info("loaded %s on %s", model.identity, model.decoder.device)
        return model
    return None
