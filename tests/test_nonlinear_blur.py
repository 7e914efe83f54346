"""The encoded-kernel blur: network, files, operator.

Parity with the published network is in test_published.py.
"""

from __future__ import annotations

import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from published import fill_by_formula
from safetensors.torch import save_file

from diffstategrad.models.kernel_wizard import KernelWizard, load_kernel_wizard
from diffstategrad.operators import NonlinearBlur, build

SMALL = {"width": 2, "front_blocks": 1, "back_blocks": 2, "kernel_channels": 5}
INNERMOST = "adapter.model." + "submodule." * 4 + "up.1.weight"
FIRST = "feature_extractor.0.weight"
LAST = "recon_trunk.10.bias"


@pytest.fixture(scope="module")
def net():
    return fill_by_formula(KernelWizard(**SMALL), salt=3)


@pytest.fixture(scope="module")
def operator(net):
    return NonlinearBlur(net)


def images(b, h=128, w=128, dtype=torch.float32, seed=0):
    source = torch.Generator().manual_seed(seed)
    return (
        1.6 * torch.rand(b, 3, h, w, generator=source, dtype=torch.float64).to(dtype)
        - 0.8
    )


# ---- network ----


def test_default_sizes_give_the_published_tensors():
    with torch.device("meta"):
        state = KernelWizard().state_dict()
    assert len(state) == 145
    assert sum(value.numel() for value in state.values()) == 23_662_531
    assert state[INNERMOST].shape == (1024, 512, 4, 4)
    assert state["feature_extractor.15.conv2.bias"].shape == (64,)
    assert state["recon_trunk.28.weight"].shape == (3, 64, 3, 3)


def test_network_adds_to_the_image(net):
    flat = KernelWizard(**SMALL)
    for parameter in flat.parameters():
        parameter.data.zero_()
    x, code = images(2), torch.ones(1, 5, 1, 1)
    assert torch.equal(flat(x, code), x)
    assert not torch.allclose(net(x, code), x, atol=1e-3)


def test_network_takes_one_code_for_each_image(net):
    x, codes = images(2), torch.randn(2, 5, 1, 1, generator=torch.manual_seed(0))
    alone = torch.cat([net(x[i : i + 1], codes[i : i + 1]) for i in range(2)])
    # sums in another order
    torch.testing.assert_close(net(x, codes), alone, rtol=0, atol=2e-6)
    assert not torch.allclose(net(x, codes[:1])[1], alone[1], atol=1e-4)


@pytest.mark.parametrize(
    ("x", "code", "message"),
    [
        ((1, 3, 128, 100), (1, 5, 1, 1), "multiples of 128, got 128 x 100"),
        ((1, 3, 0, 128), (1, 5, 0, 1), "multiples of 128, got 0 x 128"),
        ((1, 3, 128, 256), (1, 5, 1, 1), r"must have the shape \(1, 5, 1, 2\)"),
        ((1, 3, 128, 128), (1, 4, 1, 1), r"got \(1, 4, 1, 1\)"),
        ((3, 3, 128, 128), (2, 5, 1, 1), r"\(3, 5, 1, 1\) or \(1, 5, 1, 1\)"),
        ((1, 3, 128, 128), (5, 1, 1), r"got \(5, 1, 1\)"),
    ],
)
def test_network_names_sizes_that_do_not_fit(net, x, code, message):
    with pytest.raises(ValueError, match=message):
        net(torch.zeros(x), torch.zeros(code))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"width": 0}, "width must be in"),
        ({"front_blocks": -1}, "front_blocks must be in"),
        ({"back_blocks": 2.0}, "back_blocks must be an integer"),
        ({"kernel_channels": True}, "kernel_channels must be an integer"),
    ],
)
def test_network_rejects_bad_sizes(option, message):
    with pytest.raises(ValueError, match=message):
        KernelWizard(**option)


# ---- files ----


def published(net):
    """The network's tensors and two that are not used here, as in the real file."""
    extra = {
        "kernel_extractor.model.1.weight": torch.full((2, 6, 7, 7), torch.nan),
        "kernel_extractor.model.1.bias": torch.zeros(2),
    }
    return {**{k: v.clone() for k, v in net.state_dict().items()}, **extra}


