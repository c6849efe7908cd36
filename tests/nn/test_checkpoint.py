"""sk.save and sk.load: the topology travels, and a refused load changes nothing."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sparsekern as sk
from sparsekern.nn import SparseLinear, checkpoint


class Net(nn.Module):
    """Tied sparse layers, a norm with buffers, a head tied to an embedding, a layer kept dense."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(width)
        self.body = nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, width))
        self.embedding = nn.Embedding(5, width)
        self.head = nn.Linear(width, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.norm(self.second(self.first(x).relu()))))


def sparse_net(seed: int = 0, format: str = "csr", density: float = 0.2, **options: object) -> Net:
    torch.manual_seed(seed)
    net = Net()
    sk.sparsify(net, density, format=format, exclude=["body.2"], **options)
    net(torch.randn(16, 12))  # running statistics
    return net.eval()


def dense_net() -> Net:
    torch.manual_seed(9)
    return Net().eval()


X = torch.linspace(-1, 1, 36).view(3, 12)
TARGETS: dict[str, Callable[[], Net]] = {
    "dense": dense_net,
    "same": lambda: sparse_net(1),
    "other topology": lambda: sparse_net(2, density=0.5),
    "other format": lambda: sparse_net(3, "masked"),
}


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("format", ["csr", "masked"])
def test_any_model_becomes_the_saved_one(tmp_path: Path, format: str, target: str) -> None:
    saved, path = sparse_net(format=format), tmp_path / "model.safetensors"
    sk.save(saved, path)
    model = TARGETS[target]()
    parameters = {id(p) for p in model.parameters()}
    report = sk.load(model, path)
    assert torch.equal(model(X), saved(X))
    assert {id(p) for p in model.parameters()} == parameters
    assert model.first.format is model.second.format
    assert model.head.weight is model.embedding.weight
    assert model.first.format.name == format
    assert torch.equal(model.first.mask(), saved.first.mask())
    assert type(model.body[2]) is nn.Linear
    for layer in sk.nn.sparse_layers(model).values():
        layer.format.validate()
    assert [row.names for row in report.layers] == [["first", "second"], ["body.0"]]
    assert report.layers[0].shape == (12, 12)
    assert f"first, second: {format}, (12, 12), Unstructured" in str(report)
    # Training goes on.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).sum().backward()
    optimizer.step()


def test_layers_that_are_dense_in_the_file_become_dense(tmp_path: Path) -> None:
    saved = dense_net()
    sk.save(saved, tmp_path / "dense")
    model = sparse_net()
    model_parameters = {id(p) for p in model.parameters()}
    report = sk.load(model, tmp_path / "dense")
    assert report.layers == []
    assert torch.equal(model(X), saved(X))
    assert type(model.first) is nn.Linear
    assert model.first.weight is model.second.weight
    assert {id(p) for p in model.parameters()} == model_parameters


def test_file(tmp_path: Path) -> None:
    """Keys, tied tensors once, version and layers in the header, nothing else in the folder."""
    model, path = sparse_net(), tmp_path / "model.safetensors"
    plan = sk.tune(model, X, training=False, cache=False)
    sk.save(model, path, plan=plan)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    tensors = load_file(path)
    assert {
        "first.format.values",
        "first.format.crow",
        "body.0.format.col",
        "norm.running_var",
    } <= {*tensors}
    assert "second.format.values" not in tensors
    assert ("head.weight" in tensors) != ("embedding.weight" in tensors)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["sparsekern"])
    assert header["version"] == checkpoint.FILE_VERSION
    assert header["layers"][1] == {
        "names": ["body.0"],
        "format": "csr",
        "shape": [24, 12],
        "pattern": "Unstructured",
    }
    assert sk.load(None, path).plan == plan
    fresh = dense_net()
    sk.load(fresh, path).plan.apply(fresh)
    assert torch.equal(fresh(X), model(X))
    sk.save(model, path)
    assert sk.load(dense_net(), path).plan is None
    assert "without a plan" in str(sk.load(None, path))


def test_dtype_and_mode_of_the_fresh_model_stay(tmp_path: Path) -> None:
    saved = sparse_net()
    sk.save(saved, tmp_path / "m")
    model = dense_net().double().train()
    model.first.weight.requires_grad_(False)
    sk.load(model, tmp_path / "m")
    assert model.first.format.values.dtype == torch.float64
    assert model.first.training
    assert not model.first.format.values.requires_grad
    torch.testing.assert_close(model.eval()(X.double()), saved.double()(X.double()))


