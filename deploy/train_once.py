"""Leaves a model of one's own in the models folder: the one-shot job of docker-compose.yml.

Where a model of that name is there already, there is nothing to do. A training that
was stopped is gone on with: its run folder is named after what is being trained.
"""

import os
import sys
from pathlib import Path

from bundle import find_models
from latentserve.cli import main

RUNS = Path("/runs")


def train_once() -> int:
    """Trains and exports if the model is not there.

    Returns:
        The exit status: 0 where there is a model now.
    """
    models = Path(os.environ["LATENTSERVE_MODELS"])
    name = os.environ["LATENTSERVE_MODEL_NAME"]
    for model in find_models(models):
        if model.name == name:
            print(f"{models} holds {name}/{model.versions[-1]}: nothing to train")
            return 0
    data = os.environ["LATENTSERVE_DATASET"]
    preset = os.environ["LATENTSERVE_PRESET"]
    run = RUNS / f"{name}-{data}-{preset}"
    budget = os.environ["LATENTSERVE_BUDGET"]
    return main(
        ["train", "--data", data, "--preset", preset, "--budget", budget, "--out", str(run),
         "--resume"]
    ) or main(["export", str(run), "--to", str(models / name)])  # fmt: skip


if __name__ == "__main__":
    try:
        sys.exit(train_once())
    except KeyboardInterrupt:
        # SIGTERM as well, from the training on: the next start goes on from here.
        sys.exit(130)
