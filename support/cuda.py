"""What only CUDA needs: flash attention for a decode step, and CUDA graphs. On the CPU the tests play both."""

from collections.abc import Callable

import torch

from support.models import head_size


def flash_attention(query, key, value, lengths: tuple[torch.Tensor, ...], scaling) -> torch.Tensor:
    """A decode step in which each row reads as many positions as it holds. The operator is the one below
    torch.nn.attention.varlen, with the arguments that torch 2.11 has as well."""
    query_starts, row_starts, length_R = lengths
    q, k, v = (query[:, :, 0], *(x.transpose(1, 2).flatten(0, 1) for x in (key, value)))
    C = key.shape[2]
    # 1 query a row, at most C keys; no dropout, no causal mask, no debug mask
    out = torch.ops.aten._flash_attention_forward(
        q, k, v, query_starts, row_starts, 1, C, 0.0, False, False, scale=scaling, seqused_k=length_R
    )[0]
    return out[:, :, None]


def has_flash(model) -> bool:
    """Whether flash attention runs on this device, in this precision, with heads of this size (flash_api.cpp)."""
    if model.device.type != "cuda" or model.dtype not in (torch.float16, torch.bfloat16):
        return False
    if torch.version.hip or not torch.backends.cuda.is_flash_attention_available():
        return False
    E = head_size(model.config)
    return E % 8 == 0 and E <= 256 and torch.cuda.get_device_capability(model.device) >= (8, 0)


def capture(run: Callable[[], None], other: torch.cuda.CUDAGraph | None) -> torch.cuda.CUDAGraph:
    """`run` as a CUDA graph that shares the memory of `other`, which never runs at the same time. Before that, `run` is
    called once on a stream of its own: what libraries set up at their first call must not be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=other.pool() if other else None):
        run()
    return graph
