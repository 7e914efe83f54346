"""What the compiled module does with tensors of every sort, right and wrong."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest
import torch

import diffstategrad as dsg
from diffstategrad import _core
from diffstategrad.operators import Blur

SHAPE = (2, 6, 6)
KEY = (0, [0, 1], [0, 0], 0)
NAN, INF = float("nan"), float("inf")


def randn(*shape, dtype=torch.float32, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=dtype)


def images(dtype=torch.float32, seed=0):
    return randn(2, *SHAPE, dtype=dtype, seed=seed)


def per_image():
    return torch.zeros(2, dtype=torch.float64)


def operator(dtype="float32", shape=SHAPE):
    return _core.resize(dtype, shape, 2)


def measured(dtype=torch.float32):
    return randn(2, 2, 3, 3, dtype=dtype, seed=3)


def blur(dtype, shape, kernel, form=0, *, centre=None, grow=(0, 0), border=0):
    """The centre is the middle one unless it is given."""
    kh, kw = kernel.shape
    centre = (kh // 2, kw // 2) if centre is None else centre
    return _core.blur(dtype, shape, kernel, centre, grow, border, form)


def iterated(dtype="float32"):
    """A data step by conjugate gradients: a kernel that is no product, reflected."""
    kernel = torch.eye(3, dtype=torch.float64) / 3
    return _core.DataStep(blur(dtype, SHAPE, kernel))


def phase(dtype="float32"):
    """A non-linear operator whose measurement has the size of the image."""
    return _core.phase(dtype, SHAPE, 0, 1.0, 0.5)


def warp(dtype="float32", displacement=None):
    if displacement is None:
        displacement = randn(2, 6, 6, dtype=getattr(torch, dtype))
    return _core.warp(dtype, SHAPE, displacement)


def projector(dtype="float32", batch=2, shape=SHAPE, prepared=True):
    p = _core.Projector(dtype, batch, shape)
    if prepared:
        torch_dtype = getattr(torch, dtype)
        p.prepare(randn(batch, *shape, dtype=torch_dtype), 0.9, 0, 0, 3)
    return p


def langevin(batch=2, **changed):
    """Two steps without a projector; any argument may be given by name."""
    arguments = {
        "x": randn(batch, *SHAPE),
        "sqnorm": torch.zeros(batch, dtype=torch.float64),
        "x0hat": randn(batch, *SHAPE, seed=1),
        "y": randn(batch, 2, 3, 3, seed=3),
        "op": operator(),
        "projector": None,
        "noise": (0, range(batch), [0] * batch, 0),
        "steps": 2,
        "eta": 1e-4,
        "likelihood": 1.0,
        "prior": 1.0,
    }
    assert changed.keys() <= arguments.keys()
    return _core.langevin(*(arguments | changed).values())


class Call(NamedTuple):
    """A function of the binding and arguments that it takes.

    outputs, inputs: names and positions of the tensors, outputs being written to.
    """

    name: str
    function: object
    arguments: list
    outputs: dict[str, int]
    inputs: dict[str, int]

    def __call__(self, **changed):
        arguments = list(self.arguments)
        for name, value in changed.items():
            arguments[{**self.outputs, **self.inputs}[name]] = value
        return self.function(*arguments)


def updates():
    """Those of the elementwise updates and of total variation."""
    like = [images(seed=seed) for seed in range(1, 6)]
    moments = [torch.zeros(2, *SHAPE) for _ in range(2)]
    return [
        Call(
            "ddpm_step",
            _core.ddpm_step,
            [
                *(images(), like[0], 0.5, 0.5, like[1], -9.0, -4.0),
                *(like[2], like[3], per_image()),
            ],
            {"x": 0},
            {"x0": 1, "code": 4, "noise": 7, "gradient": 8, "scale": 9},
        ),
        Call(
            "ddpm_step",
            _core.ddpm_step,
            [images(), like[0], 0.5, 0.5, None, -9.0, -4.0, KEY, None, None],
            {"x": 0},
            {"x0": 1},
        ),
        Call(
            "ddim_step",
            _core.ddim_step,
            [images(), like[0], 0.5, 0.6, 0.1, like[1]],
            {"x": 0},
            {"x0": 1, "noise": 5},
        ),
        Call(
            "renoise",
            _core.renoise,
            [images(), 0.5, 2.0, like[0]],
            {"x": 0},
            {"noise": 3},
        ),
        Call(
            "ald_step",
            _core.ald_step,
            [images(), like[0], like[1], 2.0, 0.5, 0.1, like[2]],
            {"x": 0},
            {"denoised": 1, "gradient": 2, "noise": 6},
        ),
        Call(
            "adam_step",
            _core.adam_step,
            [images(), *moments, like[0], 1, 0.1, 0.9, 0.999, 1e-8],
            {"x": 0, "m": 1, "v": 2},
            {"gradient": 3},
        ),
        Call(
            "tv_prox",
            _core.tv_prox,
            [images(), like[0], 0.3, 2, torch.zeros(2, 2, *SHAPE), False],
            {"out": 0, "dual": 4},
            {"v": 1},
        ),
        Call(
            "tv_norm", _core.tv_norm, [per_image(), like[0], True], {"out": 0}, {"x": 1}
        ),
    ]


def calls():
    """Fresh, valid calls of every function that takes tensors."""
    op, p, step, bent = operator(), projector(), iterated(), phase()
    mask = torch.ones(1, 6, 6, dtype=torch.uint8)
    kernel = torch.ones(3, 3, dtype=torch.float64)
    unit = [torch.rand(2, 1, 12, 12) for _ in range(2)]
    langevin = [
        images(),
        per_image(),
        images(seed=1),
        measured(),
        op,
        projector(),
        KEY,
        2,
        1e-4,
        1.0,
        1.0,
    ]
    recorded = [*langevin[:6], randn(4, *SHAPE), *langevin[7:]]
    recorded[0], recorded[1] = images(), per_image()
    at = {"x0hat": 2, "y": 3}
    out = {"x": 0, "sqnorm": 1}
    return [
        Call("mask", _core.mask, ["float32", (2, 6, 6), mask], {}, {"mask": 2}),
        Call(
            "blur",
            _core.blur,
            ["float32", (2, 6, 6), kernel, (1, 1), (0, 0), 0],
            {},
            {"kernel": 2},
        ),
        Call(
            "matrix",
            _core.matrix,
            ["float32", (1, 2, 3), (2, 1, 2), torch.ones(4, 6).double()],
            {},
            {"matrix": 3},
        ),
        Call(
            "warp",
            _core.warp,
            ["float32", (2, 6, 6), randn(2, 6, 6)],
            {},
            {"displacement": 2},
        ),
        Call(
            "blur_kernel_gradient",
            _core.blur_kernel_gradient,
            [torch.zeros(3, 3), randn(2, 6, 6), randn(2, 6, 6), (1, 1), (0, 0), 0],
            {"out": 0},
            {"x": 1, "v": 2},
        ),
        Call(
            "warp_displacement_gradient",
            _core.warp_displacement_gradient,
            [torch.zeros(2, 6, 6), warp(), randn(2, 6, 6), randn(2, 6, 6, seed=1)],
            {"out": 0},
            {"x": 2, "v": 3},
        ),
        Call("forward", op.forward, [measured(), images()], {"out": 0}, {"x": 1}),
        Call("vjp", op.vjp, [images(), None, measured()], {"out": 0}, {"v": 2}),
        Call(
            "vjp",
            bent.vjp,
            [images(), images(seed=1), images(seed=2)],
            {"out": 0},
            {"x": 1, "v": 2},
        ),
        Call("jvp", op.jvp, [measured(), None, images()], {"out": 0}, {"w": 2}),
        Call(
            "jvp",
            bent.jvp,
            [images(), images(seed=1), images(seed=2)],
            {"out": 0},
            {"x": 1, "w": 2},
        ),
        Call(
            "curvature",
            bent.curvature,
            [images(), images(seed=1), images(seed=2), images(seed=3)],
            {"out": 0},
            {"x": 1, "v": 2, "w": 3},
        ),
        Call(
            "prox",
            step.prox,
            [images(), images(seed=1), images(seed=2), 0.5, 1e-4, 100],
            {"out": 0},
            {"v": 1, "y": 2},
        ),
        Call(
            "pinv",
            step.pinv,
            [images(), images(seed=1), 0.1, 1e-4, 100],
            {"out": 0},
            {"y": 1},
        ),
        Call(
            "residual_gradient",
            op.residual_gradient,
            [images(), per_image(), images(seed=1), measured()],
            {"out": 0, "sqnorm": 1},
            {"x": 2, "y": 3},
        ),
        Call(
            "prepare", projector().prepare, [images(), 0.9, 0, 0, 3], {}, {"state": 0}
        ),
        Call("apply", p.apply, [images()], {"grad": 0}, {}),
        Call("normal", _core.normal, [torch.zeros(2, 72), KEY], {"out": 0}, {}),
        Call(
            "euler_step",
            _core.euler_step,
            [images(), images(seed=1), 2.0, 1.0],
            {"x": 0},
            {"denoised": 1},
        ),
        Call("uniform", _core.uniform, [per_image(), KEY], {"out": 0}, {}),
        *updates(),
        Call("langevin", _core.langevin, langevin, out, at),
        Call("langevin", _core.langevin, recorded, out, {**at, "noise": 6}),
        *(
            Call(
                "hmc",
                _core.hmc,
                [
                    *(images(), images(seed=4), per_image(), *langevin[2:6]),
                    *(noise, 2, 1e-4, 1.0, 1.0, 0.9),
                ],
                {"x": 0, "velocity": 1, "sqnorm": 2},
                {"x0hat": 3, "y": 4, **named},
            )
            for noise, named in ((KEY, {}), (randn(4, *SHAPE), {"noise": 7}))
        ),
        *(
            Call(
                "mh",
                _core.mh,
                [
                    *(images(), per_image(), per_image(), *langevin[2:5]),
                    *(*noise, 2, 1e-4, 1.0, 1.0),
                ],
                {"x": 0, "sqnorm": 1, "accepted": 2},
                {"x0hat": 3, "y": 4, **named},
            )
            for noise, named in (
                ((KEY, None), {}),
                (
                    (randn(4, *SHAPE), torch.rand(4, dtype=torch.float64)),
                    {"noise": 6, "uniforms": 7},
                ),
            )
        ),
        Call(
            "psnr",
            _core.psnr,
            [per_image(), *unit, 1.0, 0.0],
            {"out": 0},
            {"x": 1, "ref": 2},
        ),
        Call("nmse", _core.nmse, [per_image(), *unit], {"out": 0}, {"x": 1, "ref": 2}),
        Call(
            "ssim",
            _core.ssim,
            [per_image(), *unit, 1.0, 0],
            {"out": 0},
            {"x": 1, "ref": 2},
        ),
    ]


COUNT = len(calls())
IDS = [f"{i}-{c.name}" for i, c in enumerate(calls())]


@pytest.fixture(params=range(COUNT), ids=IDS)
def call(request):
    return calls()[request.param]


def tensors(call):
    """(name, tensor, is output) of every tensor of a call."""
    for group, is_out in ((call.outputs, True), (call.inputs, False)):
        for name, at in group.items():
            yield name, call.arguments[at], is_out


# ---- producers ----


class Unversioned:
    """A producer from before `max_version`."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self):
        return torch.utils.dlpack.to_dlpack(self.tensor)


class Returns:
    def __init__(self, value):
        self.value = value

    def __dlpack__(self, **_):
        return self.value


class Copies:
    """A producer that exports a copy whether it is asked for one or not."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **asked):
        return self.array.__dlpack__(**{**asked, "copy": True})


class Raises:
    def __init__(self, error):
        self.error = error

    def __dlpack__(self, **_):
        raise self.error


def test_every_function_that_takes_tensors_is_in_the_list():
    listed = {c.name for c in calls()}
    builtin = type(_core.mask)
    methods = {
        name
        for cls in (_core.Op, _core.DataStep, _core.Projector)
        for name in vars(cls)
        if callable(getattr(cls, name)) and not name.startswith("_")
    }
    functions = {name for name, f in vars(_core).items() if type(f) is builtin}
    without = {"set_num_threads", "info", "resize", "phase", "pointwise", "compose"}
    assert listed == (methods | functions) - without - {"norm"}


def test_the_calls_of_the_list_work(call):
    result = call()
    assert result is None or isinstance(result, _core.Op | list)


def test_an_unversioned_producer_is_taken_for_every_argument(call):
    for name, tensor, _ in tensors(call):
        call(**{name: Unversioned(tensor)})


def test_numpy_arrays_are_taken_for_every_argument(call):
    for name, tensor, _ in tensors(call):
        call(**{name: tensor.numpy()})


def test_results_are_written_through_every_kind_of_producer():
    op, x = operator(), images()
    expected = torch.empty(2, 2, 3, 3)
    op.forward(expected, x)
    for wrap in (Unversioned, lambda t: t.numpy(), lambda t: t):
        out = torch.full_like(expected, torch.nan)
        op.forward(wrap(out), wrap(x))
        assert torch.equal(out, expected)


def test_an_object_without_dlpack_is_named(call):
    for name, _, _ in tensors(call):
        # None and tuples mean something to some arguments
        for bad in (object(), 3.0, "x", [1.0], print):
            with pytest.raises(
                TypeError,
                match=f"^{call.name}: {name} must be a tensor with __dlpack__, "
                f"got .*{type(bad).__name__}",
            ):
                call(**{name: bad})


def test_a_producer_that_returns_no_capsule_is_named(call):
    empty = type("Capsule", (), {})()
    for name, _, _ in tensors(call):
        for bad in (None, 3, empty, torch.zeros(1), object()):
            with pytest.raises(TypeError, match=f"{name}.__dlpack__ returned no"):
                call(**{name: Returns(bad)})


def test_a_consumed_capsule_is_refused():
    x = images()
    capsule = torch.utils.dlpack.to_dlpack(x)
    torch.utils.dlpack.from_dlpack(capsule)
    with pytest.raises(TypeError, match="returned no DLPack capsule"):
        operator().forward(measured(), Returns(capsule))


def test_errors_of_a_producer_come_through_as_they_are(call):
    for name, _, _ in tensors(call):
        for error in (
            RuntimeError("lost"),
            AttributeError("inside"),
            BufferError("no"),
            KeyboardInterrupt(),
        ):
            with pytest.raises(type(error)) as caught:
                call(**{name: Raises(error)})
            assert caught.value is error


def test_a_producer_that_raises_type_error_twice_is_reported():
    with pytest.raises(TypeError, match="never"):
        operator().forward(measured(), Raises(TypeError("never")))


def capsule_of(tensor, **changed):
    """A genuine old-style capsule of a CPU tensor with a few header fields changed."""
    import ctypes

    class Header(ctypes.Structure):
        _fields_ = [
            ("data", ctypes.c_void_p),
            ("device_type", ctypes.c_int32),
            ("device_id", ctypes.c_int32),
            ("ndim", ctypes.c_int32),
            ("code", ctypes.c_uint8),
            ("bits", ctypes.c_uint8),
            ("lanes", ctypes.c_uint16),
            ("shape", ctypes.c_void_p),
            ("strides", ctypes.c_void_p),
            ("byte_offset", ctypes.c_uint64),
        ]

    capsule = torch.utils.dlpack.to_dlpack(tensor)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = (
        ctypes.c_void_p,
        [ctypes.py_object, ctypes.c_char_p],
    )
    header = Header.from_address(pointer(capsule, b"dltensor"))
    for field, value in changed.items():
        setattr(header, field, value)
    return capsule


@pytest.mark.parametrize("device", [2, 3, 8, 10, 13])
def test_a_tensor_on_another_device_is_refused(device):
    x = images()
    with pytest.raises(BufferError, match=f"x must be on the CPU, got .* {device}$"):
        operator().forward(measured(), Returns(capsule_of(x, device_type=device)))


def test_every_function_refuses_a_tensor_on_another_device(call):
    for name, tensor, _ in tensors(call):
        with pytest.raises(BufferError, match=f"^{call.name}: {name} must be on the"):
            call(**{name: Returns(capsule_of(tensor, device_type=2))})


def test_vector_lanes_are_refused():
    with pytest.raises(TypeError, match="x must be float32"):
        operator().forward(measured(), Returns(capsule_of(images(), lanes=4)))


def test_an_unknown_dtype_code_is_refused():
    with pytest.raises(TypeError, match=r"got \?32"):
        operator().forward(measured(), Returns(capsule_of(images(), code=200)))


def test_missing_strides_mean_dense():
    x, out, expected = images(), measured(), measured()
    operator().forward(expected, x)
    operator().forward(out, Returns(capsule_of(x, strides=None)))
    assert torch.equal(out, expected)


def test_the_byte_offset_counts():
    x, out, expected = images(), measured(), measured()
    operator().forward(expected, x)
    whole = torch.cat([torch.full((1, *SHAPE), torch.nan), x])
    shifted = whole[:2]  # the header's offset moves it to the images after the first
    offset = whole[0].numel() * whole.element_size()
    operator().forward(out, Returns(capsule_of(shifted, byte_offset=offset)))
    assert torch.equal(out, expected)


# ---- layouts and dtypes ----


def test_strided_tensors_are_refused(call):
    for name, tensor, _ in tensors(call):
        spread = torch.stack([tensor, tensor], -1)[..., 0]
        with pytest.raises(BufferError, match=f"{name} must be contiguous"):
            call(**{name: spread})


def test_expanded_tensors_are_refused(call):
    for name, tensor, _ in tensors(call):
        with pytest.raises(BufferError, match=f"{name} must be contiguous"):
            call(**{name: tensor[..., :1].expand_as(tensor)})


def test_permuted_and_expanded_tensors_are_refused():
    op = operator()
    for bad in (images().transpose(2, 3), images()[:1, :1].expand(2, *SHAPE)):
        with pytest.raises(BufferError, match="x must be contiguous"):
            op.forward(measured(), bad)


def test_strides_of_axes_of_size_1_do_not_matter():
    op = operator(shape=(1, 6, 6))
    x = torch.randn(1, 6, 6, 1).permute(0, 3, 1, 2)
    assert x.stride(1) == 1
    y, expected = torch.empty(1, 1, 3, 3), torch.empty(1, 1, 3, 3)
    op.forward(y, x)
    op.forward(expected, x.clone(memory_format=torch.contiguous_format))
    assert torch.equal(y, expected)


def test_misaligned_tensors_are_refused(call):
    for name, tensor, _ in tensors(call):
        array = tensor.numpy()
        raw = bytearray(1 + array.nbytes)
        odd = np.frombuffer(raw, array.dtype, array.size, offset=1)
        odd = odd.reshape(array.shape)
        if array.itemsize == 1:  # a byte may lie anywhere
            call(**{name: odd})
            continue
        with pytest.raises(
            BufferError,
            match=f"^{call.name}: {name} must lie at an aligned address, got ",
        ):
            call(**{name: odd})


def test_an_empty_tensor_may_lie_anywhere():
    for raw in (bytearray(1), bytearray(64)):
        empty = np.frombuffer(raw, np.float32, 0, offset=1).reshape(0, *SHAPE)
        assert _core.euler_step(empty, empty, 2.0, 1.0) is None


def test_a_slice_at_an_offset_is_read_where_it_lies():
    x, out, expected = randn(5, *SHAPE), measured(), measured()
    operator().forward(out, x[2:4])
    operator().forward(expected, x[2:4].clone())
    assert torch.equal(out, expected)


def test_tensors_that_need_a_gradient_are_refused(call):
    for name, tensor, _ in tensors(call):
        if tensor.is_floating_point():
            with pytest.raises(BufferError, match="gradient"):
                call(**{name: tensor.clone().requires_grad_()})


def test_conjugate_tensors_are_refused():
    with pytest.raises(BufferError, match="conjugate"):
        operator().forward(measured(), images(torch.complex64).conj())


def test_the_negative_bit_is_resolved_before_the_core_sees_it():
    # DLPack has no such bit, torch exports the memory as it is: the door must see to it
    A, x = Blur(np.ones((3, 3))), images()
    assert torch.equal(A(torch._neg_view(x)), A(-x))
    nmse = dsg.metrics.nmse
    assert torch.equal(nmse(torch._neg_view(x), x), nmse(-x, x))


@pytest.mark.parametrize(
    ("dtype", "named"),
    [
        (torch.float16, "float16"),
        (torch.bfloat16, "bfloat16"),
        (torch.complex64, "complex64"),
        (torch.int32, "int32"),
        (torch.int64, "int64"),
        (torch.bool, "bool8"),
        (torch.uint8, "uint8"),
    ],
)
def test_another_dtype_is_named(call, dtype, named):
    for name, tensor, _ in tensors(call):
        if tensor.dtype == torch.uint8 and named in ("uint8", "bool8"):
            continue
        with pytest.raises(
            TypeError, match=f"^{call.name}: {name} must be .*, got {named}$"
        ):
            call(**{name: tensor.to(dtype)})


def test_two_precisions_do_not_mix(call):
    if call.name in ("apply", "prepare", "normal", "mask", "blur", "tv_norm"):
        return
    for name, tensor, _ in tensors(call):
        if tensor.dtype == torch.float32:
            with pytest.raises(
                TypeError, match=r"must be float(32|64), got float(32|64)"
            ):
                call(**{name: tensor.double()})


def test_a_mask_may_be_bool():
    x, y = images(), images(seed=1)
    mask = torch.rand(1, 6, 6) < 0.5
    _core.mask("float32", SHAPE, mask).forward(y, x)
    assert torch.equal(y, x * mask)


def test_another_number_of_axes_is_named(call):
    for name, tensor, _ in tensors(call):
        for bad in (tensor[None], tensor[0]):
            with pytest.raises(
                ValueError,
                match=f"{name} must have {tensor.ndim} axes, got {bad.ndim}",
            ):
                call(**{name: bad})


def test_a_tensor_of_64_axes_is_refused():
    with pytest.raises(ValueError, match="x must have 4 axes, got 64"):
        operator().forward(measured(), torch.zeros((1,) * 64))


def test_another_shape_is_named(call):
    for name, tensor, _ in tensors(call):
        if call.name in ("blur", "normal"):
            continue
        if (call.name, name) in (("blur_kernel_gradient", "out"), ("tv_norm", "x")):
            continue  # says how large the kernel is, or any image has it
        bad = torch.cat([tensor, tensor], -1)
        with pytest.raises(ValueError, match=r"must (have shape|name)"):
            call(**{name: bad})


def test_an_empty_batch_is_nothing_to_do():
    op, x, y = operator(), torch.empty(0, *SHAPE), torch.empty(0, 2, 3, 3)
    none = torch.empty(0, dtype=torch.float64)
    op.forward(y, x)
    op.vjp(x, None, y)
    op.residual_gradient(x, none, x.clone(), y)
    op.jvp(y, None, x)
    op.curvature(x, None, y, x.clone())
    assert iterated().prox(x, x.clone(), x.clone(), 1.0, 1e-4, 10) == []
    assert iterated().pinv(x, x.clone(), 0.1, 1e-4, 10) == []
    p = projector(batch=0, prepared=False)
    p.prepare(x, 0.9, 0, 0, 3)
    p.apply(x)
    assert p.ranks == () and p.kept == ()
    _core.normal(torch.empty(0, 5), (0, [], [], 0))
    _core.euler_step(x, x.clone(), 2.0, 1.0)
    key = (0, [], [], 0)
    _core.langevin(x, none, x.clone(), y, op, p, key, 2, 1e-4, 1.0, 1.0)
    _core.uniform(none, key)
    zero = torch.empty(0, *SHAPE)
    dual = torch.empty(0, 2, *SHAPE)
    for noise in (key, zero, None):
        _core.ddpm_step(x, x.clone(), 0.5, 0.5, None, -9.0, -4.0, noise, None, None)
        _core.ddim_step(x, x.clone(), 0.5, 0.6, 0.1, noise)
        _core.renoise(x, 0.5, 0.5, noise)
        _core.ald_step(x, x.clone(), x.clone(), 2.0, 1.0, 0.1, noise)
    _core.adam_step(x, x.clone(), x.clone(), x.clone(), 1, 0.1, 0.9, 0.999, 1e-8)
    _core.tv_prox(x, x.clone(), 0.3, 2, dual, False)
    _core.tv_norm(none, x, True)
    for noise, uniforms in ((key, None), (zero, none.clone())):
        v, images = x.clone(), x.clone()
        _core.hmc(x, v, none, images, y, op, p, noise, 2, 1e-4, 1.0, 1.0, 0.9)
        counts = none.clone()
        _core.mh(x, none, counts, images, y, op, noise, uniforms, 2, 1e-4, 1.0, 1.0)
    _core.psnr(none, x, x.clone(), 1.0, 0.0)
    _core.nmse(none, x, x.clone())


@pytest.mark.parametrize("convert", [lambda t: t, torch.Tensor.numpy])
@pytest.mark.parametrize("prepared", [None, True])
def test_langevin_has_nothing_to_do_for_an_empty_batch(convert, prepared):
    p = prepared and projector(batch=0)
    empty = {
        "x": torch.empty(0, *SHAPE),
        "sqnorm": torch.empty(0, dtype=torch.float64),
        "x0hat": torch.empty(0, *SHAPE),
        "y": torch.empty(0, 2, 3, 3),
    }
    empty = {name: convert(tensor) for name, tensor in empty.items()}
    for noise in (convert(torch.empty(0, *SHAPE)), (0, [], [], 0)):
        assert langevin(0, **empty, projector=p, noise=noise) is None


@pytest.mark.parametrize("convert", [lambda t: t, torch.Tensor.numpy])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_metrics_have_nothing_to_do_for_an_empty_batch(convert, dtype):
    out = convert(torch.empty(0, dtype=torch.float64))
    x, ref = (convert(torch.empty(0, 3, 12, 12, dtype=dtype)) for _ in range(2))
    assert _core.psnr(out, x, ref, 1.0, 0.0) is None
    assert _core.nmse(out, x, ref) is None
    for window in (0, 1):
        assert _core.ssim(out, x, ref, 1.0, window) is None


def test_an_empty_batch_is_checked_like_any_other():
    none, one = torch.empty(0, dtype=torch.float64), torch.zeros(1).double()
    x, ref = torch.empty(0, 3, 12, 12), torch.empty(0, 3, 12, 12)
    small = torch.empty(0, 1, 5, 5)
    for function, arguments in (
        (_core.psnr, (1.0, 0.0)),
        (_core.nmse, ()),
        (_core.ssim, (1.0, 0)),
    ):
        name = function.__name__
        with pytest.raises(
            ValueError, match=rf"^{name}: out must have shape \(0,\), got \(1,\)$"
        ):
            function(one, x, ref, *arguments)
        with pytest.raises(ValueError, match=f"^{name}: images must not be empty$"):
            function(none, x[..., :0], ref[..., :0], *arguments)
    with pytest.raises(ValueError, match=r"^ssim: window must be in the range 0\.\.1"):
        _core.ssim(none, x, ref, 1.0, 9)
    with pytest.raises(ValueError, match=r"^ssim: the sizes do not fit$"):
        _core.ssim(none, small, small, 1.0, 0)


# ---- results ----


def test_read_only_results_are_refused_and_read_only_inputs_taken(call):
    for name, tensor, is_out in tensors(call):
        array = tensor.numpy().copy()
        array.flags.writeable = False
        if is_out:
            with pytest.raises(
                BufferError, match=f"{call.name}: {name} must be writable"
            ):
                call(**{name: array})
        else:
            call(**{name: array})


def test_a_copy_of_a_result_is_refused_and_a_copy_of_an_input_taken(call):
    # what is written into a copy would be lost; numpy tells, by a flag of DLPack 1.0
    for name, tensor, is_out in tensors(call):
        if is_out:
            with pytest.raises(
                BufferError, match=f"^{call.name}: {name} must not be a copy$"
            ):
                call(**{name: Copies(tensor.numpy())})
        else:
            call(**{name: Copies(tensor.numpy())})


def test_results_that_share_memory_with_an_input_are_refused():
    x, y = images(), measured()
    op = _core.mask("float32", SHAPE, torch.ones(1, 6, 6, dtype=torch.uint8))
    whole = randn(3, *SHAPE)
    for out, given in ((x, x), (whole[:2], whole[1:]), (whole[1:], whole[:2])):
        with pytest.raises(ValueError, match="out must not share memory with x"):
            op.forward(out, given)
        with pytest.raises(ValueError, match="out must not share memory with v"):
            op.vjp(out, None, given)
        with pytest.raises(ValueError, match="x must not share memory with denoised"):
            _core.euler_step(out, given, 2.0, 1.0)
    with pytest.raises(ValueError, match="out must not share memory with x"):
        op.vjp(x, x, images())
    with pytest.raises(ValueError, match="out must not share memory with x"):
        operator().residual_gradient(x, per_image(), x, y)


@pytest.mark.parametrize("name", ["x", "x0hat", "y", "noise"])
def test_the_norms_of_langevin_may_not_lie_in_another_tensor(name):
    op = operator("float64")
    arguments = {
        "x": images(torch.float64),
        "x0hat": images(torch.float64, 1),
        "y": measured(torch.float64),
        "noise": randn(2, *SHAPE, dtype=torch.float64),
    }
    inside = arguments[name].flatten()[3:5]
    with pytest.raises(ValueError, match="must not share memory"):
        _core.langevin(
            arguments["x"],
            inside,
            arguments["x0hat"],
            arguments["y"],
            op,
            None,
            arguments["noise"],
            1,
            1e-4,
            1.0,
            1.0,
        )


def test_neighbours_in_memory_are_not_an_overlap():
    whole = randn(4, *SHAPE)
    _core.euler_step(whole[:2], whole[2:], 2.0, 1.0)


# ---- other arguments ----


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda: _core.resize("float16", SHAPE, 2), ValueError, "got float16"),
        (lambda: _core.resize("float32", (0, 4, 4), 2), ValueError, "must be positive"),
        (
            lambda: _core.resize("float32", (1, -4, 4), 2),
            ValueError,
            "must be positive",
        ),
        (lambda: _core.resize("float32", (4, 4), 2), TypeError, r"\(c, h, w\)"),
        (
            lambda: _core.resize("float32", (1, 4, 4), 0),
            ValueError,
            "at least 1, got 0",
        ),
        (lambda: _core.resize("float32", [1, 4, 4], 2), TypeError, "tuple"),
        (lambda: _core.resize("float32", (2**62, 8, 8), 2), ValueError, "do not fit"),
        (lambda: _core.resize("float32", (2**64, 8, 8), 2), OverflowError, None),
        (lambda: _core.Projector("float32", -1, SHAPE), ValueError, "negative"),
        (lambda: _core.Projector("float32", 2**62, SHAPE), ValueError, "do not fit"),
        (lambda: _core.Projector("int8", 1, SHAPE), ValueError, "got int8"),
        (lambda: _core.Projector("float32", 1, SHAPE, x=1), TypeError, "keyword"),
        (lambda: _core.Projector(), TypeError, None),
        (lambda: _core.Op(), TypeError, "cannot create"),
        (lambda: _core.set_num_threads(0), ValueError, "at least 1"),
        (lambda: _core.set_num_threads(-1), ValueError, "at least 1"),
        (lambda: _core.set_num_threads(1.5), TypeError, None),
        (
            lambda: blur("float32", SHAPE, torch.rand(3, 3).double(), 1),
            ValueError,
            "blur",
        ),
        (
            lambda: blur("float32", SHAPE, torch.rand(3, 3).double(), 9),
            ValueError,
            "blur",
        ),
        (
            lambda: blur("float32", SHAPE, torch.ones(13, 3).double()),
            ValueError,
            "blur",
        ),
        (
            lambda: blur("float32", SHAPE, torch.ones(0, 0).double()),
            ValueError,
            "blur",
        ),
        (
            lambda: projector().prepare(images() * torch.nan, 0.9, 0, 0, 3),
            ValueError,
            "NaN or Inf",
        ),
        (lambda: projector(prepared=False).apply(images()), RuntimeError, "set-up"),
        (
            lambda: _core.euler_step(images(), images(), 0.0, 0.0),
            ValueError,
            "sigma must be > 0",
        ),
        (
            lambda: _core.euler_step(images(), images(), float("nan"), 0.0),
            ValueError,
            "sigma must be > 0",
        ),
        (
            lambda: _core.ssim(
                per_image(), torch.rand(2, 1, 5, 5), torch.rand(2, 1, 5, 5), 1.0, 0
            ),
            ValueError,
            "ssim",
        ),
        (
            lambda: _core.ssim(
                per_image(), torch.rand(2, 1, 16, 16), torch.rand(2, 1, 16, 16), 1.0, 9
            ),
            ValueError,
            "ssim",
        ),
        (
            lambda: _core.psnr(
                per_image(), torch.rand(2, 0, 4, 4), torch.rand(2, 0, 4, 4), 1.0, 0.0
            ),
            ValueError,
            "psnr",
        ),
    ],
)
def test_wrong_other_arguments_are_refused(function, error, message):
    with pytest.raises(error, match=message):
        function()


OUTSIDE_32 = r"must be in the range 0\.\.4294967295, got "
OUTSIDE_64 = r"must be in the range 0\.\.18446744073709551615, got "


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ((-1, [0, 1], [0, 0], 0), ValueError, f"seed {OUTSIDE_64}-1$"),
        ((2**64, [0, 1], [0, 0], 0), ValueError, f"seed {OUTSIDE_64}{2**64}$"),
        ((1.5, [0, 1], [0, 0], 0), TypeError, "seed must be an int, got float$"),
        (([], [0, 1], [0, 0], 0), TypeError, "seed must be an int, got list$"),
        ((0, [0, 1], [0, 0], -1), ValueError, f"draw {OUTSIDE_32}-1$"),
        ((0, [0, 1], [0, 0], 2**32), ValueError, f"draw {OUTSIDE_32}{2**32}$"),
        ((0, [0, 1], [0, 0], 1.5), TypeError, "draw must be an int, got float$"),
        ((0, [0], [0, 0], 0), ValueError, "images must name 2 images, got 1$"),
        ((0, [0, 1], [0], 0), ValueError, "samples must name 2 images, got 1$"),
        ((0, [0, -1], [0, 0], 0), ValueError, f"images {OUTSIDE_32}-1$"),
        ((0, [0, 2**32], [0, 0], 0), ValueError, f"images {OUTSIDE_32}{2**32}$"),
        ((0, [0, 2**70], [0, 0], 0), ValueError, f"images {OUTSIDE_32}{2**70}$"),
        ((0, [0, 1], [-1, 0], 0), ValueError, f"samples {OUTSIDE_32}-1$"),
        ((0, [0, 1], [2**70, 0], 0), ValueError, f"samples {OUTSIDE_32}{2**70}$"),
        ((0, [0, 1.5], [0, 0], 0), TypeError, "images must be an int, got float$"),
        ((0, 3, [0, 0], 0), TypeError, "images must be a sequence of int, got int$"),
        ((0, [0, 1], 3, 0), TypeError, "samples must be a sequence of int, got int$"),
        ((0, [0, 1], [0, 0]), TypeError, r"must be \(seed, images, samples, draw\)$"),
        ([0, [0, 1], [0, 0], 0], TypeError, "must be a (tuple|tensor) .*, got list$"),
        (None, TypeError, "must be a (tuple|tensor) .*, got NoneType$"),
    ],
)
def test_a_wrong_noise_key_is_refused(key, error, message):
    named = "" if isinstance(key, tuple) and len(key) != 4 else "normal: "
    with pytest.raises(error, match=f"^{named}noise {message}"):
        _core.normal(torch.empty(2, 8), key)
    named = named.replace("normal", "langevin")
    with pytest.raises(error, match=f"^{named}noise {message}"):
        langevin(noise=key)


def test_the_largest_noise_key_is_taken():
    key = (2**64 - 1, [2**32 - 1] * 2, [2**32 - 1] * 2, 2**32 - 1)
    assert _core.normal(torch.empty(2, 8), key) is None
    assert langevin(noise=key, steps=1) is None


def test_the_draws_of_all_steps_fit_32_bits():
    def key(draw):
        return (0, [0, 1], [0, 0], draw)

    assert langevin(noise=key(2**32 - 2), steps=2) is None
    for draw, steps in ((2**32 - 1, 2), (2**32 - 2, 3), (0, 2**62)):
        with pytest.raises(
            ValueError,
            match=f"^langevin: noise draw must leave room for {steps} steps below "
            rf"2\^32, got {draw}$",
        ):
            langevin(noise=key(draw), steps=steps)


FOR_TWO = r"langevin: projector must be for 2 images of shape \(2, 6, 6\), got "
STEP_SIZE = "langevin: eta must be > 0 and finite, got "


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"op": None}, TypeError, r"langevin\(\) argument 5 must be .*Op, not None"),
        ({"op": operator("float64")}, TypeError, "langevin: x must be float64, got"),
        (
            {"op": operator(shape=(2, 8, 8))},
            ValueError,
            r"langevin: x must have shape \(2, 2, 8, 8\), got \(2, 2, 6, 6\)",
        ),
        (
            {"projector": 3},
            TypeError,
            "langevin: projector must be a Projector or None, got int",
        ),
        (
            {"projector": projector("float64")},
            TypeError,
            "langevin: projector must be float32 like the operator",
        ),
        ({"projector": projector(batch=1)}, ValueError, rf"{FOR_TWO}1 of \(2, 6, 6\)"),
        (
            {"projector": projector(shape=(2, 6, 5))},
            ValueError,
            rf"{FOR_TWO}2 of \(2, 6, 5\)",
        ),
        (
            {"projector": projector(shape=(1, 6, 6))},
            ValueError,
            rf"{FOR_TWO}2 of \(1, 6, 6\)",
        ),
        (
            {"projector": projector(prepared=False)},
            RuntimeError,
            "langevin: work was asked for before set-up",
        ),
        ({"steps": 0}, ValueError, "langevin: steps must be at least 1, got 0"),
        ({"steps": -1}, ValueError, "langevin: steps must be at least 1, got -1"),
        ({"eta": 0.0}, ValueError, f"{STEP_SIZE}0.0"),
        ({"eta": -1.0}, ValueError, f"{STEP_SIZE}-1.0"),
        ({"eta": NAN}, ValueError, f"{STEP_SIZE}nan"),
        ({"eta": INF}, ValueError, f"{STEP_SIZE}inf"),
        ({"eta": -INF}, ValueError, f"{STEP_SIZE}-inf"),
        ({"likelihood": NAN}, ValueError, "langevin: likelihood must be finite, got"),
        ({"likelihood": INF}, ValueError, "langevin: likelihood must be finite, got"),
        ({"prior": NAN}, ValueError, "langevin: prior must be finite, got nan"),
        ({"prior": -INF}, ValueError, "langevin: prior must be finite, got -inf"),
        (
            {"noise": randn(3, *SHAPE)},
            ValueError,
            r"langevin: noise must have shape \(4, 2, 6, 6\), got \(3, 2, 6, 6\)",
        ),
        (
            {"noise": randn(4, *SHAPE), "steps": 2**62},
            ValueError,
            rf"langevin: noise must have shape \({2**63}, 2, 6, 6\), got \(4, 2, 6, 6",
        ),
    ],
)
def test_wrong_arguments_of_langevin_are_refused(changes, error, message):
    x = images()
    with pytest.raises(error, match=f"^{message}"):
        langevin(x=x, **changes)
    assert torch.equal(x, images())  # and nothing was done


def test_more_recorded_steps_than_can_be_counted_are_refused():
    # (2^62 + 1) 4 is 4 again in 64 bits, and so the shape of one step would be right
    steps = 2**62 + 1
    with pytest.raises(
        ValueError, match=f"^langevin: {steps} steps of 4 images are too many$"
    ):
        langevin(4, noise=randn(4, *SHAPE), steps=steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0.9, 0, 0, 0), "sides must be in the range 1..3, got 0"),
        ((0.9, 0, 0, 4), "sides must be in the range 1..3, got 4"),
        # as 32 bits these are 3, both sides
        ((0.9, 0, 0, 2**32 + 3), f"sides must be in the range 1..3, got {2**32 + 3}"),
        ((0.9, 0, 0, 3 - 2**32), f"sides must be in the range 1..3, got {3 - 2**32}"),
        ((0.9, -1, 0, 3), "rule must be in the range 0..3, got -1"),
        ((0.9, 4, 0, 3), "rule must be in the range 0..3, got 4"),
        ((0.9, 2**32, 0, 3), f"rule must be in the range 0..3, got {2**32}"),
        ((0.9, 0, -1, 3), "fixed_rank must not be negative, got -1"),
        ((0.9, 3, 0, 3), "fixed_rank must be at least 1, got 0"),
        ((0.9, 3, -2, 3), "fixed_rank must be at least 1, got -2"),
        ((0.0, 0, 0, 3), "energy must be in the range (0, 1], got 0.0"),
        ((1.1, 0, 0, 3), "energy must be in the range (0, 1], got 1.1"),
        ((INF, 0, 0, 3), "energy must be in the range (0, 1], got inf"),
        ((NAN, 0, 0, 3), "energy must be in the range (0, 1], got nan"),
        ((NAN, 1, 0, 3), "energy must be in the range (0, 1], got nan"),
        ((NAN, 2, 0, 3), "energy must be in the range (0, 1], got nan"),
    ],
)
def test_an_option_of_the_projector_outside_its_range_is_named(options, message):
    p = projector()
    ranks = p.ranks
    with pytest.raises(ValueError, match=f"^prepare: {re.escape(message)}$"):
        p.prepare(images(), *options)
    assert p.ranks == ranks  # the factors are the old ones


def test_a_fixed_rank_asks_for_no_energy():
    p = projector()
    for energy in (NAN, INF, 0.0, -1.0):
        p.prepare(images(), energy, 3, 2, 3)
        assert p.ranks == ((2, 2), (2, 2))


@pytest.mark.parametrize("form", [-1, 5, 2**32])
def test_a_form_of_a_blur_outside_its_range_is_named(form):
    kernel = torch.rand(3, 3, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=rf"^blur: form must be in the range 0\.\.4, got {form}$"
    ):
        blur("float32", SHAPE, kernel, form)


@pytest.mark.parametrize("window", [-1, 2, 2**32])
def test_a_window_of_ssim_outside_its_range_is_named(window):
    x, ref = (torch.rand(2, 1, 16, 16) for _ in range(2))
    with pytest.raises(
        ValueError, match=rf"^ssim: window must be in the range 0\.\.1, got {window}$"
    ):
        _core.ssim(per_image(), x, ref, 1.0, window)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ((INF, 1.0), "sigma must be > 0 and finite, got inf"),
        ((INF, INF), "sigma must be > 0 and finite, got inf"),
        ((NAN, 1.0), "sigma must be > 0 and finite, got nan"),
        ((-1.0, 0.0), "sigma must be > 0 and finite, got -1.0"),
        ((2.0, INF), "sigma_next must be >= 0 and finite, got inf"),
        ((2.0, NAN), "sigma_next must be >= 0 and finite, got nan"),
        ((2.0, -0.5), "sigma_next must be >= 0 and finite, got -0.5"),
    ],
)
def test_a_noise_level_that_is_no_number_is_named(sigmas, message):
    x = images()
    with pytest.raises(ValueError, match=f"^euler_step: {message}$"):
        _core.euler_step(x, images(seed=1), *sigmas)
    assert torch.equal(x, images())


# ---- sizes ----


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 4, 6), (1, 9, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_resize_by_more_than_16_times_the_longest_side_is_refused(dtype, shape):
    most = 16 * max(shape[1:])
    op = _core.resize(dtype, shape, most)
    assert op.out_shape == (shape[0], 1, 1)
    y = torch.empty(1, *op.out_shape, dtype=getattr(torch, dtype))
    op.forward(y, torch.ones(1, *shape, dtype=y.dtype))
    assert torch.allclose(y, torch.ones_like(y))
    for factor in (most + 1, 2**62, 2**63 - 1):
        with pytest.raises(ValueError, match=r"^resize: the sizes do not fit$"):
            _core.resize(dtype, shape, factor)


def test_a_blur_of_an_image_without_memory_is_made_or_refused_at_once():
    # in a process of its own: what is looked for are hangs and crashes
    program = """
