"""The setting that selects the versions of models to serve."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

LATEST, ALL = "latest", "all"

_WHICH = re.compile(r"latest|all|[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Versions:
    """A selection of versions.

    Attributes:
        general: `latest`, `all` or a version number; applies to all models not in `named`.
        named: Pairs of a model's name and its selection.
    """

    general: str = LATEST
    named: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Versions":
        """Parses a selection: `latest`, `all`, `3`, or `latest,mnist=2,other=all`.

        Raises:
            ValueError: The text is not a selection.
        """
        general: list[str] = []
        named: dict[str, str] = {}
        for item in text.split(","):
            name, equals, which = item.strip().rpartition("=")
            if not _WHICH.fullmatch(which) or (equals and (not name or name in named)):
                raise ValueError(
                    f"got {text!r}, wanted latest, all or a version, or NAME=one of these, "
                    "with commas between them"
                )
            if equals:
                named[name] = which
            else:
                general.append(which)
        if len(general) > 1:
            raise ValueError(f"got {text!r}, wanted at most one choice without a name")
        return cls(general[0] if general else LATEST, tuple(named.items()))

    def __str__(self) -> str:
        return ",".join([self.general, *(f"{name}={which}" for name, which in self.named)])

    def numbered(self, name: str) -> bool:
        """Whether a version of this model is selected by its number."""
        return dict(self.named).get(name, self.general) not in (LATEST, ALL)

    def wanted(
        self, name: str, available: Sequence[int], pinned: int | None = None
    ) -> tuple[tuple[int, ...], int | None]:
        """Selects the versions of a model to serve.

        Args:
            name: The model's name.
            available: The versions in its folder.
            pinned: The version that is its latest; None for the highest that can be served.

        Returns:
            The versions to try in order, and how many of them to serve at most; None for no
            limit.
        """
        which = dict(self.named).get(name, self.general)
        if which == LATEST and pinned is not None:
            return (pinned,), 1
        if which == LATEST:
            return tuple(sorted(available, reverse=True)), 1
        if which == ALL:
            return tuple(sorted(available, reverse=True)), None
        return (int(which),), 1
