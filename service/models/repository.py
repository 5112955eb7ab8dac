"""The models folder, and the set of models loaded from it."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from bundle import (
    PIN,
    Bundle,
    BundleError,
    ModelFolder,
)
from service.errors import ModelNotFound, NotReady, StartError, shortened
from service.models.model import Model, ModelRefused
from service.models.routes import Route, Routes
from service.models.sources import Folder, Source
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
        routes: How calls without a version are shared between versions, by the model's name; only
            for models that are routed, or pinned below a higher version.
    """

    default: str = ""
    loaded: Mapping[str, Mapping[int, Model]] = field(default_factory=lambda: MappingProxyType({}))
    refused: tuple[Refused, ...] = ()
    routes: Mapping[str, Route] = field(default_factory=lambda: MappingProxyType({}))

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

    def find(self, name: str, version: int, seed: int | None = None) -> Model:
        """Looks up a model.

        Args:
            name: Its name; empty for the default model.
            version: Its version; 0 for the one that its route chooses or, without a route, the
                highest that is served.
            seed: The seed that a route chooses by; None for the version with the largest share.

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
        route = self.routes.get(name or self.default) if self.routes else None
        chosen = version or (next(iter(versions)) if route is None else route.version(seed))
        model = versions.get(chosen)
        if model is None:
            got = f"{version}"
            if not version:
                got += f", which is version {chosen} by its pin and not served"
            served = f"{shortened(', '.join(map(str, versions)))} of {name or self.default}"
            highest = " (or 0 for the highest)" if route is None else ""
            raise ModelNotFound(f"model.version: got {got}, wanted {served}{highest}")
        return model


@dataclass(frozen=True)
class Repository:
    """A models folder, and the selection of models to load from it.

    Attributes:
        root: The models folder; its bundles are in <name>/<version>/. Or the folder of one model,
            or a bundle. Or another source of models, such as a store.
        load: Loads one verified bundle.
        default: Name of the default model; empty for the alphabetically first of the models that
            were loaded.
        versions: Which versions to load.
        routes: Which versions answer calls without a version; they are loaded as well.
        stopped: Polled between bundles; once it returns True, no more are loaded.
        verify: Called with each bundle that was read, before it is loaded; raises BundleError if
            this server may not load it.
    """

    root: Path | Source
    load: Load
    default: str = ""
    versions: Versions = field(default_factory=Versions)
    routes: Routes = field(default_factory=Routes)
    stopped: Callable[[], bool] = lambda: False
    verify: Callable[[Bundle], None] = lambda _bundle: None

    @cached_property
    def source(self) -> Source:
        """Where the models come from."""
        return Folder(self.root) if isinstance(self.root, Path) else self.root

    def models(self, before: Models | None = None) -> Models:
        """Scans the folder and loads the selected versions; blocks meanwhile.

        A version that is being served is kept, even if its files have been damaged since: the
        loaded model was verified. A version that is gone from the folder is left out. A model whose
        versions are all refused is left out too, and logged: one bad model must not take down the
        others.

        Args:
            before: The models being served, which are not modified; None if there are none.

        Raises:
            StartError: The folder cannot be read, or holds no model named `default`, or a version
                of a route could not be loaded, or a reload would leave no model to serve, for
                example because a volume is not mounted.
        """
        before = before or Models()
        try:
            folders = self.source.find()
            others = self.source.others()
        except BundleError as error:
            raise StartError(str(error)) from error
        names = [folder.name for folder in folders]
        if self.default and self.default not in names:
            raise StartError(
                f"default-model: got {self.default!r}, wanted one of {', '.join(names)}"
            )
        if missing := sorted(dict(self.versions.named).keys() - set(names)):
            _log.warning("versions: no model named %s in %s", ", ".join(missing), self.source.where)
        if others:
            _log.warning(
                "ignored %s in %s: wanted <name>/<version>/manifest.json, with names of a-z, "
                "0-9, '.', '_' and '-'",
                shortened(", ".join(others)),
                self.source.where,
            )
        if not folders:
            _log.error("no model in %s; wanted <name>/<version>/manifest.json", self.source.where)
        loaded: dict[str, Mapping[int, Model]] = {}
        refused: list[Refused] = []
        routes: dict[str, Route] = {}
        for folder in folders:
            served = before.loaded.get(folder.name, {})
            found = self._versions_of(folder, served, refused)
            keeps = bool(folder.problem)
            if kept := self._kept(folder, found, served):
                found, keeps = kept, True
            if not found:
                continue
            loaded[folder.name] = MappingProxyType(found)
            route = before.routes.get(folder.name) if keeps else self._route_of(folder)
            if route is not None:
                routes[folder.name] = route
        if not self.stopped():
            self._check_routes(loaded, routes, refused)
        if before.loaded and not loaded and not self.stopped():
            raise StartError(f"no model would be left: none in {self.source.where} can be served")
        chosen = self.default or next(iter(loaded), "")
        self.source.keep([(name, version) for name in loaded for version in loaded[name]])
        return Models(
            chosen if chosen in loaded else "",
            MappingProxyType(loaded),
            tuple(refused),
            MappingProxyType(routes),
        )

    def _kept(
        self, folder: ModelFolder, found: Mapping[int, Model], served: Mapping[int, Model]
    ) -> dict[int, Model]:
        """The versions to go on serving where the pinned one is missing or was refused.

        Args:
            folder: The model's folder.
            found: The versions that were loaded.
            served: The versions being served.

        Returns:
            Those of `served` that are still in the folder; empty if `found` is to be served.
        """
        pinned = self._pin_of(folder)
        if pinned is None or pinned in found or self.stopped():
            return {}
        kept = {number: served[number] for number in served if number in folder.versions}
        if kept:
            _log.warning(
                "%s: version %d, which %s pins, cannot be served; still served: %s",
                folder.name, pinned, f"{folder.where}/{PIN}", ", ".join(map(str, kept)),
            )  # fmt: skip
        return kept

    def _route_of(self, folder: ModelFolder) -> Route | None:
        """The route of a model: its pin, which a rollback has set, goes before the setting."""
        route, pinned = self.routes.of(folder.name), self._pin_of(folder)
        if pinned is None:
            if folder.pinned is not None:
                _log.warning(
                    "%s: the setting versions overrides %s, which pins version %d",
                    folder.name, f"{folder.where}/{PIN}", folder.pinned,
                )  # fmt: skip
            return route
        newest = max(folder.versions)
        if newest > pinned:
            _log.warning(
                "%s: version %d is held back by %s, which pins version %d",
                folder.name, newest, f"{folder.where}/{PIN}", pinned,
            )  # fmt: skip
        if route is not None:
            _log.warning("%s: the pinned version answers all calls, not the route", folder.name)
        return Route(((pinned, 100),)) if newest != pinned or route is not None else None

    def _pin_of(self, folder: ModelFolder) -> int | None:
        """The version that a model is pinned to; None if the settings select one by its number."""
        if self.versions.numbered(folder.name) and self.routes.of(folder.name) is None:
            return None
        return folder.pinned

    def _check_routes(
        self,
        loaded: Mapping[str, Mapping[int, Model]],
        routes: Mapping[str, Route],
        refused: list[Refused],
    ) -> None:
        """Checks that every version of the routes in effect is loaded.

        Raises:
            StartError: One is not.
        """
        problems = {(version.name, version.version): version.problem for version in refused}
        for name, route in self.routes.named:
            if routes.get(name, route) != route:
                continue  # the model is pinned
            for version, _ in route.shares:
                if version not in loaded.get(name, {}):
                    problem = problems.get((name, version)) or problems.get((name, 0))
                    raise StartError(
                        f"route: {name}/{version} is not served: "
                        f"{problem or f'no model {name} in {self.source.where}'}"
                    )

    def _versions_of(
        self, folder: ModelFolder, before: Mapping[int, Model], refused: list[Refused]
    ) -> dict[int, Model]:
        if folder.problem:
            _refuse(refused, Refused(folder.name, 0, folder.problem))
            # Which version to serve is not known where only the pin cannot be read.
            return {number: before[number] for number in before if number in folder.versions}
        pinned, route = self._pin_of(folder), self.routes.of(folder.name)
        needed = [version for version, _ in route.shares] if route else []
        needed += [pinned] if pinned is not None else []
        wanted, most = self.versions.wanted(folder.name, folder.versions, pinned)
        found: dict[int, Model] = {}
        tried: set[int] = set()
        for version in (*wanted, *needed):
            if self.stopped():
                break
            if version in tried or (len(found) == most and version not in needed):
                continue
            tried.add(version)
            if version not in folder.versions:
                available = ", ".join(map(str, folder.versions))
                problem = f"no version {version} in {folder.where}, which has {available or 'none'}"
                _refuse(refused, Refused(folder.name, version, problem))
                continue
            model = self._load_version(folder, version, before.get(version), refused)
            if model is not None:
                found[version] = model
        return dict(sorted(found.items(), reverse=True))

    def _load_version(
        self, folder: ModelFolder, version: int, before: Model | None, refused: list[Refused]
    ) -> Model | None:
        """Returns the loaded version; if loading fails, `before`, which may be None."""
        try:
            bundle = self.source.open(folder, version)
            self.verify(bundle)
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