import resource
import sys

import numpy as np

from diffstategrad import _core

if sys.platform.startswith("linux"):
    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
shape = (1, 2, 2**40)
for kernel in (np.ones((3, 3)), np.random.default_rng(0).random((3, 4001))):
    centre = (1, kernel.shape[1] // 2)
    for form in range(4):
        try:
            op = _core.blur("float32", shape, kernel, centre, (0, 0), 0, form)
            print(op.out_shape == shape)
        except (ValueError, MemoryError) as error:
            print(f"{type(error).__name__}: {error}")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    no_fit = "ValueError: blur: the sizes do not fit"
    no_option = "ValueError: blur: an option is outside its range"
    assert done.stdout.splitlines() == [
        *("True", "True", "True", no_fit),
        *(no_fit, no_option, "True", no_fit),
    ]


# ---- objects ----


def test_a_projector_that_saw_nan_has_no_ranks():
    p, grad = projector(), images(seed=1)
    expected = p.ranks
    assert expected is not None
    for bad in (NAN, INF):
        state = images()
        state[1, 1, 2, 3] = bad
        with pytest.raises(
            ValueError, match=r"^prepare: NaN or Inf where a finite number is needed$"
        ):
            p.prepare(state, 0.9, 0, 0, 3)
        assert p.ranks is None and p.kept is None
        with pytest.raises(
            RuntimeError, match=r"^apply: work was asked for before set-up$"
        ):
            p.apply(grad)
        assert torch.equal(grad, images(seed=1))
        p.prepare(images(), 0.9, 0, 0, 3)
        assert p.ranks == expected


@pytest.mark.parametrize("cls", [_core.Op, _core.DataStep, _core.Projector])
def test_the_types_cannot_be_changed(cls):
    before = dict(vars(cls))
    for name in ("ranks", "in_shape", "apply", "forward", "prox", "other", "__new__"):
        message = (
            f"^cannot set '{name}' attribute of immutable type "
            f"'diffstategrad._core.{cls.__name__}'$"
        )
        with pytest.raises(TypeError, match=message):
            setattr(cls, name, None)
        with pytest.raises(TypeError, match=message):
            delattr(cls, name)
    assert dict(vars(cls)) == before


@pytest.mark.parametrize(
    ("make", "name"),
    [(operator, "in_shape"), (iterated, "closed_form"), (projector, "ranks")],
)
def test_the_objects_take_no_attributes(make, name):
    one = make()
    with pytest.raises(AttributeError, match="has no attribute 'other'"):
        one.other = 1
    with pytest.raises(AttributeError, match=f"'{name}' .* is not writable"):
        setattr(one, name, None)


# ---- derivatives and data steps ----


def test_the_point_may_be_left_out_for_a_linear_operator_only():
    op, bent, dtype = operator(), phase(), torch.float32
    y, g, h = (torch.full_like(t, NAN) for t in (measured(), images(), images()))
    op.jvp(y, None, images())
    op.vjp(g, None, measured())
    op.curvature(h, None, measured(), images())
    expected = torch.empty_like(y)
    op.forward(expected, images())
    assert torch.equal(y, expected)
    op.vjp(expected := torch.empty_like(g), images(), measured())
    assert torch.equal(g, expected) and not h.any()

    x, v = images(), images(seed=1)
    out = torch.zeros_like(x, dtype=dtype)
    for name, call in (
        ("vjp", lambda: bent.vjp(out, None, v)),
        ("jvp", lambda: bent.jvp(out, None, x)),
        ("curvature", lambda: bent.curvature(out, None, v, x)),
    ):
        with pytest.raises(
            ValueError,
            match=f"^{name}: x must be given, the operator is not linear$",
        ):
            call()
    assert not out.any()


def test_the_arguments_of_a_derivative_keep_their_places():
    double = torch.float64
    op = phase("float64")
    x, v, w = (images(double, seed) for seed in range(3))
    t, g, h = (torch.empty_like(x) for _ in range(3))
    op.jvp(t, x, w)
    op.vjp(g, x, v)
    op.curvature(h, x, v, w)
    assert torch.allclose((t * v).sum(), (g * w).sum(), rtol=1e-12)
    # <J(x)^T v, w> along a direction d, by central differences of relative step 1e-6
    d, ends = images(double, 4), []
    for sign in (1, -1):
        op.vjp(g, x + sign * 1e-6 * d, v)
        ends.append((g * w).sum())
    slope = (ends[0] - ends[1]) / 2e-6
    assert torch.allclose((h * d).sum(), slope, rtol=1e-6)


def test_results_of_derivatives_share_no_memory_with_what_they_are_made_of():
    op, step, x = phase(), iterated(), images()
    other, third = images(seed=1), images(seed=2)
    warped, kernel = warp(), torch.zeros(3, 3)
    whole = torch.zeros(81)
    for named, call in (
        ("w", lambda: op.jvp(x, other, x)),
        ("x", lambda: op.jvp(x, x, other)),
        ("x", lambda: op.vjp(x, x, other)),
        ("v", lambda: op.vjp(x, other, x)),
        ("x", lambda: op.curvature(x, x, other, third)),
        ("v", lambda: op.curvature(x, other, x, third)),
        ("w", lambda: op.curvature(x, other, third, x)),
        ("v", lambda: step.prox(x, x, other, 1.0, 1e-4, 10)),
        ("y", lambda: step.prox(x, other, x, 1.0, 1e-4, 10)),
        ("y", lambda: step.pinv(x, x, 0.1, 1e-4, 10)),
        ("x", lambda: _core.warp_displacement_gradient(x[0], warped, x[0], other[0])),
        ("v", lambda: _core.warp_displacement_gradient(x[0], warped, other[0], x[0])),
        (
            "x",
            lambda: _core.blur_kernel_gradient(
                whole[:9].view(3, 3),
                whole[8:80].view(2, 6, 6),
                other[0],
                (1, 1),
                (0, 0),
                0,
            ),
        ),
        (
            "v",
            lambda: _core.blur_kernel_gradient(
                whole[:9].view(3, 3),
                other[0],
                whole[8:80].view(2, 6, 6),
                (1, 1),
                (0, 0),
                0,
            ),
        ),
    ):
        with pytest.raises(ValueError, match=f"out must not share memory with {named}"):
            call()
    # neighbours are apart
    _core.blur_kernel_gradient(
        kernel, whole[9:].view(2, 6, 6), other[0], (1, 1), (0, 0), 0
    )
    _core.blur_kernel_gradient(
        whole[:9].view(3, 3), whole[9:].view(2, 6, 6), other[0], (1, 1), (0, 0), 0
    )
    # inputs may be the same tensor
    assert op.curvature(x, other, other, other) is None
    assert len(step.prox(x, other, other, 1.0, 1e-4, 100)) == 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_data_step_says_whether_it_has_a_closed_form(dtype):
    kernel = torch.rand(3, 3, dtype=torch.float64)
    ones = torch.ones(3, 3, dtype=torch.float64)
    mask = torch.ones(1, 6, 6, dtype=torch.uint8)
    matrix = torch.rand(3, 72, dtype=torch.float64)
    for op, closed in (
        (_core.mask(dtype, SHAPE, mask), True),
        (_core.resize(dtype, SHAPE, 2), True),
        (_core.matrix(dtype, SHAPE, (1, 1, 3), matrix), True),
        (blur(dtype, SHAPE, ones), True),
        (blur(dtype, SHAPE, kernel, border=1), True),
        (blur(dtype, SHAPE, kernel), False),
        (warp(dtype), False),
        (_core.compose(warp(dtype), warp(dtype)), False),
    ):
        step = _core.DataStep(op)
        assert step.closed_form is closed
        shape = (2, *op.out_shape)
        v, y = torch.rand(2, *SHAPE), torch.rand(shape)
        v, y = v.to(getattr(torch, dtype)), y.to(getattr(torch, dtype))
        out = torch.full_like(v, NAN)
        info = step.prox(out, v, y, 0.5, 1e-5, 200)
        assert len(info) == 2 and out.isfinite().all()
        for residual, iterations in info:
            assert type(residual) is float and type(iterations) is int
            assert (residual, iterations) == (0.0, 0) if closed else residual <= 1e-5
        assert type(step.norm()) is float and step.norm() > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((), TypeError, "takes exactly 1 argument"),
        ((None,), TypeError, "argument 1 must be .*Op, not None"),
        ((3,), TypeError, "argument 1 must be .*Op, not int"),
        ((iterated(),), TypeError, "argument 1 must be .*Op, not .*DataStep"),
        ((operator(), 1), TypeError, "takes exactly 1 argument"),
        ((phase(),), ValueError, "^DataStep: the operator is not linear$"),
        (
            (_core.compose(operator(), phase()),),
            ValueError,
            "^DataStep: the operator is not linear$",
        ),
        (
            (_core.pointwise("float64", SHAPE, 0, 2.0),),
            ValueError,
            "^DataStep: the operator is not linear$",
        ),
    ],
)
def test_a_data_step_of_anything_but_a_linear_operator_is_refused(
    arguments, error, message
):
    with pytest.raises(error, match=message):
        _core.DataStep(*arguments)


