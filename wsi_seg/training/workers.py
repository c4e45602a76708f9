"""Several workers that train as one would: shared sums, shared batch norm, and the same random draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

T = TypeVar("T")
BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Team:
    """The workers of a run: `rank` of `size`, in torch's process group where they are several."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this worker is the one that writes."""
        return self.rank == 0

    def places(self, batch_size: int) -> range:
        """Return which crops of the batch are this worker's."""
        own = batch_size // self.size
        return range(self.rank * own, (self.rank + 1) * own)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over workers, through which gradients flow.

        Each worker then has the gradient of the sum of all workers' losses, which are equal; the mean over workers, see
        `average_gradients`, is the gradient of the one loss.
        """
        if self.size == 1:
            return values
        summed: torch.Tensor = _Total.apply(values)  # type: ignore[no-untyped-call]
        return summed

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make the gradients of all workers their mean, in one exchange."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        parts = torch.split(flat / self.size, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def lead(self, action: Callable[[], T]) -> T:
        """Let the leading worker alone do it, and give all its result, or its error: none waits for one that failed."""
        if self.size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = action()
            except Exception as error:
                outcome[1] = error
        torch.distributed.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def joined(self, network: nn.Module) -> nn.Module:
        """Return the network with batch norm over the crops of all workers."""
        if self.size == 1:
            return network
        for name, child in network.named_children():
            if isinstance(child, BatchNorm):
                setattr(network, name, SharedBatchNorm(child, self))
            else:
                self.joined(child)
        return network


class _Total(torch.autograd.Function):
    """Sum over workers, in both directions."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        return _summed(values)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        return _summed(gradients[0])


def _summed(values: torch.Tensor) -> torch.Tensor:
    summed = values.detach().clone().contiguous()
    torch.distributed.all_reduce(summed)
    return summed


class SharedBatchNorm(nn.Module):
    """Batch norm over all workers, on any device; torch's own works on CUDA alone.

    It holds the parameters and buffers under the same names, so that states fit either.
    """

    def __init__(self, norm: BatchNorm, team: Team) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.momentum = norm.weight, norm.bias, norm.eps, norm.momentum
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        # timm's batch norm has the dropping and the activation that follow it as parts of its own
        for name, child in norm.named_children():
            self.add_module(name, child)
        self._team = team

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        values = self._normalised(values)
        for child in self.children():
            values = child(values)
        return values

    def _normalised(self, values: torch.Tensor) -> torch.Tensor:
        if not self.training:
            mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
            return functional.batch_norm(values, mean, variance, self.weight, self.bias, eps=self.eps)
        over, shape = (0, *range(2, values.dim())), (1, -1, *[1] * (values.dim() - 2))
        full = values.to(self.get_buffer("running_mean").dtype)
        count = full.numel() // full.shape[1] * self._team.size
        mean = self._team.total(full.sum(over)) / count
        centred = full - mean.view(shape)
        variance = self._team.total((centred**2).sum(over)) / count
        self._remember(mean.detach(), variance.detach() * count / max(1, count - 1))
        scaled = centred * torch.rsqrt(variance + self.eps).view(shape)
        return (scaled * self.weight.view(shape) + self.bias.view(shape)).to(values.dtype)

    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        batches = self.get_buffer("num_batches_tracked")
        batches += 1
        share = self.momentum if self.momentum is not None else 1 / int(batches)
        self.get_buffer("running_mean").lerp_(mean, share)
        self.get_buffer("running_var").lerp_(variance, share)


class AlikeDraws(TorchFunctionMode):
    """While it is on, a worker draws for its own crops what a single worker would draw for them.

    Dropout and dropped paths ask torch for numbers whose first axis is the crops. They are drawn for the crops of all
    workers, who have the same seed, and each takes its own.
    """

    def __init__(self, team: Team, crops: int) -> None:
        super().__init__()
        self._team, self._crops = team, crops

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is torch.rand:
            return self._rand(args, kwargs)
        if func in (functional.dropout, functional.dropout2d, functional.dropout3d):
            return self._dropout(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _rand(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        size = list(args[0]) if args and not isinstance(args[0], int) else list(args or kwargs.pop("size"))
        if not size or size[0] != self._crops:
            return torch.rand(size, **kwargs)
        first = self._team.rank * self._crops
        return torch.rand([self._crops * self._team.size, *size[1:]], **kwargs)[first : first + self._crops]

    def _dropout(
        self,
        func: Callable[..., torch.Tensor],
        values: torch.Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
    ) -> torch.Tensor:
        if not training or p == 0:
            return values
        whole = func is functional.dropout
        shape = values.shape if whole else (*values.shape[:2], *[1] * (values.dim() - 2))
        kept = self._rand((list(shape),), {"device": values.device}) >= p  # bf16 has 256 steps
        return values * kept / (1 - p)
