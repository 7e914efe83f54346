"""From names of published checkpoints to those of diffusers."""

from __future__ import annotations

from pathlib import Path

import diffusers
import manifests
import pytest
import torch

from diffstategrad.models import keys
from diffstategrad.models.archive import Tensors

LDM = "model.diffusion_model."
UNETS = {
    "adm_ffhq256": "",
    "adm_celebahq_p2": "",
    "adm_imagenet256": "",
    "adm_lsun256": "",
    "ldm_vq4_ffhq_unet": LDM,
}
#: Those that are the same network have one table.
TABLE = {"adm_celebahq_p2": "adm_ffhq256", "adm_lsun256": "adm_imagenet256"}


def scheme(name):
    """Shapes, arguments of the class, rows, class."""
    shapes = manifests.shapes(name, UNETS.get(name, ""))
    if name in UNETS:
        rows, kind = keys.unet_rows(shapes), diffusers.UNet2DModel
        return shapes, keys.unet_config(shapes), rows, kind
    return shapes, keys.vq_config(shapes), keys.vq_rows(shapes), diffusers.VQModel


def empty(kind, config):
    with torch.device("meta"):
        return kind(**config)


@pytest.mark.parametrize("name", [*UNETS, "vq_f4"])
def test_every_name_becomes_what_the_manifest_says(name):
    _, _, rows, _ = scheme(name)
    prefix = UNETS.get(name, "")
    found = [(prefix + row.source, row.op, row.target) for row in rows]
    assert sorted(found) == sorted(manifests.table(f"{TABLE.get(name, name)}.keymap"))


@pytest.mark.parametrize("name", [*UNETS, "vq_f4"])
def test_the_network_of_the_shapes_is_that_of_the_manifest(name):
    shapes, config, rows, kind = scheme(name)
    net = empty(kind, config)
    found = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    assert found == manifests.shapes(f"{TABLE.get(name, name)}.diffusers")
    keys.check_keys(net, shapes, rows, config.get("attention_head_dim", 1))


def test_published_sizes_follow_from_the_shapes():
    small = keys.unet_config(manifests.shapes("adm_ffhq256"))
    assert small["block_out_channels"] == (128, 128, 256, 256, 512, 512)
    assert small["layers_per_block"] == 1 and small["attention_head_dim"] == 64
    assert (small["in_channels"], small["out_channels"]) == (3, 6)
    assert small["sample_size"] == 256
    large = keys.unet_config(manifests.shapes("adm_imagenet256"))
    assert large["down_block_types"][2:4] == (
        "ResnetDownsampleBlock2D",
        "AttnDownBlock2D",
    )
    latent = keys.unet_config(manifests.shapes("ldm_vq4_ffhq_unet", LDM))
    assert latent["block_out_channels"] == (224, 448, 672, 896)
    assert latent["attention_head_dim"] == 32 and latent["sample_size"] == 64
    assert latent["resnet_time_scale_shift"] == "default"


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_rows_of_queries_keys_and_values_are_told_apart(order):
    """A tensor whose rows say what and of which head they are."""
    heads, width = 3, 2
    kinds = torch.arange(3).expand(heads, width, 3)  # 0, 1, 2 for q, k, v
    axes = (0, 2, 1) if order == "legacy" else (2, 0, 1)
    marked = kinds + 10 * torch.arange(heads)[:, None, None]
    qkv = marked.permute(axes).reshape(-1).float()
    weight = qkv[:, None, None].expand(-1, heads * width, 1).contiguous()
    for i, part in enumerate("qkv"):
        expected = (10.0 * torch.arange(heads) + i).repeat_interleave(width)
        op = f"{order}_{part}"
        assert torch.equal(keys._apply(op, qkv, width), expected)
        got = keys._apply(op, weight, width)
        assert torch.equal(got, expected[:, None].expand(-1, heads * width))


@pytest.fixture(scope="module")
def adm():
    return manifests.shapes("adm_ffhq256")