def test_a_data_step_takes_no_keywords_and_no_subclass():
    with pytest.raises(TypeError, match=r"^DataStep takes no keyword arguments$"):
        _core.DataStep(op=operator())
    with pytest.raises(TypeError, match="is not an acceptable base type"):
        type("Mine", (_core.DataStep,), {})
    with pytest.raises(TypeError, match="takes no arguments"):
        iterated().norm(1)


POSITIVE = "must be finite and > 0, got"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0.0, 1e-4, 10), f"rho {POSITIVE} 0.0"),
        ((-1.0, 1e-4, 10), f"rho {POSITIVE} -1.0"),
        ((NAN, 1e-4, 10), f"rho {POSITIVE} nan"),
        ((INF, 1e-4, 10), f"rho {POSITIVE} inf"),
        ((1.0, 0.0, 10), f"tolerance {POSITIVE} 0.0"),
        ((1.0, -1e-4, 10), f"tolerance {POSITIVE} -0.0001"),
        ((1.0, NAN, 10), f"tolerance {POSITIVE} nan"),
        ((1.0, INF, 10), f"tolerance {POSITIVE} inf"),
        ((1.0, 1e-4, 0), "iterations must be at least 1, got 0"),
        ((1.0, 1e-4, -(2**62)), f"iterations must be at least 1, got {-(2**62)}"),
    ],
)
def test_an_option_of_the_prox_outside_its_range_is_named(options, message):
    for step in (
        iterated(),
        _core.DataStep(blur("float32", SHAPE, torch.ones(1, 1).double())),
    ):
        out = images()
        with pytest.raises(ValueError, match=f"^prox: {re.escape(message)}$"):
            step.prox(out, images(seed=1), images(seed=2), *options)
        assert torch.equal(out, images())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0.0, 1e-4, 10), "cutoff must be in the range (0, 1), got 0.0"),
        ((1.0, 1e-4, 10), "cutoff must be in the range (0, 1), got 1.0"),
        ((-0.5, 1e-4, 10), "cutoff must be in the range (0, 1), got -0.5"),
        ((NAN, 1e-4, 10), "cutoff must be in the range (0, 1), got nan"),
        ((0.1, 0.0, 10), f"tolerance {POSITIVE} 0.0"),
        ((0.1, NAN, 10), f"tolerance {POSITIVE} nan"),
        ((0.1, 1e-4, 0), "iterations must be at least 1, got 0"),
    ],
)
def test_an_option_of_the_pinv_outside_its_range_is_named(options, message):
    for step in (
        iterated(),
        _core.DataStep(blur("float32", SHAPE, torch.ones(1, 1).double())),
    ):
        out = images()
        with pytest.raises(ValueError, match=f"^pinv: {re.escape(message)}$"):
            step.pinv(out, images(seed=1), *options)
        assert torch.equal(out, images())


