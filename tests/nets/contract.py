"""What every network keeps to; each architecture's test class inherits it, with settings that keep it small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from wsi_seg.architectures import dimensions_of, stride_of
from wsi_seg.nets import build_network

TINY = "tu-tf_mobilenetv3_small_minimal_100"


class NetContract:
    """A subclass names the architecture and, where it takes some, an encoder and options.

    unused: names of parameters that come with the encoder and that no output depends on.
    """

    architecture = ""
    encoder: str | None = None
    options: Mapping[str, Any] = {}
    unused: tuple[str, ...] = ()
    learning_rate = 3e-3

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        """So small networks only wait for more."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    def build(self, out_channels: int = 2, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return build_network(self.architecture, self.encoder, out_channels, self.options)

    def pixels(self, batch: int = 2, odd: int = 1) -> torch.Tensor:
        """Random pixels whose last side is `odd` times the stride, and the others as small as they may be."""
        *sides, last = stride_of(self.architecture, self.encoder, self.options)
        channels = 3 if dimensions_of(self.architecture) == 2 else 1
        return torch.randn(batch, channels, *sides, odd * last, generator=torch.Generator().manual_seed(1))

    @pytest.mark.parametrize("out_channels", [1, 2, 5])
    def test_logits_have_the_size_of_the_pixels(self, out_channels: int) -> None:
        pixels = self.pixels(odd=3)
        with torch.inference_mode():
            logits = self.build(out_channels).eval()(pixels)
        assert logits.shape == (2, out_channels, *pixels.shape[2:])
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()

    def test_pixels_of_a_batch_do_not_meet(self) -> None:
        network, pixels = self.build().eval(), self.pixels(batch=3)
        with torch.inference_mode():
            torch.testing.assert_close(network(pixels)[1:2], network(pixels[1:2]), rtol=1e-3, atol=1e-4)

    def test_every_pixel_counts_and_logits_differ(self) -> None:
        network, pixels = self.build().eval(), self.pixels(batch=1).requires_grad_()
        logits = network(pixels)
        (gradient,) = torch.autograd.grad(logits.square().sum(), pixels)
        assert (gradient != 0).float().mean() > 0.9
        assert logits.std() > 1e-4

    def test_every_parameter_gets_a_gradient(self) -> None:
        network = self.build().train()
        network(self.pixels(odd=3)).square().mean().backward()
        without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
        assert without == set(self.unused)
        assert all(not parameter.requires_grad for name, parameter in network.named_parameters() if name in without)

    def test_the_seed_decides_the_weights(self) -> None:
        first, again, other = (self.build(seed=seed).state_dict() for seed in (3, 3, 4))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)

    def test_a_saved_state_gives_the_same_logits(self, tmp_path: Path) -> None:
        network = self.build().eval()
        save_file(network.state_dict(), tmp_path / "state.safetensors")
        other = self.build(seed=9)
        other.load_state_dict(load_file(tmp_path / "state.safetensors"))
        pixels = self.pixels()
        with torch.inference_mode():
            assert torch.equal(other.eval()(pixels), network(pixels))

    def test_it_learns_and_does_so_alike(self) -> None:
        losses = self.losses(steps=10)
        assert self.losses(steps=3) == losses[:3]
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3])

    def losses(self, steps: int) -> list[float]:
        """Learn to tell bright pixels from dark ones, in one batch."""
        network, pixels = self.build(out_channels=1).train(), self.pixels()
        bright = (pixels.mean(dim=1, keepdim=True) > 0).float()
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        losses = []
        for _ in range(steps):
            loss = functional.binary_cross_entropy_with_logits(network(pixels), bright)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses
