"""The models folder, and the set of models loaded from it."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from bundle import Bundle, BundleError, ModelFolder, find_models, find_others, open_bundle
from service.errors import ModelNotFound, NotReady, StartError, shortened
from service.models.model import Model, ModelRefused
from service.models.versions import Versions

_log = logging.getLogger(__name__)

Load = Callable[[Bundle], Model]


@dataclass(frozen=True)
class Refused:
    """A selected version that could not be loaded from the models folder.

    Attributes:
        name: The model's name.
        version: The version; 0 if the model's folder cannot be read.
        problem: Why it was refused.
    """

    name: str
    version: int
    problem: str


@dataclass(frozen=True)
class Models:
    """An immutable set of loaded models; a reload replaces it as a whole.

    Attributes:
        default: Name of the default model; empty if the default model is not loaded.
        loaded: The models by name (alphabetical), then by version (highest first).
        refused: The versions that were refused.
    """

    default: str = ""
    loaded: Mapping[str, Mapping[int, Model]] = field(default_factory=lambda: MappingProxyType({}))
    refused: tuple[Refused, ...] = ()

    def __iter__(self) -> Iterator[Model]:
        for versions in self.loaded.values():
            yield from versions.values()

    @property
    def names(self) -> list[str]:
        """Names of all models in the folder, loaded or refused."""
        return sorted({*self.loaded, *(refused.name for refused in self.refused)})

    def difference(self, others: "Models") -> list[Model]:
        """Returns the models of this set that are not in `others`."""
        excluded = set(others)
        return [model for model in self if model not in excluded]

    def find(self, name: str, version: int) -> Model:
        """Looks up a model.

        Args:
            name: Its name; empty for the default model.
            version: Its version; 0 for the highest that is served.

        Raises:
            NotReady: No model is loaded, or `name` is empty and the default is not loaded.
            ModelNotFound: No such model or version is served.
        """
        if not self.loaded:
            raise NotReady("no model is loaded; the server's log says why")
        if not name and not self.default:
            raise NotReady("the default model is not loaded; the server's log says why")
        versions = self.loaded.get(name or self.default)
        if versions is None:
            raise ModelNotFound(
                f"model.name: got {shortened(repr(name))}, wanted one of "
                f"{shortened(', '.join(self.loaded))}"
            )
        model = versions.get(version or next(iter(versions)))
        if model is None:
            served = ", ".join(map(str, versions))
            raise ModelNotFound(
                f"model.version: got {version}, wanted {shortened(served)} of "
                f"{name or self.default} (or 0 for the highest)"
            )
        return model


@dataclass(frozen=True)
class Repository:
    """A models folder, and the selection of models to load from it.

    Attributes:
        root: The models folder; its bundles are in <name>/<version>/.
        load: Loads one verified bundle.
        default: Name of the default model; empty for the alphabetically first of the models that
            were loaded.
        versions: Which versions to load.
        stopped: Polled between bundles; once it returns True, no more are loaded.
    """

    root: Path
    load: Load
    default: str = ""
    versions: Versions = field(default_factory=Versions)
    stopped: Callable[[], bool] = lambda: False

    def models(self, before: Models | None = None) -> Models:
        """Scans the folder and loads the selected versions; blocks meanwhile.

        A version that is being served is kept, even if its files have been damaged since: the
        loaded model was verified. A version that is gone from the folder is left out. A model whose
        versions are all refused is left out too, and logged: one bad model must not take down the
        others.

        Args:
            before: The models being served, which are not modified; None if there are none.

        Raises:
            StartError: The folder cannot be read, or holds no model named `default`, or a reload
                would leave no model to serve, for example because a volume is not mounted.
        """
        before = before or Models()
        try:
            folders = find_models(self.root)
            others = find_others(self.root)
        except BundleError as error:
            raise StartError(str(error)) from error
        names = [folder.name for folder in folders]
        if self.default and self.default not in names:
            raise StartError(
                f"default-model: got {self.default!r}, wanted one of {', '.join(names)}"
            )
        if missing := sorted(dict(self.versions.named).keys() - set(names)):
            _log.warning("versions: no model named %s in %s", ", ".join(missing), self.root)
        if others:
            _log.warning(
                "ignored %s in %s: wanted <name>/<version>/manifest.json, with names of a-z, "
                "0-9, '.', '_' and '-'",
                shortened(", ".join(others)),
                self.root,
            )
        if not folders:
            _log.error("no model in %s; wanted <name>/<version>/manifest.json", self.root)
        loaded: dict[str, Mapping[int, Model]] = {}
        refused: list[Refused] = []
        for folder in folders:
            found = self._versions_of(folder, before.loaded.get(folder.name, {}), refused)
            if found:
                loaded[folder.name] = MappingProxyType(found)
        if before.loaded and not loaded and not self.stopped():
            raise StartError(f"no model would be left: none in {self.root} can be served")
        chosen = self.default or next(iter(loaded), "")
        return Models(chosen if chosen in loaded else "", MappingProxyType(loaded), tuple(refused))

    def _versions_of(
        self, folder: ModelFolder, before: Mapping[int, Model], refused: list[Refused]
    ) -> dict[int, Model]:
        if folder.problem:
            _refuse(refused, Refused(folder.name, 0, folder.problem))
        wanted, most = self.versions.wanted(folder.name, folder.versions)
        found: dict[int, Model] = {}
        for version in wanted:
            if self.stopped() or len(found) == most:
                break
            if version not in folder.versions:
                available = ", ".join(map(str, folder.versions))
                problem = f"no version {version} in {folder.path}, which has {available or 'none'}"
                _refuse(refused, Refused(folder.name, version, problem))
                continue
            model = self._load_version(folder, version, before.get(version), refused)
            if model is not None:
                found[version] = model
        return found

    def _load_version(
        self, folder: ModelFolder, version: int, before: Model | None, refused: list[Refused]
    ) -> Model | None:
        """Returns the loaded version; if loading fails, `before`, which may be None."""
        try:
            bundle = open_bundle(folder.path / str(version))
            if before is not None and before.manifest == bundle.manifest:
                return before
            model = self.load(bundle)
        except (BundleError, ModelRefused) as error:
            _refuse(refused, Refused(folder.name, version, str(error)))
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common base
            _log.debug("refused %s/%d", folder.name, version, exc_info=True)
            _refuse(refused, Refused(folder.name, version, f"{type(error).__name__}: {error}"))
        else:
            _log.info("loaded %s on %s", model.identity, model.device)
            return model
        if before is not None:
            _log.warning("%s: the model that was loaded before is still served", before.identity)
        return before


def _refuse(refused: list[Refused], version: Refused) -> None:
    refused.append(version)
    _log.error("refused %s/%d: %s", version.name, version.version, version.problem)
