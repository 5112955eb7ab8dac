"""The run folder: what a training leaves behind, and how it survives a kill.

config.json             what was asked for, the data's checksums, versions
checkpoint.pt           the whole state, replaced as a whole
log.jsonl               one JSON object a line
frames/                 what the training movie is made of
golden_inputs.npz       a few real images, for export
score_percentiles.json  the training set's scores, for export
metrics.json            the final figures; its presence means the run is complete
"""

import dataclasses
import fcntl
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentserve._files import atomic_write
from training.data.spec import DataSpec
from training.errors import CheckpointError, ConfigError
from training.model.config import ModelConfig, TrainConfig
from training.model.settings import record_from_json
from training.model.vae import Vae

FORMAT = 2

_PARTS = {"format", "trainer", "budget_seconds_used", "log_bytes"}


@dataclass(frozen=True)
class RunConfig:
    """What a run is: `config.json`, written before the first step.

    Attributes:
        preset: Name of the preset it began with.
        settings: The changes to it, `key=value` each.
        model: The shape of the autoencoder.
        train: How it is trained.
        steps: Length of the run in steps of the autoencoder; those of the prior's fits
            come on top.
        budget_seconds: The budget that length came from, or None.
        threads: Threads torch computes with, in each process.
        processes: How many shared the work.
        device: Where it was computed.
        precision: What in: `float32` or `bfloat16`.
        data: Which data set.
        data_sha256: SHA-256 of each source file's uncompressed content.
        image_shape: C, H and W.
        class_names: Name of each class of the data.
        split: Images in each split.
        versions: Of what began the run.
    """

    preset: str
    settings: tuple[str, ...]
    model: ModelConfig
    train: TrainConfig
    steps: int
    budget_seconds: float | None
    threads: int
    processes: int
    device: str
    precision: str
    data: DataSpec
    data_sha256: dict[str, str]
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    split: dict[str, int]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `config.json`."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, content: Any, origin: Path) -> "RunConfig":
        """Reads back what `to_json` returned.

        Args:
            content: The parsed JSON.
            origin: Where it came from, for the error.

        Raises:
            CheckpointError: It is something else.
        """
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise CheckpointError(f"{origin}: not the config of a run of format {FORMAT}")
        fields = {key: value for key, value in content.items() if key != "format"}
        try:
            channels, height, width = fields["image_shape"]
            return cls(
                **{
                    **fields,
                    "settings": tuple(fields["settings"]),
                    "data": DataSpec.from_json(fields["data"]),
                    "model": record_from_json(ModelConfig, fields["model"]),
                    "train": record_from_json(TrainConfig, fields["train"]),
                    "image_shape": (int(channels), int(height), int(width)),
                    "class_names": tuple(fields["class_names"]),
                }
            )
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(f"{origin}: damaged ({error})") from error