def test_untied_model_takes_tied_weights_apart(tmp_path: Path) -> None:
    saved = sparse_net()
    sk.save(saved, tmp_path / "m")
    model = dense_net()
    model.second.weight = nn.Parameter(model.second.weight.detach().clone())
    sk.load(model, tmp_path / "m")
    assert model.first.format is not model.second.format
    assert model.first.format.values is not model.second.format.values
    assert torch.equal(model(X), saved(X))


def test_convolutions(tmp_path: Path) -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3, stride=2)).eval()

    x = torch.randn(2, 3, 9, 9)
    saved = network()
    sk.save(saved, tmp_path / "dense")
    sk.sparsify(saved, 0.1, format="csr")
    sk.save(saved, tmp_path / "m")
    fresh = network()
    report = sk.load(fresh, tmp_path / "m")
    assert report.layers[0].shape == (8, 16, 3, 3)
    assert torch.equal(fresh(x), saved(x))
    fresh[2].format.validate()
    sk.load(fresh, tmp_path / "dense")
    assert type(fresh[2]) is nn.Conv2d
    wider = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 5))
    with pytest.raises(ValueError, match=r"'2' of shape \(8, 16, 5, 5\). Got \(8, 16, 3, 3\)"):
        sk.load(wider, tmp_path / "m")


def test_views_and_strided_tensors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    both = torch.randn(8, 4)
    model[0].weight = nn.Parameter(both[:4])
    model[1].weight = nn.Parameter(both[4:].t())
    sk.save(model, tmp_path / "m")
    fresh = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    sk.load(fresh, tmp_path / "m")
    assert torch.equal(fresh[0].weight, both[:4])
    assert torch.equal(fresh[1].weight, both[4:].t())


def test_one_layer_alone(tmp_path: Path) -> None:
    layer = SparseLinear(6, 4, density=0.3, format="csr")
    sk.save(layer, tmp_path / "m")
    other = SparseLinear(6, 4, density=0.9, format="masked")
    sk.load(other, tmp_path / "m")
    assert torch.equal(other.weight, layer.weight)
    with pytest.raises(ValueError, match="the model itself, not a part of it"):
        sk.load(nn.Linear(6, 4), tmp_path / "m")
    sk.save(nn.Linear(6, 4), tmp_path / "dense")
    with pytest.raises(ValueError, match="a dense layer inside of a model. Got a single sparse"):
        sk.load(other, tmp_path / "dense")


def test_wrappers_are_left_out_of_the_names(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        saved = sparse_net()
        sk.save(torch.compile(DistributedDataParallel(saved)), tmp_path / "m")
        same = sparse_net()
        sk.load(DistributedDataParallel(same), tmp_path / "m")
        assert torch.equal(same(X), saved(X))
        for model in (dense_net(), sparse_net(1, density=0.5)):
            wrapped = DistributedDataParallel(model)
            with pytest.raises(ValueError, match="loaded before it is wrapped"):
                sk.load(wrapped, tmp_path / "m")
    finally:
        torch.distributed.destroy_process_group()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _text(path: Path) -> None:
    path.write_text("not a checkpoint")


def _header(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        header = json.loads(metadata["sparsekern"])
        change(header)
        save_file(load_file(path), path, {**metadata, "sparsekern": json.dumps(header)})

    return rewrite


def _tensor(
    name: str, change: Callable[[torch.Tensor], torch.Tensor | None]
) -> Callable[..., None]:
    def rewrite(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        new = change(tensors.pop(name))
        if new is not None:
            tensors[name] = new
        save_file(tensors, path, metadata)

    return rewrite


def _plan(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, "plan": "half a pl"})


def _aliases(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, "aliases": '{"head.weight": "tail.weight"}'})


def _separate(path: Path) -> None:
    """A file in which the tied layers have topologies of their own."""
    model = sparse_net()
    model.second.format = copy.deepcopy(model.first.format)
    model.second.format.set_mask(model.first.mask().flip(0))
    sk.save(model, path)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, "to be a safetensors file. Got"),
    "text": (_text, "to be a safetensors file. Got"),
    "gone": (Path.unlink, "to be a file. Got no such file"),
    "plain": (lambda p: save_file(load_file(p), p), "Got a safetensors file without its header"),
    "version": (_header(lambda h: h.update(version=99)), "to have format version 1. Got 99"),
    "header": (_header(lambda h: h.pop("layers")), "whole header. Got a broken one"),
    "plan": (_plan, "model.safetensors: Expected a plan to be JSON"),
    "row": (_header(lambda h: h["layers"][0].pop("shape")), "whole header. Got a broken one"),
    "aliases": (_aliases, "to be a safetensors file. Got: 'tail.weight'"),
    "format": (_header(lambda h: h["layers"][0].update(format="coo")), "known format for 'first'"),
    "name": (
        _header(lambda h: h["layers"][1].update(names=["tail"])),
        "Got a sparse layer 'tail', which it lacks",
    ),
    "kind": (
        _header(lambda h: h["layers"][1].update(names=["norm"])),
        "'norm' to be a layer that can be sparse. Got a BatchNorm1d",
    ),
    "shape": (
        _header(lambda h: h["layers"][1].update(shape=[24, 13])),
        r"'body.0' of shape \(24, 12\). Got \(24, 13\)",
    ),
    "missing": (_tensor("norm.weight", lambda t: None), "the same tensors. Got no norm.weight"),
    "other shape": (
        _tensor("body.2.bias", lambda t: t[:3].clone()),
        r"body.2.bias of shape \(12,\). Got \(3,\)",
    ),
    "broken index": (
        _tensor("body.0.format.col", lambda t: t + 1000),
        r"layer 'body.0': Expected col to be in \[0, 12\)",
    ),
    "no index": (
        _tensor("body.0.format.col", lambda t: None),
        "'body.0' with values, version, crow, col. Got crow, values, version",
    ),
    "format version": (
        _tensor("body.0.format.version", lambda t: t + 98),
        "layer 'body.0': Expected version to be 1. Got 99",
    ),
    "separate": (_separate, "'first', 'second' to be one, as they are here. Got separate ones"),
}


