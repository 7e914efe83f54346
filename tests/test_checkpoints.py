"""Published checkpoints as priors."""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import patch

import diffusers
import manifests
import numpy as np
import pytest
import torch
from published import Recording
from replays_net import recorded_tensors
from safetensors.torch import load_file, save_file
from test_published import BUNDLED

import diffstategrad as dsg
from diffstategrad.cli import main
from diffstategrad.models.archive import Tensors
from diffstategrad.models.autoencoder import nearest_code
from diffstategrad.models.checkpoints import open_checkpoint
from diffstategrad.models.first_stage import KLFirstStage, VQFirstStage
from diffstategrad.models.text import empty_prompt
from diffstategrad.priors import (
    LatentPrior,
    NetworkPrior,
    as_prior,
    describe_prior,
    load_prior,
)
from diffstategrad.schedules import (
    CosineSchedule,
    SqrtVPSchedule,
    TableSchedule,
    beta_table,
    ddpm_tables,
)

ASSUMED = "(assumed, the file does not tell)"
ADM_TABLE = TableSchedule(1e-4, 0.02, 1000, sqrt=False)
LDM_BETAS = torch.from_numpy(beta_table(0.0015, 0.0195, sqrt=True)).float()


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recorded(name):
    return Recording(BUNDLED / f"net_{name}_small.npz")


def state(recording, case, prefix="", name=lambda key: key):
    tensors = recorded_tensors(recording, case)
    return {prefix + name(key): value for key, value in tensors.items()}


# ---- guided diffusion ----


def quarter(shapes):
    """A network of a quarter of the width."""
    return {
        name: tuple(n // 4 if n >= 32 else n for n in shape)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def adm(tmp_path_factory):
    path = tmp_path_factory.mktemp("adm") / "quarter.pt"
    torch.save(manifests.state(quarter(manifests.shapes("adm_ffhq256"))), path)
    return path


@pytest.mark.parametrize("case", ["adm_legacy", "adm_neworder"])
def test_a_file_gives_the_recorded_network(tmp_path, case):
    z = recorded("adm")
    torch.save(state(z, case), tmp_path / "net.pt")
    order = "new" if case == "adm_neworder" else "legacy"
    prior = load_prior(tmp_path / "net.pt", head_width=16, qkv_order=order)
    x, y = z.tensor(f"{case}.x"), z.tensor(f"{case}.y")
    for i, t in enumerate(z[f"{case}.t"]):
        eps, code = prior.predict(x[i : i + 1], prior.alpha_bar(t))
        both = torch.cat([eps, code], 1).detach()
        # as in the recording's family, of the maximum
        torch.testing.assert_close(both, y[i : i + 1], rtol=0, atol=2e-5 * 3)


@pytest.mark.parametrize(
    "option", [{"head_width": 32}, {"head_width": 16, "qkv_order": "new"}]
)
def test_what_the_file_does_not_tell_matters(tmp_path, option):
    z = recorded("adm")
    torch.save(state(z, "adm_legacy"), tmp_path / "net.pt")
    right = load_prior(tmp_path / "net.pt", head_width=16)
    wrong = load_prior(tmp_path / "net.pt", **option)
    x = z.tensor("adm_legacy.x")
    with torch.no_grad():
        a, b = right.denoise(x, 1.0), wrong.denoise(x, 1.0)
    assert (a - b).abs().max() > 0.01


def test_an_adm_prior_has_its_table(adm):
    prior = as_prior(adm)
    assert isinstance(prior, NetworkPrior)
    assert prior.schedule == ADM_TABLE
    assert (prior.channels, prior.stride) == (3, 32)
    assert prior.learned_variance is True
    assert prior.spec()["name"] == str(adm)
    table = ddpm_tables()
    for t in (0, 1, 500, 999):
        assert prior.alpha_bar(t) == pytest.approx(table.abar[t], rel=1e-12)


def test_the_network_is_given_times_of_the_table(adm):
    prior, times = as_prior(str(adm)), []
    forward = prior.network.network.forward

    def watch(z, t):
        times.append(t)
        return forward(z, t)

    with patch.object(prior.network.network, "forward", watch), torch.no_grad():
        prior.predict(images(1, 3, 32, 32), float(ADM_TABLE.alpha_bar(321)))
        prior.eps(images(2, 3, 32, 32), 12.25)
    assert times[0].tolist() == [321.0]
    assert times[1].tolist() == [12.25, 12.25]


def test_states_in_double_precision_stay_so(adm):
    prior, x = as_prior(adm), images(1, 3, 32, 32)
    with torch.no_grad():
        double, single = prior.denoise(x.double(), 0.5), prior.denoise(x, 0.5)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=0, atol=1e-5)


def test_a_schedule_that_is_given_counts_whatever_the_file_tells(adm, tmp_path):
    mine = TableSchedule(1e-4, 0.03, 500, sqrt=False)
    assert load_prior(adm, schedule=mine).schedule == mine
    tensors = ldm_state()
    torch.save(tensors, tmp_path / "told.ckpt")
    del tensors["betas"]
    torch.save(tensors, tmp_path / "untold.ckpt")
    prior = load_prior(tmp_path / "untold.ckpt", head_width=16, schedule=mine)
    assert prior.schedule == mine and prior.latent.schedule == mine
    assert describe_prior(tmp_path / "untold.ckpt")["schedule"].endswith(ASSUMED)
    assert ASSUMED not in describe_prior(tmp_path / "told.ckpt")["schedule"]
    prior = load_prior(tmp_path / "told.ckpt", head_width=16, schedule=mine)
    assert prior.schedule == mine
    tensors["betas"] = LDM_BETAS.flip(0)  # no rule
    torch.save(tensors, tmp_path / "odd.ckpt")
    prior = load_prior(tmp_path / "odd.ckpt", head_width=16, schedule=mine)
    assert prior.schedule == mine
    told = describe_prior(tmp_path / "odd.ckpt")["schedule"]
    assert told == "not read: its betas follow no rule that is known here"
    with pytest.raises(ValueError, match="qkv_order and schedule are for published"):
        load_prior("leaves64", schedule=mine)


def test_names_of_a_parallel_wrapper_are_known(adm, tmp_path):
    tensors = torch.load(adm, weights_only=True)
    wrapped = {f"module.{name}": value for name, value in tensors.items()}
    torch.save(wrapped, tmp_path / "net.pt")
    nets = [load_prior(path).network for path in (adm, tmp_path / "net.pt")]
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a, b)
    wrapped["more"] = torch.zeros(1)  # not all
    torch.save(wrapped, tmp_path / "net.pt")
    with pytest.raises(ValueError, match="no known network: 'module"):
        load_prior(tmp_path / "net.pt")


