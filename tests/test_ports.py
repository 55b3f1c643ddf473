import socket

from tests.ports import free_port, outgoing_ports


def test_a_free_port_is_none_that_an_outgoing_connection_may_be_given():
    taken = outgoing_ports()
    for port in {free_port() for _ in range(20)}:
        assert port not in taken
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))