@pytest.mark.parametrize("target", ["dense", "other format"])
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_bad_files_are_refused_and_change_nothing(tmp_path: Path, damage: str, target: str) -> None:
    path = tmp_path / "model.safetensors"
    sk.save(sparse_net(), path)
    change, sentence = DAMAGES[damage]
    change(path)
    model = TARGETS[target]()
    modules = dict(model.named_modules())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=sentence) as error:
        sk.load(model, path)
    assert str(error.value).count("\n") == 0
    assert dict(model.named_modules()) == modules
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_other_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    sk.save(sparse_net(), path)
    with pytest.raises(ValueError, match=r"'first' of shape \(10, 10\). Got \(12, 12\)"):
        sk.load(Net(10), path)
    larger = dense_net()
    larger.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"Got no extra.weight, extra.bias\."):
        sk.load(larger, path)
    smaller = dense_net()
    del smaller.norm
    with pytest.raises(ValueError, match=r"unexpected norm.bias, .* and 2 more\."):
        sk.load(smaller, path)
    untied, tied = sparse_net(), dense_net()
    for model in (untied, tied):
        model.embedding = nn.Embedding(12, 12)
        model.head = nn.Linear(12, 12, bias=False)
    tied.embedding.weight = tied.first.weight
    sk.save(untied, path)
    with pytest.raises(ValueError, match=r"'first', 'second', 'embedding' to be one"):
        sk.load(tied, path)
    with pytest.raises(ValueError, match="Got meta: call to_empty first"):
        sk.load(Net().to("meta"), path)


def test_a_graph_alive_is_heard_before_anything_changes(tmp_path: Path) -> None:
    sk.save(sparse_net(), tmp_path / "m")
    model = dense_net()
    loss = model(X).sum()
    before = model.body[0].weight
    with pytest.raises(RuntimeError, match=r"Expected no graph of an earlier step .*\(del loss\)"):
        sk.load(model, tmp_path / "m")
    assert type(model.first) is nn.Linear
    assert model.body[0].weight is before
    loss.backward()


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    sk.save(sparse_net(), path)
    old = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space left"):
            sk.save(sparse_net(5), path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["m"]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> str:
            return "text"

    with pytest.raises(TypeError, match="Got _extra_state of type str"):
        sk.save(Extra(2, 2), tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="Expected the folder of .* to exist"):
        sk.save(nn.Linear(2, 2), tmp_path / "no" / "m")
    with pytest.raises(TypeError, match="Expected plan to be a Plan. Got dict"):
        sk.save(nn.Linear(2, 2), tmp_path / "m", plan={})
    plan = sk.tune(sparse_net(), X, training=False, cache=False)
    with pytest.raises(ValueError, match="Expected a plan of this model"):
        sk.save(nn.Linear(2, 2), tmp_path / "m", plan=plan)
    assert os.listdir(tmp_path) == []


def test_import_does_not_need_safetensors() -> None:
    code = "import sys, sparsekern; sys.exit('safetensors' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