def nested(state, path):
    torch.save({"state_dict": state, "epoch": 3}, path)


def legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("save", "name"),
    [
        (torch.save, "net.pth"),
        (torch.save, "net.PT"),
        (nested, "net.ckpt"),
        (save_file, "net.safetensors"),
    ],
    ids=["pth", "suffix", "nested", "safetensors"],
)
def test_a_file_gives_the_network_back(net, tmp_path, save, name):
    save(published(net), tmp_path / name)
    before = torch.get_rng_state()
    again = load_kernel_wizard(tmp_path / name)
    assert torch.equal(torch.get_rng_state(), before)
    assert again.architecture == SMALL
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    state = again.state_dict()
    assert list(state) == list(net.state_dict())
    for key, value in net.state_dict().items():
        assert torch.equal(state[key], value), key
    (tmp_path / name).write_bytes(b"")  # nothing stays mapped
    assert torch.equal(again.recon_trunk[10].bias, net.recon_trunk[10].bias)


@pytest.mark.parametrize("blocks", [(0, 0), (3, 1)])
def test_sizes_follow_from_the_shapes(tmp_path, blocks):
    sizes = dict(
        zip(("front_blocks", "back_blocks"), blocks, strict=True),
        width=3,
        kernel_channels=24,
    )
    torch.save(KernelWizard(**sizes).state_dict(), tmp_path / "net.pth")
    assert load_kernel_wizard(tmp_path / "net.pth").architecture == sizes


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_precision_become_float32(net, tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in net.state_dict().items()}
    torch.save(state, tmp_path / "net.pth")
    again = load_kernel_wizard(tmp_path / "net.pth").state_dict()
    assert all(torch.equal(again[key], state[key].float()) for key in state)


BLOCK = "feature_extractor.6.conv1.weight"


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop(FIRST), f"'{FIRST}' is missing"),
        (lambda d: d.pop(INNERMOST), f"'{INNERMOST}' is missing"),
        (lambda d: d.pop(BLOCK), f"'{BLOCK}' is missing (1 in all)"),
        (lambda d: d.pop(LAST), f"'{LAST}' is missing (1 in all)"),
        (lambda d: d.update(more=torch.zeros(1)), "unexpected tensor 'more' (1"),
        (lambda d: d.update({"adapter.more": torch.zeros(1)}), "'adapter.more'"),
        (
            lambda d: d.update({LAST: torch.zeros(4)}),
            f"{LAST} has shape [4], needs [3]",
        ),
        (lambda d: d.update({LAST: torch.zeros(3).int()}), "has dtype torch.int32"),
        (lambda d: d.update({FIRST: torch.zeros(2)}), "has 1 axes, needs 4"),
        (
            lambda d: d.update({FIRST: torch.zeros(0, 3, 3, 3)}),
            f"axis 0 of {FIRST} must be in",
        ),
        (lambda d: d.update({INNERMOST: torch.zeros(16, 16, 4, 4)}), "kernel_channels"),
        (lambda d: d[LAST].fill_(torch.nan), f"{LAST} has NaN or infinite"),
        (lambda d: d[FIRST].view(-1)[7].fill_(-torch.inf), f"{FIRST} has NaN or inf"),
        (
            lambda d: d.update({"recon_trunk.999.conv1.bias": torch.zeros(2)}),
            "back_blocks must be in 0..128, got 1000",
        ),
    ],
)
def test_wrong_tensors_are_named(net, tmp_path, suffix, change, message):
    path, state = tmp_path / f"net.{suffix}", published(net)
    change(state)
    (torch.save if suffix == "pth" else save_file)(state, path)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_kernel_wizard(path)
    assert str(path) in str(caught.value)


