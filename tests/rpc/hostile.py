"""A client that sends whole requests and is gone at once: `hostile.py HOST:PORT UID JOB_ID TIMES`, run by root.

A socket that its owner has closed is reported as root's; the server must never take such a caller for root.
Three ways to go, by turns: close, reset, and close after a handshake. None reads any answer.
"""

import encodings.idna  # noqa: F401 - by name of a host; the library cannot be read any more after setuid
import os
import socket
import struct
import sys
from pathlib import Path

ROOTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOTS / "tests"), str(ROOTS / "generated")]

from rpc import http2  # noqa: E402

from gpusched.v1 import resources_pb2, scheduler_pb2  # noqa: E402


def main() -> None:
    host, port = sys.argv[1].rsplit(":", 1)
    address = (host, int(port))
    job, times = sys.argv[3], int(sys.argv[4])
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
    cancel = scheduler_pb2.CancelJobRequest(job_id=job, reason="hostile").SerializeToString()
    acquire = scheduler_pb2.AcquireRequest(
        resources=resources_pb2.ResourceRequest(gpus=1), name="hostile", priority=50
    ).SerializeToString()
    head = http2.PREFACE + http2.settings()
    for number in range(times):
        client = socket.create_connection(address)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if number % 3 == 1:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by RST
        calls = http2.call("/gpusched.v1.Scheduler/CancelJob", cancel, 1)
        calls += http2.call("/gpusched.v1.Scheduler/Acquire", acquire, 3)
        if number % 3 == 2:
            # The connection is up before the calls come, so that they are handled the moment they arrive.
            client.sendall(head)
            client.recv(9)
            client.sendall(calls)
        else:
            client.sendall(head + calls)
        client.close()
    print("done", flush=True)


if __name__ == "__main__":
    main()