def test_a_tensor_that_is_missing_has_its_name_in_the_file(adm, tmp_path):
    tensors = torch.load(adm, weights_only=True)
    del tensors["out.2.bias"]
    torch.save(tensors, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"net\.pt: tensor 'out\.2\.bias' is missing"):
        load_prior(tmp_path / "net.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_is_close(adm, dtype):
    prior, half = load_prior(adm), load_prior(adm, dtype=dtype)
    assert {p.dtype for p in half.network.parameters()} == {dtype}
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        exact, rounded = prior.denoise(x, 0.5), half.denoise(x, 0.5)
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 8 * torch.finfo(dtype).eps


def test_attention_is_torchs_fused_one(adm):
    """One at every block of the level 16 x 16 and in the middle."""
    prior = as_prior(adm)
    fused = torch.nn.functional.scaled_dot_product_attention
    with patch.object(
        torch.nn.functional, "scaled_dot_product_attention", side_effect=fused
    ) as calls:
        prior.denoise(images(1, 3, 32, 32), 1.0)
    assert calls.call_count == 1 + 1 + 2
    assert {call.args[0].shape[1] for call in calls.call_args_list} == {2}  # heads


def test_the_number_of_threads_does_not_matter(adm):
    prior, x, found = as_prior(adm), images(1, 3, 64, 64), []
    before = torch.get_num_threads()
    try:
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            with torch.no_grad():
                found.append(prior.denoise(x, 1.0))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_gradient_reaches_the_image_and_no_weight(adm):
    prior, x = as_prior(adm), images(1, 3, 32, 32).requires_grad_()
    prior.denoise(x, 1.0).square().sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
    assert not any(p.requires_grad for p in prior.network.parameters())
    assert not any(module.training for module in prior.network.modules())


def test_a_path_is_a_prior_for_solve(adm):
    operator = dsg.operators.Downsample(4)
    y = operator.measure(images(1, 3, 32, 32).clamp(-1, 1), sigma=0.1, seed=0)
    result = dsg.solve(y, operator, str(adm), "dps", sigma=0.1, steps=3, progress=False)
    assert result.x.shape == (1, 3, 32, 32) and result.x.isfinite().all()
    assert result.spec["prior"]["name"] == str(adm)


def test_loading_changes_no_global_generator(adm):
    before = torch.get_rng_state()
    load_prior(adm)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_stays_open_or_mapped(tmp_path, adm):
    path = tmp_path / "net.pt"
    path.write_bytes(adm.read_bytes())
    prior = load_prior(path)
    weight = prior.network.network.conv_in.weight.clone()
    path.write_bytes(b"")
    assert torch.equal(prior.network.network.conv_in.weight, weight)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_named(tmp_path, bad):
    tensors = manifests.state(quarter(manifests.shapes("adm_ffhq256")))
    tensors["middle_block.1.norm.bias"] = torch.full((128,), bad)
    torch.save(tensors, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"net\.pt: middle_block\.1\.norm\.bias has N"):
        load_prior(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "ema"}, "has no weights 'ema'; one of raw"),
        ({"weights": "mean"}, "unknown weights 'mean'"),
        ({"qkv_order": "old"}, "unknown qkv_order 'old'"),
        ({"head_width": 0}, "head_width must be in"),
        ({"head_width": 48}, "heads of 48"),
        ({"dtype": torch.int8}, r"must be a floating one, got torch\.int8"),
        ({"guidance": 7.5}, "takes no text, so no prompt and no guidance"),
        ({"guidance": math.nan}, "guidance must be a finite number, got nan"),
        ({"guidance": -math.inf}, "guidance must be a finite number, got -inf"),
        ({"guidance": "7.5"}, "guidance must be a finite number, got '7.5'"),
        ({"guidance": True}, "guidance must be a finite number, got True"),
        ({"prompt": torch.zeros(1, 77, 768)}, "takes no text, so no prompt"),
    ],
)
def test_options_that_do_not_apply_are_named(adm, options, message):
    with pytest.raises(ValueError, match=message):
        load_prior(adm, **options)


@pytest.mark.parametrize("name", ["leaves64", "leaves_latent"])
@pytest.mark.parametrize(
    "option", [{"guidance": 7.5}, {"prompt": "a cat"}, {"prompt": np.zeros((1, 7, 12))}]
)
def test_a_bundled_prior_takes_no_text(name, option):
    with pytest.raises(ValueError, match="takes no text, so no prompt and no guidance"):
        load_prior(name, **option)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.weight": (2,), "b": (3,)}, "tensors of no known network: 'a.weight', 'b'"),
        ({}, "tensors of no known network"),
        ({"conv_in.weight": (8, 3, 3, 3)}, "give the folder with this file"),
        ({"input_blocks.0.0.weight": (8, 3, 3, 3)}, "0 output blocks"),
    ],
)
def test_other_networks_are_refused(tmp_path, tensors, message):
    made = {name: torch.zeros(shape) for name, shape in tensors.items()}
    for name, save in (("net.pt", torch.save), ("net.safetensors", save_file)):
        save(made, tmp_path / name)
        with pytest.raises(ValueError, match=message) as caught:
            load_prior(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_an_own_file_takes_no_option_of_the_published():
    weights = dsg.priors.as_prior("leaves64")
    path = f"{dsg.__path__[0]}/weights/leaves64.safetensors"
    assert torch.equal(
        load_prior(path).denoise(images(1, 3, 16, 16), 1.0),
        weights.denoise(images(1, 3, 16, 16), 1.0),
    )
    with pytest.raises(ValueError, match="are for published checkpoints"):
        load_prior(path, weights="ema")


def test_a_bundled_name_is_loaded_with_options():
    prior = dsg.load_prior("leaves_latent", dtype=torch.bfloat16)
    assert {p.dtype for p in prior.latent.network.parameters()} == {torch.bfloat16}
    assert prior.spec()["name"] == "leaves_latent"
    pixels, same = dsg.load_prior("leaves64"), as_prior("leaves64")
    assert pixels.spec() == same.spec()
    assert pixels.profile is same.profile is not None
    assert load_prior("leaves64", name="mine").spec()["name"] == "mine"
    with pytest.raises(FileNotFoundError, match="did you mean 'leaves64'"):
        load_prior("leafs64")


def identity(x, sigma):
    return x


def test_a_prior_says_what_it_is():
    assert repr(as_prior("leaves64")) == (
        "NetworkPrior(leaves64, 3 channels, sides multiples of 16)"
    )
    assert repr(as_prior("leaves_latent")) == (
        "LatentPrior(leaves_latent, on latents, 3 channels, sides multiples of 16)"
    )
    assert repr(as_prior(identity)) == "CallablePrior(identity)"


def test_an_object_of_diffusers_is_no_prior_until_it_is_wrapped():
    net = small_unet().eval()
    for given in (net, diffusers.DDPMPipeline(net, diffusers.DDPMScheduler())):
        name = type(given).__name__
        with pytest.raises(TypeError, match=f"a {name} of diffusers is no prior: give"):
            as_prior(given)
    prior = NetworkPrior(lambda z, t: net(z, t).sample, schedule=ADM_TABLE, channels=3)
    x = images(1, 3, 16, 16)
    with torch.no_grad():
        expected = net(x, torch.tensor([7.0])).sample
        assert torch.equal(prior.eps(x, 7.0), expected)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_prior(tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"no prior and no file named .*none\.pt"):
        as_prior(str(tmp_path / "none.pt"))


# ---- latent diffusion ----


def ldm_state(scale=None, betas=LDM_BETAS):
    """The content of a checkpoint made of the recorded U-Net and first stage."""
    unet, vq = recorded("ldm_unet"), recorded("vq")
    raw = state(unet, "ldm", "model.diffusion_model.")
    average = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): 0.5 * value
        for key, value in raw.items()
    }
    return {
        "betas": betas,
        **raw,
        **average,
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7),
        **state(vq, "vq", "first_stage_model."),
        "first_stage_model.loss.logvar": torch.zeros(()),
        **({} if scale is None else {"scale_factor": torch.tensor(scale)}),
    }