def check(shapes, **options):
    config = keys.unet_config(shapes, **options)
    rows = keys.unet_rows(shapes)
    net = empty(diffusers.UNet2DModel, config)
    keys.check_keys(net, shapes, rows, config["attention_head_dim"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("out.0.bias"), "tensor 'out.0.bias' is missing (1 in all)"),
        (
            lambda d: d.pop("middle_block.1.qkv.bias"),
            "tensor 'middle_block.1.qkv.bias' is missing (1 in all)",
        ),
        (
            lambda d: [d.pop(f"out.0.{kind}") for kind in ("weight", "bias")],
            "tensor 'conv_norm_out.weight', 'conv_norm_out.bias' is missing",
        ),
        (lambda d: d.pop("out.2.weight"), "tensor 'out.2.weight' is missing"),
        (
            lambda d: [d.pop(f"middle_block.{i}.in_layers.0.bias") for i in (0, 2)],
            "'middle_block.0.in_layers.0.bias', 'middle_block.2.in_layers.0.bias' is "
            "missing (2 in all)",
        ),
        (lambda d: d.update(more=(1,)), "unexpected tensor 'more' (1 in all)"),
        (
            lambda d: d.update({f"more.{i}": (1,) for i in range(5)}),
            "unexpected tensor 'more.0', 'more.1', 'more.2' (5 in all)",
        ),
        (
            lambda d: d.update({"middle_block.3.norm.bias": (512,)}),
            "unexpected tensor 'middle_block.3.norm.bias'",
        ),
        (
            lambda d: d.update({"middle_block.0.skip_connection.bias": (512,)}),
            "unexpected tensor 'middle_block.0.skip_connection.bias'",
        ),
        (
            lambda d: d.update({"input_blocks.0.0.scale": (1,)}),
            "unexpected tensor 'input_blocks.0.0.scale'",
        ),
        (
            lambda d: d.update({"time_embed.0.bias": (7,)}),
            "time_embed.0.bias has shape [7], needs [512]",
        ),
        (
            lambda d: d.update({"middle_block.1.qkv.bias": (1535,)}),
            "middle_block.1.qkv.bias has shape [1535] to become "
            "mid_block.attentions.0.to_q.bias, of [512]",
        ),
        (
            lambda d: d.update({"middle_block.1.proj_out.weight": (512, 512, 2)}),
            "middle_block.1.proj_out.weight has shape [512, 512, 2] to become",
        ),
        (
            lambda d: d.update({"out.2.weight": (6, 128, 3)}),
            "out.2.weight has 3 axes, needs 4",
        ),
        (
            lambda d: d.update({"out.2.weight": (2**40, 128, 3, 3)}),
            "axis 0 of out.2.weight must be in",
        ),
        (
            lambda d: [d.pop(k) for k in list(d) if k.startswith("output_blocks.11.")],
            "11 output blocks, 5 of which go up, make no U-Net",
        ),
        (
            lambda d: [d.pop(k) for k in list(d) if k.startswith("output_")],
            "0 output blocks, 0 of which go up",
        ),
        (
            lambda d: d.update({"label_emb.weight": (1000, 512)}),
            "takes a class or a text (label_emb.weight)",
        ),
        (
            lambda d: d.update(
                {"input_blocks.9.1.transformer_blocks.0.norm1.bias": (512,)}
            ),
            "takes a class or a text",
        ),
        (
            lambda d: d.update({"input_blocks.1.0.out_layers.0.weight": (100,)}),
            "a level of 100 channels is no multiple of 32 groups",
        ),
        (
            lambda d: d.update({f"output_blocks.{n}.0.x": (1,) for n in range(6 * 34)}),
            "number of blocks in a level must be in 1..32, got 33",
        ),
        (
            lambda d: [
                d.update({f"output_blocks.{n}.0.x": (1,) for n in range(40)}),
                d.update({f"output_blocks.{n}.1.conv.weight": () for n in range(19)}),
            ],
            "number of levels must be in 1..16, got 20",
        ),
    ],
)
def test_the_first_names_that_differ_are_told(adm, change, message):
    shapes = dict(adm)
    change(shapes)
    with pytest.raises(ValueError) as caught:
        check(shapes)
    assert message in str(caught.value)


def test_the_width_of_a_head_is_for_the_user_to_say(adm):
    check(adm, head_width=128)
    with pytest.raises(ValueError, match=r"a level of 512 channels .* heads of 100"):
        check(adm, head_width=100)


