"""The key/value cache of the rollout's grid, and the attention that reads it: how a transformers model is driven with
every row at a position of its own, without copying its code.

Shapes: S rows of the cache ("slots"), C positions of a row, R rows of a call, N tokens of each, L layers,
        H key/value heads, G query heads of each, E head dimension.
"""

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from support.models import cache_bytes, head_size


def slot_attention(module, query, key, value, attention_mask, scaling, blocks=None, lengths=None, **kwargs):
    """Attention for `transformers.AttentionInterface`; query (R, H * G, N, E), key and value (R, H, positions, E).

    A decode step has one query a row and reads straight from the cache: with `lengths`, each row up to its own; with
    `blocks` of rows (first, last, span), each block its first `span` positions, under a mask. Without either tokens are
    fed, under their mask; or, with no mask, it is training: causal attention over right-padded rows, where padding
    needs no mask because nothing before it looks at it.
    """
    R, heads, _, E = query.shape
    if lengths is not None:
        out = flash_attention(query[:, :, 0], key.transpose(1, 2), value.transpose(1, 2), *lengths, scaling)
    elif blocks is not None:
        query = query.reshape(R, key.shape[1], -1, E)  # (R, H, G, E): the query heads of a key stand in for queries
        out = torch.cat(
            [
                F.scaled_dot_product_attention(
                    query[i:j],
                    key[i:j, :, :span],
                    value[i:j, :, :span],
                    attention_mask[i:j, :, :, :span],
                    scale=scaling,
                )
                for i, j, span in blocks
            ]
        )
    elif attention_mask is not None and query.device.type != "cpu":
        return folded_attention(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None
    else:
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attention_mask,
            is_causal=attention_mask is None,
            scale=scaling,
            enable_gqa=heads != key.shape[1],
        )
        return out.transpose(1, 2).contiguous(), None
    return out.reshape(R, 1, heads, E), None


def folded_attention(query, key, value, mask, scaling) -> torch.Tensor:
    """Masked attention in which the query heads of a key stand in for queries. On CUDA, flash attention takes no mask
    and memory-efficient attention no groups of heads; what is left would repeat keys and values for every head."""
    R, H, _, E = key.shape
    mask = mask.repeat(1, 1, query.shape[1] // H, 1)
    out = F.scaled_dot_product_attention(query.reshape(R, H, -1, E), key, value, mask, scale=scaling)
    return out.reshape(query.shape)


def flash_attention(query, key, value, query_starts, row_starts, length_R, scaling) -> torch.Tensor:
    """One query a row, (R, H * G, E), over the first `length` positions of the row's keys and values, (R, C, H, E).
    The operator below torch.nn.attention.varlen, with the arguments that torch 2.11 has as well."""
    C = key.shape[1]
    key, value = (x.view(-1, *x.shape[2:]) for x in (key, value))
    return torch.ops.aten._flash_attention_forward(
        query, key, value, query_starts, row_starts, 1, C, 0.0, False, False, scale=scaling, seqused_k=length_R
    )[0]


AttentionInterface.register("slots", slot_attention)


def has_flash(model) -> bool:
    """Whether flash attention runs on this device, in this precision, with heads of this size (flash_api.cpp)."""
    if model.device.type != "cuda" or model.dtype not in (torch.float16, torch.bfloat16):
        return False
    if torch.version.hip or not torch.backends.cuda.is_flash_attention_available():
        return False
    E = head_size(model.config)
    return E % 8 == 0 and E <= 256 and torch.cuda.get_device_capability(model.device) >= (8, 0)


class SlotCache:
    """The `past_key_values` that transformers' attention layers call: each row is written at its own positions."""

    def __init__(self, config, slots: int, capacity: int, dtype: torch.dtype, device: torch.device, flash: bool):
        takes, free = cache_bytes(config, slots, capacity, dtype.itemsize), float("inf")
        if device.type == "cuda":  # torch still holds memory of tensors that are gone: that is free as well
            held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free = torch.cuda.mem_get_info(device)[0] + held
        elif device.type == "cpu":  # the system promises more than it has, and ends the process when it is used
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        L, H, E = config.num_hidden_layers, config.num_key_value_heads, head_size(config)
        # flash attention wants the heads of a position side by side; SDPA on the CPU the positions of a head
        shape = (L, 2, slots, capacity, H, E) if flash else (L, 2, slots, H, capacity, E)
        try:
            if takes > free:
                raise RuntimeError
            kv = torch.zeros(shape, dtype=dtype, device=device)  # not empty: a masked NaN would still poison sums
        except RuntimeError as error:
            raise ValueError(
                f"the key/value cache of {slots} slots with {capacity} positions takes {takes / 1e9:.3g}"
                " GB, more than is free: lower --slots or --max_new_tokens"
            ) from error
        self.kv = kv.transpose(3, 4) if flash else kv  # (L, 2, S, H, C, E)

    def aim(self, rows_R: torch.Tensor, position_RN: torch.Tensor, span: int | None) -> None:
        """Where the next forward pass writes. It reads the first `span` positions of these rows, gathered; with None
        all of the cache's first R rows, in place; with 0 nothing but what it writes."""
        self.rows_R, self.position_RN, self.span = rows_R, position_RN, span

    def update(self, key, value, layer_idx: int, *args, **kwargs):
        """Store the layer's new keys and values, (R, H, N, E) each; returns what its attention reads."""
        layer = self.kv[layer_idx]
        for old, new in zip(layer, (key, value)):
            old[self.rows_R[:, None], :, self.position_RN] = new.transpose(1, 2)
        if self.span == 0:
            return key, value
        return layer[:, : len(key)] if self.span is None else layer[:, self.rows_R, :, : self.span]


def mask_behind(position_RN: torch.Tensor, span: int, dtype: torch.dtype) -> torch.Tensor:
    """(R, 1, N, span), 0 where a position may look and -inf elsewhere. A 4D mask reaches the attention as it is."""
    hidden = torch.arange(span, device=position_RN.device) > position_RN[:, None, :, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)


def capture(run: Callable[[], None], neighbour: torch.cuda.CUDAGraph | None) -> torch.cuda.CUDAGraph:
    """`run` as a CUDA graph that shares the memory of `neighbour`, which never runs at the same time. Before, `run` is
    called once on a stream of its own, so that what libraries set up at their first call is not captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=neighbour.pool() if neighbour else None):
        run()
    return graph
