"""The weights that a run begins with, where they are those of another run or of a bundle."""

import hashlib
from pathlib import Path

from torch import Tensor

from bundle.layout import MANIFEST
from training.errors import ConfigError
from training.exported import exported_weights
from training.model.vae import OF_DATA
from training.parallel import Parallel
from training.run_config import Init
from training.run_folder import RunFolder
from training.trainer import Trainer


def begin_with(path: Path, trainer: Trainer, parallel: Parallel) -> Init:
    """Gives a trainer before its first step the averaged weights of another run, or of a bundle.

    What they lack stays as a new model has it: a further residual block or coupling changes
    nothing at first. What a model knows of the data itself stays that of the trainer's data.

    Args:
        path: Folder of the other run or of the bundle, which only the leading process reads.
        trainer: The trainer.
        parallel: This process's place among those that share the work.

    Returns:
        Which weights they are.

    Raises:
        CheckpointError: The checkpoint or the config of that run, or the bundle, is missing or
            damaged.
        ConfigError: A weight has no place in this model, or the bundle is not one of such a model.
    """
    init: Init
    weights: dict[str, Tensor]
    read = None
    with parallel.fail_together():
        if parallel.leads:
            read = _read(path)
    init, weights = parallel.broadcast(read)
    with parallel.fail_together():
        own = trainer.model.state_dict()
        for name, weight in weights.items():
            if name not in own or own[name].shape != weight.shape:
                here = list(own[name].shape) if name in own else "none"
                raise ConfigError(
                    f"--init: {name} of {init.run}: got shape {here} here, wanted "
                    f"{list(weight.shape)}; all weights there need a place in the new model, which "
                    "may have more blocks and couplings, but not others"
                )
        of_data = {name: own[name] for name in OF_DATA if name in own}
        for model in (trainer.model, trainer.ema_model):
            model.load_state_dict({**own, **weights, **of_data})
    return init


def _read(path: Path) -> tuple[Init, dict[str, Tensor]]:
    """Reads the weights of a bundle, or the averaged ones of a run, and what identifies them."""
    if (path / MANIFEST).exists():
        weights, digest = exported_weights(path)
        return Init(str(path), digest, None), weights
    folder = RunFolder(path)
    weights = folder.load_model().state_dict()
    digest = hashlib.sha256(folder.checkpoint.read_bytes()).hexdigest()
    return Init(str(path), digest, folder.steps_done()), weights
