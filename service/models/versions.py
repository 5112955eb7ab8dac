"""Which versions of which models are to be served."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

LATEST, ALL = "latest", "all"

_WHICH = re.compile(r"latest|all|[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Versions:
    """The operator's choice.

    Attributes:
        general: `latest`, `all` or a version number, for every model that is not named.
        named: Pairs of a model's name and the same for it alone.
    """

    general: str = LATEST
    named: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Versions":
        """Reads a choice: `latest`, `all`, `3`, or `latest,mnist=2,other=all`.

        Raises:
            ValueError: It is none.
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

    def wanted(self, name: str, there: Sequence[int]) -> tuple[tuple[int, ...], int | None]:
        """Returns the versions of a model to try, the highest first.

        Args:
            name: The model.
            there: The versions that its folder has.

        Returns:
            The versions, and how many of them to serve; None for all.
        """
        which = dict(self.named).get(name, self.general)
        if which == LATEST:
            return tuple(sorted(there, reverse=True)), 1
        if which == ALL:
            return tuple(sorted(there, reverse=True)), None
        return (int(which),), 1
