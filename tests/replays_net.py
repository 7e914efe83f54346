"""Replays of the recorded networks: published classes with weights given by formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from published import Recording, formula_weight, hash_unit

from diffstategrad.models.archive import Tensors
from diffstategrad.models.autoencoder import nearest_code
from diffstategrad.models.checkpoints import Denoiser, Part
from diffstategrad.models.first_stage import VQFirstStage
from diffstategrad.models.keys import unet_config, unet_rows, vq_config, vq_rows

NET_INPUTS = ("*.keys", "*.key_shapes", "*.x", "*.t", "*.cotangent", "*.index_margin")


def recorded_tensors(z: Recording, case: str) -> Tensors:
    """The file that the recorded network would have been saved to."""
    shapes = {
        str(key): tuple(map(int, str(shape).split("x")))
        for key, shape in zip(z[f"{case}.keys"], z[f"{case}.key_shapes"], strict=True)
    }

    def read(key: str) -> torch.Tensor:
        weight = formula_weight(key, shapes[key], z.meta["gain"], z.meta["salt"])
        return torch.from_numpy(weight)

    return Tensors(Path(case), shapes, read)


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(hash_unit(int(np.prod(shape)), seed).reshape(shape))


def value_and_vjp(function, x, cotangent):
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x, cotangent)[0]


def replay_net(z: Recording) -> None:
    # of the maximum of each array
    tolerance = float(z.meta["tolerance"].split()[0])

    def close(name: str, got: torch.Tensor) -> None:
        z.close(name, got, atol=tolerance * abs(z[name]).max())

    for case, config in z.meta["configs"].items():
        tensors = recorded_tensors(z, case)
        if "ddconfig" in config:
            replay_first_stage(z, case, config, tensors, close)
            continue
        order = "new" if config.get("use_new_attention_order") else "legacy"
        found = unet_config(tensors.shapes, config["num_head_channels"])
        rows = unet_rows(tensors.shapes, order)
        net = Denoiser(Part("UNet2DModel", found, tensors, rows).build(torch.float32))
        t = z.tensor(f"{case}.t")
        y, vjp = value_and_vjp(
            lambda x, net=net, t=t: net(x, t),
            z.tensor(f"{case}.x"),
            z.tensor(f"{case}.cotangent"),
        )
        close(f"{case}.y", y)
        close(f"{case}.vjp_x", vjp)


def replay_first_stage(z, case, config, tensors, close) -> None:
    shapes = tensors.shapes
    part = Part("VQModel", vq_config(shapes), tensors, vq_rows(shapes))
    stage = VQFirstStage(part.build(torch.float32))
    b, c, h, w = config["x_shape"]
    seed = config["seed"]
    rows, columns = np.arange(h)[:, None] / h, np.arange(w) / w
    waves = [
        0.7 * np.cos(2 * np.pi * ((k + 1) * rows + (2 - k) * columns)) for k in range(c)
    ]
    x = np.stack(waves) + 0.2 * hash_unit(b * c * h * w, seed).reshape(b, c, h, w)
    x = torch.from_numpy(x.astype(np.float32))
    latent = (b, stage.latent_channels, h // stage.stride, w // stage.stride)
    v = 0.8 * numbers(*latent, seed=seed + 1)

    codes = tensors["quantize.embedding.weight"]
    index = nearest_code(v, codes).numpy()
    decided = z[f"{case}.index_margin"] > 1e-5  # else rounding decides
    index[~decided] = z[f"{case}.indices"][~decided]
    z.equal(f"{case}.indices", index)
    close(f"{case}.quantised", codes[index].movedim(-1, 1))

    y, vjp = value_and_vjp(stage.encode, x, numbers(*latent, seed=seed + 3))
    close(f"{case}.encode", y)
    close(f"{case}.vjp_encode", vjp)
    y, vjp = value_and_vjp(stage.decode, v, numbers(b, c, h, w, seed=seed + 2))
    close(f"{case}.decode", y)
    close(f"{case}.vjp_decode", vjp)
    with torch.no_grad():
        close(f"{case}.decode_noquant", stage.decode(v, quantise=False))
