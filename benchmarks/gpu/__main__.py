"""Measures on a GPU what this project promises there; `benchmarks/gpu.sh` makes what it needs.

    python -m benchmarks.gpu --device cuda --out h200.json

Runs one part after the other, each in a process of its own and for a limited time, prints a table
and writes a JSON file, anew after each part. A part that fails or takes too long does not stop the
others. Exits with 1 if a part did not come to its end, or found a promise broken.
`--device cpu --quick` runs the same parts at small sizes where there is no GPU.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu.card import card, versions
from benchmarks.gpu.parts import PARTS, measure, run
from benchmarks.gpu.record import Figure, Outcome, Setting
from benchmarks.machine import machine
from benchmarks.processes import CACHE
from service.models.onnx import Device


def main(arguments: list[str] | None = None) -> int:
    """Entry point; see the module docstring."""
    options = _parser().parse_args(arguments)
    if options.part is not None:
        # So that a part which is stopped stops its servers.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        setting = Setting(options.device, options.quick, options.work)
        for record in measure(options.part, setting):
            print(record.line(), flush=True)
        return 0
    began = time.monotonic()
    head = {
        "machine": machine(),
        "card": card(options.device),
        "versions": versions(),
        "device": str(options.device),
        "quick": options.quick,
        "began_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    outcomes: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory() as work:
        setting = Setting(options.device, options.quick, Path(work))
        for name in options.parts:
            left = options.seconds - (time.monotonic() - began)
            outcome = outcomes[name] = run(name, setting, left)
            print(f"{name}: {outcome.error or 'done'}, {outcome.seconds:.0f} s", file=sys.stderr)
            _write(options.out, head, outcomes)
    print(table(head, outcomes))
    return 0 if all(outcome.passed for outcome in outcomes.values()) else 1


def table(head: dict[str, Any], outcomes: dict[str, Outcome]) -> str:
    """The findings as a Markdown table, under a line about the machine.

    Args:
        head: Machine, card and versions.
        outcomes: How the parts ended, by name.
    """
    libraries = ", ".join(f"{name} {number}" for name, number in head["versions"].items())
    gpu = ", ".join(value for value in head["card"].values() if value)
    lines = [
        f"{gpu} (name, driver, memory); {libraries}; {head['machine']}",
        "",
        "| part | what | figures | as promised |",
        "|---|---|---|---|",
    ]
    for name, outcome in outcomes.items():
        for record in outcome.records:
            figures = ", ".join(f"{key} {_text(value)}" for key, value in record.figures.items())
            verdict = {True: "yes", False: "**no**", None: ""}[record.passed]
            lines.append(f"| {name} | {record.what} | {_cell(figures)} | {verdict} |")
        if outcome.error:
            lines.append(f"| {name} | did not end | {_cell(outcome.error)} | **no** |")
    return "\n".join(lines)


def _text(value: Figure) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _write(out: Path, head: dict[str, Any], outcomes: dict[str, Outcome]) -> None:
    parts = {
        name: {
            "seconds": round(outcome.seconds, 1),
            "error": outcome.error,
            "passed": outcome.passed,
            "records": [asdict(record) for record in outcome.records],
        }
        for name, outcome in outcomes.items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(out.name + ".part")
    fresh.write_text(json.dumps(head | {"parts": parts}, indent=1))
    fresh.replace(out)


def _device(text: str) -> Device:
    kind, _, index = text.partition(":")
    if kind == "cuda" and (not index or index.isdecimal()):
        return Device("cuda", int(index or 0))
    if text == "cpu":
        return Device("cpu")
    raise argparse.ArgumentTypeError(f"got {text!r}, wanted cuda, cuda:N or cpu")


def _parts(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"got {name!r}, wanted among {', '.join(PARTS)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--device", type=_device, default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="measure little")
    parser.add_argument(
        "--parts",
        type=_parts,
        default=list(PARTS),
        metavar="NAME,...",
        help=f"parts among {', '.join(PARTS)} (default: all)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=460.0,
        help="limit of all parts together (default: %(default)g)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=CACHE / "gpu.json",
        metavar="FILE",
        help="JSON file to write (default: benchmarks/.cache/gpu.json)",
    )
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
