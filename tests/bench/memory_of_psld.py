"""Prints the memory and the time of PSLD with the published latent diffusion model
(U-Net of 274 million parameters, VQ-f4), its weights random, as JSON.

Counted is the growth of resident memory over `solve` at its peak, in MiB: activations,
gradients, the result.  Not counted: the weights, the libraries and what a solve of a
small image leaves behind.  Minutes on one core::

    python tests/bench/memory_of_psld.py [size] [dtype of the networks]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import UNet2DModel, VQModel
from memory_of_solve import resident

import diffstategrad as dsg
from diffstategrad.models.checkpoints import Denoiser
from diffstategrad.models.first_stage import VQFirstStage
from diffstategrad.models.unet import make_pointwise
from diffstategrad.operators import GaussianBlur
from diffstategrad.priors import LatentPrior, NetworkPrior
from diffstategrad.schedules import TableSchedule

STEPS = 2


def build(dtype: torch.dtype) -> LatentPrior:
    """The model of Rombach et al. (CVPR 2022) for faces of 256 x 256."""
    attention = ("DownBlock2D", *["AttnDownBlock2D"] * 3)
    unet = UNet2DModel(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(224, 448, 672, 896),
        down_block_types=attention,
        up_block_types=tuple(
            kind.replace("Down", "Up") for kind in reversed(attention)
        ),
        attention_head_dim=32,
        norm_eps=1e-5,
        downsample_padding=1,
    )
    first_stage = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(128, 256, 512),
        layers_per_block=2,
        latent_channels=3,
        num_vq_embeddings=8192,
        vq_embed_dim=3,
        scaling_factor=1.0,
    )
    for net in (unet, first_stage):
        net.eval().requires_grad_(False)
        make_pointwise(net)
    network = NetworkPrior(
        Denoiser(unet), schedule=TableSchedule(), channels=3, stride=8
    )
    return LatentPrior(network, VQFirstStage(first_stage)).to(dtype=dtype)


def restore(prior: LatentPrior, size: int, steps: int) -> dsg.Result:
    ramp = torch.linspace(-1, 1, size)
    y = (ramp[:, None] * ramp).expand(1, 3, -1, -1).contiguous()
    operator = GaussianBlur(61, std=3.0)
    options = {"steps": steps, "project": True, "progress": False}
    return dsg.solve(y, operator, prior, "psld", sigma=0.05, **options)


def main(size: int, dtype: str) -> None:
    torch.set_num_threads(1)
    dsg.set_num_threads(1)
    torch.manual_seed(0)
    prior = build(getattr(torch, dtype))
    networks = [border.network for border in prior.borders]
    weights = sum(p.nbytes for net in networks for p in net.parameters())
    restore(prior, 64, 1)

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    result = restore(prior, size, STEPS)
    figures = {
        "weights_mib": round(weights / 2**20),
        "beyond_mib": round((resident("VmHWM") - before) / 2**20),
        "seconds_a_step": round(result.seconds / STEPS, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    size, dtype = (*sys.argv[1:], *("256", "float32")[len(sys.argv) - 1 :])
    main(int(size), dtype)