@pytest.fixture
def ldm(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": ldm_state(), "global_step": 3}, path)
    return path


def test_a_checkpoint_of_latent_diffusion_gives_the_recorded_networks(ldm):
    prior = load_prior(ldm, head_width=16)
    assert isinstance(prior, LatentPrior)
    assert prior.schedule == TableSchedule()
    assert (prior.channels, prior.stride) == (3, 4 * 4)
    assert prior.learned_variance is False
    assert prior.latent_shape((3, 64, 32)) == (3, 16, 8)
    z = recorded("ldm_unet")
    x, y = z.tensor("ldm.x"), z.tensor("ldm.y")
    for i, t in enumerate(z["ldm.t"]):
        got = prior.eps(x[i : i + 1], float(t)).detach()
        torch.testing.assert_close(got, y[i : i + 1], rtol=0, atol=2e-5 * 2)
    latent = prior.encode(images(1, 3, 32, 32))
    assert latent.shape == (1, 3, 8, 8)
    assert prior.decode(latent).shape == (1, 3, 32, 32)


def test_raw_and_averaged_weights(ldm):
    raw, average = (load_prior(ldm, head_width=16, weights=w) for w in ("raw", "ema"))
    for a, b in zip(
        raw.latent.network.parameters(),
        average.latent.network.parameters(),
        strict=True,
    ):
        assert torch.equal(0.5 * a, b)
    x = images(1, 3, 16, 16)
    assert torch.equal(raw.encode(x), average.encode(x))
    assert average.spec()["name"] == f"{ldm} (ema)"


def test_the_factor_of_the_latents_is_that_of_the_file(ldm, tmp_path):
    torch.save({"state_dict": ldm_state(0.5)}, tmp_path / "scaled.ckpt")
    prior = load_prior(ldm, head_width=16)
    scaled = load_prior(tmp_path / "scaled.ckpt", head_width=16)
    x = images(1, 3, 16, 16)
    z = prior.encode(x)
    assert torch.equal(scaled.encode(x), 0.5 * z)
    assert torch.equal(scaled.decode(0.5 * z), prior.decode(z))


@pytest.mark.parametrize(
    ("betas", "schedule"),
    [
        (beta_table(0.001, 0.01, n=500, sqrt=True), TableSchedule(0.001, 0.01, 500)),
        (beta_table(1e-4, 0.02), ADM_TABLE),
        (None, TableSchedule()),
    ],
)
def test_the_schedule_is_that_of_the_files_betas(tmp_path, betas, schedule):
    tensors = ldm_state()
    if betas is None:
        del tensors["betas"]
    else:
        tensors["betas"] = torch.from_numpy(betas).float()
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    found = open_checkpoint(tmp_path / "model.ckpt", head_width=16).schedule
    assert found == schedule


def drop(key):
    return lambda tensors: tensors.pop(key)


@pytest.mark.parametrize(
    ("change", "weights", "message"),
    [
        (lambda d: d.update(betas=d["betas"].flip(0)), "raw", "betas follow no rule"),
        (lambda d: d.update(betas=d["betas"] ** 1.01), "raw", "betas follow no rule"),
        (lambda d: d.update(betas=torch.zeros(2, 2)), "raw", "betas follow no rule"),
        (lambda d: d.update(betas=torch.full((9,), torch.nan)), "raw", "betas follow"),
        (
            drop("model_ema.diffusion_modelout2bias"),
            "ema",
            r"averages \(model_ema\.\*\) of 185 of 186 tensors",
        ),
        (
            lambda d: [d.pop(k) for k in list(d) if k.startswith("model_ema.")],
            "ema",
            "has no weights 'ema'; one of raw",
        ),
        (
            lambda d: [d.pop(k) for k in list(d) if k.startswith("first_stage")],
            "raw",
            r"model\.ckpt: has no first stage \(first_stage_model\.\*\)",
        ),
        (drop("first_stage_model.quant_conv.bias"), "raw", "'quant_conv.bias' is miss"),
        (
            lambda d: [d.pop(k) for k in list(d) if k.startswith("model.diff")],
            "raw",
            r"has no network \(model\.diffusion_model\.\*\)",
        ),
        (
            drop("first_stage_model.quantize.embedding.weight"),
            "raw",
            "an autoencoder without a codebook",
        ),
        (
            lambda d: d.update(
                {
                    "first_stage_model.quantize.embedding.weight": torch.zeros(64, 4),
                    "first_stage_model.quant_conv.weight": torch.zeros(4, 3, 1, 1),
                    "first_stage_model.quant_conv.bias": torch.zeros(4),
                    "first_stage_model.post_quant_conv.weight": torch.zeros(3, 4, 1, 1),
                }
            ),
            "raw",
            "a network from 3 to 3 channels is no denoiser of 4",
        ),
    ],
)
def test_an_incomplete_checkpoint_is_refused(tmp_path, change, weights, message):
    tensors = ldm_state()
    change(tensors)
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=message) as caught:
        load_prior(tmp_path / "model.ckpt", head_width=16, weights=weights)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_first_stage_alone_is_no_prior_but_can_be_loaded(tmp_path, prefix):
    path = tmp_path / "model.ckpt"
    z = recorded("vq")
    loss = {f"{prefix}loss.discriminator.main.0.weight": torch.zeros(3, 3)}
    torch.save({"state_dict": {**state(z, "vq", prefix), **loss}}, path)
    assert "network" not in describe_prior(path)
    with pytest.raises(
        ValueError, match=r"vector-quantised autoencoder .* is no prior"
    ):
        load_prior(path)
    stage = open_checkpoint(path).load_first_stage(torch.float32)
    assert isinstance(stage, VQFirstStage)
    assert (stage.image_channels, stage.latent_channels, stage.stride) == (3, 3, 4)
    assert not stage.stochastic


def test_the_gradient_passes_straight_through_the_quantiser(ldm):
    stage, z = load_prior(ldm, head_width=16).autoencoder, images(1, 3, 8, 8)
    codes = stage.network.quantize.embedding.weight
    q = codes[nearest_code(z, codes)].movedim(-1, 1)
    gradients = []
    for point, quantise in ((z, True), (q, False)):
        point = point.clone().requires_grad_()
        out = stage.decode(point, quantise=quantise).square().sum()
        gradients.append(torch.autograd.grad(out, point)[0])
    # z + (q - z) is q but for a rounding
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)
    assert gradients[0].abs().max() > 1


# ---- folders of diffusers ----


def small_unet(channels=3, **options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **options,
    )


def small_vq(**options):
    torch.manual_seed(1)
    levels = 2
    return diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        num_vq_embeddings=32,
        sample_size=32,
        **options,
    )


