import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from latentserve.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_FLOAT32: _ClassVar[ImageFormat]
    IMAGE_FORMAT_UINT8: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_FLOAT16: _ClassVar[ImageFormat]
    IMAGE_FORMAT_BFLOAT16: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JPEG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_WEBP: _ClassVar[ImageFormat]

class InterpolationMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTERPOLATION_METHOD_UNSPECIFIED: _ClassVar[InterpolationMethod]
    INTERPOLATION_METHOD_LINEAR: _ClassVar[InterpolationMethod]
    INTERPOLATION_METHOD_SPHERICAL: _ClassVar[InterpolationMethod]
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_FLOAT32: ImageFormat
IMAGE_FORMAT_UINT8: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
IMAGE_FORMAT_FLOAT16: ImageFormat
IMAGE_FORMAT_BFLOAT16: ImageFormat
IMAGE_FORMAT_JPEG: ImageFormat
IMAGE_FORMAT_WEBP: ImageFormat
INTERPOLATION_METHOD_UNSPECIFIED: InterpolationMethod
INTERPOLATION_METHOD_LINEAR: InterpolationMethod
INTERPOLATION_METHOD_SPHERICAL: InterpolationMethod

class ModelSelector(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ModelIdentity(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_seconds", "compute_seconds", "total_seconds", "batch_rows")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    compute_seconds: float
    total_seconds: float
    batch_rows: int
    def __init__(self, queue_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ..., batch_rows: _Optional[int] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "onnxruntime_version", "limits", "default_model", "models", "device", "routes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ONNXRUNTIME_VERSION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ROUTES_FIELD_NUMBER: _ClassVar[int]
    version: str
    onnxruntime_version: str
    limits: Limits
    default_model: str
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    device: str
    routes: _containers.RepeatedCompositeFieldContainer[Route]
    def __init__(self, version: _Optional[str] = ..., onnxruntime_version: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., default_model: _Optional[str] = ..., models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ..., device: _Optional[str] = ..., routes: _Optional[_Iterable[_Union[Route, _Mapping]]] = ...) -> None: ...

class Route(_message.Message):
    __slots__ = ("name", "version", "percent")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    percent: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., percent: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_rows", "max_message_bytes", "max_queue_rows", "max_queue_bytes", "max_score_draws", "max_pixels", "max_compute_bytes")
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_SCORE_DRAWS_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_COMPUTE_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_rows: int
    max_message_bytes: int
    max_queue_rows: int
    max_queue_bytes: int
    max_score_draws: int
    max_pixels: int
    max_compute_bytes: int
    def __init__(self, max_rows: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_queue_rows: _Optional[int] = ..., max_queue_bytes: _Optional[int] = ..., max_score_draws: _Optional[int] = ..., max_pixels: _Optional[int] = ..., max_compute_bytes: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ...) -> None: ...

class GetLatentMapRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ...) -> None: ...

class GetLatentMapResponse(_message.Message):
    __slots__ = ("mean", "labels", "kl", "class_names", "model")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    mean: _tensor_pb2.Tensor
    labels: _containers.RepeatedScalarFieldContainer[int]
    kl: _containers.RepeatedScalarFieldContainer[float]
    class_names: _containers.RepeatedScalarFieldContainer[str]
    model: ModelIdentity
    def __init__(self, mean: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., labels: _Optional[_Iterable[int]] = ..., kl: _Optional[_Iterable[float]] = ..., class_names: _Optional[_Iterable[str]] = ..., model: _Optional[_Union[ModelIdentity, _Mapping]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelInfo
    def __init__(self, model: _Optional[_Union[ModelInfo, _Mapping]] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("name", "version", "image_shape", "latent_dim", "posterior", "prior", "likelihood", "labels", "max_rows", "metrics", "graphs", "dataset", "created_at", "noise", "precision", "prior_mean", "prior_std", "has_percentiles", "latent_shape", "sizes", "latent_scaling", "rows_at_once", "origin", "memory_bytes", "bytes_per_pixel", "has_latent_map", "class_names", "batch_invariant", "conditional")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SHAPE_FIELD_NUMBER: _ClassVar[int]
    LATENT_DIM_FIELD_NUMBER: _ClassVar[int]
    POSTERIOR_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    GRAPHS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    NOISE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    PRIOR_MEAN_FIELD_NUMBER: _ClassVar[int]
    PRIOR_STD_FIELD_NUMBER: _ClassVar[int]
    HAS_PERCENTILES_FIELD_NUMBER: _ClassVar[int]
    LATENT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    LATENT_SCALING_FIELD_NUMBER: _ClassVar[int]
    ROWS_AT_ONCE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_PIXEL_FIELD_NUMBER: _ClassVar[int]
    HAS_LATENT_MAP_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    BATCH_INVARIANT_FIELD_NUMBER: _ClassVar[int]
    CONDITIONAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    image_shape: ImageShape
    latent_dim: int
    posterior: str
    prior: str
    likelihood: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    max_rows: int
    metrics: _containers.ScalarMap[str, float]
    graphs: _containers.RepeatedCompositeFieldContainer[GraphInfo]
    dataset: str
    created_at: _timestamp_pb2.Timestamp
    noise: str
    precision: str
    prior_mean: _containers.RepeatedScalarFieldContainer[float]
    prior_std: _containers.RepeatedScalarFieldContainer[float]
    has_percentiles: bool
    latent_shape: _containers.RepeatedScalarFieldContainer[int]
    sizes: Sizes
    latent_scaling: LatentScaling
    rows_at_once: int
    origin: Origin
    memory_bytes: int
    bytes_per_pixel: float
    has_latent_map: bool
    class_names: _containers.RepeatedScalarFieldContainer[str]
    batch_invariant: bool
    conditional: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., image_shape: _Optional[_Union[ImageShape, _Mapping]] = ..., latent_dim: _Optional[int] = ..., posterior: _Optional[str] = ..., prior: _Optional[str] = ..., likelihood: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., max_rows: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., graphs: _Optional[_Iterable[_Union[GraphInfo, _Mapping]]] = ..., dataset: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., noise: _Optional[str] = ..., precision: _Optional[str] = ..., prior_mean: _Optional[_Iterable[float]] = ..., prior_std: _Optional[_Iterable[float]] = ..., has_percentiles: _Optional[bool] = ..., latent_shape: _Optional[_Iterable[int]] = ..., sizes: _Optional[_Union[Sizes, _Mapping]] = ..., latent_scaling: _Optional[_Union[LatentScaling, _Mapping]] = ..., rows_at_once: _Optional[int] = ..., origin: _Optional[_Union[Origin, _Mapping]] = ..., memory_bytes: _Optional[int] = ..., bytes_per_pixel: _Optional[float] = ..., has_latent_map: _Optional[bool] = ..., class_names: _Optional[_Iterable[str]] = ..., batch_invariant: _Optional[bool] = ..., conditional: _Optional[bool] = ...) -> None: ...

class Sizes(_message.Message):
    __slots__ = ("factor", "multiple", "least", "most_pixels")
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    LEAST_FIELD_NUMBER: _ClassVar[int]
    MOST_PIXELS_FIELD_NUMBER: _ClassVar[int]
    factor: int
    multiple: int
    least: int
    most_pixels: int
    def __init__(self, factor: _Optional[int] = ..., multiple: _Optional[int] = ..., least: _Optional[int] = ..., most_pixels: _Optional[int] = ...) -> None: ...

class LatentScaling(_message.Message):
    __slots__ = ("scale", "shift", "mean", "std")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    scale: float
    shift: float
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, scale: _Optional[float] = ..., shift: _Optional[float] = ..., mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ...) -> None: ...

class Origin(_message.Message):
    __slots__ = ("kind", "class_name", "configuration", "sha256", "licence")
    class Sha256Entry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KIND_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    class_name: str
    configuration: str
    sha256: _containers.ScalarMap[str, str]
    licence: str
    def __init__(self, kind: _Optional[str] = ..., class_name: _Optional[str] = ..., configuration: _Optional[str] = ..., sha256: _Optional[_Mapping[str, str]] = ..., licence: _Optional[str] = ...) -> None: ...

class ImageShape(_message.Message):
    __slots__ = ("channels", "height", "width")
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    channels: int
    height: int
    width: int
    def __init__(self, channels: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class GraphInfo(_message.Message):
    __slots__ = ("name", "sha256", "size_bytes", "opset", "device")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPSET_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    size_bytes: int
    opset: int
    device: str
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., opset: _Optional[int] = ..., device: _Optional[str] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("model", "images", "draw", "seed", "offset", "scaled", "latent_dtype", "labels")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    DRAW_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SCALED_FIELD_NUMBER: _ClassVar[int]
    LATENT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    images: _tensor_pb2.Images
    draw: bool
    seed: int
    offset: int
    scaled: bool
    latent_dtype: _tensor_pb2.DataType
    labels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., images: _Optional[_Union[_tensor_pb2.Images, _Mapping]] = ..., draw: _Optional[bool] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ..., scaled: _Optional[bool] = ..., latent_dtype: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., labels: _Optional[_Iterable[int]] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("mean", "log_var", "z", "seed", "model", "timing")
    MEAN_FIELD_NUMBER: _ClassVar[int]
    LOG_VAR_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    mean: _tensor_pb2.Tensor
    log_var: _tensor_pb2.Tensor
    z: _tensor_pb2.Tensor
    seed: int
    model: ModelIdentity
    timing: Timing
    def __init__(self, mean: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., log_var: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., z: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., seed: _Optional[int] = ..., model: _Optional[_Union[ModelIdentity, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("model", "latents", "format", "scaled", "quality", "unclipped", "labels")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SCALED_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    UNCLIPPED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    latents: _tensor_pb2.Tensor
    format: ImageFormat
    scaled: bool
    quality: int
    unclipped: bool
    labels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., format: _Optional[_Union[ImageFormat, str]] = ..., scaled: _Optional[bool] = ..., quality: _Optional[int] = ..., unclipped: _Optional[bool] = ..., labels: _Optional[_Iterable[int]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("images", "model", "timing")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    images: _tensor_pb2.Images
    model: ModelIdentity
    timing: Timing
    def __init__(self, images: _Optional[_Union[_tensor_pb2.Images, _Mapping]] = ..., model: _Optional[_Union[ModelIdentity, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("model", "count", "seed", "offset", "label", "temperature", "truncation", "format", "return_latents", "quality", "latent_dtype", "height", "width")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    RETURN_LATENTS_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    LATENT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    count: int
    seed: int
    offset: int
    label: int
    temperature: float
    truncation: float
    format: ImageFormat
    return_latents: bool
    quality: int
    latent_dtype: _tensor_pb2.DataType
    height: int
    width: int
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., count: _Optional[int] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ..., label: _Optional[int] = ..., temperature: _Optional[float] = ..., truncation: _Optional[float] = ..., format: _Optional[_Union[ImageFormat, str]] = ..., return_latents: _Optional[bool] = ..., quality: _Optional[int] = ..., latent_dtype: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = ("images", "latents", "seed", "offset", "model", "timing", "labels")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    images: _tensor_pb2.Images
    latents: _tensor_pb2.Tensor
    seed: int
    offset: int
    model: ModelIdentity
    timing: Timing
    labels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, images: _Optional[_Union[_tensor_pb2.Images, _Mapping]] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ..., model: _Optional[_Union[ModelIdentity, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., labels: _Optional[_Iterable[int]] = ...) -> None: ...

class ReconstructRequest(_message.Message):
    __slots__ = ("model", "images", "draw", "seed", "offset", "format", "scaled", "quality", "unclipped", "labels", "target_labels")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    DRAW_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SCALED_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    UNCLIPPED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TARGET_LABELS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    images: _tensor_pb2.Images
    draw: bool
    seed: int
    offset: int
    format: ImageFormat
    scaled: bool
    quality: int
    unclipped: bool
    labels: _containers.RepeatedScalarFieldContainer[int]
    target_labels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., images: _Optional[_Union[_tensor_pb2.Images, _Mapping]] = ..., draw: _Optional[bool] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ..., format: _Optional[_Union[ImageFormat, str]] = ..., scaled: _Optional[bool] = ..., quality: _Optional[int] = ..., unclipped: _Optional[bool] = ..., labels: _Optional[_Iterable[int]] = ..., target_labels: _Optional[_Iterable[int]] = ...) -> None: ...

class ReconstructResponse(_message.Message):
    __slots__ = ("images", "seed", "model", "timing")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    images: _tensor_pb2.Images
    seed: int
    model: ModelIdentity
    timing: Timing
    def __init__(self, images: _Optional[_Union[_tensor_pb2.Images, _Mapping]] = ..., seed: _Optional[int] = ..., model: _Optional[_Union[ModelIdentity, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class InterpolateRequest(_message.Message):
    __slots__ = ("model", "latents", "images", "steps", "method", "format", "return_latents", "scaled", "quality", "latent_dtype", "labels", "target_labels")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    RETURN_LATENTS_FIELD_NUMBER: _ClassVar[int]
    SCALED_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    LATENT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TARGET_LABELS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    latents: _tensor_pb2.Tensor
    images: _tensor_pb2.Images
    steps: int
    method: InterpolationMethod
    format: ImageFormat
    return_latents: bool
    scaled: bool
    quality: int
    latent_dtype: _tensor_pb2.DataType
    labels: _containers.RepeatedScalarFieldContainer[int]
    target_labels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., images: _Optional[_Union[_tensor_pb2.Images, _Mapping]] = ..., steps: _Optional[int] = ..., method: _Optional[_Union[InterpolationMethod, str]] = ..., format: _Optional[_Union[ImageFormat, str]] = ..., return_latents: _Optional[bool] = ..., scaled: _Optional[bool] = ..., quality: _Optional[int] = ..., latent_dtype: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., labels: _Optional[_Iterable[int]] = ..., target_labels: _Optional[_Iterable[int]] = ...) -> None: ...

class InterpolateResponse(_message.Message):
    __slots__ = ("images", "latents", "model", "timing")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    images: _tensor_pb2.Images
    latents: _tensor_pb2.Tensor
    model: ModelIdentity
    timing: Timing
    def __init__(self, images: _Optional[_Union[_tensor_pb2.Images, _Mapping]] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., model: _Optional[_Union[ModelIdentity, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class TraverseRequest(_message.Message):
    __slots__ = ("model", "axes", "steps", "range", "latent", "image", "format", "return_latents", "quality", "latent_dtype", "labels", "target_labels")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    LATENT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    RETURN_LATENTS_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    LATENT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TARGET_LABELS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    axes: _containers.RepeatedScalarFieldContainer[int]
    steps: int
    range: float
    latent: _tensor_pb2.Tensor
    image: _tensor_pb2.Images
    format: ImageFormat
    return_latents: bool
    quality: int
    latent_dtype: _tensor_pb2.DataType
    labels: _containers.RepeatedScalarFieldContainer[int]
    target_labels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., axes: _Optional[_Iterable[int]] = ..., steps: _Optional[int] = ..., range: _Optional[float] = ..., latent: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., image: _Optional[_Union[_tensor_pb2.Images, _Mapping]] = ..., format: _Optional[_Union[ImageFormat, str]] = ..., return_latents: _Optional[bool] = ..., quality: _Optional[int] = ..., latent_dtype: _Optional[_Union[_tensor_pb2.DataType, str]] = ..., labels: _Optional[_Iterable[int]] = ..., target_labels: _Optional[_Iterable[int]] = ...) -> None: ...

class TraverseResponse(_message.Message):
    __slots__ = ("images", "latents", "rows", "columns", "model", "timing")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    images: _tensor_pb2.Images
    latents: _tensor_pb2.Tensor
    rows: int
    columns: int
    model: ModelIdentity
    timing: Timing
    def __init__(self, images: _Optional[_Union[_tensor_pb2.Images, _Mapping]] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., rows: _Optional[int] = ..., columns: _Optional[int] = ..., model: _Optional[_Union[ModelIdentity, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("model", "images", "draws", "seed", "offset", "labels")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    DRAWS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    model: ModelSelector
    images: _tensor_pb2.Images
    draws: int
    seed: int
    offset: int
    labels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[_Union[ModelSelector, _Mapping]] = ..., images: _Optional[_Union[_tensor_pb2.Images, _Mapping]] = ..., draws: _Optional[int] = ..., seed: _Optional[int] = ..., offset: _Optional[int] = ..., labels: _Optional[_Iterable[int]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("reconstruction", "kl", "elbo", "nll", "percentile", "seed", "model", "timing")
    RECONSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    KL_FIELD_NUMBER: _ClassVar[int]
    ELBO_FIELD_NUMBER: _ClassVar[int]
    NLL_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    reconstruction: _tensor_pb2.Tensor
    kl: _tensor_pb2.Tensor
    elbo: _tensor_pb2.Tensor
    nll: _tensor_pb2.Tensor
    percentile: _tensor_pb2.Tensor
    seed: int
    model: ModelIdentity
    timing: Timing
    def __init__(self, reconstruction: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., kl: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., elbo: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., nll: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., percentile: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., seed: _Optional[int] = ..., model: _Optional[_Union[ModelIdentity, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class EncodeStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: EncodeRequest
    def __init__(self, request: _Optional[_Union[EncodeRequest, _Mapping]] = ...) -> None: ...

class EncodeStreamResponse(_message.Message):
    __slots__ = ("response",)
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    response: EncodeResponse
    def __init__(self, response: _Optional[_Union[EncodeResponse, _Mapping]] = ...) -> None: ...

class DecodeStreamRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: DecodeRequest
    def __init__(self, request: _Optional[_Union[DecodeRequest, _Mapping]] = ...) -> None: ...

class DecodeStreamResponse(_message.Message):
    __slots__ = ("response",)
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    response: DecodeResponse
    def __init__(self, response: _Optional[_Union[DecodeResponse, _Mapping]] = ...) -> None: ...

class SampleStreamRequest(_message.Message):
    __slots__ = ("request", "chunk_rows")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CHUNK_ROWS_FIELD_NUMBER: _ClassVar[int]
    request: SampleRequest
    chunk_rows: int
    def __init__(self, request: _Optional[_Union[SampleRequest, _Mapping]] = ..., chunk_rows: _Optional[int] = ...) -> None: ...

class SampleStreamResponse(_message.Message):
    __slots__ = ("response",)
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    response: SampleResponse
    def __init__(self, response: _Optional[_Union[SampleResponse, _Mapping]] = ...) -> None: ...
