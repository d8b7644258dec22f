import pickle

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from gpusched.client import errors


class FakeRpcError(grpc.RpcError):
    def __init__(self, code, details="", trailers=()):
        self._code, self._details, self._trailers = code, details, trailers

    def code(self):
        return self._code

    def details(self):
        return self._details

    def trailing_metadata(self):
        return self._trailers


def rich(code, message, *details):
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return FakeRpcError(code, message, (("grpc-status-details-bin", status.SerializeToString()),))


def info(reason, domain="gpusched"):
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain)


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        ("INVALID_ARGUMENT", "INVALID_REQUEST", errors.InvalidRequest),
        ("FAILED_PRECONDITION", "NOT_SATISFIABLE", errors.NotSatisfiable),
        ("FAILED_PRECONDITION", "JOB_ENDED", errors.JobEnded),
        ("RESOURCE_EXHAUSTED", "NO_GPU_FREE", errors.LimitReached),
        ("NOT_FOUND", "JOB_NOT_FOUND", errors.JobNotFound),
        ("PERMISSION_DENIED", "NOT_OWNER", errors.PermissionDenied),
        ("UNAUTHENTICATED", "UNAUTHENTICATED", errors.Unauthenticated),
        ("ABORTED", "LEASE_REVOKED", errors.LeaseLost),
        ("DEADLINE_EXCEEDED", "MAX_WAIT", errors.WaitTimeout),
        ("UNAVAILABLE", "SERVER_STOPPING", errors.ServerUnavailable),
        ("CANCELLED", "JOB_CANCELLED", errors.JobCancelled),
    ],
)
def test_our_answers(code, reason, kind):
    error = errors.from_rpc_error(rich(grpc.StatusCode[code], "in words", info(reason)))
    assert type(error) is kind
    assert (str(error), error.reason) == ("in words", reason)


def test_field_and_retry_are_read():
    bad = error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field="resources.gpus", description="x")]
    )
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
    error = errors.from_rpc_error(rich(grpc.StatusCode.INVALID_ARGUMENT, "m", info("INVALID_REQUEST"), bad, retry))
    assert (error.field, error.retry_after) == ("resources.gpus", 1.5)


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("CANCELLED", "", errors.ServerUnavailable),
        ("UNAVAILABLE", "connection refused", errors.ServerUnavailable),
        ("UNAVAILABLE", "Trying to connect an http1.x server", errors.ServerMismatch),
        ("UNKNOWN", "Received http2 header with status: HTTP status 404", errors.ServerMismatch),
        ("UNIMPLEMENTED", "Method not found!", errors.ServerMismatch),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", errors.ServerUnavailable),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (2 vs. 1)", errors.InvalidRequest),
    ],
)
def test_the_librarys_own_answers(code, message, kind):
    assert type(errors.from_rpc_error(FakeRpcError(grpc.StatusCode[code], message))) is kind


def test_another_domains_reason_is_not_ours():
    error = errors.from_rpc_error(rich(grpc.StatusCode.CANCELLED, "m", info("JOB_CANCELLED", "elsewhere")))
    assert type(error) is errors.ServerUnavailable


def test_broken_details_are_no_second_failure():
    broken = FakeRpcError(grpc.StatusCode.ABORTED, "m", (("grpc-status-details-bin", b"\xff\xff"),))
    assert type(errors.from_rpc_error(broken)) is errors.LeaseLost
    assert type(errors.from_rpc_error(grpc.RpcError())) is errors.GpuschedError
    assert type(errors.from_rpc_error(FakeRpcError(None, None, None))) is errors.GpuschedError


def test_families_and_pickling():
    assert issubclass(errors.ServerUnavailable, ConnectionError)
    assert issubclass(errors.WaitTimeout, TimeoutError)
    assert issubclass(errors.InvalidRequest, ValueError)
    error = errors.WaitTimeout("late", reason="MAX_WAIT", field="f", retry_after=2.0)
    assert str(error) == "late"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.reason, again.field, again.retry_after) == (
        errors.WaitTimeout, "late", "MAX_WAIT", "f", 2.0,
    )  # fmt: skip


def test_from_fields():
    assert type(errors.from_fields("LeaseLost", "m", "LEASE_LOST")) is errors.LeaseLost
    assert type(errors.from_fields("no such", "m")) is errors.GpuschedError
    assert type(errors.from_fields("DOMAIN", "m")) is errors.GpuschedError
