"""The server of these tests itself."""

from __future__ import annotations

import socket

import pytest

from tests.cluster.server import ports


def test_a_port_is_held_for_the_listener_that_asks_for_it_by_number() -> None:
    with ports(1) as (port,):
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("127.0.0.1", port))
        socket.create_server(("127.0.0.1", port)).close()
