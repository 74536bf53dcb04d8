"""``models/`` is a Triton model repository as it stands: each ``config.pbtxt`` says what ``model.toml`` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from service.repository import config_pbtxt, differences
from service.spec import ModelSpec, read_spec
from service.stage import Stage, Tensor
from tests.support import REPOSITORY

MODELS = REPOSITORY / "models"
SPECS = [read_spec(path.parent) for path in sorted(MODELS.glob("*/model.toml"))]
NETWORKS = [
    pytest.param(spec, network, stage, id=f"{spec.name}, {network}")
    for spec in SPECS
    for network, stage in spec.networks().items()
]
# What Triton's ONNX Runtime backend takes; it does not load a network with another key (src/onnxruntime.cc).
TENSORRT = {
    "precision_mode",
    "max_workspace_size_bytes",
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_engine_cache_prefix",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_profile_max_shapes",
}
PARAMETERS = {"enable_mem_pattern": "0", "arena_extend_strategy": "1"}


def _config(text: str) -> Any:
    """By Triton's own definition: an unknown field is an error."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _tensors(config: Any, side: str) -> list[tuple[str, int, list[int]]]:
    return [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in getattr(config, side)]


def _wanted(*tensors: Tensor) -> list[tuple[str, int, list[int]]]:
    return [(tensor.name, model_config_pb2.TYPE_FP32, list(tensor.dims)) for tensor in tensors]


def test_every_network_of_the_repository_is_some_models() -> None:
    named = {network for spec in SPECS for network in spec.networks()}
    assert {path.parent.name for path in MODELS.glob("*/config.pbtxt")} == named
    assert {"ct-liver", "ct-liver-lesion", "ct-lung-nodule"} <= named


@pytest.mark.parametrize(("spec", "network", "stage"), NETWORKS)
def test_tritons_file_says_what_the_models_says(spec: ModelSpec, network: str, stage: Stage) -> None:
    config = _config((MODELS / network / "config.pbtxt").read_text())
    assert stage.input
    assert config.name == network
    assert config.backend == "onnxruntime"
    assert not config.platform
    assert config.default_model_filename in ("", "model.onnx")
    assert not config.HasField("version_policy"), "version 1 is the newest, and the one that is asked for"
    assert config.max_batch_size >= 1, "else the batch axis would have to stand in dims"
    assert _tensors(config, "input") == _wanted(stage.input)
    assert _tensors(config, "output") == _wanted(*stage.outputs)


@pytest.mark.parametrize(("spec", "network", "stage"), NETWORKS)
def test_patches_are_joined_into_batches_on_one_instance(spec: ModelSpec, network: str, stage: Stage) -> None:
    config = _config((MODELS / network / "config.pbtxt").read_text())
    assert config.HasField("dynamic_batching")
    assert all(size <= config.max_batch_size for size in config.dynamic_batching.preferred_batch_size)
    assert config.dynamic_batching.max_queue_delay_microseconds <= 50_000
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, 0)], "wherever there is a device"
    given = {key: parameter.string_value for key, parameter in config.parameters.items()}
    assert given["arena_extend_strategy"] == "1"
    assert given.items() <= PARAMETERS.items()


@pytest.mark.parametrize(("spec", "network", "stage"), NETWORKS)
def test_a_gpu_runs_the_network_as_exactly_as_the_models_file_asks(spec: ModelSpec, network: str, stage: Stage) -> None:
    text = (MODELS / network / "config.pbtxt").read_text()
    config = _config(text)
    first, second = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (first.name, second.name) == ("tensorrt", "cuda")
    assert dict(second.parameters) == {"use_tf32": "0"}
    assert "NVIDIA_TF32_OVERRIDE=0" in text
    given = dict(first.parameters)
    assert given.keys() <= TENSORRT
    assert given["precision_mode"] == ("FP16" if spec.half_precision else "FP32")
    assert given["trt_engine_cache_enable"] == "true"
    assert Path(given["trt_engine_cache_path"]).is_absolute()
    assert given["trt_engine_cache_prefix"] == network
    assert stage.input
    dims = "x".join(map(str, stage.input.dims))
    shapes = [given[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")]
    low, best, high = (int(shape.removeprefix(f"{stage.input.name}:").removesuffix(f"x{dims}")) for shape in shapes)
    assert low == 1 <= best <= high == config.max_batch_size, "one engine for every batch that can come"


@pytest.mark.parametrize(("spec", "network", "stage"), NETWORKS)
def test_the_service_finds_no_difference_either(spec: ModelSpec, network: str, stage: Stage) -> None:
    assert stage.input
    text = (MODELS / network / "config.pbtxt").read_text()
    assert differences(text, network, stage.input, stage.outputs) == []


def test_a_generated_file_is_one_that_triton_reads() -> None:
    given = Tensor(name="image", channels=3, shape=(64, 32))
    boxes, scores = Tensor(name="boxes", channels=10, shape=(4,)), Tensor(name="scores", channels=10, shape=())
    config = _config(config_pbtxt("some-network", given, [boxes, scores], max_batch_size=8))
    assert (config.name, config.backend, config.max_batch_size) == ("some-network", "onnxruntime", 8)
    assert _tensors(config, "input") == _wanted(given)
    assert _tensors(config, "output") == _wanted(boxes, scores)
    assert config.HasField("dynamic_batching")
