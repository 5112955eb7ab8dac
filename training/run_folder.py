"""The run folder: the files of a training run, from which it can be resumed if it is killed.

config.json             settings, checksums of the data, versions
checkpoint.pt           the whole training state, replaced atomically
log.jsonl               one JSON object per logged step
frames/                 the frames of the training movie
golden_inputs.npz       a few test images, for export
score_percentiles.json  percentiles of the training images' anomaly scores, for export
metrics.json            the final figures; its presence marks the run as complete
"""

import fcntl
import io
import json
import math
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentserve._files import atomic_write
from training.errors import CheckpointError
from training.model.vae import Vae
from training.run_config import FORMAT, OLDER, RunConfig

# Seconds between two attempts to lock a folder.
_LOCK_INTERVAL = 0.1

_PARTS = {"format", "trainer", "budget_seconds_used", "log_bytes"}


class RunFolder:
    """Reads and writes the files of one run.

    Args:
        path: The folder, which need not exist yet.
        saved: Called after each checkpoint.

    Attributes:
        path: The folder.
        checkpoint: Path of the checkpoint.
    """

    def __init__(self, path: Path, saved: Callable[[], None] = lambda: None):
        self.path = path
        self._saved = saved
        self.checkpoint = path / "checkpoint.pt"
        self._log = path / "log.jsonl"
        self._frames = path / "frames"

    @property
    def complete(self) -> bool:
        """Whether the run is complete: trained, measured and reported."""
        return (self.path / "metrics.json").is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.checkpoint.is_file()

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file atomically."""
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        atomic_write(self.path / name, text.encode())

    def read_json(self, name: str) -> Any:
        """Reads a JSON file of the run.

        Raises:
            CheckpointError: The file is missing or not JSON.
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

    def read_config(self) -> RunConfig:
        """Reads `config.json`.

        Raises:
            CheckpointError: The file is missing, damaged or of another format.
        """
        return RunConfig.from_json(self.read_json("config.json"), self.path / "config.json")

    def write_golden_inputs(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Writes a few test images uint8 [N, C, H, W] and their labels int64 [N], for export."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=images, labels=labels)
        atomic_write(self.path / "golden_inputs.npz", buffer.getvalue())

    def read_golden_inputs(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Reads the images and labels that `write_golden_inputs` wrote.

        Raises:
            CheckpointError: The file is missing or damaged.
        """
        try:
            golden = _read_npz(self.path / "golden_inputs.npz")
            return golden["images"], golden["labels"]
        except Exception as error:  # numpy and zipfile raise many types on damaged bytes
            raise CheckpointError(f"{self.path / 'golden_inputs.npz'}: {error}") from error

    @contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[None]:
        """Makes the folder and holds its lock; removes temporary files of interrupted writes.

        If there is no checkpoint, it also removes the log and the frames of a run that was
        killed before its first checkpoint.

        Args:
            patience: Longest wait for a process that holds the lock, in seconds.

        Raises:
            CheckpointError: Another process still holds the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            deadline = time.monotonic() + patience
            while not _lock(lock):
                if time.monotonic() >= deadline:
                    raise CheckpointError(f"{self.path}: another training is running here")
                time.sleep(_LOCK_INTERVAL)
            # Temporary files of writes that a kill interrupted.
            for leftover in self.path.rglob(".*.tmp"):
                leftover.unlink()
            if not self.has_checkpoint:
                self._log.unlink(missing_ok=True)
                shutil.rmtree(self._frames, ignore_errors=True)
            yield

    def save_checkpoint(self, trainer: dict[str, Any], budget_seconds_used: float) -> None:
        """Writes a checkpoint, which also records the current length of the log.

        Args:
            trainer: `Trainer.state_dict()`.
            budget_seconds_used: CPU seconds per thread that the steps so far have taken.
        """
        state = {
            "format": FORMAT,
            "trainer": trainer,
            "budget_seconds_used": budget_seconds_used,
            "log_bytes": self._log_bytes(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write(self.checkpoint, buffer.getvalue())
        self._saved()

    def load_checkpoint(self) -> tuple[dict[str, Any], float]:
        """Reads the checkpoint, and truncates the log to the length that it records.

        Returns:
            The trainer's state and the budget seconds used, as passed to `save_checkpoint`.

        Raises:
            CheckpointError: The file is missing, damaged or of another format.
        """
        state = self._load()
        if state["format"] in OLDER:
            raise CheckpointError(
                f"{self.path}: begun by an older version of latentserve (format {state['format']}, "
                f"this one has {FORMAT}), so it cannot be resumed; wanted a new run in another "
                "folder. It can be exported and evaluated as it is"
            )
        with self._log.open("ab") as log:
            log.truncate(min(state["log_bytes"], log.tell()))
        return state["trainer"], state["budget_seconds_used"]

    def load_model(self) -> Vae:
        """Loads the averaged model of the last checkpoint, in evaluation mode.

        Raises:
            CheckpointError: The checkpoint or the config is missing or damaged.
        """
        config = self.read_config()
        model = Vae(config.model, config.image_shape, len(config.class_names))
        prefix = "module."
        try:
            state = self._load()
            average = state["trainer"]["average"]
            weights = {
                key.removeprefix(prefix): value for key, value in average.items() if prefix in key
            }
            if state["format"] in OLDER:
                weights["centre"] = model.centre  # 0: images were not centred
            model.load_state_dict(weights)
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{self.checkpoint}: does not hold the weights of this run's model"
            ) from error
        return model.eval()

    def save_frame(
        self,
        step: int,
        phase: str,
        reconstructions: NDArray[np.uint8],
        means: NDArray[np.float32],
    ) -> None:
        """Writes one frame of the movie.

        A resumed run writes the frames after its checkpoint a second time, with equal content.

        Args:
            step: Steps done.
            phase: Name of the phase.
            reconstructions: Reconstructions of the shown images, uint8 [N, C, H, W].
            means: Posterior means of the images in the scatter plot, float32 [M, D].
        """
        self._frames.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, step=step, phase=np.array(phase), reconstructions=reconstructions, means=means
        )
        atomic_write(self._frames / f"{step:09d}.npz", buffer.getvalue())

    def read_frames(self) -> list[dict[str, Any]]:
        """Reads all frames in order of their steps, each as `save_frame`'s arguments by name.

        Raises:
            CheckpointError: A frame is damaged.
        """
        frames = []
        for path in sorted(self._frames.glob("*.npz")):
            try:
                frame = _read_npz(path)
                frames.append(frame | {"step": int(frame["step"]), "phase": str(frame["phase"])})
            except Exception as error:  # numpy and zipfile raise many types on damaged bytes
                raise CheckpointError(f"{path}: {error}") from error
        return frames

    def read_log(self) -> list[dict[str, Any]]:
        """Reads the entries of the log; returns an empty list if there is no log.

        Raises:
            CheckpointError: A line is not JSON.
        """
        try:
            return [json.loads(line) for line in self._log.read_bytes().splitlines()]
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise CheckpointError(f"{self._log}: {error}") from error

    def steps_done(self) -> int:
        """Number of steps done at the last checkpoint.

        Raises:
            CheckpointError: The checkpoint is missing, damaged or of another format.
        """
        return int(self._load()["trainer"]["step"])

    def log(self, entry: dict[str, Any]) -> None:
        """Appends an entry to the log, with numbers that are not finite as null."""
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(_finite(entry), allow_nan=False) + "\n")

    def _log_bytes(self) -> int:
        """Flushes the log to disk and returns its length in bytes; 0 if there is no log."""
        try:
            with self._log.open("rb") as log:
                os.fsync(log.fileno())
                return log.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return 0

    def _load(self) -> dict[str, Any]:
        try:
            raw = self.checkpoint.read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path}: no checkpoint.pt") from error
        except OSError as error:
            raise CheckpointError(f"{self.checkpoint}: {error.strerror}") from error
        try:
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                # torch itself does not verify the checksums.
                damaged = archive.testzip()
            # weights_only: a checkpoint must not be able to run code. To the CPU: the GPU that it
            # is of may not be there, and what is restored goes to the model's device.
            state = (
                None
                if damaged
                else torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
            )
        except Exception as error:  # zipfile and torch raise many types on damaged bytes
            raise CheckpointError(f"{self.checkpoint}: damaged ({type(error).__name__})") from error
        if not isinstance(state, dict) or not state.keys() >= _PARTS:
            raise CheckpointError(f"{self.checkpoint}: damaged, or not a checkpoint")
        if state["format"] not in (FORMAT, *OLDER):
            raise CheckpointError(f"{self.checkpoint}: format {state['format']}, wanted {FORMAT}")
        return state


def _lock(file: IO[str]) -> bool:
    """Locks a file; returns whether it could, which it cannot while another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Reads the arrays of an npz file, all of whose checksums have to match.

    NumPy stops reading where an array ends, before a wrong checksum would be noticed.

    Raises:
        Exception: Of many types, where the file is missing or damaged.
    """
    # From its bytes: NumPy would leave a damaged file open.
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        if (damaged := file.zip.testzip()) is not None:
            raise ValueError(f"{damaged} in it is damaged: its checksum is wrong")
        return {name: file[name] for name in file.files}


def _finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }
