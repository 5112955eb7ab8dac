"""What can go wrong in training, told to a person.

TrainingError           one clear line; the command exits with status 1
├── DataError           a data set that is damaged or unusable
│   └── DataMissing     ... or not here, and no source had it
├── ConfigError         a setting that does not exist or has a wrong value
├── CheckpointError     a run folder that cannot be used or resumed
├── DivergenceError     the loss or its gradient stopped being usable
└── OtherProcessError   one of the processes that train together failed, and tells why
"""


class TrainingError(Exception):
    """Base of every error that training raises on purpose."""


class DataError(TrainingError):
    """A data set is missing, damaged or unusable."""


class DataMissing(DataError):
    """A data set is not here and could not, or was not to, be fetched."""


class ConfigError(TrainingError):
    """A setting does not exist or has a wrong value."""


class CheckpointError(TrainingError):
    """A run folder cannot be used or resumed."""


class DivergenceError(TrainingError):
    """Too many steps had to be skipped: NaN or an exploding gradient."""


class OtherProcessError(TrainingError):
    """Another one of the processes that train together failed; it tells why itself."""
