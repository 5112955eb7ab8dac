"""`latentserve export` and `latentserve evaluate`."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from bundle import BundleError
from export.errors import ExportError
from export.evaluate import Wanted, evaluate_path
from export.export import export
from latentserve._arguments import positive, uint64
from training.errors import TrainingError
from training.train import describe

_FAILURES = (BundleError, ExportError, TrainingError, OSError)


def main_export(arguments: list[str]) -> int:
    """Runs `latentserve export`.

    Returns:
        The exit status: 0, or 1 where no bundle was written.
    """
    parser = argparse.ArgumentParser(
        prog="latentserve export",
        description="Export a finished run as the next version of a model: encoder and decoder "
        "as ONNX, verified against torch, in one bundle.",
        epilog="example:\n  latentserve export runs/dense --to models/mnist",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `train` wrote")
    parser.add_argument("--to", type=Path, required=True, metavar="MODELS/NAME", help="the model")
    options = parser.parse_args(arguments)
    try:
        folder = export(options.run, options.to, report=_say)
    except _FAILURES as error:
        print(f"latentserve export: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


def main_evaluate(arguments: list[str]) -> int:
    """Runs `latentserve evaluate`.

    Returns:
        The exit status: 0, or 1 where it could not be measured.
    """
    parser = argparse.ArgumentParser(
        prog="latentserve evaluate",
        description="Measure a run or a bundle on its test set. Changes nothing.",
        epilog="examples:\n  latentserve evaluate runs/dense\n"
        "  latentserve evaluate models/mnist/1 --importance 1000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path", type=Path, metavar="RUN_OR_BUNDLE", help="run folder, or MODELS/NAME/VERSION"
    )
    parser.add_argument(
        "--draws", type=positive, default=1, help="draws of z per image (default: 1)"
    )
    parser.add_argument("--seed", type=uint64, default=0, help="seed of the draws (default: 0)")
    parser.add_argument(
        "--importance",
        type=positive,
        default=0,
        metavar="K",
        help="measure the importance-weighted bound on the NLL with K draws as well; 1000 is usual",
    )
    parser.add_argument(
        "--importance-images",
        type=positive,
        default=1000,
        metavar="N",
        help="on the first N test images (default: 1000)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    wanted = Wanted(options.draws, options.seed, options.importance, options.importance_images)
    try:
        what, result, bound = evaluate_path(options.path, wanted, report=_say)
    except _FAILURES as error:
        print(f"latentserve evaluate: {error}", file=sys.stderr)
        return 1
    described = describe(result)
    if options.json:
        weighted = {} if bound is None else {"importance_bound": dataclasses.asdict(bound)}
        print(json.dumps({"what": what} | described | weighted, indent=2))
        return 0
    print(f"{what}\n{described['protocol']}\n")
    print(f"  ELBO            {result.elbo:8.2f}  +- {result.elbo_stderr:.2f}")
    print(f"  reconstruction  {result.reconstruction:8.2f}")
    print(f"  KL              {result.kl:8.2f}")
    print(f"  active units    {result.active_units:8d}")
    print(f"\n{result.images} images, {result.draws} draw(s) each, seed {result.seed}")
    if bound is not None:
        print(f"\n  NLL             {bound.nll:8.2f}  +- {bound.stderr:.2f}")
        print(f"\nimportance-weighted bound, K = {bound.draws}, the first {bound.images} images")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
