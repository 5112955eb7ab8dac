"""Exceptions of training; `latentserve train` prints their message and exits.

TrainingError           base; exit status 1
├── DataError           a data set is damaged or unusable
│   └── DataMissing     a data set is neither on disk nor can it be downloaded
├── ConfigError         a setting does not exist or has a wrong value; exit status 2
├── CheckpointError     a run folder cannot be used or resumed
├── CopyError           a run is complete, and its copy in object storage is not
├── DivergenceError     too many steps had a loss or gradient that was not finite or too large
└── OtherProcessError   another process of a data-parallel training failed and prints why
"""


class TrainingError(Exception):
    """Base class of the exceptions of training."""


class DataError(TrainingError):
    """A data set is missing, damaged or unusable."""


class DataMissing(DataError):
    """A data set is not on disk, and downloading it failed or was not allowed."""


class ConfigError(TrainingError):
    """A setting does not exist or has a wrong value."""


class CheckpointError(TrainingError):
    """A run folder cannot be used or resumed."""


class CopyError(TrainingError):
    """A run is complete, and its copy in object storage is not whole."""


class DivergenceError(TrainingError):
    """Too many steps were skipped because of a NaN or an exploding gradient."""


class OtherProcessError(TrainingError):
    """Another process of a data-parallel training failed; that process prints the reason."""
