"""The models a server serves: found, verified, loaded and looked up by name."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from bundle import Bundle, BundleError, ModelFolder, find_models, open_bundle
from service.errors import ModelNotFound, NotReady, StartError, shortened
from service.model import Model, ModelRefused

_log = logging.getLogger(__name__)

Load = Callable[[Bundle], Model]


@dataclass(frozen=True)
class Models:
    """An immutable set of loaded models; replaced as a whole.

    Attributes:
        default: Name that an empty name means, or empty where that is not loaded.
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
            NotReady: No model is loaded, or not the default one that is meant.
            ModelNotFound: This one is not.
        """
        if not self.loaded:
            raise NotReady("no model is loaded; the server's log says why")
        if not name and not self.default:
            raise NotReady("the default model is not loaded; the server's log says why")
        model = self.loaded.get(name or self.default)
        if model is None:
            raise ModelNotFound(
                f"model.name: got {shortened(repr(name))}, wanted one of "
                f"{shortened(', '.join(self.loaded))}"
            )
        if version not in (0, model.manifest.version):
            raise ModelNotFound(
                f"model.version: got {version}, wanted {model.manifest.version} of "
                f"{model.manifest.name} (or 0 for the one being served)"
            )
        return model


def load_models(
    root: Path,
    load: Load,
    default: str = "",
    stopped: Callable[[], bool] = lambda: False,
) -> Models:
    """Loads the highest sound version of every model in a folder.

    A model whose versions are all refused is left out and logged: one bad model
    must not take down a good one.

    Args:
        root: The models folder.
        load: Loads one verified bundle.
        default: The default model; empty for the first that is loaded, in
            alphabetical order.
        stopped: Asked between two bundles; if true, the rest is left out.

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
    if not folders:
        _log.error("no model in %s; wanted <name>/<version>/manifest.json", root)
    loaded: dict[str, Model] = {}
    refused: dict[str, str] = {}
    for folder in folders:
        found = _load_highest(folder, load, stopped)
        if isinstance(found, Model):
            loaded[folder.name] = found
        else:
            refused[folder.name] = found
    chosen = default or next(iter(loaded), "")
    return Models(
        chosen if chosen in loaded else "", MappingProxyType(loaded), MappingProxyType(refused)
    )


def _load_highest(folder: ModelFolder, load: Load, stopped: Callable[[], bool]) -> Model | str:
    """Returns the model, or why its highest version was refused."""
    problem = folder.problem
    if problem:
        _log.error("refused %s: %s", folder.name, problem)
    for version in reversed(folder.versions):
        if stopped():
            break
        try:
            model = load(open_bundle(folder.path / str(version)))
        except (BundleError, ModelRefused) as error:
            _log.error("refused %s/%d: %s", folder.name, version, error)
            problem = problem or str(error)
        except Exception as error:  # noqa: BLE001 - onnxruntime's have no common base
            _log.exception("refused %s/%d", folder.name, version)
            problem = problem or str(error)
        else:
            _log.info("loaded %s on %s", model.identity, model.device)
            return model
    return problem or "not loaded"
