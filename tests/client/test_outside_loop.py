"""An AsyncClient that is made before its event loop runs, as a global of a web application."""

import subprocess
import sys

# In a process of its own: grpc.aio serves one event loop in a process.
PROGRAM = """
import asyncio, sys
import numpy as np
from latentserve.client import AsyncClient, Keepalive, Retry

pytest_plugins = ["tests.support.tiny_server"]

client = AsyncClient(sys.argv[1])
joining = AsyncClient(sys.argv[1], coalesce=True)
unused = AsyncClient(sys.argv[1])
IMAGES = np.zeros((2, 4, 4), np.uint8)

async def main():
    assert await client.is_serving()
    assert (await client.sample(2, seed=1)).shape == (2, 1, 4, 4)
    assert len([chunk async for chunk in client.sample_stream(3, seed=1)]) == 1
    together = await asyncio.gather(*(joining.encode(IMAGES) for _ in range(5)))
    assert {posterior.mean.shape for posterior in together} == {(2, 3)}
    async with client, joining, unused:
        pass
    for closed in (client, unused):
        try:
            await closed.info()
        except Exception as error:
            assert "closed" in str(error), error
        else:
            raise AssertionError("a closed client made a call")
        for _ in range(2):
            try:
                async for _chunk in closed.sample_stream(3):
                    raise AssertionError("a closed client made a stream")
            except Exception as error:
                assert "closed" in str(error), error
            else:
                raise AssertionError("a stream of a closed client ended as if it were empty")

asyncio.run(main())
print("done")
"""


def test_a_client_may_be_made_before_the_loop_runs(target):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, target],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