def test_the_numbers_of_a_data_step_must_be_numbers_that_fit():
    step, x, v = iterated(), images(), images(seed=1)
    for options, error in (
        ((1.0, 1e-4, 1.5), TypeError),
        ((1.0, 1e-4, None), TypeError),
        (("1", 1e-4, 10), TypeError),
        ((1.0, 1e-4, 2**63), OverflowError),
        ((1.0, 1e-4, -(2**64)), OverflowError),
        ((10**400, 1e-4, 10), OverflowError),
    ):
        with pytest.raises(error):
            step.prox(x, v, v, *options)
    # the largest of everything: ends where rounding ends all progress
    info = step.prox(x, v, v, 1e-300, 1e300, 2**63 - 1)
    assert all(iterations == 0 for _, iterations in info)
    (residual, iterations), _ = step.prox(x, v, v, 1e300, 5e-324, 2**63 - 1)
    assert residual <= 1e-6 and iterations < 1000
    assert x.isfinite().all()


@pytest.mark.parametrize("bad", [NAN, INF])
def test_data_that_are_not_finite_end_a_data_step(bad):
    v = images()
    v[1, 1, 2, 3] = bad
    out = torch.zeros_like(v)
    first, second = iterated().prox(out, v, images(), 1.0, 1e-4, 100)
    assert first[0] <= 1e-4 and np.isnan(second[0])
    assert out[0].isfinite().all() and out[1].isnan().all()


