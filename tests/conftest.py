"""Options and fixtures: a studio (LiveKit server, phone network, stand-ins) and its worker."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from simulator.child import leave
from simulator.studio import Studio
from simulator.worker import Worker
from tests.postgres import Postgres
from tests.postgres import find as find_postgres


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--races", action="store_true", help="only the cases most likely to race")
    parser.addoption("--count", type=int, default=1, help="how often each test runs")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "race: a case whose outcome hangs on who is faster")
    # A failed call's report has what the stand-ins heard, answered and spoke.
    logging.getLogger("simulator").setLevel(logging.INFO)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    count = metafunc.config.getoption("--count")
    if count > 1:
        metafunc.fixturenames.append("repetition")
        metafunc.parametrize("repetition", range(count))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """All is reported: see `leave`."""
    if hasattr(config, "exit_status"):
        leave(config.exit_status)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.exit_status = int(exitstatus)  # type: ignore[attr-defined]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--races"):
        items[:] = [item for item in items if item.get_closest_marker("race")]
    # The two groups of calls in real time come first, beside each other and no load.
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest_asyncio.fixture(scope="session")
async def studio() -> AsyncIterator[Studio]:
    """Shared by all calls that one plain worker can take."""
    async with Studio(MAX_CALLS="12", RING_TIMEOUT_S="3", TRANSFER_TIMEOUT_S="3") as studio:
        yield studio


@pytest_asyncio.fixture(scope="session")
async def worker(studio: Studio) -> Worker:
    return await studio.worker()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres server; tests that need one are skipped where none is installed."""
    folder = find_postgres()
    if folder is None:
        pytest.skip("no Postgres is installed here")
    server = Postgres(folder)
    server.start()
    yield server
    server.stop()
