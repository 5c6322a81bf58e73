"""What holds for every test."""

import multiprocessing
import os
from collections.abc import Iterator

import fsspec
import pytest
import torch
from moto.server import ThreadedMotoServer

from tests.processes import ForkServer

# The models here are tiny: one thread is several times faster than two that wait for each other, also in the
# processes that tests begin.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left_behind() -> Iterator[None]:
    """Python waits for its children before it ends: a forgotten one is a run that never ends."""
    yield
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
    assert not left


@pytest.fixture(scope="session")
def processes() -> Iterator[ForkServer]:
    """The server that forks for commands in processes of their own."""
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A local S3 server that AWS's own variables of the environment name; gives its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    patched = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patched.setenv(name, value)
    fsspec.filesystem("s3").mkdir("bucket")
    yield url
    patched.undo()
    server.stop()


@pytest.fixture
def bucket(s3_server: str, request: pytest.FixtureRequest) -> str:
    """A place in an object store that no other test writes."""
    return f"s3://bucket/{abs(hash(request.node.nodeid))}"
