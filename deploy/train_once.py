"""Trains and exports one model into the models folder: the one-shot job of docker-compose.yml.

Does nothing if a model of that name exists. Resumes an interrupted training, which it finds by the
name of the run folder: model, data set and preset.
"""

import os
import sys
from pathlib import Path

from bundle import find_models
from latentserve.cli import main

RUNS = Path("/runs")


def train_once() -> int:
    """Trains and exports the model unless it exists.

    Returns:
        The exit status: 0 if the model exists afterwards, made now or earlier.
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
        # Raised for SIGTERM as well, after a checkpoint was saved; the next start resumes from it.
        sys.exit(130)
