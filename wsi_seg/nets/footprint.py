"""What a forward pass takes, found out without memory: on tensors with a shape and no values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsi_seg.errors import ModelError


def forward_bytes(network: nn.Module, shape: Sequence[int], dtype: torch.dtype) -> int:
    """Return the most bytes of layers that live at once in a forward pass of an input of `shape`, weights apart.

    dtype: that it computes in. Raises whatever a network raises that cannot do without values.
    """
    tensors = (*network.named_parameters(), *network.named_buffers())
    hollow = {
        name: torch.empty_like(t, device="meta", dtype=dtype if t.is_floating_point() else None) for name, t in tensors
    }
    with torch.no_grad(), _Living() as living:
        torch.func.functional_call(network, hollow, (torch.empty(tuple(shape), device="meta", dtype=dtype),))
    return int(living.most)


def check_forward(network: nn.Module, shape: Sequence[int], name: str) -> None:
    """Raise ModelError unless a network, called `name`, takes an input of `shape`; it is in eval mode afterwards."""
    network.eval()
    try:
        forward_bytes(network, shape, torch.float32)
    except Exception:  # one of others may just do badly without values
        try:
            with torch.inference_mode():
                network(torch.zeros(tuple(shape)))
        except Exception as error:  # its code, and that of encoders, raises what it likes
            sides, reason = " x ".join(str(side) for side in shape[:1:-1]), " ".join(str(error).split())[:300]
            raise ModelError(
                f"{name} cannot compute {sides} px ({reason}); give crop_px and tile_px the size that it is made for, "
                "or choose another encoder"
            ) from error


class _Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up, after each operation, what of the results of all operations is still referred to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self,
        operation: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._sizes[StorageWeakRef(storage)] = storage.nbytes()  # type: ignore[no-untyped-call]
        for gone in [storage for storage in self._sizes if storage.expired()]:  # type: ignore[no-untyped-call]
            del self._sizes[gone]
        self.most = max(self.most, sum(self._sizes.values()))
        return result
