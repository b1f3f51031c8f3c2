"""Fake servers for the tests of this folder."""

import pytest

from tests.lightning_modules.rollouts.servers.fake_server import FakeServer


@pytest.fixture
def started(model):
    """Start servers with the given scripts; they end with the test."""
    servers = []

    def start(*scripts):
        servers.extend(FakeServer(model.config, script) for script in scripts)
        return servers[-len(scripts) :]

    yield start
    for server in servers:
        server.stop()
