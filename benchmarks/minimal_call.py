"""The floor for a command: the least a Python client can do. `python benchmarks/minimal_call.py ADDRESS`."""

import os
import sys

import grpc

from gpusched.v1 import scheduler_pb2, scheduler_pb2_grpc

channel = grpc.insecure_channel(sys.argv[1], options=(("grpc.enable_http_proxy", 0),))
stub = scheduler_pb2_grpc.SchedulerStub(channel)
stub.GetStatus(scheduler_pb2.GetStatusRequest())
os._exit(0)