def small_kl():
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        sample_size=32,
    )


def small_conditional(**options):
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=2,
        **options,
    )


def scheduler(**options):
    return diffusers.DDIMScheduler(
        **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        **options,
    )


EMPTY, PROMPT = images(1, 7, 12, seed=2), images(1, 5, 12, seed=3)


@pytest.fixture
def stable(tmp_path):
    """A folder as Stable Diffusion's, without text encoder."""
    folder = tmp_path / "stable"
    small_conditional().save_pretrained(folder / "unet")
    small_kl().save_pretrained(folder / "vae")
    scheduler().save_pretrained(folder / "scheduler")
    save_file({"states": EMPTY}, folder / "empty_prompt.safetensors")
    return folder


@pytest.mark.parametrize("flat", [False, True])
def test_a_folder_of_a_pixel_pipeline(tmp_path, flat):
    """As a pipeline saves it, or all in one place, as the first were published."""
    net = small_unet().eval()
    if flat:
        net.save_pretrained(tmp_path)
        diffusers.DDPMScheduler().save_pretrained(tmp_path)
    else:
        pipeline = diffusers.DDPMPipeline(net, diffusers.DDPMScheduler())
        pipeline.save_pretrained(tmp_path)
    prior = as_prior(tmp_path)
    assert isinstance(prior, NetworkPrior)
    assert prior.schedule == ADM_TABLE and prior.prediction == "epsilon"
    assert (prior.channels, prior.stride, prior.learned_variance) == (3, 2, False)
    x = images(2, 3, 16, 16)
    with torch.no_grad():
        expected = net(x, torch.tensor([7.5, 7.5])).sample
        # sums of 1x1 convolutions in another order
        torch.testing.assert_close(prior.eps(x, 7.5), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("epsilon", "epsilon"), ("v_prediction", "v"), ("sample", "start_x")],
)
def test_what_the_network_predicts_is_the_schedulers(tmp_path, name, kind):
    small_unet().save_pretrained(tmp_path / "unet")
    scheduler(prediction_type=name).save_pretrained(tmp_path / "scheduler")
    prior = load_prior(tmp_path)
    assert prior.prediction == kind
    assert prior.schedule == TableSchedule(0.00085, 0.012)


@pytest.mark.parametrize("told", [None, 1.0, 0.5])
def test_a_folder_of_a_latent_pipeline(tmp_path, told):
    """A quantiser's default factor is no one's; what the file says counts."""
    net, first = small_unet().eval(), small_vq(scaling_factor=told or 0.18215).eval()
    net.save_pretrained(tmp_path / "unet")
    first.save_pretrained(tmp_path / "vqvae")
    scheduler().save_pretrained(tmp_path / "scheduler")
    config = tmp_path / "vqvae" / "config.json"
    options = json.loads(config.read_text())
    if told is None:
        del options["scaling_factor"]
    config.write_text(json.dumps(options))
    prior, scale = load_prior(tmp_path), told or 1.0
    assert isinstance(prior, LatentPrior)
    assert isinstance(prior.autoencoder, VQFirstStage)
    assert (prior.stride, prior.latent_shape((3, 16, 16))) == (4, (3, 8, 8))
    x = images(1, 3, 16, 16)
    with torch.no_grad():
        z = first.encode(x).latents
        torch.testing.assert_close(prior.encode(x), scale * z, rtol=0, atol=1e-5)
        for plain in (False, True):
            expected = first.decode(z, force_not_quantize=plain).sample
            got = prior.decode(scale * z, quantise=not plain)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_stable_diffusion_without_a_text(stable):
    prior = as_prior(str(stable))
    assert isinstance(prior, LatentPrior)
    assert isinstance(prior.autoencoder, KLFirstStage) and prior.autoencoder.stochastic
    assert prior.schedule == TableSchedule(0.00085, 0.012)
    assert (prior.channels, prior.stride) == (3, 4)
    net, x = small_conditional().eval(), images(2, 4, 8, 8)
    with torch.no_grad():
        expected = net(x, torch.tensor(3.0), EMPTY.expand(2, -1, -1)).sample
        torch.testing.assert_close(prior.eps(x, 3.0), expected, rtol=0, atol=1e-5)


def test_stable_diffusion_with_a_text_and_guidance(stable):
    net, x, t = small_conditional().eval(), images(1, 4, 8, 8), torch.tensor(3.0)
    with torch.no_grad():
        to, off = (net(x, t, states).sample for states in (PROMPT, EMPTY))
        for weight in (1.0, 7.5, 0.0):
            prior = load_prior(stable, prompt=PROMPT, guidance=weight)
            inner = prior.latent.network.network
            with patch.object(inner, "forward", side_effect=inner.forward) as calls:
                got = prior.eps(x, 3.0)
            expected = off + weight * (to - off)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
            assert calls.call_count == (1 if weight == 1 else 2)


def test_a_text_alone_needs_no_empty_one(stable):
    (stable / "empty_prompt.safetensors").unlink()
    load_prior(stable, prompt=PROMPT)
    with pytest.raises(ValueError, match=r"needs empty_prompt\.safetensors"):
        load_prior(stable)


def test_the_latent_of_a_variational_autoencoder(stable):
    """The mean, or a draw; both times the factor."""
    first, prior = small_kl().eval(), load_prior(stable)
    x, noise = images(1, 3, 16, 16), images(1, 4, 8, 8, seed=5)
    with torch.no_grad():
        posterior = first.encode(x).latent_dist
        mean, draw = prior.encode(x), prior.encode(x, noise)
        expected = 0.18215 * posterior.mean
        torch.testing.assert_close(mean, expected, rtol=0, atol=1e-5)
        expected = 0.18215 * (posterior.mean + posterior.std * noise)
        torch.testing.assert_close(draw, expected, rtol=0, atol=1e-5)
        decoded = first.decode(mean / 0.18215).sample
        torch.testing.assert_close(prior.decode(mean), decoded, rtol=0, atol=1e-5)


def test_the_old_names_of_attention_are_known(stable):
    """As in the published files of Stable Diffusion's autoencoder."""
    prior, x = load_prior(stable), images(1, 3, 16, 16)
    path = stable / "vae" / "diffusion_pytorch_model.safetensors"
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, value in load_file(path).items():
        for now, before in new.items():
            name = name.replace(f".{now}.", f".{before}.")
        tensors[name] = value
    assert sum("proj_attn" in name for name in tensors) == 4
    save_file(tensors, path)
    assert torch.equal(load_prior(stable).encode(x), prior.encode(x))


def test_a_folder_in_half_precision(stable):
    whole = load_prior(stable)
    for part in ("unet", "vae"):
        path = stable / part / "diffusion_pytorch_model.safetensors"
        half = {name: value.half() for name, value in load_file(path).items()}
        save_file(half, path.with_name("diffusion_pytorch_model.fp16.safetensors"))
        path.unlink()
    prior, x = load_prior(stable), images(1, 4, 8, 8)
    assert {p.dtype for p in prior.latent.network.parameters()} == {torch.float32}
    torch.testing.assert_close(prior.eps(x, 3.0), whole.eps(x, 3.0), rtol=0, atol=0.02)


