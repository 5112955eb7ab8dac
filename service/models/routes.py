"""The setting that shares calls without a version between versions of a model (canary)."""

import re
from dataclasses import dataclass

_SHARE = re.compile(r"(?:([^=:]*)=)?([1-9][0-9]{0,17}):([1-9][0-9]?|100)")
_WORD = 2**64 - 1


@dataclass(frozen=True)
class Route:
    """The versions of a model that answer the calls without a version.

    Attributes:
        shares: Pairs of a version and its percentage of the calls, which add up to 100.
    """

    shares: tuple[tuple[int, int], ...]

    def version(self, seed: int | None = None) -> int:
        """The version that answers a call.

        Args:
            seed: Seed of the call, a uint64, which alone decides: on every server, a repeated call
                is answered by the same version. None for the version with the largest share.
        """
        if seed is None:
            return max(self.shares, key=lambda share: share[1])[0]
        point = _mixed(seed) * 100 >> 64
        for version, percent in self.shares:
            point -= percent
            if point < 0:
                return version
        raise AssertionError("the shares add up to 100")


@dataclass(frozen=True)
class Routes:
    """Routes of models, by name.

    Attributes:
        named: Pairs of a model's name and its route.
    """

    named: tuple[tuple[str, Route], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Routes":
        """Parses routes: `mnist=1:90,2:10`, or of several models `a=1:90,2:10,b=4:50,3:50`.

        Raises:
            ValueError: The text is not such a list, or the percentages of a model do not add up
                to 100.
        """
        shares: dict[str, dict[int, int]] = {}
        name = ""
        for item in text.split(",") if text.strip() else ():
            match = _SHARE.fullmatch(item.strip())
            begins = match is not None and match[1] is not None
            if match is not None and begins:
                name = match[1].strip()
            if match is None or not name or (begins and name in shares):
                raise ValueError(_problem(text))
            versions = shares.setdefault(name, {})
            if int(match[2]) in versions:
                raise ValueError(_problem(text))
            versions[int(match[2])] = int(match[3])
        for model, versions in shares.items():
            if sum(versions.values()) != 100:
                raise ValueError(
                    f"got {sum(versions.values())} percent of {model}, wanted shares that add up "
                    "to 100"
                )
        return cls(tuple((name, Route(tuple(given.items()))) for name, given in shares.items()))

    def __str__(self) -> str:
        return ",".join(
            f"{name}={','.join(f'{version}:{percent}' for version, percent in route.shares)}"
            for name, route in self.named
        )

    def of(self, name: str) -> Route | None:
        """The route of a model; None if it has none."""
        return dict(self.named).get(name)


def _problem(text: str) -> str:
    return (
        f"got {text!r}, wanted NAME=VERSION:PERCENT,VERSION:PERCENT, as in mnist=1:90,2:10, each "
        "name and each of its versions once"
    )


def _mixed(seed: int) -> int:
    """A uint64 whose bits all depend on those of the seed (SplitMix64's finaliser)."""
    mixed = (seed + 0x9E3779B97F4A7C15) & _WORD
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _WORD
    return mixed ^ mixed >> 31
