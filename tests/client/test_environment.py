import itertools
import types

import pytest

from gpusched.client import environment, procs
from gpusched.client.environment import Layers, narrowed
from gpusched.client.variables import lease_variables


def test_put_back_exactly():
    target = {"A": "1", "OTHER": "x"}
    layers, values = Layers(target), {"A": "2", "B": "3"}
    layers.push(values)
    assert target == {"A": "2", "B": "3", "OTHER": "x"}
    target["A"], target["NEW"] = "changed by the user", "stays"
    layers.pop(values)
    assert target == {"A": "1", "OTHER": "x", "NEW": "stays"}
    target["A"] = "later"
    layers.pop(values)
    assert target["A"] == "later"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_overlapping_layers_in_any_order(order):
    before = {"A": "0"}
    target = dict(before)
    layers = Layers(target)
    values = [{"A": "1", "B": "1"}, {"A": "2"}, {"A": "3", "C": "3"}]
    for each in values:
        layers.push(each)
    assert target == {"A": "3", "B": "1", "C": "3"}
    left = list(values)
    for number in order:
        layers.pop(values[number])
        left.remove(values[number])
        expected = dict(before)
        for each in left:
            expected.update(each)
        assert target == expected


def test_equal_layers_are_not_mistaken_for_one_another():
    target = {}
    layers, one, two = Layers(target), {"A": "1"}, {"A": "1"}
    layers.push(one)
    layers.push(two)
    layers.pop(one)
    layers.pop(one)
    assert target == {"A": "1"}
    layers.pop(two)
    assert target == {}


def test_a_server_sets_nothing_but_what_concerns_gpus():
    granted = {"CUDA_VISIBLE_DEVICES": "1", "LD_PRELOAD": "/evil.so", "PATH": "/evil", "GPUSCHED_JOB_ID": "7"}
    assert lease_variables(granted, "127.0.0.1:9") == {
        "CUDA_VISIBLE_DEVICES": "1", "GPUSCHED_JOB_ID": "7", "GPUSCHED_URL": "127.0.0.1:9",
    }  # fmt: skip


def test_narrowed():
    whole = {"CUDA_VISIBLE_DEVICES": "4,5,6", "GPUSCHED_GPUS": "a,b,c", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert narrowed(whole, [0, 2]) == {
        "CUDA_VISIBLE_DEVICES": "4,6", "GPUSCHED_GPUS": "a,c", "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }  # fmt: skip
    assert whole["CUDA_VISIBLE_DEVICES"] == "4,5,6"


def test_who_has_initialised_cuda(monkeypatch):
    monkeypatch.setattr(procs, "has_open", lambda pid, path: False)
    monkeypatch.setitem(environment.sys.modules, "torch", None)
    assert environment.cuda_user() == ""
    torch = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setitem(environment.sys.modules, "torch", torch)
    assert environment.cuda_user() == ""
    torch.cuda.is_initialized = lambda: True
    assert "PyTorch" in environment.cuda_user()
    monkeypatch.setitem(environment.sys.modules, "torch", types.SimpleNamespace())
    monkeypatch.setattr(procs, "has_open", lambda pid, path: path == "/dev/nvidia-uvm")
    assert environment.cuda_user() == "CUDA is initialised"
