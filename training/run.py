"""The run folder: what a training leaves behind, and how it survives a kill.

config.json             what was asked for, the data's checksums, versions
checkpoint.pt           the whole state, replaced as a whole
log.jsonl               one JSON object a line
golden_inputs.npz       a few real images, for export
score_percentiles.json  the training set's scores, for export
metrics.json            the final figures; its presence means the run is complete
"""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentserve._files import atomic_write
from training.errors import CheckpointError
from training.models import Vae
from training.presets import model_from_json

FORMAT = 1


class RunFolder:
    """The files of one run.

    Args:
        path: The folder; it need not exist yet.
    """

    def __init__(self, path: Path):
        self.path = path
        self._checkpoint = path / "checkpoint.pt"
        self._log = path / "log.jsonl"

    @property
    def complete(self) -> bool:
        """Whether the run has come to its end."""
        return (self.path / "metrics.json").is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state to resume from."""
        return self._checkpoint.is_file()

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file as a whole."""
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        atomic_write(self.path / name, text.encode())

    def read_json(self, name: str) -> Any:
        """Reads a JSON file of the run.

        Raises:
            CheckpointError: It is not there or not JSON.
        """
        try:
            return json.loads((self.path / name).read_bytes())
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.path}: no {name}; wanted the folder of a run that "
                "`latentserve train` has finished"
            ) from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path / name}: {error}") from error

    def write_golden_inputs(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Keeps a few real images for export: uint8 [N, C, H, W] and int64 [N]."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=images, labels=labels)
        atomic_write(self.path / "golden_inputs.npz", buffer.getvalue())

    def read_golden_inputs(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Returns what `write_golden_inputs` kept.

        Raises:
            CheckpointError: The file is missing or damaged.
        """
        try:
            with np.load(self.path / "golden_inputs.npz", allow_pickle=False) as file:
                return file["images"], file["labels"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{self.path / 'golden_inputs.npz'}: {error}") from error

    def save_checkpoint(self, trainer: dict[str, Any], budget_seconds_used: float) -> None:
        """Writes the state of a trainer, what it has cost and where the log stands with it."""
        state = {
            "format": FORMAT,
            "trainer": trainer,
            "budget_seconds_used": budget_seconds_used,
            "log_bytes": self._log_bytes(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write(self._checkpoint, buffer.getvalue())

    def load_checkpoint(self) -> tuple[dict[str, Any], float]:
        """Returns the trainer's state and what it has cost; cuts the log back to where it stood.

        Raises:
            CheckpointError: The file is missing, damaged or of another format.
        """
        state = self._load()
        with self._log.open("ab") as log:
            log.truncate(state["log_bytes"])
        return state["trainer"], state["budget_seconds_used"]

    def load_model(self) -> Vae:
        """Returns the smoothed model of the last checkpoint, ready for use.

        Raises:
            CheckpointError: The run has no usable checkpoint or config.
        """
        config = self.read_json("config.json")
        channels, height, width = config["image_shape"]
        model = Vae(model_from_json(config["model"]), (channels, height, width))
        average = self._load()["trainer"]["average"]
        prefix = "module."
        model.load_state_dict(
            {key.removeprefix(prefix): value for key, value in average.items() if prefix in key}
        )
        return model.eval()

    def log(self, entry: dict[str, Any]) -> None:
        """Appends one line to the log."""
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")

    def _log_bytes(self) -> int:
        try:
            with self._log.open("rb") as log:
                os.fsync(log.fileno())
                return log.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return 0

    def _load(self) -> dict[str, Any]:
        try:
            # weights_only: a checkpoint is data, never code.
            state: dict[str, Any] = torch.load(self._checkpoint, weights_only=True)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path}: no checkpoint.pt") from error
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(f"{self._checkpoint}: cannot be read ({error})") from error
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"{self._checkpoint}: format {state.get('format')}, wanted {FORMAT}"
            )
        return state
