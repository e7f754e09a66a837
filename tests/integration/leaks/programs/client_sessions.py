"""A client opens a session with a connection and a buffer for each call, registers it, and never closes it."""

import asyncio

from _shape import play

VERDICT = "python"
OWNER = r"Client\.sessions"


class Session:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = bytearray()


class Client:
    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.server: asyncio.Server | None = None

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"y" * 20_000)
        await writer.drain()
        writer.close()

    async def fetch(self, leaks: bool) -> None:
        if self.server is None:
            self.server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        host, port = self.server.sockets[0].getsockname()
        session = Session(*await asyncio.open_connection(host, port))
        self.sessions.append(session)
        session.writer.write(b"get\n")
        session.received += await session.reader.read()
        if not leaks:
            session.writer.close()
            self.sessions.remove(session)


client = Client()


async def step(leaks: bool) -> None:
    await client.fetch(leaks)


if __name__ == "__main__":
    play(step)
