"""What only CUDA needs: flash attention for a decode step, graphs, fused kernels, copies while it computes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle

import torch

from support.models import decoder_layers, kv_heads_and_size, move

# For CUDA's first allocation, unless the user has set it: without it, gaps between tensors took 4 GiB of an H100.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
# cuDNN plans its attention on the CPU for every new shape, and nearly every batch has a new shape (docs/speed.md).
torch.backends.cuda.enable_cudnn_sdp(False)
torch.compiler.set_stance("force_eager")  # functions under @torch.compile run as they are, until `fuse_layers`


def flash_sequences(length_R: torch.Tensor, heads: int, capacity: int) -> tuple[torch.Tensor, ...]:
    """Each key/value head of a row is a sequence of its own: where its query starts, where its keys start in the flat
    cache, how many keys it has. With several heads in one, the operator would copy grouped queries and their output."""
    sequence = torch.arange(len(length_R) * heads + 1, dtype=torch.int32, device=length_R.device)
    return sequence, sequence * capacity, length_R.int().repeat_interleave(heads)


def flash_attention(query, key, value, sequences: tuple[torch.Tensor, ...], scaling) -> torch.Tensor:
    """A decode step in which each row reads as many positions as it holds. The operator is the one that underlies
    torch.nn.attention.varlen; torch 2.11 has all of these arguments too."""
    cu_seqlens_q, cu_seqlens_k, seqused_k = sequences
    q = query.reshape(len(seqused_k), -1, query.shape[-1])  # (sequences, query heads of each, head size)
    k, v = (x.view(-1, 1, x.shape[-1]) for x in (key, value))  # (positions of all sequences, 1, head size)
    # 1 query position, at most this many keys; no dropout, no causal mask, no debug mask
    out = torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, 1, key.shape[2], 0.0, False, False, scale=scaling, seqused_k=seqused_k
    )[0]
    return out.view(query.shape)


def has_flash(model, slots: int) -> bool:
    """Whether flash attention runs on this device, in this precision, with these heads and slots (flash_api.cpp)."""
    if model.device.type != "cuda" or torch.version.hip or not torch.backends.cuda.is_flash_attention_available():
        return False
    (heads, size), half = kv_heads_and_size(model.config), model.dtype in (torch.float16, torch.bfloat16)
    possible = half and size % 8 == 0 and size <= 256 and slots * heads < 2**16  # the most sequences in a launch
    return possible and torch.cuda.get_device_capability(model.device) >= (8, 0)


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


def fuse_layers(*models) -> None:
    """Let torch.compile fuse element-wise operations: in functions under @torch.compile, and in the decoder layers. All
    layers of a shape share the same code, for every size from 2 on; a single dialogue would need code of its own."""
    torch.compiler.set_stance("default")
    torch._dynamo.config.recompile_limit = 64
    torch.fx.experimental._config.use_duck_shape = False  # sizes that are equal by chance would be taken as one
    for layer in decoder_layers(*models):
        layer.forward = partial(run_layer, layer.forward, torch.compile(layer.forward, dynamic=True))


def run_layer(eager: Callable, compiled: Callable, hidden_BTE: torch.Tensor, *args, **kwargs):
    """A short dialogue that is left over, alone in its batch, is not worth the seconds of a compilation."""
    left_over = hidden_BTE.shape[0] == 1 and hidden_BTE.shape[1] < 1024
    return (eager if left_over else compiled)(hidden_BTE, *args, **kwargs)


@contextmanager
def streams(device: torch.device) -> Iterator[Callable]:
    """Yields on_device(tensors), a context in which tensors of host memory are on the device; changes are copied back.
    On CUDA these contexts take turns on two streams, so that copies of one are under way while another computes."""
    cuda = device.type == "cuda"
    turns = cycle([torch.cuda.Stream(device), torch.cuda.Stream(device)] if cuda else [None])

    @contextmanager
    def on_device(tensors: list[torch.Tensor]) -> Iterator[None]:
        stream = next(turns) if tensors else None
        if stream:
            stream.wait_stream(torch.cuda.default_stream(device))
        with torch.cuda.stream(stream):  # None changes nothing
            hosts = [x.data for x in tensors]
            move(tensors, device)
            yield
            for x, host in zip(tensors, hosts):
                x.data = host.copy_(x, non_blocking=True)

    yield on_device
    if cuda:
        torch.cuda.synchronize(device)
