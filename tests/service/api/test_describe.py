"""Descriptions of models: what is left out where it would be too large."""

import dataclasses

import numpy as np

from bundle import LatentMap, open_bundle
from service.api.describe import describe_map
from service.models.model import load_model
from service.models.onnx import Device
from service.settings import Settings
from tests.support.spatial import Spatial, write_spatial


def test_a_latent_map_has_as_many_rows_as_fit_into_a_message(tmp_path):
    path = write_spatial(tmp_path / "one", Spatial(mapped=True))
    model = load_model(open_bundle(path), Device("cpu"), threads=1)
    rows = np.arange(2000 * 32, dtype=np.float16).reshape(2000, 32)
    found = LatentMap(rows, np.full(2000, -1, np.int16), np.ones(32, np.float32))
    model = dataclasses.replace(model, latent_map=found)
    for limit in (4096, 20_000, 100_000, 2**20):
        reply = describe_map(model, Settings(max_message_bytes=limit))
        count = len(reply.labels)
        assert reply.ByteSize() <= limit
        assert list(reply.mean.shape) == [count, 32]
        assert reply.mean.data == rows[:count].tobytes()
        assert count == 2000 if limit == 2**20 else 0.8 * limit < reply.ByteSize()