def test_shapes_without_the_memory_behind_them_allocate_nothing(tmp_path):
    """A file of a few bytes can claim any shape by strides of zero."""
    with torch.device("meta"):
        claimed = KernelWizard(width=512, kernel_channels=8192).state_dict()
    wide = {key: torch.zeros(1).expand(like.shape) for key, like in claimed.items()}
    torch.save(wide, tmp_path / "net.pth")
    with pytest.raises(ValueError, match="exceeds its storage of 1 elements"):
        load_kernel_wizard(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no state dict but a list"),
        ({3: torch.zeros(1)}, "holds no state dict but a dict"),
        ({"adapter.norm": "none"}, "adapter.norm is a str, no tensor"),
        ({"state_dict": {}}, "is missing"),
        ({}, "is missing"),
    ],
)
def test_files_of_something_else_are_rejected(tmp_path, content, message):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=message):
        load_kernel_wizard(tmp_path / "net.pth")


class Hostile:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


@pytest.mark.parametrize("key", [FIRST, "kernel_extractor.model.1.bias", "state_dict"])
def test_a_hostile_pickle_is_refused_and_not_executed(net, tmp_path, key):
    path, mark = tmp_path / "net.pth", tmp_path / "executed"
    torch.save({**published(net), key: Hostile(mark)}, path)
    with pytest.raises(ValueError, match="mkdir: other objects are refused") as caught:
        load_kernel_wizard(path)
    assert not mark.exists()
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("write", [legacy, None], ids=["legacy", "pickle"])
def test_a_bare_pickle_is_not_looked_at(net, tmp_path, write):
    path, mark = tmp_path / "net.pth", tmp_path / "executed"
    if write is None:
        path.write_bytes(pickle.dumps(Hostile(mark), protocol=2))
    else:
        write({**published(net), FIRST: Hostile(mark)}, path)
    with pytest.raises(ValueError, match=r"a bare pickle, .*; convert it") as caught:
        load_kernel_wizard(path)
    assert not mark.exists()
    assert str(path) in str(caught.value)
    if write is None:  # it would have worked
        pickle.loads(path.read_bytes())
        assert mark.exists()


def test_the_way_to_convert_an_old_file_works(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "folder" / "old.pth"
    path.parent.mkdir()
    legacy(published(net), path)
    with pytest.raises(ValueError, match="convert it") as caught:
        load_kernel_wizard(path)
    exec(str(caught.value).partition("convert it: ")[2], {})
    again = load_kernel_wizard(tmp_path / "new.pt").state_dict()
    assert all(torch.equal(again[key], v) for key, v in net.state_dict().items())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 10, 1000, -30])