class RunFolder:
    """The files of one run.

    Args:
        path: The folder; it need not exist yet.
    """

    def __init__(self, path: Path):
        self.path = path
        self._checkpoint = path / "checkpoint.pt"
        self._log = path / "log.jsonl"
        self._frames = path / "frames"

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

    def read_config(self) -> RunConfig:
        """Reads `config.json`.

        Raises:
            CheckpointError: It is missing, damaged or of something else.
        """
        return RunConfig.from_json(self.read_json("config.json"), self.path / "config.json")

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
            raw = (self.path / "golden_inputs.npz").read_bytes()
            with np.load(io.BytesIO(raw), allow_pickle=False) as file:
                return file["images"], file["labels"]
        except Exception as error:  # whatever numpy and zipfile make of damaged bytes
            raise CheckpointError(f"{self.path / 'golden_inputs.npz'}: {error}") from error

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Makes the folder and keeps other trainings out of it.

        Raises:
            CheckpointError: Another training is at work here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckpointError(f"{self.path}: another training is at work here") from None
            # What a kill left behind in the middle of a write.
            for leftover in self.path.rglob(".*.tmp"):
                leftover.unlink()
            if not self.has_checkpoint:
                self._log.unlink(missing_ok=True)
                shutil.rmtree(self._frames, ignore_errors=True)
            yield

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
        """Returns the trainer's state and what it has cost.

        The log is cut back to where it stood with it.

        Raises:
            CheckpointError: The file is missing, damaged or of another format.
        """
        state = self._load()
        with self._log.open("ab") as log:
            log.truncate(min(state["log_bytes"], log.tell()))
        return state["trainer"], state["budget_seconds_used"]

    def load_model(self) -> Vae:
        """Returns the smoothed model of the last checkpoint, ready for use.

        Raises:
            CheckpointError: The run has no usable checkpoint or config.
        """
        config = self.read_config()
        model = Vae(config.model, config.image_shape, len(config.class_names))
        prefix = "module."
        try:
            average = self._load()["trainer"]["average"]
            model.load_state_dict(
                {key.removeprefix(prefix): value for key, value in average.items() if prefix in key}
            )
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{self._checkpoint}: does not hold the weights of this run's model"
            ) from error
        return model.eval()

    def save_frame(
        self,
        step: int,
        phase: str,
        reconstructions: NDArray[np.uint8],
        means: NDArray[np.float32],
    ) -> None:
        """Keeps a moment of the training; a resumed run writes the same one again.

        Args:
            step: Steps done before it.
            phase: Of those steps.
            reconstructions: uint8 [N, C, H, W].
            means: float32 [M, D].
        """
        self._frames.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer, step=step, phase=np.array(phase), reconstructions=reconstructions, means=means
        )
        atomic_write(self._frames / f"{step:09d}.npz", buffer.getvalue())

    def read_frames(self) -> list[dict[str, Any]]:
        """Returns the moments kept, in order: the arguments of `save_frame` by name.

        Raises:
            CheckpointError: One of them is damaged.
        """
        frames = []
        for path in sorted(self._frames.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as file:
                    frame = {name: file[name] for name in file.files}
                frames.append(frame | {"step": int(frame["step"]), "phase": str(frame["phase"])})
            except Exception as error:  # whatever numpy and zipfile make of damaged bytes
                raise CheckpointError(f"{path}: {error}") from error
        return frames

    def read_log(self) -> list[dict[str, Any]]:
        """Returns the lines of the log; none where there is no log."""
        try:
            return [json.loads(line) for line in self._log.read_bytes().splitlines()]
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise CheckpointError(f"{self._log}: {error}") from error

    def steps_done(self) -> int:
        """Steps done at the last checkpoint."""
        return int(self._load()["trainer"]["step"])

    def log(self, entry: dict[str, Any]) -> None:
        """Appends one line to the log; a number that is not finite becomes null."""
        with self._log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(_finite(entry), allow_nan=False) + "\n")

    def _log_bytes(self) -> int:
        try:
            with self._log.open("rb") as log:
                os.fsync(log.fileno())
                return log.seek(0, os.SEEK_END)
        except FileNotFoundError:
            return 0

    def _load(self) -> dict[str, Any]:
        try:
            raw = self._checkpoint.read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path}: no checkpoint.pt") from error
        except OSError as error:
            raise CheckpointError(f"{self._checkpoint}: {error.strerror}") from error
        try:
            with zipfile.ZipFile(io.BytesIO(raw)) as archive:
                # torch itself does not look at the checksums.
                damaged = archive.testzip()
            # weights_only: a checkpoint is data, never code.
            state = None if damaged else torch.load(io.BytesIO(raw), weights_only=True)
        except Exception as error:  # whatever zipfile and torch make of damaged bytes
            raise CheckpointError(
                f"{self._checkpoint}: damaged ({type(error).__name__})"
            ) from error
        if not isinstance(state, dict) or not state.keys() >= _PARTS:
            raise CheckpointError(f"{self._checkpoint}: damaged, or not a checkpoint")
        if state["format"] != FORMAT:
            raise CheckpointError(f"{self._checkpoint}: format {state['format']}, wanted {FORMAT}")
        return state


def _finite(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in entry.items()
    }
