"""torch modules through ONNX."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kpaas_lab import models
from kpaas_lab.errors import ModelError
from kpaas_lab.oip import TensorSpec

torch.set_num_threads(1)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)

    def forward(self, ids: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        rows = self.embed(ids).mean(dim=1) * scale
        return {"rows": rows, "sums": rows.sum(dim=1)}


class Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum().item() > 0 else x


class OneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(144, 10)
    )


def test_a_network_serves_without_torch(tmp_path: Path) -> None:
    module = network().train()
    manifest = models.save(module, tmp_path / "model", example=torch.zeros(1, 1, 8, 8))
    assert module.training  # it goes on training as it was
    assert manifest.inputs == (TensorSpec("input", "FP32", (-1, 1, 8, 8)),)
    assert manifest.outputs == (TensorSpec("output", "FP32", (-1, 10)),)
    assert manifest.batched
    images = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy as np; from kpaas_lab import models\n"
        "out = models.load(sys.argv[1] + '/model').predict({'input': np.load(sys.argv[1] + '/images.npy')})\n"
        "assert 'torch' not in sys.modules\n"
        "np.save(sys.argv[1] + '/out.npy', out['output'])\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    expected = module.eval()(torch.from_numpy(images)).detach().numpy()
    assert np.allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-4)


def test_several_inputs_and_named_outputs(tmp_path: Path) -> None:
    example = {"scale": torch.ones(2, 1), "ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}
    manifest = models.save(Two(), tmp_path / "model", example=example)
    assert [spec.name for spec in manifest.inputs] == ["ids", "scale"]
    assert [spec.name for spec in manifest.outputs] == ["rows", "sums"]
    out = models.load(tmp_path / "model").predict(
        {"ids": np.array([[7, 8, 9]]), "scale": np.array([[2.0]], dtype=np.float32)}
    )
    assert out["rows"].shape == (1, 4)


def test_a_module_of_one_size_is_served_at_that_size(tmp_path: Path) -> None:
    manifest = models.save(OneSize(), tmp_path / "model", example=torch.zeros(2, 3))
    assert manifest.inputs == (TensorSpec("x", "FP32", (2, 3)),)
    assert not manifest.batched


@pytest.mark.parametrize(
    ("module", "example", "says"),
    [
        (nn.Linear(2, 2), None, "saved with an example"),
        (nn.Linear(2, 2), torch.zeros(1, 3), "fails on its example: RuntimeError"),
        (nn.Linear(2, 2), {"y": torch.zeros(1, 2)}, "no parameter y"),
        (nn.Linear(2, 2), (torch.zeros(1, 2), torch.zeros(1, 2)), "has 2 inputs"),
        (Random(), torch.zeros(2, 2), "differs from the module's"),
        (Branches(), torch.ones(2, 2), "can't be exported to ONNX"),
    ],
)
def test_what_cant_be_saved_says_why(tmp_path: Path, module: Any, example: Any, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        models.save(module, tmp_path / "model", example=example)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("location", ["secret", "../secret", "/etc/passwd"])
def test_an_onnx_file_that_points_at_another_file_is_refused(tmp_path: Path, location: str) -> None:
    """ONNX can keep weights in other files; a crafted one would read any file into its outputs."""
    import onnx
    from onnx import helper

    models.save(nn.Linear(2, 2), tmp_path / "model", example=torch.zeros(2, 2))
    (file,) = (tmp_path / "model").glob("*.onnx")
    weights = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    output = helper.make_tensor_value_info("y", 1, [4])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [output], [weights])
    crafted = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    (tmp_path / "model" / "secret").write_bytes(b"0123456789abcdef")
    manifest = (tmp_path / "model" / "model.json").read_text()
    before, after = hashlib.sha256(file.read_bytes()).hexdigest(), hashlib.sha256(crafted).hexdigest()
    (tmp_path / "model" / "model.json").write_text(manifest.replace(before, after))
    file.write_bytes(crafted)
    with pytest.raises(ModelError, match="can't be loaded"):
        models.load(tmp_path / "model", threads=1)