def rewrite(name, **changes):
    """Change or, with None, drop what a configuration says."""

    def change(folder):
        path = folder / name
        options = json.loads(path.read_text())
        options.update(changes)
        path.write_text(json.dumps({k: v for k, v in options.items() if v != "drop"}))

    return change


def rewrite_tensors(name, edit, file="diffusion_pytorch_model.safetensors"):
    def change(folder):
        path = folder / name / file
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "unet/config.json").unlink(), "it has no config.json"),
        (lambda f: (f / "unet/config.json").write_text("{"), "no configuration"),
        (lambda f: (f / "unet/config.json").write_text("[]"), "no configuration"),
        (
            lambda f: (f / "unet/config.json").write_text("{}".ljust((1 << 20) + 1)),
            "no configuration: longer than 1048576 bytes",
        ),
        (
            lambda f: [
                (f / "unet/config.json").unlink(),
                (f / "unet/config.json").mkdir(),
            ],
            "it has no config.json",
        ),
        (lambda f: (f / "unet/config.json").write_text("[" * 99999), "no configura"),
        (rewrite("unet/config.json", _class_name="UNet1DModel"), "holds a UNet1DModel"),
        (rewrite("unet/config.json", _class_name=["os"]), "holds a"),
        (rewrite("unet/config.json", num_class_embeds=10), "num_class_embeds takes mo"),
        (
            rewrite("unet/config.json", addition_embed_type="text_time"),
            "addition_embed_type takes more than",
        ),
        (rewrite("unet/config.json", layers_per_block=10**9), "layers_per_block must"),
        (rewrite("unet/config.json", layers_per_block=2), "is missing"),
        (
            rewrite(
                "unet/config.json", reverse_transformer_layers_per_block=[10**9] * 2
            ),
            "reverse_transformer_layers_per_block must",
        ),
        (rewrite("unet/config.json", norm_num_groups=7), "makes no UNet2DCondition"),
        (rewrite("unet/config.json", layers_per_block=[[1], 2]), "unet: "),
        (rewrite("unet/config.json", block_out_channels="ab"), "must list"),
        (rewrite("unet/config.json", block_out_channels=[32] * 99), "must list"),
        (rewrite("unet/config.json", block_out_channels=[10**9, 10**9]), "must be in"),
        (rewrite("unet/config.json", attention_head_dim=0), "must be in 1..8192"),
        (rewrite("unet/config.json", attention_head_dim=-8), "must be in 1..8192"),
        (rewrite("unet/config.json", norm_eps=math.nan), "must be a number > 0"),
        (rewrite("unet/config.json", norm_eps="1"), "norm_eps must be a number > 0"),
        (rewrite("vae/config.json", mid_block_scale_factor=0), "must be a number > 0"),
        (
            rewrite("unet/config.json", downsample_padding=10**9),
            "downsample_padding must be in 0..1",
        ),
        (
            rewrite(
                "unet/config.json", layers_per_block=32, transformer_layers_per_block=32
            ),
            "has more layers than",
        ),
        (rewrite("unet/config.json", out_channels=8), r"conv_out\.weight has shape"),
        (
            lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
            "unet: has no diffusion_pytorch_model.safetensors$",
        ),
        (
            lambda f: (f / "unet/diffusion_pytorch_model.safetensors").rename(
                f / "unet/diffusion_pytorch_model.bin"
            ),
            r"pickles \(\.bin\) are not read: save it again .*safe_serialization=True",
        ),
        (
            rewrite_tensors("unet", lambda d: d.pop("conv_in.bias")),
            "'conv_in.bias' is ",
        ),
        (
            rewrite_tensors("unet", lambda d: d.update(more=torch.zeros(1))),
            "unexpected tensor 'more'",
        ),
        (
            rewrite_tensors(
                "vae", lambda d: d["decoder.conv_in.bias"].fill_(torch.nan)
            ),
            "decoder.conv_in.bias has NaN",
        ),
        (
            rewrite("vae/config.json", _class_name="AutoencoderTiny"),
            "no autoencoder kn",
        ),
        (rewrite("vae/config.json", shift_factor=0.1), "shift_factor"),
        (rewrite("vae/config.json", scaling_factor="x"), "the factor of its latents"),
        (rewrite("vae/config.json", scaling_factor=0), "must be > 0, got 0"),
        (rewrite("vae/config.json", scaling_factor=math.nan), "must be > 0, got nan"),
        (lambda f: shutil.rmtree(f / "vae"), "has no vae/"),
        (
            lambda f: shutil.rmtree(f / "scheduler"),
            r"scheduler_config.json is missing, .* load_prior\(path, schedule=",
        ),
        (
            rewrite("scheduler/scheduler_config.json", prediction_type=[]),
            r"prediction_type \[\] is not read; only epsilon, v_prediction, sample",
        ),
        (
            lambda f: save_file(
                {"a": EMPTY, "b": EMPTY + 1}, f / "empty_prompt.safetensors"
            ),
            "holds 2 tensors, must be one",
        ),
        (
            lambda f: save_file(
                {"a": torch.full_like(EMPTY, math.inf)}, f / "empty_prompt.safetensors"
            ),
            "the empty prompt must be the text encoder's states, .*, floating and fin",
        ),
        (
            lambda f: save_file({"a": images(1, 7, 9)}, f / "empty_prompt.safetensors"),
            r"a tensor \(1, tokens, 12\), got \(1, 7, 9\)",
        ),
    ],
)
def test_a_folder_that_is_not_right_is_refused(stable, change, message):
    change(stable)
    with pytest.raises(ValueError, match=message) as caught:
        load_prior(stable)
    assert str(stable) in str(caught.value)


@pytest.mark.parametrize(
    "prompt", ["a cat", np.zeros((1, 7, 12), np.float32), [[[0.0] * 12]]]
)
def test_a_prompt_is_a_tensor_of_states(stable, prompt):
    kind = type(prompt).__name__
    need = r"prompt must be the text encoder's states, a tensor \(1, tokens, 12\)"
    with pytest.raises(TypeError, match=f"stable: {need}, got a {kind}"):
        load_prior(stable, prompt=prompt)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (PROMPT[0], r"got \(5, 12\)"),
        (PROMPT[..., :9], r"got \(1, 5, 9\)"),
        (PROMPT[:, :0], r"got \(1, 0, 12\)"),
        (PROMPT.expand(2, -1, -1), r"got \(2, 5, 12\)"),
        (PROMPT * math.nan, "floating and finite"),
        (PROMPT.long(), "floating and finite"),
    ],
)
def test_a_prompt_has_the_shape_that_the_network_needs(stable, prompt, message):
    with pytest.raises(ValueError, match=f"stable: prompt must be .*{message}"):
        load_prior(stable, prompt=prompt)


def test_guidance_needs_a_prompt(stable):
    with pytest.raises(ValueError, match=r"guidance 7\.5 needs a prompt"):
        load_prior(stable, guidance=7.5)


@pytest.mark.parametrize("option", [{"head_width": 16}, {"qkv_order": "new"}])
def test_a_folder_tells_its_attention(stable, option):
    with pytest.raises(ValueError, match="stable: tells its head_width and qkv_order"):
        load_prior(stable, **option)


