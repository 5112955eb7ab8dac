"""The table of docs/reliability.md: what became of the calls under each fault."""

from dataclasses import dataclass, field

from tests.faults.load import Tallies, Tally

_HEAD = (
    "| fault | servers | unary | without retries | streams | without retries | jobs "
    "| without retries | wrong rows | longest gap |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass
class Table:
    """Tallies by the fault and by how the servers were reached, added up over the rounds.

    Attributes:
        rows: Rows in the order in which they came.
        notes: Further measurements, a line each.
    """

    rows: dict[tuple[str, str], Tallies] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, fault: str, reached: str, tallies: Tallies) -> None:
        """Adds the tallies of one round."""
        row = self.rows.setdefault((fault, reached), {})
        for key, tally in tallies.items():
            row[key] = row.get(key, Tally()) + tally

    def markdown(self) -> str:
        """The table, with `calls / failed` in each cell, and the notes."""
        lines = [_HEAD] if self.rows else []
        for (fault, reached), tallies in self.rows.items():
            cells = [
                _cell(_sum(tallies, kinds, retries))
                for kinds in (("unary", "large", "upload", "narrow"), ("stream",), ("job",))
                for retries in (True, False)
            ]
            whole = sum(tallies.values(), Tally())
            gap = max((t.longest_gap for (_, retries), t in tallies.items() if retries), default=0)
            cells += [str(whole.wrong_rows), f"{gap:.1f} s"]
            lines.append(f"| {fault} | {reached} | " + " | ".join(cells) + " |")
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)])


def _sum(tallies: Tallies, kinds: tuple[str, ...], retries: bool) -> Tally:
    return sum(
        (tally for (kind, tries), tally in tallies.items() if kind in kinds and tries == retries),
        Tally(),
    )


def _cell(tally: Tally) -> str:
    return f"{tally.calls:,} / {len(tally.failures):,}" if tally.calls else ""
