"""A TCP proxy that stands for a slow link: it delays bytes and limits their rate.

    python scripts/benchmarks/slow_link.py LISTEN_HOST PORT SERVER_HOST MBIT_PER_S ROUND_TRIP_MS

Each connection has its own link in each direction. Kernels without ``netem`` cannot delay packets.
Unlike a real link it loses nothing, and a sender fills its buffers at full speed.
"""

import asyncio
import sys
from contextlib import suppress

CHUNK_BYTES = 1 << 14
MAX_CHUNKS = 64  # on their way; then the sender waits


async def carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bytes_per_s: float, delay_s: float
) -> None:
    """Deliver what arrives, delayed and at a limited rate, until the connection ends."""
    now = asyncio.get_running_loop().time
    chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_CHUNKS)

    async def deliver() -> None:
        while True:
            due_s, chunk = await chunks.get()
            await asyncio.sleep(due_s - now())
            writer.write(chunk)
            if not chunk:
                writer.close()
                return

    delivering = asyncio.create_task(deliver())
    free_s = now()
    with suppress(ConnectionError):
        while not delivering.done():
            chunk = await reader.read(CHUNK_BYTES)
            free_s = max(free_s, now()) + len(chunk) / bytes_per_s
            await chunks.put((free_s + delay_s, chunk))
            if not chunk:
                break
    await delivering


async def serve(listen: str, port: int, server: str, bytes_per_s: float, delay_s: float) -> None:
    """Carry every connection to ``listen`` on to ``server``."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there, back = await asyncio.open_connection(server, port)
            link = bytes_per_s, delay_s
            await asyncio.gather(carry(reader, back, *link), carry(there, writer, *link))

    async with await asyncio.start_server(connected, listen, port) as listening:
        await listening.serve_forever()


if __name__ == "__main__":
    own, at, other, mbit_per_s, round_trip_ms = sys.argv[1:]
    asyncio.run(
        serve(own, int(at), other, float(mbit_per_s) * 1e6 / 8, float(round_trip_ms) / 2000)
    )