# ---- schedules of folders ----

CONFIG = "scheduler/scheduler_config.json"


@pytest.mark.parametrize("n", [1000, 50])
def test_a_cosine_schedule_is_that_of_diffusers(stable, n):
    theirs = diffusers.DDPMScheduler(n, beta_schedule="squaredcos_cap_v2")
    theirs.save_pretrained(stable / "scheduler")
    schedule = load_prior(stable).schedule
    assert schedule == CosineSchedule(n)
    betas = theirs.betas.double().numpy()
    ratio = schedule.alpha_bar(np.arange(n)) / np.cumprod(1 - betas)
    # theirs are rounded to float32
    bound = torch.finfo(torch.float32).eps * np.cumsum(betas / (1 - betas))
    assert (np.abs(ratio - 1) < bound).all()
    told = describe_prior(stable)["schedule"]
    assert told.startswith(f"squared cosine, beta at most 0.999, {n} times: sigma 0.")


UNREAD = [
    (rewrite(CONFIG, beta_schedule="sigmoid"), "beta_schedule 'sigmoid' is not read"),
    (rewrite(CONFIG, beta_schedule=["linear"]), r"beta_schedule \['linear'\] is not"),
    (rewrite(CONFIG, beta_schedule="drop"), "has no 'beta_schedule'"),
    (rewrite(CONFIG, trained_betas=[0.1]), "trained_betas is not read"),
    (rewrite(CONFIG, rescale_betas_zero_snr=True), "rescale_betas_zero_snr is not re"),
    (rewrite(CONFIG, beta_start="drop"), "has no 'beta_start'"),
    (rewrite(CONFIG, beta_start=2.0), "need 0 < start <= end < 1"),
    (rewrite(CONFIG, beta_start=[]), "a real number"),
    (rewrite(CONFIG, beta_end=10**400), "too large"),
    (rewrite(CONFIG, num_train_timesteps=10**12), "num_train_timesteps must be in"),
    (lambda f: shutil.rmtree(f / "scheduler"), "json is missing, which tells it"),
]


@pytest.mark.parametrize(("change", "message"), UNREAD)
def test_a_schedule_that_is_not_read_can_be_given(stable, change, message):
    change(stable)
    assert re.search(rf"^not read: .*{message}", describe_prior(stable)["schedule"])
    with pytest.raises(
        ValueError, match=f"stable: its noise schedule .*{message}.*; l"
    ):
        load_prior(stable)
    prior = load_prior(stable, schedule=SqrtVPSchedule())
    assert prior.schedule == prior.latent.schedule == SqrtVPSchedule()


def test_a_folder_that_tells_its_schedule_takes_another(stable):
    """As the published code of LatentDAPS has Stable Diffusion."""
    mine = SqrtVPSchedule()
    x = images(1, 4, 8, 8)
    told, given = load_prior(stable), load_prior(stable, schedule=mine)
    assert given.schedule == mine != told.schedule
    assert given.spec()["schedule"]["type"] == "SqrtVPSchedule"
    assert torch.equal(told.eps(x, 3.0), given.eps(x, 3.0))
    assert not torch.equal(told.latent.denoise(x, 1.0), given.latent.denoise(x, 1.0))


# ---- shards and indices of folders ----


@pytest.fixture
def sharded(stable):
    small_conditional().save_pretrained(stable / "unet", max_shard_size="100KB")
    (stable / "unet/diffusion_pytorch_model.safetensors").unlink()
    return stable


def test_a_network_in_shards_is_the_whole_one(sharded):
    assert len(list((sharded / "unet").glob("*-of-*.safetensors"))) > 1
    prior, net = load_prior(sharded), small_conditional().eval()
    got = prior.latent.network.network.state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(got[name], value)
    index = sharded / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.rename(index.with_name("diffusion_pytorch_model.safetensors.index.fp16.json"))
    x = images(1, 4, 8, 8)
    assert torch.equal(load_prior(sharded).eps(x, 3.0), prior.eps(x, 3.0))


@pytest.mark.parametrize("whole", ["stable", "sharded"])
def test_half_precision_is_not_read_where_there_is_more(whole, request):
    folder = request.getfixturevalue(whole)
    before, x = load_prior(folder), images(1, 4, 8, 8)
    small_conditional().half().save_pretrained(folder / "unet", variant="fp16")
    assert (folder / "unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    assert torch.equal(load_prior(folder).eps(x, 3.0), before.eps(x, 3.0))


def rewrite_index(edit):
    def change(folder):
        path = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
        content = json.loads(path.read_text())
        edit(content["weight_map"])
        path.write_text(json.dumps(content))

    return change


def elsewhere(file):
    def edit(where):
        (folder, name), *_ = [(file, name) for name in where]
        where[name] = folder

    return rewrite_index(edit)


def other_shard(where):
    first, *_, last = where
    where[first] = where[last]


def second_copy(folder):
    one, *_, other = sorted((folder / "unet").glob("*-of-*.safetensors"))
    tensors = load_file(other)
    save_file(tensors | {next(iter(load_file(one))): torch.zeros(1)}, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (elsewhere("../vae/diffusion_pytorch_model.safetensors"), "no safetensors fil"),
        (elsewhere("/etc/a.safetensors"), "is no safetensors file beside it"),
        (elsewhere("a.bin"), "'a.bin' is no safetensors file beside it"),
        (elsewhere("a\0.safetensors"), "is no safetensors file beside it"),
        (elsewhere(["a.safetensors"]), "is no safetensors file beside it"),
        (elsewhere("a.safetensors"), r"no such file: .*a\.safetensors"),
        (
            rewrite_index(other_shard),
            "lacks '.*' of .*index.json|has '.*', but not by",
        ),
        (
            rewrite_index(lambda w: w.update(more=next(iter(w.values())))),
            "lacks 'more' of",
        ),
        (
            rewrite_index(lambda w: w.pop(next(iter(w)))),
            "has '.*', but not by .*index.json",
        ),
        (rewrite_index(lambda w: w.clear()), "has no weight_map"),
        (second_copy, "has '.*', but not by .*index.json"),
    ],
)
def test_shards_hold_what_their_index_says(sharded, change, message):
    change(sharded)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_prior(sharded)
    assert str(sharded / "unet") in str(caught.value)