def test_a_network_of_the_size_512_is_refused(adm):
    """Its first level is half as wide as its times, which diffusers has not."""
    halved = {
        name: tuple(n // 2 if n in (128, 256) else n for n in shape)
        if not name.startswith("time_embed")
        else shape
        for name, shape in adm.items()
    }
    with pytest.raises(ValueError, match=r"time_embed\.0\.weight has shape"):
        check(halved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("quantize.embedding.weight"), "without a codebook"),
        (lambda d: d.pop("encoder.conv_in.bias"), "'encoder.conv_in.bias' is missing"),
        (
            lambda d: d.update({"encoder.down.2.attn.0.norm.bias": (512,)}),
            "unexpected tensor 'encoder.down.2.attn.0.norm.bias'",
        ),
        (
            lambda d: d.update({"loss.logvar": ()}),
            "unexpected tensor 'loss.logvar'",
        ),
        (
            lambda d: d.update({"encoder.down.1.block.0.norm2.weight": (100,)}),
            "a level of 100 channels",
        ),
        (
            lambda d: d.update({"decoder.up.7.block.0.norm1.weight": (128,)}),
            "unexpected tensor 'decoder.up.7.block.0.norm1.weight'",
        ),
        (
            lambda d: d.update({"encoder.down.9.block.0.norm2.weight": (128,)}),
            "encoder",
        ),
        (
            lambda d: d.update({f"encoder.down.{n}.x": (1,) for n in range(17)}),
            "number of levels must be in 1..16, got 17",
        ),
        (
            lambda d: d.update(
                {f"encoder.down.0.block.{n}.x": (1,) for n in range(99)}
            ),
            "number of blocks in a level must be in 1..32, got 99",
        ),
        (
            lambda d: d.update({"encoder.mid.attn_1.q.weight": (512, 512)}),
            "encoder.mid.attn_1.q.weight has shape [512, 512] to become",
        ),
    ],
)
def test_the_first_names_of_an_autoencoder_that_differ_are_told(change, message):
    shapes = manifests.shapes("vq_f4")
    change(shapes)
    with pytest.raises(ValueError) as caught:
        config = keys.vq_config(shapes)
        rows = keys.vq_rows(shapes)
        keys.check_keys(empty(diffusers.VQModel, config), shapes, rows)
    assert message in str(caught.value)


# ---- filling ----


def linear(weight, bias):
    """A file of a layer 2 -> 3."""
    stored = {"weight": weight, "bias": bias}
    shapes = {name: tuple(value.shape) for name, value in stored.items()}
    return Tensors(Path("net.pt"), shapes, stored.__getitem__)


def filled(tensors, dtype=torch.float32):
    with torch.device("meta"):
        net = torch.nn.Linear(2, 3)
    keys.fill(net, tensors, keys.same_keys(tensors.shapes), dtype=dtype)
    return net


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_network_without_memory_gets_its_tensors(dtype):
    weight, bias = torch.randn(3, 2).double(), torch.randn(3).half()
    net = filled(linear(weight, bias), dtype)
    assert torch.equal(net.weight, weight.to(dtype))
    assert torch.equal(net.bias, bias.to(dtype))
    assert not net.training and not net.weight.requires_grad


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.tensor([1.0, torch.nan, 0.0]), "bias has NaN or infinite"),
        (torch.tensor([1.0, torch.inf, 0.0]), "bias has NaN or infinite"),
        (torch.tensor([1, 2, 3]), "bias has dtype torch.int64, needs a floating one"),
        (torch.zeros(4), r"bias has shape \[4\], needs \[3\]"),
        (torch.full((3,), 1e6), None),
    ],
)
def test_tensors_that_are_no_weights_are_named(bias, message):
    tensors = linear(torch.zeros(3, 2), bias)
    if message is None:
        filled(tensors)
        with pytest.raises(ValueError, match=r"infinite entries in torch\.float16"):
            filled(tensors, torch.float16)
    else:
        with pytest.raises(ValueError, match=message):
            filled(tensors)


def test_a_network_that_no_memory_holds_is_refused(monkeypatch):
    monkeypatch.setattr(keys, "_MAX_PARAMETERS", 8)
    with pytest.raises(ValueError, match="larger than any network"):
        filled(linear(torch.zeros(3, 2), torch.zeros(3)))


def test_two_tensors_for_one_place_are_refused():
    tensors = linear(torch.zeros(3, 2), torch.zeros(3))
    rows = keys.same_keys(tensors.shapes)
    rows.append(keys.Row("bias", "copy", "weight"))
    with pytest.raises(ValueError, match="two tensors of the file"):
        keys.check_keys(torch.nn.Linear(2, 3), tensors.shapes, rows)
