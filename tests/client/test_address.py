import pytest

from gpusched.client.address import is_loopback, parse_port, server_address, split_address
from gpusched.client.usage import UsageError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    monkeypatch.delenv("GPUSCHED_URL", raising=False)
    monkeypatch.delenv("GPUSCHED_PORT", raising=False)


def test_default_is_dialled_by_number():
    assert server_address() == "127.0.0.1:9123"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("127.0.0.1:9123", "127.0.0.1:9123"),
        ("localhost:80", "127.0.0.1:80"),
        ("LOCALHOST:80", "127.0.0.1:80"),
        ("http://gpu-box.example:7000/", "gpu-box.example:7000"),
        ("grpc://10.0.0.7:65535", "10.0.0.7:65535"),
        ("[::1]:5", "[::1]:5"),
        ("[0:0:0:0:0:0:0:1]:5", "[::1]:5"),
    ],
)
def test_forms(url, address, monkeypatch):
    assert server_address(url) == address
    monkeypatch.setenv("GPUSCHED_URL", url)
    assert server_address() == address


def test_argument_before_url_before_port(monkeypatch):
    monkeypatch.setenv("GPUSCHED_PORT", "7001")
    assert server_address() == "127.0.0.1:7001"
    monkeypatch.setenv("GPUSCHED_URL", "a:7002")
    assert server_address() == "a:7002"
    assert server_address("b:7003") == "b:7003"


@pytest.mark.parametrize(
    "url",
    ["9123", "host", "host:", ":9123", "host:0", "host:65536", "host:-1", "host:9x", "host:٣", "https://host:1", "ftp://h:1",
     "unix:/tmp/x", "a b:1", "a\n:1", "-a:1", "[::g]:1", "::1:9123", "http://u@h:1", "h:1/path", "x" * 10_000 + ":1"],
)  # fmt: skip
def test_nonsense_names_the_field(url, monkeypatch):
    with pytest.raises(UsageError, match=r"^url: .*host:port"):
        server_address(url)
    monkeypatch.setenv("GPUSCHED_URL", url)
    with pytest.raises(UsageError, match=r"^GPUSCHED_URL: ") as caught:
        server_address()
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_nonsense_port(monkeypatch):
    monkeypatch.setenv("GPUSCHED_PORT", "http")
    with pytest.raises(UsageError, match=r"^GPUSCHED_PORT: 'http' will not do: give a port number from 1 to 65535"):
        server_address()
    assert parse_port("1") == 1


def test_loopback_and_split():
    assert is_loopback("127.0.0.1:1")
    assert is_loopback("127.1.2.3:1")
    assert is_loopback("[::1]:1")
    assert is_loopback("localhost:1")
    assert not is_loopback("10.0.0.1:1")
    assert not is_loopback("gpubox:1")
    assert split_address("[::1]:77") == ("::1", 77)