def test_a_data_step_keeps_its_operator_alive():
    op = blur("float32", SHAPE, torch.rand(3, 3, dtype=torch.float64))
    held = sys.getrefcount(op)
    step, closed = _core.DataStep(op), _core.DataStep(operator())
    assert sys.getrefcount(op) == held + 1
    expected, out, v = torch.empty(2, *SHAPE), torch.empty(2, *SHAPE), images()
    step.prox(expected, v, v, 1.0, 1e-4, 100)
    del op
    gc.collect()
    for _ in range(20):  # whatever is freed is used again
        blur("float32", SHAPE, torch.rand(5, 5, dtype=torch.float64))
    step.prox(out, v, v, 1.0, 1e-4, 100)
    assert torch.equal(out, expected)
    closed.prox(out, v, measured(), 1.0, 1e-4, 1)
    assert out.isfinite().all() and closed.norm() > 0


# ---- what an operator is made of ----


def warp12():
    return _core.warp("float32", (2, 12, 12), randn(2, 12, 12))


def test_a_composition_keeps_its_parts_alive():
    outer, inner = operator(), warp()
    held = sys.getrefcount(outer), sys.getrefcount(inner)
    op = _core.compose(outer, inner)
    assert (sys.getrefcount(outer), sys.getrefcount(inner)) == tuple(
        n + 1 for n in held
    )
    assert op.in_shape == SHAPE and op.out_shape == (2, 3, 3)
    middle, expected, y = torch.empty(2, *SHAPE), measured(), measured()
    inner.forward(middle, images())
    outer.forward(expected, middle)

    whole = _core.compose(
        op,
        _core.compose(
            warp(displacement=torch.zeros(2, 6, 6)),
            warp(displacement=torch.zeros(2, 6, 6)),
        ),
    )
    step = _core.DataStep(whole)
    del outer, inner, op
    gc.collect()
    for _ in range(20):
        operator(), warp()
    whole.forward(y, images())
    assert torch.equal(y, expected)
    del whole
    gc.collect()
    x = torch.empty(2, *SHAPE)
    assert len(step.prox(x, images(), expected, 1.0, 1e-4, 100)) == 2
    assert x.isfinite().all()

    one = warp()
    before = sys.getrefcount(one)
    twice = _core.compose(one, one)
    assert sys.getrefcount(one) == before + 2
    del twice
    assert sys.getrefcount(one) == before


def test_a_long_chain_of_compositions_is_made_used_and_freed():
    clip = _core.pointwise("float32", (1, 1, 2), 0, 1.0)
    chain = clip
    for _ in range(2000):
        chain = _core.compose(clip, chain)
    x, y = torch.tensor([0.5, 3.0]).view(1, 1, 1, 2), torch.empty(1, 1, 1, 2)
    chain.forward(y, x)
    assert y.flatten().tolist() == [0.5, 1.0]
    del chain
    gc.collect()


KERNEL = torch.rand(3, 4, dtype=torch.float64)
FIELD = randn(2, 6, 6)
MATRIX = torch.ones(2, 72, dtype=torch.float64)


def make(name, **changed):
    """A create function with one argument changed."""
    arguments = {
        "phase": {"pad": 1, "scale": 1.0, "shift": 0.0},
        "pointwise": {"kind": 0, "a": 2.0},
        "matrix": {"out_shape": (1, 1, 2), "matrix": MATRIX},
        "warp": {"displacement": FIELD},
        "blur": {"kernel": KERNEL, "centre": (1, 1), "grow": (0, 0), "border": 0},
    }[name]
    arguments = {"dtype": "float32", "shape": SHAPE, **arguments}
    assert changed.keys() <= arguments.keys() | {"form"}
    return getattr(_core, name)(*(arguments | changed).values())


