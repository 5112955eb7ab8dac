"""Precisions that an export offers: of the decoder's computations, and of stored weights."""

from typing import Literal, get_args

Precision = Literal["fp32", "fp16", "int8"]
Weights = Literal["fp32", "fp16"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
WEIGHTS: tuple[Weights, ...] = get_args(Weights)
