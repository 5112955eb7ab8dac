"""The clients do the same with odd arguments, whether or not calls are coalesced."""

import asyncio

import numpy as np
import pytest

from latentserve.client import AsyncClient
from tests.support.clients import awaited, connect

pytest_plugins = ["tests.support.tiny_server"]

IMAGES = np.full((2, 1, 4, 4), 0.5, np.float32)
LATENTS = np.zeros((2, 3), np.float32)
MASKED = np.ma.masked_less(np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4) / 32, 0.5)


class Refusing:
    """Rows that cannot become an array, as a tensor on a GPU."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("on a GPU")


CALLS = {
    "masked": ("encode", MASKED, {}),
    "masked, scored": ("score", MASKED, {}),
    "nothing masked": ("encode", np.ma.array(IMAGES), {}),
    "a subclass": ("decode", LATENTS.view(np.recarray), {}),
    "other bytes": ("decode", LATENTS.astype(">f4"), {}),
    "integers": ("decode", LATENTS.astype(int), {}),
    "objects": ("decode", LATENTS.astype(object), {}),
    "texts": ("decode", LATENTS.astype(str), {}),
    "one row": ("decode", LATENTS[0], {}),
    "no rows": ("encode", IMAGES[:0], {}),
    "not an array": ("encode", Refusing(), {}),
    "a path": ("encode", "a.png", {}),
    "a list as size": ("encode", IMAGES, {"resize": [4, 4]}),
    "a list as version": ("encode", IMAGES, {"version": [1]}),
    "offset of nothing": ("encode", IMAGES, {"offset": -1}),
    "the last offset": ("encode", IMAGES, {"offset": 2**64 - 2}),
    **{
        f"score {options}": ("score", IMAGES, options)
        for options in (
            {}, {"offset": -1}, {"offset": 2**64 - 1}, {"offset": "1"}, {"offset": 3},
            {"seed": -1}, {"seed": 5}, {"seed": "5"}, {"draws": 0, "seed": 5, "offset": 3},
            {"draws": 2, "seed": 5, "offset": 3}, {"draws": 2, "seed": 5, "offset": -1},
            {"draws": 2, "seed": -1}, {"draws": -1}, {"draws": 1.5}, {"draws": "2"},
        )
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def clients(target):
    with (
        connect("sync", target) as plain,
        connect("async", target) as asynchronous,
        connect("async", target, coalesce=True) as joining,
    ):
        yield plain, asynchronous, joining


def outcome(client, method, rows, options):
    """What a call returns or raises, in a form that can be compared."""
    try:
        value = getattr(client, method)(rows, **options)
    except Exception as error:  # noqa: BLE001 - compared
        return type(error), str(error)
    fields = {"rows": value} if isinstance(value, np.ndarray) else vars(value)
    return {
        name: field.tolist() if isinstance(field, np.ndarray) else field
        for name, field in fields.items()
    }


@pytest.mark.parametrize("name", CALLS)
def test_the_clients_are_alike(clients, name):
    plain, *others = (outcome(client, *CALLS[name]) for client in clients)
    for other in others:
        assert other == plain


def test_an_invalid_offset_is_refused_without_draws(clients):
    for client in clients:
        with pytest.raises(ValueError, match="offset: got -1"):
            client.score(IMAGES, offset=-1)


def test_masked_values_are_never_sent(clients):
    for client in clients:
        with pytest.raises(TypeError, match="images: got an array with masked values"):
            client.encode(MASKED)


def test_an_offset_with_room_for_one_call_has_room_for_each_of_several(target):
    async def scene():
        async with AsyncClient(target, coalesce=True) as client:
            calls = (client.encode(IMAGES, offset=2**64 - 2) for _ in range(3))
            return await asyncio.gather(*calls)

    assert len(awaited(scene())) == 3