@pytest.mark.parametrize("missing", ["unet", "vqvae"])
def test_a_part_that_the_index_lists_is_named(tmp_path, missing):
    small_unet().save_pretrained(tmp_path / "unet")
    small_vq().save_pretrained(tmp_path / "vqvae")
    scheduler().save_pretrained(tmp_path / "scheduler")
    index = {"_class_name": "LDMPipeline", "vae": [None, None]}
    for part in ("unet", "vqvae", "scheduler"):
        index[part] = ["diffusers", "Any"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    load_prior(tmp_path)
    (tmp_path / missing).rename(tmp_path / "renamed")
    with pytest.raises(
        ValueError, match=f"has no {missing}/, which model_index.json l"
    ):
        load_prior(tmp_path)


# ---- the text encoder ----


TOKENS = torch.tensor([[49406] + 76 * [49407]])


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """A text encoder of random weights, and its own states of the tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("clip") / "text_encoder"
    config = CLIPTextConfig(
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=49408,
    )
    torch.manual_seed(5)
    net = CLIPTextModel(config).eval()
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn_like(value), alpha=0.3)
        states = net(TOKENS).last_hidden_state
        padded = net(torch.tensor([[49406, 49407] + 75 * [0]])).last_hidden_state
    net.save_pretrained(folder)
    return folder, states, padded


@pytest.fixture
def texted(stable, encoded):
    (stable / "empty_prompt.safetensors").unlink()
    shutil.copytree(encoded[0], stable / "text_encoder")
    return stable


# the order of sums in attention, of two layers and entries of order 1
CLIP_CLOSE = {"rtol": 0, "atol": 64 * torch.finfo(torch.float32).eps}


def test_the_states_of_no_text_are_those_of_transformers(texted, encoded):
    before = torch.get_rng_state()
    states = empty_prompt(texted)
    assert torch.equal(torch.get_rng_state(), before)
    assert states.dtype == torch.float32 and not states.requires_grad
    torch.testing.assert_close(states, encoded[1], **CLIP_CLOSE)
    prior = load_prior(texted)
    assert torch.equal(prior.latent.network.states, states)
    save_file({"states": states}, texted / "empty_prompt.safetensors")
    shutil.rmtree(texted / "text_encoder")
    assert torch.equal(empty_prompt(texted), states)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_files_of_every_version_of_transformers_are_read(
    texted, prefix, activation, encoded
):
    """With a prefix and the positions' numbers, as in the published ones."""
    path = texted / "text_encoder/model.safetensors"
    tensors = {
        prefix + name.removeprefix("text_model."): value
        for name, value in load_file(path).items()
    }
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, path)
    rewrite("text_encoder/config.json", hidden_act=activation)(texted)
    same = torch.allclose(empty_prompt(texted), encoded[1], **CLIP_CLOSE)
    assert same == (activation == "quick_gelu")


@pytest.mark.parametrize(
    ("file", "pad", "zero"),
    [
        ("special_tokens_map.json", "<|endoftext|>", False),
        ("special_tokens_map.json", {"content": "<|endoftext|>"}, False),
        ("special_tokens_map.json", "!", True),
        ("tokenizer_config.json", {"content": "!"}, True),
    ],
)
def test_the_padding_is_that_of_the_tokenizer(texted, encoded, file, pad, zero):
    (texted / "tokenizer").mkdir()
    (texted / "tokenizer" / file).write_text(json.dumps({"pad_token": pad}))
    torch.testing.assert_close(empty_prompt(texted), encoded[1 + zero], **CLIP_CLOSE)


ENCODER = "text_encoder/config.json"


@pytest.mark.parametrize(
    "options",
    [
        {"attn_implementation": "nobody/kernel", "_attn_implementation": "nobody/k"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"adapter_config": "nobody/adapter", "auto_map": {"AutoModel": "x.Y"}},
        {"trust_remote_code": True, "architectures": ["Other"], "model_type": "llama"},
        {"dtype": "float16", "output_hidden_states": True, "return_dict": False},
    ],
)
def test_nothing_but_sizes_of_an_encoders_configuration_counts(
    texted, encoded, options
):
    rewrite(ENCODER, **options)(texted)
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "nobody/model"}
    (texted / "text_encoder/adapter_config.json").write_text(json.dumps(adapter))
    torch.testing.assert_close(empty_prompt(texted), encoded[1], **CLIP_CLOSE)


def rewrite_encoder(edit):
    return rewrite_tensors("text_encoder", edit, "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            rewrite(ENCODER, hidden_act="nobody/kernel"),
            "hidden_act must be quick_gelu ",
        ),
        (
            rewrite(ENCODER, hidden_act=["gelu"]),
            "hidden_act must be quick_gelu or gelu",
        ),
        (rewrite(ENCODER, hidden_size=10**9), "hidden_size must be in 1..8192"),
        (rewrite(ENCODER, hidden_size=True), "hidden_size must be an integer"),
        (rewrite(ENCODER, hidden_size="drop"), "hidden_size must be an integer, got N"),
        (rewrite(ENCODER, num_hidden_layers=10**9), "num_hidden_layers must be in"),
        (rewrite(ENCODER, num_hidden_layers=3), "tensor .* is missing"),
        (rewrite(ENCODER, num_hidden_layers=1), "unexpected tensor"),
        (
            rewrite(ENCODER, num_attention_heads=5),
            "must be a multiple of num_attention",
        ),
        (rewrite(ENCODER, num_attention_heads=0), "num_attention_heads must be in"),
        (rewrite(ENCODER, vocab_size=49407), "vocab_size must be in 49408"),
        (rewrite(ENCODER, vocab_size=1 << 20), "token_embedding.weight has shape"),
        (rewrite(ENCODER, max_position_embeddings=76), "max_position_embeddings must"),
        (rewrite(ENCODER, intermediate_size=-1), "intermediate_size must be in"),
        (rewrite(ENCODER, layer_norm_eps=math.nan), "layer_norm_eps must be in"),
        (rewrite(ENCODER, layer_norm_eps="1e-5"), "layer_norm_eps must be in"),
        (lambda f: (f / ENCODER).unlink(), "it has no config.json"),
        (
            lambda f: (f / "text_encoder/model.safetensors").rename(
                f / "text_encoder/pytorch_model.bin"
            ),
            "has no model.safetensors; a folder's pickles",
        ),
        (
            rewrite_encoder(lambda d: d.update(more=torch.zeros(1))),
            "unexpected tensor 'more'",
        ),
        (
            rewrite_encoder(lambda d: next(iter(d.values())).fill_(math.nan)),
            "has NaN or infinite entries",
        ),
        (lambda f: shutil.rmtree(f / "text_encoder"), "needs empty_prompt.safetensors"),
        (
            lambda f: [
                (f / "tokenizer").mkdir(),
                (f / "tokenizer/special_tokens_map.json").write_text(
                    '{"pad_token": "<pad>"}'
                ),
            ],
            "unknown pad_token '<pad>'",
        ),
    ],
)
def test_an_encoder_that_is_not_right_is_refused(texted, change, message):
    change(texted)
    with pytest.raises(ValueError, match=message) as caught:
        load_prior(texted)
    assert str(texted) in str(caught.value)


def test_without_the_package_the_states_are_needed(texted, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"has no empty_prompt.*diffstategrad\[text\]"):
        empty_prompt(texted)


# ---- what it is ----


def test_a_description_reads_no_weights(ldm, stable):
    def read(self, name):
        assert name == "betas"
        return LDM_BETAS

    with patch.object(Tensors, "__getitem__", read):
        assert "LDM" in describe_prior(ldm)["kind"]
        lines = describe_prior(stable)
    assert lines["kind"] == "Stable Diffusion"
    assert lines["network"] == f"{small_conditional().num_parameters():,} parameters"
    assert lines["first stage"] == f"{small_kl().num_parameters():,} parameters"
    assert lines["images"] == "3 channels, sides multiples of 4, trained at 16 x 16"
    assert lines["latent"] == "4 channels, sides / 2, scaled by 0.18215"
    assert lines["schedule"] == (
        "beta 0.00085 to 0.012, linear in the root, 1000 times: sigma 0.0292 to 14.6"
    )


