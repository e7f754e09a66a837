"""Sessions with a real connection that are dropped without being closed: reference counting closes them."""

import socket
import threading
import warnings

from _shape import play

VERDICT = "none"
OWNER = ""

warnings.simplefilter("ignore", ResourceWarning)
server = socket.create_server(("127.0.0.1", 0))


def answer() -> None:
    while True:
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"y" * 20_000)


class Session:
    def __init__(self) -> None:
        self.connection = socket.create_connection(server.getsockname())
        self.received = bytearray()

    def fetch(self) -> None:
        self.connection.sendall(b"get\n")
        while block := self.connection.recv(65_536):
            self.received += block


threading.Thread(target=answer, daemon=True).start()


def step(leaks: bool) -> None:
    for _ in range(3):
        Session().fetch()


if __name__ == "__main__":
    play(step)
