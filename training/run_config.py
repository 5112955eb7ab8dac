"""The config of a run: `config.json`, what it was begun with."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.spec import DataSpec
from training.errors import CheckpointError, ConfigError
from training.model.config import ModelConfig
from training.model.settings import record_from_json
from training.model.train_config import TrainConfig

#: Version of the format of `config.json` and `checkpoint.pt`.
FORMAT = 3
#: Formats of runs that can still be evaluated and exported, but not resumed.
OLDER = (2,)


@dataclass(frozen=True)
class Init:
    """The run, or the bundle, that a run began with the weights of.

    Attributes:
        run: Path of its folder, as given.
        sha256: Checksum of the checkpoint that the weights were read from, or of the manifest.
        step: Number of steps that this checkpoint had done, in all phases; None of a bundle.
    """

    run: str
    sha256: str
    step: int | None


@dataclass(frozen=True)
class RunConfig:
    """The content of `config.json`, written before the first step.

    Attributes:
        preset: Name of the preset.
        settings: Overrides of the preset, `key=value` each.
        model: Architecture of the autoencoder.
        train: Objective, optimiser and schedule.
        steps: Number of steps that train the autoencoder; those that fit the prior are
            added.
        budget_seconds: The budget that `steps` was derived from; None if `steps` was given.
        threads: Threads of torch in each process.
        processes: Number of processes that shared the work.
        device: torch's name of the device, such as `cpu` or `cuda:0`.
        precision: Precision of encoder and decoder, `float32` or `bfloat16`.
        data: The data set.
        data_sha256: SHA-256 of each source file's uncompressed content, by file name.
        image_shape: C, H and W.
        class_names: Name of each class of the data; empty without labels.
        split: Number of images in each split, by its name.
        versions: Version of the program and of each library when the run began.
        init: The run or the bundle whose weights this one began with; None if with random ones.
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
    init: Init | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `config.json`."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, content: Any, origin: Path) -> "RunConfig":
        """Parses the content of `config.json`, the inverse of `to_json`.

        Args:
            content: The parsed JSON.
            origin: Path of the file, for the error message.

        Raises:
            CheckpointError: The content is of another format, or damaged.
        """
        if not isinstance(content, dict) or content.get("format") not in (FORMAT, *OLDER):
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
                    "init": None if fields.get("init") is None else Init(**fields["init"]),
                }
            )
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise CheckpointError(f"{origin}: damaged ({error})") from error
