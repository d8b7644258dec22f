"""A client in a process of its own: `worker.py HOST:PORT GPUS` acquires, confirms, and prints a line for each event.

With a third argument it opens so many streams; then a line has the stream's number in front.
"""

import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "generated")]

import grpc  # noqa: E402

from gpusched.v1 import resources_pb2, scheduler_pb2, scheduler_pb2_grpc  # noqa: E402


def main() -> None:
    channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)])
    stub = scheduler_pb2_grpc.SchedulerStub(channel)
    request = scheduler_pb2.AcquireRequest(resources=resources_pb2.ResourceRequest(gpus=int(sys.argv[2])))
    if len(sys.argv) > 3:
        calls = [stub.Acquire(request) for _ in range(int(sys.argv[3]))]
        for number, call in enumerate(calls):
            next(call)
            print(number, "accepted", flush=True)
        threading.Event().wait()
    token = job = ""
    for event in stub.Acquire(request):
        kind = event.WhichOneof("event")
        if event.HasField("accepted"):
            job, token = event.accepted.job_id, event.accepted.resume_token
            print("accepted", job, flush=True)
        if kind == "granted":
            print(kind, event.granted.epoch, flush=True)
            answer = scheduler_pb2.ConfirmRequest(job_id=job, resume_token=token, epoch=event.granted.epoch)
            try:
                stub.Confirm(answer)
                print("confirmed", flush=True)
            except grpc.RpcError as error:
                print("refused", error.code().name, flush=True)  # type: ignore[attr-defined]
        elif kind:
            print(kind, flush=True)


if __name__ == "__main__":
    main()