def test_a_truncated_file_is_rejected(net, tmp_path, suffix, keep):
    path = tmp_path / f"net.{suffix}"
    (torch.save if suffix == "pth" else save_file)(published(net), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        load_kernel_wizard(path)


def test_an_archive_of_something_else_is_rejected(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pth", "w") as archive:
        archive.writestr("readme", "no weights")
    with pytest.raises(ValueError, match=r"not a checkpoint: 0 entries"):
        load_kernel_wizard(tmp_path / "net.pth")


def test_names_of_files_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_kernel_wizard(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_kernel_wizard(tmp_path)
    (tmp_path / "net.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"net\.npz: neither an archive"):
        load_kernel_wizard(tmp_path / "net.npz")


# ---- operator ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sides", [(128, 128), (128, 256)])
def test_operator_is_the_network_on_the_unit_interval(net, operator, dtype, sides):
    x = images(2, *sides, dtype=dtype)
    code = 1.2 * np.random.RandomState(0).randn(1, 5, sides[0] // 128, sides[1] // 128)
    with torch.no_grad():
        blurred = KernelWizard(**SMALL).to(dtype)
        blurred.load_state_dict(net.state_dict())
        blurred = blurred((x + 1) / 2, torch.from_numpy(code).float().to(dtype))
    y = operator(x)
    assert y.shape == x.shape and y.dtype == dtype and not y.requires_grad
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    expected = (2 * blurred - 1).clamp(-1, 1)
    torch.testing.assert_close(y, expected, rtol=0, atol=tolerance)


def test_default_code_has_the_published_values():
    with torch.device("meta"):
        wide = KernelWizard(width=1, front_blocks=0, back_blocks=0)
    code = NonlinearBlur(wide).code_for((3, 256, 256))
    assert code.shape == (1, 512, 2, 2) and code.dtype == np.float32
    # as recorded, to the 8 decimals given and the rounding to float32
    first = [2.11686282, 0.48018865, 1.17448558, 2.68907184]
    np.testing.assert_allclose(code.ravel()[:4], first, rtol=2**-24, atol=5e-9)
    np.testing.assert_allclose(code.mean(dtype=np.float64), -0.01803046, atol=5e-9)
    np.testing.assert_allclose(code.std(dtype=np.float64), 1.17288022, atol=5e-9)


def test_seed_and_code_decide_the_blur(net, operator):
    x = images(1)
    other = NonlinearBlur(net, seed=1)
    assert not torch.allclose(operator(x), other(x), atol=1e-4)
    given = NonlinearBlur(net, code=other.code_for((3, 128, 128)))
    assert torch.equal(given(x), other(x))
    code = torch.from_numpy(given.code.copy())
    assert torch.equal(NonlinearBlur(net, code=code.double())(x), other(x))


def test_code_is_constant_and_global_generators_are_left_alone(net):
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    operator, x = NonlinearBlur(net), images(1)
    assert torch.equal(operator(x), operator(x))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_values_and_gradients_of_a_batch_are_those_of_its_images(operator):
    x, v = images(3), images(3, seed=1)
    y, g = operator(x), operator.vjp(x, v)
    for i in range(3):
        alone = slice(i, i + 1)
        assert torch.equal(operator(x[alone]), y[alone])
        assert torch.equal(operator.vjp(x[alone], v[alone]), g[alone])
    assert torch.equal(operator(x.flip(0)), y.flip(0))


def test_memory_layout_of_the_images_does_not_matter(operator):
    x = images(2)
    y = operator(x)
    assert torch.equal(operator(x.to(memory_format=torch.channels_last)), y)
    assert torch.equal(operator(x.mT.contiguous().mT), y)
    assert torch.equal(operator(x[:1].expand(2, -1, -1, -1))[1], y[0])


def test_empty_batch_and_arrays(operator):
    x = images(2)
    assert operator(x[:0]).shape == (0, 3, 128, 128)
    y = operator(x.numpy())
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, operator(x).numpy())


def test_gradient_is_that_of_the_operator(operator):
    x = (0.5 * images(1, dtype=torch.float64)).requires_grad_()
    assert (operator(x).detach().abs() < 1).all()  # away from the clamp
    # piecewise linear but for one tanh: error eps^2 and, where a kink is crossed, the
    # share of the activations within eps of theirs
    assert torch.autograd.gradcheck(
        operator, x, fast_mode=True, eps=1e-5, atol=1e-6, rtol=1e-5
    )


def test_jvp_is_the_transpose_of_the_vjp(operator):
    x, v, w = (images(1, dtype=torch.float64, seed=seed) for seed in range(3))
    left, right = (operator.jvp(x, w) * v).sum(), (operator.vjp(x, v) * w).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


def test_clamped_entries_have_no_gradient(net):
    high = KernelWizard(**SMALL)
    high.load_state_dict(net.state_dict())
    with torch.no_grad():
        high.recon_trunk[10].bias.copy_(torch.tensor([9.0, 0.0, -9.0]))
    operator, x = NonlinearBlur(high), images(1)
    y = operator(x)
    assert (y[:, 0] == 1).all() and (y[:, 2] == -1).all()
    v = torch.ones_like(x)
    v[:, 1] = 0
    assert not operator.vjp(x, v).any()
    v[:, 1] = 1
    assert operator.vjp(x, v).any()


def test_residual_gradient_is_the_vjp_of_the_residual(operator):
    x, y = images(2), images(2, seed=2)
    gradient, sqnorm = operator.residual_gradient(x, y)
    residual = operator(x) - y
    torch.testing.assert_close(gradient, operator.vjp(x, residual), rtol=0, atol=1e-6)
    expected = residual.double().square().flatten(1).sum(1)
    torch.testing.assert_close(sqnorm, expected)


def test_operator_keeps_a_frozen_copy_of_the_network(net):
    own = KernelWizard(**SMALL).train()
    own.load_state_dict(net.state_dict())
    operator, x = NonlinearBlur(own), images(1)
    y = operator(x)
    assert own.training and all(p.requires_grad for p in own.parameters())
    with torch.no_grad():
        own.recon_trunk[10].bias += 1
    assert torch.equal(operator(x), y)
    x.requires_grad_()
    operator(x).sum().backward()
    assert not any(p.requires_grad for p in operator.network.parameters())
    assert x.grad is not None and all(p.grad is None for p in own.parameters())


def test_each_precision_is_converted_once(net):
    operator = NonlinearBlur(net)
    cast = []
    for dtype in (torch.float64, torch.float32, torch.float64):
        operator(images(1, dtype=dtype))
        cast.append(operator._networks[torch.device("cpu"), dtype])
    assert cast[0] is cast[2] and cast[1] is operator.network
    assert next(operator.network.parameters()).dtype == torch.float32


def test_network_follows_the_device_of_the_images(net):
    """Without a graphics card: the meta device has shapes only."""
    operator = NonlinearBlur(net)
    y = operator(images(2).to("meta"))
    assert y.device.type == "meta" and y.shape == (2, 3, 128, 128)
    assert operator(images(1)).device.type == "cpu"


def test_spec_rebuilds_the_operator(net, tmp_path):
    path, x = tmp_path / "net.pth", images(1)
    torch.save(published(net), path)
    for given in (NonlinearBlur(path, seed=4), NonlinearBlur(str(path), code=CODE)):
        spec = given.spec()
        assert spec["weights"] == str(path)
        assert torch.equal(build(spec)(x), given(x))
        assert "NonlinearBlur(weights=" in repr(given)
    with pytest.raises(TypeError, match="must be a path"):
        build(NonlinearBlur(net).spec())


def test_pickled_operator_gives_the_same(operator):
    x = images(1, dtype=torch.float64)
    y = operator(x)
    again = pickle.loads(pickle.dumps(operator))
    assert not again._networks
    assert torch.equal(again(x), y)


CODE = np.linspace(-1, 1, 5, dtype=np.float32).reshape(1, 5, 1, 1)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        (
            {"weights": None},
            TypeError,
            "must be a path or a KernelWizard, got NoneType",
        ),
        ({"weights": torch.nn.ReLU()}, TypeError, "got ReLU"),
        ({"weights": "none.pth"}, FileNotFoundError, r"none\.pth"),
        ({"seed": -1}, ValueError, "seed must be an int"),
        ({"seed": 2**32}, ValueError, "seed must be an int"),
        ({"seed": 1.0}, ValueError, r"got 1\.0"),
        ({"code": CODE[0]}, ValueError, r"code must be .*\(1, 5, H / 128"),
        ({"code": CODE[:, :4]}, ValueError, r"of shape \(1, 4, 1, 1\)"),
        ({"code": CODE[..., :0]}, ValueError, "code must be"),
        ({"code": CODE > 0}, ValueError, "got bool"),
        ({"code": np.full_like(CODE, np.inf)}, ValueError, "code has NaN or infinite"),
    ],
)
def test_bad_arguments_are_named(net, option, error, message):
    with pytest.raises(error, match=message):
        NonlinearBlur(**{"weights": net, **option})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 128, 64), r"multiples of 128, got \(3, 128, 64\)"),
        ((1, 3, 0, 128), "multiples of 128"),
        ((1, 1, 128, 128), "must have 3 channels"),
        ((3, 128, 128), "must have 4 axes"),
    ],
)
def test_images_that_do_not_fit_are_named(operator, shape, message):
    with pytest.raises(ValueError, match=message):
        operator(torch.zeros(shape))
    if len(shape) == 4:
        with pytest.raises(ValueError, match=message):
            operator.out_shape(shape[1:])


def test_a_given_code_fixes_the_size_of_the_images(net):
    operator = NonlinearBlur(net, code=CODE)
    assert operator.out_shape((3, 128, 128)) == (3, 128, 128)
    with pytest.raises(ValueError, match=r"is for images of \(3, 128, 128\), got"):
        operator(images(1, 128, 256))


def test_half_precision_images_are_refused(operator):
    with pytest.raises(TypeError, match="float32 or float64"):
        operator(images(1).half())
