"""A client that sends whole requests and is gone at once: `hostile.py HOST:PORT UID JOB_ID TIMES`, run by root.

A kernel may report a socket that its owner has closed as root's; the server must never take such a caller for root.
By turns it closes at once, resets, and closes after the server's next frame: the last one is the likeliest to let a
call be handled while the connection is closing. It reads no answer.
"""

import encodings.idna  # noqa: F401 - the socket module wants it, and after setuid it cannot be read any more
import os
import socket
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "generated")]

from gpusched.v1 import resources_pb2, scheduler_pb2  # noqa: E402
from rpc import http2  # noqa: E402


def acquire(name: str, priority: int) -> bytes:
    gpu = resources_pb2.ResourceRequest(gpus=1)
    return scheduler_pb2.AcquireRequest(resources=gpu, name=name, priority=priority).SerializeToString()


def main() -> None:
    host, port = sys.argv[1].rsplit(":", 1)
    job, times = sys.argv[3], int(sys.argv[4])
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
    cancel = scheduler_pb2.CancelJobRequest(job_id=job, reason="hostile").SerializeToString()
    # Root's alone: the cancelling, and the priority. Anybody's: the last one, which shows that calls arrive.
    calls = (
        http2.call("/gpusched.v1.Scheduler/CancelJob", cancel, 1),
        http2.call("/gpusched.v1.Scheduler/Acquire", acquire("hostile", 50), 3),
        http2.call("/gpusched.v1.Scheduler/Acquire", acquire("harmless", 0), 5),
    )
    for number in range(times):
        client = socket.create_connection((host, int(port)))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        patient = number % 4 != 1 and number % 8
        client.sendall(http2.PREFACE + http2.settings() + http2.acknowledge())
        if patient:
            # What the server says is read up to its ping, which answers the arrival of the calls: with anything unread
            # the kernel would reset the connection at the close.
            http2.read_until(client, http2.SETTINGS)
            http2.read_until(client, http2.SETTINGS)
        client.sendall(calls[number % 3] if number % 2 else b"".join(calls))
        if patient:
            http2.read_until(client, http2.PING)
        if number % 4 == 1:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by a reset
        client.close()


if __name__ == "__main__":
    main()
