"""The weights that a run begins with, where they are those of another run."""

import hashlib
from pathlib import Path

from torch import Tensor

from training.errors import ConfigError
from training.model.vae import OF_DATA
from training.parallel import Parallel
from training.run_config import Init
from training.run_folder import RunFolder
from training.trainer import Trainer


def begin_with(path: Path, trainer: Trainer, parallel: Parallel) -> Init:
    """Gives a trainer before its first step the averaged weights of another run.

    What that run lacks stays as a new model has it: a further residual block or coupling changes
    nothing at first. What a model knows of the data itself stays that of the trainer's data.

    Args:
        path: Folder of the other run, which only the leading process reads.
        trainer: The trainer.
        parallel: This process's place among those that share the work.

    Returns:
        Which weights they are.

    Raises:
        CheckpointError: The checkpoint or the config of that run is missing or damaged.
        ConfigError: A weight of that run has no place in this model.
    """
    init: Init
    weights: dict[str, Tensor]
    read = None
    with parallel.fail_together():
        if parallel.leads:
            read = _read(RunFolder(path))
    init, weights = parallel.broadcast(read)
    with parallel.fail_together():
        own = trainer.model.state_dict()
        for name, weight in weights.items():
            if name not in own or own[name].shape != weight.shape:
                here = list(own[name].shape) if name in own else "none"
                raise ConfigError(
                    f"--init: {name} of {init.run}: got shape {here} here, wanted "
                    f"{list(weight.shape)}; all weights of that run need a place in the new model, "
                    "which may have more blocks and couplings, but not others"
                )
        of_data = {name: own[name] for name in OF_DATA if name in own}
        for model in (trainer.model, trainer.ema_model):
            model.load_state_dict({**own, **weights, **of_data})
    return init


def _read(folder: RunFolder) -> tuple[Init, dict[str, Tensor]]:
    """Reads the averaged weights of a run, and what identifies them."""
    weights = folder.load_model().state_dict()
    digest = hashlib.sha256(folder.checkpoint.read_bytes()).hexdigest()
    return Init(str(folder.path), digest, folder.steps_done()), weights
