"""The models a server serves: found, verified, loaded and looked up by name."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from bundle import Bundle, BundleError, ModelFolder, find_models, open_bundle
from service.errors import ModelNotFound, NotReady, StartError, shortened
from service.models.model import Model, ModelRefused
from service.models.versions import Versions

_log = logging.getLogger(__name__)

Load = Callable[[Bundle], Model]


@dataclass(frozen=True)
class Refused:
    """A version that was wanted and is not served as it lies on disk.

    Attributes:
        name: The model.
        version: Its version; 0 where the model's folder cannot be read or lacks it.
        problem: Why.
    """

    name: str
    version: int
    problem: str


@dataclass(frozen=True)
class Models:
    """An immutable set of loaded models; replaced as a whole.

    Attributes:
        default: Name that an empty name means, or empty where that is not loaded.
        loaded: The models by name, in alphabetical order, and version, the highest first.
        refused: What is not served.
    """

    default: str = ""
    loaded: Mapping[str, Mapping[int, Model]] = field(default_factory=lambda: MappingProxyType({}))
    refused: tuple[Refused, ...] = ()

    def __iter__(self) -> Iterator[Model]:
        for versions in self.loaded.values():
            yield from versions.values()

    @property
    def names(self) -> list[str]:
        """Of every model that is there, loaded or refused."""
        return sorted({*self.loaded, *(each.name for each in self.refused)})

    def difference(self, others: "Models") -> list[Model]:
        """The models of this set that are not in the other one."""
        excluded = set(others)
        return [model for model in self if model not in excluded]

    def find(self, name: str, version: int) -> Model:
        """Returns the model asked for.

        Args:
            name: Its name; empty for the default model.
            version: Its version; 0 for the highest that is served.

        Raises:
            NotReady: No model is loaded, or not the default one that is meant.
            ModelNotFound: This one is not.
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
    """Where the models come from and which of them are wanted.

    Attributes:
        root: The models folder.
        load: Loads one verified bundle.
        default: The default model; empty for the first that is loaded, in alphabetical
            order.
        versions: Which versions are wanted.
        stopped: Asked between two bundles; if true, the rest is left out.
    """

    root: Path
    load: Load
    default: str = ""
    versions: Versions = field(default_factory=Versions)
    stopped: Callable[[], bool] = lambda: False

    def models(self, before: Models | None = None) -> Models:
        """Finds and loads what is wanted; takes a while, and touches nothing that serves.

        A version that is served already is kept as it is: also where its files are
        damaged by now, since what is in memory was proven. What has vanished from the
        folder is left out. A model of which everything is refused is left out and
        logged: one bad model must not take down a good one.

        Args:
            before: What is being served.

        Raises:
            StartError: The folder cannot be read, or holds no model named `default`.
        """
        before = before or Models()
        try:
            folders = find_models(self.root)
        except BundleError as error:
            raise StartError(str(error)) from error
        names = [folder.name for folder in folders]
        if self.default and self.default not in names:
            raise StartError(
                f"default-model: got {self.default!r}, wanted one of {', '.join(names)}"
            )
        if missing := sorted(dict(self.versions.named).keys() - set(names)):
            _log.warning("versions: no model named %s in %s", ", ".join(missing), self.root)
        if not folders:
            _log.error("no model in %s; wanted <name>/<version>/manifest.json", self.root)
        loaded: dict[str, Mapping[int, Model]] = {}
        refused: list[Refused] = []
        for folder in folders:
            found = self._versions_of(folder, before.loaded.get(folder.name, {}), refused)
            if found:
                loaded[folder.name] = MappingProxyType(found)
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
                there = ", ".join(map(str, folder.versions))
                problem = f"no version {version} in {folder.path}, which has {there or 'none'}"
                _refuse(refused, Refused(folder.name, version, problem))
                continue
            model = self._one(folder, version, before.get(version), refused)
            if model is not None:
                found[version] = model
        return found

    def _one(
        self, folder: ModelFolder, version: int, before: Model | None, refused: list[Refused]
    ) -> Model | None:
        try:
            bundle = open_bundle(folder.path / str(version))
            if before is not None and before.manifest == bundle.manifest:
                return before
            model = self.load(bundle)
        except (BundleError, ModelRefused) as error:
            _refuse(refused, Refused(folder.name, version, str(error)))
        except Exception as error:  # noqa: BLE001 - onnxruntime's have no common base
            _log.debug("refused %s/%d", folder.name, version, exc_info=True)
            _refuse(refused, Refused(folder.name, version, f"{type(error).__name__}: {error}"))
        else:
            _log.info("loaded %s on %s", model.identity, model.device)
            return model
        if before is not None:
            _log.warning("%s: what was loaded before serves on", before.identity)
        return before


def _refuse(refused: list[Refused], what: Refused) -> None:
    refused.append(what)
    _log.error("refused %s/%d: %s", what.name, what.version, what.problem)