def test_info_tells_what_a_file_is(adm, tmp_path, capsys):
    assert main(["info", str(adm)]) == 0
    out = capsys.readouterr().out
    assert "guided diffusion (ADM) network on pixels" in out
    assert f"heads of 64 channels {ASSUMED}" in out
    assert "epsilon and the code of a variance" in out
    assert "3 channels, sides multiples of 32, trained at 256 x 256" in out
    schedule = "beta 0.0001 to 0.02, linear, 1000 times: sigma 0.01 to 157"
    assert f"{schedule} {ASSUMED}" in out
    assert main(["info", f"{dsg.__path__[0]}/weights/leaves64.safetensors"]) == 0
    assert "diffstategrad train" in capsys.readouterr().out
    (tmp_path / "page.pt").write_bytes(b"<!DOCTYPE html>")
    assert main(["info", str(tmp_path / "page.pt")]) == 2
    assert "page.pt: neither an archive" in capsys.readouterr().err


# ---- published sizes ----


def published_ldm(path, seed=0):
    tensors = manifests.state(
        manifests.shapes("ldm_vq4_ffhq_checkpoint_all"), seed, scale=0.02
    )
    torch.save({"state_dict": {**tensors, "betas": LDM_BETAS}, "epoch": 1}, path)


def run_once(prior, side=64):
    """Of a network of published size on a small image."""
    x = images(1, 3, side, side)
    with torch.no_grad():
        z = prior.encode(x) if isinstance(prior, LatentPrior) else x
        out, _ = prior.predict(z, 0.5)
        if isinstance(prior, LatentPrior):
            assert prior.decode(z).shape == x.shape
    assert out.shape == z.shape and out.isfinite().all() and out.std() > 0


@pytest.mark.parametrize("name", ["adm_ffhq256", "adm_celebahq_p2"])
def test_a_file_with_the_names_of_ffhq(tmp_path, name):
    path = tmp_path / f"{name}.pt"
    torch.save(manifests.state(manifests.shapes(name)), path)
    assert describe_prior(path)["network"] == "93,563,910 parameters"
    run_once(load_prior(path))


def test_a_file_with_the_names_of_vq_f4(tmp_path):
    tensors = manifests.state(manifests.shapes("vq_f4"))
    torch.save({"state_dict": tensors}, tmp_path / "model.ckpt")
    stage = open_checkpoint(tmp_path / "model.ckpt").load_first_stage(torch.float32)
    z = stage.encode(images(1, 3, 32, 32))
    assert z.shape == (1, 3, 8, 8) and stage.decode(z).shape == (1, 3, 32, 32)


def test_the_description_of_every_published_file(tmp_path):
    for name in ("adm_imagenet256", "adm_lsun256"):
        path = tmp_path / f"{name}.pt"
        torch.save(manifests.state(manifests.shapes(name)), path)
        assert describe_prior(path)["network"] == "552,814,086 parameters"
        path.unlink()
    published_ldm(tmp_path / "model.ckpt")
    lines = describe_prior(tmp_path / "model.ckpt")
    assert lines["network"] == "274,056,163 parameters"
    assert lines["first stage"] == "55,322,782 parameters"
    assert lines["images"] == "3 channels, sides multiples of 32, trained at 256 x 256"
    assert lines["latent"] == "3 channels, sides / 4, scaled by 1"
    assert lines["weights"] == "raw (of raw, ema)"


SD_UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}


def sparse(path, shapes):
    """A file of zeros in half precision, which takes no room on a disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        entry = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
        header[name] = entry
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture
def published_stable(tmp_path):
    for part, config in (("unet", SD_UNET), ("vae", SD_VAE)):
        folder = tmp_path / part
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        sparse(
            folder / "diffusion_pytorch_model.safetensors",
            manifests.shapes(f"sd15_{part}.diffusers"),
        )
    scheduler().save_pretrained(tmp_path / "scheduler")
    save_file(
        {"states": torch.zeros(1, 77, 768)}, tmp_path / "empty_prompt.safetensors"
    )
    return tmp_path


def test_the_description_of_stable_diffusion(published_stable):
    lines = describe_prior(published_stable)
    assert lines["network"] == "859,520,964 parameters"
    assert lines["first stage"] == "83,653,863 parameters"
    assert lines["images"] == "3 channels, sides multiples of 64, trained at 512 x 512"


@pytest.mark.large
def test_stable_diffusion_of_published_size_runs(published_stable):
    prior = load_prior(published_stable, dtype=torch.bfloat16)
    with torch.no_grad():
        z = prior.encode(images(1, 3, 64, 64))
        assert z.shape == (1, 4, 8, 8) and not z.any()
        assert not prior.eps(z, 500.0).any() and not prior.decode(z).any()


@pytest.mark.large
@pytest.mark.parametrize("name", ["adm_imagenet256", "adm_lsun256"])
def test_a_large_network_of_published_size_runs(tmp_path, name):
    torch.save(manifests.state(manifests.shapes(name)), tmp_path / "net.pt")
    run_once(load_prior(tmp_path / "net.pt"))


@pytest.mark.large
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_latent_diffusion_of_published_size_runs(tmp_path, weights):
    published_ldm(tmp_path / "model.ckpt")
    run_once(load_prior(tmp_path / "model.ckpt", weights=weights))


@pytest.mark.large
def test_loading_takes_the_memory_of_the_weights_once(tmp_path):
    """A file of 0.36 GB, in a process of its own."""
    generator = torch.Generator().manual_seed(0)
    shapes = manifests.shapes("adm_ffhq256")
    tensors = {k: 0.05 * torch.randn(s, generator=generator) for k, s in shapes.items()}
    torch.save(tensors, tmp_path / "net.pt")
    code = (
        "import diffusers, sys, torch; from diffusers import UNet2DModel\n"
        "from diffstategrad.priors import describe_prior, load_prior\n"
        "def peak(): return int(next(line.split()[1] for line in "
        "open('/proc/self/status') if line.startswith('VmHWM')))\n"
        "describe_prior(sys.argv[1]); before = peak()\n"
        "prior = load_prior(sys.argv[1]); print(1024 * (peak() - before))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "net.pt")],
        capture_output=True,
        check=True,
        text=True,
    )
    weights = 4 * 93_563_910
    assert 0.9 * weights < int(out.stdout) < 1.3 * weights


@pytest.mark.parametrize(("log_variance", "std"), [(-99.0, -15.0), (99.0, 10.0)])
def test_the_spread_of_an_encoder_is_bounded_as_in_its_training(log_variance, std):
    net = torch.nn.Module()
    net.config = SimpleNamespace(
        in_channels=1, latent_channels=1, block_out_channels=(8,)
    )
    net.quant_conv = None
    net.encoder = lambda x: torch.cat([x, torch.full_like(x, log_variance)], 1)
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    draw = KLFirstStage(net).encode(x, torch.ones_like(x))
    assert torch.allclose(draw.log(), torch.full_like(x, std), rtol=1e-12)