BIG = 2**62
NO_FIT = "the sizes do not fit"
NO_OPTION = "an option is outside its range"
NO_NUMBER = "NaN or Inf where a finite number is needed"


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("phase", {"pad": -1}, "pad must not be negative, got -1"),
        ("phase", {"pad": BIG}, NO_FIT),
        ("phase", {"pad": 2**63 - 1}, NO_FIT),
        ("phase", {"pad": 2**31}, NO_FIT),
        ("phase", {"shape": (2**40, 2**40, 1)}, NO_FIT),
        ("phase", {"scale": NAN}, "scale must be finite, got nan"),
        ("phase", {"scale": -INF}, "scale must be finite, got -inf"),
        ("phase", {"scale": 1e300}, NO_OPTION),  # infinite as a float
        ("phase", {"shift": INF}, "shift must be finite, got inf"),
        ("phase", {"shift": 1e300}, NO_OPTION),
        ("pointwise", {"kind": -1}, "kind must be in the range 0..2, got -1"),
        ("pointwise", {"kind": 3}, "kind must be in the range 0..2, got 3"),
        ("pointwise", {"kind": 2**32}, f"kind must be in the range 0..2, got {2**32}"),
        ("pointwise", {"a": 0.0}, "a must be finite and > 0, got 0.0"),
        ("pointwise", {"a": -2.0}, "a must be finite and > 0, got -2.0"),
        ("pointwise", {"a": NAN}, "a must be finite and > 0, got nan"),
        ("pointwise", {"a": INF}, "a must be finite and > 0, got inf"),
        ("pointwise", {"a": 1e300}, NO_OPTION),
        ("pointwise", {"a": 1e-300}, NO_OPTION),
        ("pointwise", {"a": 1e-3, "kind": 1}, NO_OPTION),
        ("pointwise", {"shape": (BIG, 8, 8)}, NO_FIT),
        (
            "matrix",
            {"matrix": MATRIX.T.contiguous()},
            "matrix must have shape (2, 72), got (72, 2)",
        ),
        (
            "matrix",
            {"out_shape": (1, 1, 3)},
            "matrix must have shape (3, 72), got (2, 72)",
        ),
        (
            "matrix",
            {"out_shape": (1, 0, 2)},
            "sizes must be positive, got (1, 0, 2)",
        ),
        ("matrix", {"matrix": MATRIX * NAN}, NO_NUMBER),
        ("matrix", {"matrix": MATRIX * 1e300}, NO_NUMBER),
        # 2^32 2^32 is 0 in 64 bits
        (
            "matrix",
            {"shape": (2**32, 2**32, 1), "matrix": torch.ones(2, 0).double()},
            NO_FIT,
        ),
        ("warp", {"displacement": FIELD * NAN}, NO_NUMBER),
        ("warp", {"displacement": FIELD * INF}, NO_NUMBER),
        (
            "warp",
            {"displacement": FIELD[:1]},
            "displacement must have shape (2, 6, 6), got (1, 6, 6)",
        ),
        (
            "warp",
            {"shape": (2, 6, 7)},
            "displacement must have shape (2, 6, 7), got (2, 6, 6)",
        ),
        ("warp", {"shape": (BIG, 6, 6)}, NO_FIT),
        ("blur", {"centre": (-1, 1)}, "centre row must be in the range 0..2, got -1"),
        ("blur", {"centre": (3, 1)}, "centre row must be in the range 0..2, got 3"),
        ("blur", {"centre": (1, 4)}, "centre column must be in the range 0..3, got 4"),
        (
            "blur",
            {"centre": (1, -BIG)},
            f"centre column must be in the range 0..3, got {-BIG}",
        ),
        (
            "blur",
            {"grow": (-1, 0)},
            "growth of the height must be in the range 0..3, got -1",
        ),
        (
            "blur",
            {"grow": (4, 0)},
            "growth of the height must be in the range 0..3, got 4",
        ),
        (
            "blur",
            {"grow": (0, BIG)},
            f"growth of the width must be in the range 0..4, got {BIG}",
        ),
        ("blur", {"border": -1}, "border must be in the range 0..3, got -1"),
        ("blur", {"border": 4}, "border must be in the range 0..3, got 4"),
        ("blur", {"border": 2**32}, f"border must be in the range 0..3, got {2**32}"),
        ("blur", {"border": 0, "shape": (2, 6, 2)}, NO_FIT),  # reflects 2 pixels
        ("blur", {"grow": (3, 0), "shape": (2, 4, 6)}, NO_FIT),
        ("blur", {"kernel": KERNEL * NAN}, NO_NUMBER),
        ("blur", {"kernel": KERNEL * 1e300}, NO_NUMBER),
        ("blur", {"form": 1}, NO_OPTION),  # no product
    ],
)
def test_what_an_operator_cannot_be_made_of_is_named(name, changed, message):
    with pytest.raises(ValueError, match=f"^{name}: {re.escape(message)}$"):
        make(name, **changed)


@pytest.mark.parametrize(
    ("name", "changed", "error"),
    [
        ("phase", {"pad": 1.5}, TypeError),
        ("phase", {"pad": 2**64}, OverflowError),
        ("phase", {"scale": "1"}, TypeError),
        ("phase", {"shift": 10**400}, OverflowError),
        ("phase", {"shape": [2, 6, 6]}, TypeError),
        ("pointwise", {"kind": 0.5}, TypeError),
        ("pointwise", {"kind": -(2**64)}, OverflowError),
        ("pointwise", {"a": None}, TypeError),
        ("matrix", {"out_shape": [1, 1, 2]}, TypeError),
        ("matrix", {"out_shape": (1, 2)}, TypeError),
        ("warp", {"shape": (2, 6, 6.0)}, TypeError),
        ("blur", {"centre": (1,)}, TypeError),
        ("blur", {"centre": (1, 1.5)}, TypeError),
        ("blur", {"centre": (1, 2**64)}, OverflowError),
        ("blur", {"grow": 0}, TypeError),
        ("blur", {"border": "reflect"}, TypeError),
    ],
)
def test_an_argument_of_another_kind_is_refused(name, changed, error):
    with pytest.raises(error):
        make(name, **changed)


@pytest.mark.parametrize("name", ["phase", "pointwise", "matrix", "warp", "blur"])
def test_every_create_function_checks_dtype_and_shape(name):
    for dtype in ("float16", "", "float"):
        with pytest.raises(ValueError, match=f"^{name}: dtype must be float32 or"):
            make(name, dtype=dtype)
    with pytest.raises(TypeError):
        make(name, dtype=torch.float32)
    for shape in ((0, 6, 6), (2, -1, 6), (2, 6, 0)):
        with pytest.raises(ValueError, match=f"^{name}: sizes must be positive, got"):
            make(name, shape=shape)
    for shape in ((6, 6), (1, 2, 6, 6)):
        with pytest.raises(TypeError, match=r"shape must be \(c, h, w\)"):
            make(name, shape=shape)


def test_the_displacement_of_a_warp_has_the_precision_of_the_operator():
    assert make("warp", dtype="float64", displacement=FIELD.double())
    with pytest.raises(
        TypeError, match=r"^warp: displacement must be float64, got flo"
    ):
        make("warp", dtype="float64")
    with pytest.raises(
        TypeError, match=r"^warp: displacement must be float32, got flo"
    ):
        make("warp", displacement=FIELD.double())


def test_no_displacement_is_too_large():
    x, y, g = images(), torch.full((2, *SHAPE), NAN), torch.full((2, 6, 6), NAN)
    for far in (7.0, -7.0, 1e9, -1e30, 3e38):
        op = make("warp", displacement=torch.full((2, 6, 6), far))
        op.forward(y, x)
        assert not y.any()
        op.vjp(y, None, x)
        assert not y.any()
        _core.warp_displacement_gradient(g, op, x[0], x[1])
        assert not g.any()


def test_only_operators_of_one_precision_and_matching_sizes_compose():
    op = operator()
    for arguments in ((op,), (op, None), (None, op), (op, iterated()), (op, op, op)):
        with pytest.raises(TypeError):
            _core.compose(*arguments)
    with pytest.raises(
        TypeError, match=r"^compose: both operators must have one dtype$"
    ):
        _core.compose(operator("float64"), warp())
    with pytest.raises(
        TypeError, match=r"^compose: both operators must have one dtype$"
    ):
        _core.compose(operator(), warp("float64"))
    for outer in (operator(), operator(shape=(1, 3, 3)), operator(shape=(2, 3, 4))):
        with pytest.raises(ValueError, match=f"^compose: {NO_FIT}$"):
            _core.compose(outer, operator())


