"""Which of ONNX Runtime's execution providers run a network, and with which options. Pure: decided without a GPU."""

from __future__ import annotations

import re
from typing import Final

from service.types import Network

Provider = tuple[str, dict[str, str]]
TENSORRT_BATCH: Final = 4  # TensorRT builds an engine for batches up to this; a larger one would build it anew


def choose_providers(
    network: Network, *, gpu: bool, tensorrt: bool, limit_bytes: int = 0, cache_key: str = ""
) -> list[Provider]:
    """The providers, the best first; each takes what the ones before it can't run.

    Parameters
    ----------
    gpu
        Whether CUDA works.
    tensorrt
        Whether TensorRT does.
    limit_bytes
        GPU memory that the network may take.
    cache_key
        GPU, driver and versions: TensorRT's engines are kept in a folder of that name, and built anew for another.
    """
    chosen: list[Provider] = [("CPUExecutionProvider", {})]
    if not gpu:
        return chosen
    chosen.insert(
        0,
        (
            "CUDAExecutionProvider",
            {
                # TF32 keeps ten bits of a product: it moves the liver lesions' probabilities by up to 0.035.
                "use_tf32": "0",
                "gpu_mem_limit": str(limit_bytes),
                "arena_extend_strategy": "kSameAsRequested",  # the other one doubles: that can't be planned with
                # The exhaustive search takes the fastest of the day: another one tomorrow, with other last digits.
                "cudnn_conv_algo_search": "HEURISTIC",
            },
        ),
    )
    if tensorrt:
        cache = network.file.parent / ("tensorrt-" + re.sub(r"[^A-Za-z0-9.]+", "-", cache_key).strip("-"))
        shapes = {
            word: f"{network.input.name}:{'x'.join(map(str, (size, *network.input.dims)))}"
            for word, size in (("min", 1), ("opt", 1), ("max", TENSORRT_BATCH))
        }
        options = {
            "trt_fp16_enable": str(network.half_precision),
            "trt_max_workspace_size": str(limit_bytes // 2),
            "trt_engine_cache_enable": "True",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "True",
            "trt_timing_cache_path": str(cache),
        }
        chosen.insert(
            0,
            (
                "TensorrtExecutionProvider",
                {**options, **{f"trt_profile_{word}_shapes": shape for word, shape in shapes.items()}},
            ),
        )
    return chosen


def memory_limit(resident_bytes: int, batch_bytes: int, slots: int) -> int:
    """GPU memory that a network may take, once it is known what it needs: a margin is for cuDNN's workspaces."""
    return int(1.1 * (resident_bytes + slots * batch_bytes)) + 2**28