def test_only_a_warp_has_a_gradient_in_the_displacement():
    g, x, v = torch.zeros(2, 6, 6), images()[0], images()[1]
    for op in (
        phase(),
        _core.compose(warp(), warp()),
        _core.mask("float32", SHAPE, torch.ones(1, 6, 6, dtype=torch.uint8)),
    ):
        with pytest.raises(
            TypeError,
            match=r"^warp_displacement_gradient: the operator must be a warp$",
        ):
            _core.warp_displacement_gradient(g, op, x, v)
    for op in (None, 3, iterated(), object()):
        with pytest.raises(TypeError, match=r"argument 2 must be .*Op, not"):
            _core.warp_displacement_gradient(g, op, x, v)
    with pytest.raises(TypeError, match="out must be float64, got float32"):
        _core.warp_displacement_gradient(g, warp("float64"), x, v)
    assert not g.any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"centre": (3, 1)}, "centre row must be in the range 0..2, got 3"),
        ({"centre": (-1, 1)}, "centre row must be in the range 0..2, got -1"),
        ({"centre": (1, BIG)}, f"centre column must be in the range 0..2, got {BIG}"),
        ({"grow": (4, 0)}, "growth of the height must be in the range 0..3, got 4"),
        ({"grow": (0, -1)}, "growth of the width must be in the range 0..3, got -1"),
        ({"border": 4}, "border must be in the range 0..3, got 4"),
        ({"border": -1}, "border must be in the range 0..3, got -1"),
        ({"out": torch.zeros(0, 0)}, "centre row must be in the range 0..-1, got 1"),
        (
            {"x": torch.zeros(2, 2, 5)},
            "v must have shape (2, 2, 5), got (2, 6, 6)",
        ),
        (
            {"grow": (1, 0)},
            "v must have shape (2, 7, 6), got (2, 6, 6)",
        ),
        ({"x": torch.zeros(0, 6, 6), "v": torch.zeros(0, 6, 6)}, NO_FIT),
        ({"x": torch.zeros(2, 6, 0), "v": torch.zeros(2, 6, 0)}, NO_FIT),
        ({"x": torch.zeros(2, 1, 6), "v": torch.zeros(2, 1, 6)}, NO_FIT),  # reflects 1
        ({"out": torch.zeros(13, 3)}, NO_FIT),
    ],
)
def test_what_the_kernel_gradient_cannot_take_is_named(changed, message):
    arguments = {
        "out": torch.zeros(3, 3),
        "x": images()[0],
        "v": images()[1],
        "centre": (1, 1),
        "grow": (0, 0),
        "border": 0,
    }
    with pytest.raises(
        ValueError, match=f"^blur_kernel_gradient: {re.escape(message)}$"
    ):
        _core.blur_kernel_gradient(*(arguments | changed).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("border", range(4))
def test_the_kernel_gradient_belongs_to_the_blur_of_the_same_geometry(dtype, border):
    # <A(x), v> is linear in the kernel: its gradient is the operators of unit kernels
    kh, kw, centre, grow = 2, 3, (1, 0), (1, 2)
    x = randn(*SHAPE, dtype=dtype)
    v = randn(2, 7, 8, dtype=dtype, seed=1)
    g = torch.full((kh, kw), NAN, dtype=dtype)
    _core.blur_kernel_gradient(g, x, v, centre, grow, border)
    name = str(dtype).removeprefix("torch.")
    for a in range(kh):
        for b in range(kw):
            unit = torch.zeros(kh, kw, dtype=torch.float64)
            unit[a, b] = 1
            op = blur(name, SHAPE, unit, centre=centre, grow=grow, border=border)
            assert op.out_shape == v.shape
            y = torch.empty(1, *v.shape, dtype=dtype)
            op.forward(y, x[None])
            # sums of 112 products of about 1
            eps = torch.finfo(dtype).eps
            assert abs((y[0].double() * v).sum() - g[a, b]) <= 112 * eps


def test_operators_and_steps_of_sizes_without_memory_are_made_or_refused_at_once():
    # in a process of its own: what is looked for are hangs and crashes
    program = """
import collections
import resource
import sys

import numpy as np

from diffstategrad import _core

if sys.platform.startswith("linux"):
    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
product, dense = np.ones((3, 3)), np.random.default_rng(0).random((3, 5))
shapes = [(1, 2, 2**40), (1, 2**40, 2), (2**40, 3, 6), (2**20, 2**20, 2**20)]
shapes += [(2**62, 1, 1), (1, 2**62, 1), (1, 1, 2**62), (2**32, 2**32, 1)]
field, matrix = np.ones((2, 1, 1), "f4"), np.ones((1, 1))


def makers(s):
    yield lambda: _core.phase("float32", s, 0, 1.0, 0.0)
    yield lambda: _core.phase("float64", (1, 2, 2), s[2], 1.0, 0.0)
    yield lambda: _core.pointwise("float32", s, 0, 2.0)
    yield lambda: _core.warp("float32", s, field)
    yield lambda: _core.matrix("float32", s, (1, 1, 1), matrix)
    yield lambda: _core.matrix("float32", (1, 1, 1), s, matrix)
    yield lambda: _core.matrix("float32", s, s, np.ones((0, 0)))
    yield lambda: _core.resize("float32", s, 2)
    for kernel in (product, dense):
        for border in range(4):
            for form in range(4):
                for grow in (0, 1):
                    centre = (1, kernel.shape[1] // 2)
                    yield lambda a=(kernel, centre, (grow, grow), border, form): (
                        _core.blur("float32", s, *a)
                    )


seen = collections.Counter()
for s in shapes:
    for make in makers(s):
        try:
            op = make()
            op = _core.compose(_core.pointwise("float32", op.out_shape, 0, 1.0), op)
            seen["composed"] += 1
            _core.DataStep(make()).norm()
            seen["norm"] += 1
        except (ValueError, MemoryError, TypeError) as error:
            seen[str(error).partition(": ")[2]] += 1
print(*sorted(seen), sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = {
        line for line in done.stdout.splitlines() if " must have shape " not in line
    }
    assert told <= {
        *("composed", "norm", NO_FIT, NO_OPTION, "out of memory"),
        *("the operator is not linear", "both operators must have one dtype"),
    }
    assert {"composed", NO_FIT, "out of memory"} <= told


# ---- lifetime ----


def test_no_function_keeps_a_reference_to_a_tensor(call):
    # the capsule of an array holds the array itself, so its count tells
    arrays = {name: tensor.numpy() for name, tensor, _ in tensors(call)}
    failing = [
        {**arrays, name: bad}
        for name, array in arrays.items()
        for bad in (object(), np.zeros(array.shape, "f2"), array[None], Returns(None))
    ]

    def run():
        call(**arrays)
        for changed in failing:
            with pytest.raises((TypeError, ValueError, BufferError)):
                call(**changed)

    run()
    before = [sys.getrefcount(a) for a in arrays.values()]
    for _ in range(5):
        run()
    assert [sys.getrefcount(a) for a in arrays.values()] == before


def test_no_function_leaks_python_memory(call):
    bad = [{name: t.half()} for name, t, _ in tensors(call)]
    bad += [{name: object()} for name, _, _ in tensors(call)]

    def run(times):
        for _ in range(times):
            call()
            for changed in bad:
                try:
                    call(**changed)
                except TypeError:
                    pass

    run(5)
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        run(200)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # one object of the smallest size on one path of each call would be 200 x 16 bytes
    assert grown < 200 * 16, grown


def test_handles_and_projectors_are_given_back():
    types = _core.Op, _core.DataStep, _core.Projector
    before = [sys.getrefcount(t) for t in types]
    for _ in range(20):
        operator()
        projector().ranks  # noqa: B018
        iterated().norm()
        _core.compose(operator(shape=(2, 12, 12)), _core.compose(warp12(), warp12()))
        with pytest.raises(ValueError):
            _core.DataStep(phase())
        with pytest.raises(ValueError):
            _core.compose(operator(), operator())
        with pytest.raises(ValueError):
            operator(shape=(0, 1, 1))
        with pytest.raises(ValueError):
            _core.Projector("float32", -1, SHAPE)
    gc.collect()
    assert [sys.getrefcount(t) for t in types] == before


def test_core_memory_does_not_grow_with_use():
    def resident():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    shape, dense = (3, 96, 96), torch.rand(21, 21, dtype=torch.float64)
    x, y = randn(4, *shape), randn(4, *shape, seed=1)
    field = randn(2, *shape[1:])

    def run(times):
        for _ in range(times):
            blur("float32", shape, dense, 3).forward(y, x)
            _core.DataStep(blur("float32", shape, dense)).prox(y, x, x, 1.0, 0.1, 2)
            _core.phase("float32", shape, 0, 1.0, 0.0).jvp(y, x, x)
            _core.warp("float32", shape, field).vjp(y, None, x)
            p = _core.Projector("float32", 4, shape)
            p.prepare(x, 0.99, 0, 0, 3)
            p.apply(y)

    run(3)
    before = resident()
    run(15)
    # every turn allocates about 4 images of factors, 0.4 MB: 15 kept are 6 MB
    assert resident() - before < 3e6


# ---- threads ----


def in_threads(*functions):
    errors, start = [], threading.Barrier(len(functions))

    def run(function):
        start.wait()
        try:
            function()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=run, args=(f,)) for f in functions]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    return errors


def test_two_threads_may_use_one_operator_and_one_projector_at_once():
    op = blur("float32", (2, 32, 32), torch.rand(9, 9, dtype=torch.float64), 3)
    p = projector(shape=(2, 32, 32))
    inputs = [randn(2, 2, 32, 32, seed=s) for s in range(2)]

    def work(x, results):
        for _ in range(30):
            y, s = torch.empty_like(x), per_image()
            op.forward(y, x)
            p.apply(y)
            z = x.clone()
            _core.langevin(z, s, x, y, op, p, KEY, 2, 1e-4, 1.0, 1.0)
            results.append((y, z, s))

    alone, together = ([], []), ([], [])
    for x, results in zip(inputs, alone, strict=True):
        work(x, results)
    errors = in_threads(
        *(lambda x=x, r=r: work(x, r) for x, r in zip(inputs, together, strict=True))
    )
    assert not errors
    for one, two in zip(alone, together, strict=True):
        for expected, got in zip(one, two, strict=True):
            assert all(map(torch.equal, expected, got))


def test_two_threads_may_use_one_data_step_and_one_composition_at_once():
    step, op = iterated(), _core.compose(phase(), warp())
    inputs = [images(seed=s) for s in range(2)]

    def work(x, results):
        for _ in range(50):
            out, g = torch.empty_like(x), torch.empty_like(x)
            info = step.prox(out, x, x, 0.1, 1e-5, 100)
            op.vjp(g, x, x)
            results.append((out, g, info))

    alone, together = ([], []), ([], [])
    for x, results in zip(inputs, alone, strict=True):
        work(x, results)
    assert not in_threads(
        *(lambda x=x, r=r: work(x, r) for x, r in zip(inputs, together, strict=True))
    )
    for one, two in zip(alone, together, strict=True):
        for (*expected, told), (*got, said) in zip(one, two, strict=True):
            assert all(map(torch.equal, expected, got)) and told == said


def test_two_threads_may_create_fft_plans_at_once():
    kernels = [torch.rand(7, 7, dtype=torch.float64) for _ in range(2)]

    def create(k):
        for n in range(8, 30):
            op = blur("float32", (1, n, n), k, 3)
            op.forward(torch.empty(1, 1, n, n), torch.ones(1, 1, n, n))
            _core.phase("float32", (1, n, n), n % 3, 1.0, 0.0)
            _core.DataStep(blur("float64", (1, n, n), k, border=1))

    assert not in_threads(*(lambda k=k: create(k) for k in kernels))


def test_a_projector_in_use_in_another_thread_is_refused_not_corrupted():
    shape = (3, 128, 128)
    p = projector(batch=2, shape=shape)
    x = randn(2, *shape, seed=5)
    seen = []

    def prepare():
        for _ in range(15):
            try:
                p.prepare(x, 0.99, 0, 0, 3)
            except RuntimeError as error:
                seen.append(str(error))

    def use():
        for _ in range(200):
            g = x.clone()
            try:
                p.apply(g)
            except RuntimeError as error:
                seen.append(str(error))
            else:
                assert g.isfinite().all()
            ranks = p.ranks
            assert ranks is None or len(ranks) == 2

    assert not in_threads(prepare, use, use)
    assert set(seen) <= {
        "prepare: the projector is in use",
        "apply: the projector is being prepared",
    }
    p.prepare(x, 0.99, 0, 0, 3)  # nothing stays locked


def test_the_number_of_threads_may_change_during_a_call():
    before = _core.info()["threads"]
    x = randn(4, 2, 48, 48)
    op = operator(shape=(2, 48, 48))

    def call():
        for _ in range(50):
            op.forward(torch.empty(4, 2, 24, 24), x)

    def change():
        for i in range(200):
            dsg.set_num_threads(1 + i % 3)

    try:
        assert not in_threads(call, change)
    finally:
        dsg.set_num_threads(before)
