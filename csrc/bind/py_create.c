/* One create function for each operator of the core. */
#include "core.h"

#include <math.h>

#include "dsg/blur.h"
#include "dsg/compose.h"
#include "dsg/mask.h"
#include "dsg/matrix.h"
#include "dsg/phase.h"
#include "dsg/pointwise.h"
#include "dsg/resize.h"
#include "dsg/warp.h"

/* Wraps what a create function made.  Takes `op` over, also on failure. */
static PyObject *
wrap(core_state *st, const char *fn, dsg_status err, void *op, bool f64)
{
    if (err != DSG_OK)
        return dsg_raise(st, fn, err);
    py_op *self = PyObject_New(py_op, st->op_type);
    if (!self) {
        DSG_DISPATCH(f64, dsg_op_destroy, op);
        return NULL;
    }
    self->op = op;
    self->f64 = f64;
    self->parts = NULL;
    self->in = f64 ? ((dsg_op_f64 *)op)->in : ((dsg_op_f32 *)op)->in;
    self->out = f64 ? ((dsg_op_f64 *)op)->out : ((dsg_op_f32 *)op)->out;
    return (PyObject *)self;
}

static PyObject *
py_mask(PyObject *mod, PyObject *args)
{
    static const char fn[] = "mask";
    core_state *st = PyModule_GetState(mod);
    const char *dtype;
    PyObject *shape_obj, *mask_obj;
    bool f64;
    dsg_shape shape;
    if (!PyArg_ParseTuple(args, "sO!O:mask", &dtype, &PyTuple_Type, &shape_obj,
                          &mask_obj) ||
        dsg_parse_precision(fn, dtype, &f64) < 0 ||
        dsg_parse_shape(fn, shape_obj, &shape) < 0)
        return NULL;

    PyObject *result = NULL;
    dsg_borrow mask = {0};
    if (dsg_borrow_in(st, fn, mask_obj, "mask", DSG_U8, 3, &mask) < 0)
        goto done;
    size_t expected[3] = {mask.shape[0] == 1 ? 1 : shape.c, shape.h, shape.w};
    if (dsg_expect_shape(fn, &mask, 3, expected) < 0)
        goto done;

    void *op = NULL;
    dsg_status err =
        f64 ? dsg_mask_create_f64((dsg_op_f64 **)&op, shape, mask.data, mask.shape[0])
            : dsg_mask_create_f32((dsg_op_f32 **)&op, shape, mask.data, mask.shape[0]);
    result = wrap(st, fn, err, op, f64);
done:
    dsg_release(&mask);
    return result;
}

/* Where the kernel's centre lies, how much y grows, which border; -1 with ValueError.
 */
static int
parse_geometry(const char *fn, const size_t *kernel, Py_ssize_t row, Py_ssize_t column,
               Py_ssize_t grow_h, Py_ssize_t grow_w, Py_ssize_t border,
               dsg_blur_geometry *geometry)
{
    Py_ssize_t kh = (Py_ssize_t)kernel[0], kw = (Py_ssize_t)kernel[1];
    if (dsg_expect_int(fn, "centre row", row, 0, kh - 1) < 0 ||
        dsg_expect_int(fn, "centre column", column, 0, kw - 1) < 0 ||
        dsg_expect_int(fn, "growth of the height", grow_h, 0, kh) < 0 ||
        dsg_expect_int(fn, "growth of the width", grow_w, 0, kw) < 0 ||
        dsg_expect_int(fn, "border", border, DSG_BORDER_REFLECT, DSG_BORDER_REPLICATE) <
            0)
        return -1;
    *geometry = (dsg_blur_geometry){.kh = kernel[0],
                                    .kw = kernel[1],
                                    .centre_row = (size_t)row,
                                    .centre_column = (size_t)column,
                                    .grow_h = (size_t)grow_h,
                                    .grow_w = (size_t)grow_w,
                                    .border = (dsg_border)border};
    return 0;
}

static PyObject *
py_blur(PyObject *mod, PyObject *args)
{
    static const char fn[] = "blur";
    core_state *st = PyModule_GetState(mod);
    const char *dtype;
    PyObject *shape_obj, *kernel_obj;
    Py_ssize_t row, column, grow_h, grow_w, border, form = DSG_BLUR_AUTO;
    bool f64;
    dsg_shape shape;
    if (!PyArg_ParseTuple(args, "sO!O(nn)(nn)n|n:blur", &dtype, &PyTuple_Type,
                          &shape_obj, &kernel_obj, &row, &column, &grow_h, &grow_w,
                          &border, &form) ||
        dsg_parse_precision(fn, dtype, &f64) < 0 ||
        dsg_parse_shape(fn, shape_obj, &shape) < 0 ||
        dsg_expect_int(fn, "form", form, DSG_BLUR_AUTO, DSG_BLUR_EXACT) < 0)
        return NULL;

    PyObject *result = NULL;
    dsg_borrow k = {0};
    dsg_blur_geometry geometry;
    if (dsg_borrow_in(st, fn, kernel_obj, "kernel", DSG_F64, 2, &k) < 0 ||
        parse_geometry(fn, k.shape, row, column, grow_h, grow_w, border, &geometry) < 0)
        goto done;

    void *op = NULL;
    dsg_status err =
        f64 ? dsg_blur_create_f64((dsg_op_f64 **)&op, shape, k.data, &geometry, form)
            : dsg_blur_create_f32((dsg_op_f32 **)&op, shape, k.data, &geometry, form);
    result = wrap(st, fn, err, op, f64);
done:
    dsg_release(&k);
    return result;
}

static PyObject *
py_resize(PyObject *mod, PyObject *args)
{
    static const char fn[] = "resize";
    core_state *st = PyModule_GetState(mod);
    const char *dtype;
    PyObject *shape_obj;
    Py_ssize_t factor;
    bool f64;
    dsg_shape shape;
    if (!PyArg_ParseTuple(args, "sO!n:resize", &dtype, &PyTuple_Type, &shape_obj,
                          &factor) ||
        dsg_parse_precision(fn, dtype, &f64) < 0 ||
        dsg_parse_shape(fn, shape_obj, &shape) < 0 ||
        dsg_expect_int(fn, "factor", factor, 1, PY_SSIZE_T_MAX) < 0)
        return NULL;

    void *op = NULL;
    dsg_status err =
        f64 ? dsg_resize_create_f64((dsg_op_f64 **)&op, shape, (size_t)factor)
            : dsg_resize_create_f32((dsg_op_f32 **)&op, shape, (size_t)factor);
    return wrap(st, fn, err, op, f64);
}

static PyObject *
py_phase(PyObject *mod, PyObject *args)
{
    static const char fn[] = "phase";
    core_state *st = PyModule_GetState(mod);
    const char *dtype;
    PyObject *shape_obj;
    Py_ssize_t pad;
    double scale, shift;
    bool f64;
    dsg_shape shape;
    if (!PyArg_ParseTuple(args, "sO!ndd:phase", &dtype, &PyTuple_Type, &shape_obj, &pad,
                          &scale, &shift) ||
        dsg_parse_precision(fn, dtype, &f64) < 0 ||
        dsg_parse_shape(fn, shape_obj, &shape) < 0 ||
        dsg_expect_int(fn, "pad", pad, 0, PY_SSIZE_T_MAX) < 0 ||
        dsg_expect_number(fn, "scale", scale, isfinite(scale), "finite") < 0 ||
        dsg_expect_number(fn, "shift", shift, isfinite(shift), "finite") < 0)
        return NULL;

    void *op = NULL;
    dsg_status err =
        f64 ? dsg_phase_create_f64((dsg_op_f64 **)&op, shape, (size_t)pad, scale, shift)
            : dsg_phase_create_f32((dsg_op_f32 **)&op, shape, (size_t)pad, scale,
                                   shift);
    return wrap(st, fn, err, op, f64);
}

static PyObject *
py_pointwise(PyObject *mod, PyObject *args)
{
    static const char fn[] = "pointwise";
    core_state *st = PyModule_GetState(mod);
    const char *dtype;
    PyObject *shape_obj;
    Py_ssize_t kind;
    double a;
    bool f64;
    dsg_shape shape;
    if (!PyArg_ParseTuple(args, "sO!nd:pointwise", &dtype, &PyTuple_Type, &shape_obj,
                          &kind, &a) ||
        dsg_parse_precision(fn, dtype, &f64) < 0 ||
        dsg_parse_shape(fn, shape_obj, &shape) < 0 ||
        dsg_expect_int(fn, "kind", kind, DSG_POINTWISE_CLIP, DSG_POINTWISE_DECODE) <
            0 ||
        dsg_expect_number(fn, "a", a, isfinite(a) && a > 0.0, "finite and > 0") < 0)
        return NULL;

    void *op = NULL;
    dsg_pointwise_kind k = (dsg_pointwise_kind)kind;
    dsg_status err = f64 ? dsg_pointwise_create_f64((dsg_op_f64 **)&op, shape, k, a)
                         : dsg_pointwise_create_f32((dsg_op_f32 **)&op, shape, k, a);
    return wrap(st, fn, err, op, f64);
}

static PyObject *
py_matrix(PyObject *mod, PyObject *args)
{
    static const char fn[] = "matrix";
    core_state *st = PyModule_GetState(mod);
    const char *dtype;
    PyObject *in_obj, *out_obj, *matrix_obj;
    bool f64;
    dsg_shape in, out;
    if (!PyArg_ParseTuple(args, "sO!O!O:matrix", &dtype, &PyTuple_Type, &in_obj,
                          &PyTuple_Type, &out_obj, &matrix_obj) ||
        dsg_parse_precision(fn, dtype, &f64) < 0 ||
        dsg_parse_shape(fn, in_obj, &in) < 0 || dsg_parse_shape(fn, out_obj, &out) < 0)
        return NULL;

    PyObject *result = NULL;
    dsg_borrow m = {0};
    if (dsg_borrow_in(st, fn, matrix_obj, "matrix", DSG_F64, 2, &m) < 0)
        goto done;
    size_t expected[2] = {dsg_shape_size(out), dsg_shape_size(in)};
    if (dsg_expect_shape(fn, &m, 2, expected) < 0)
        goto done;

    void *op = NULL;
    dsg_status err = f64 ? dsg_matrix_create_f64((dsg_op_f64 **)&op, in, out, m.data)
                         : dsg_matrix_create_f32((dsg_op_f32 **)&op, in, out, m.data);
    result = wrap(st, fn, err, op, f64);
done:
    dsg_release(&m);
    return result;
}

static PyObject *
py_compose(PyObject *mod, PyObject *args)
{
    static const char fn[] = "compose";
    core_state *st = PyModule_GetState(mod);
    PyObject *outer_obj, *inner_obj;
    if (!PyArg_ParseTuple(args, "O!O!:compose", st->op_type, &outer_obj, st->op_type,
                          &inner_obj))
        return NULL;
    py_op *outer = (py_op *)outer_obj, *inner = (py_op *)inner_obj;
    if (outer->f64 != inner->f64)
        return PyErr_Format(PyExc_TypeError, "%s: both operators must have one dtype",
                            fn);

    void *op = NULL;
    dsg_status err =
        outer->f64 ? dsg_compose_create_f64((dsg_op_f64 **)&op, outer->op, inner->op)
                   : dsg_compose_create_f32((dsg_op_f32 **)&op, outer->op, inner->op);
    PyObject *result = wrap(st, fn, err, op, outer->f64);
    if (result) {
        /* the composition reads both: they live as long as it does */
        ((py_op *)result)->parts = PyTuple_Pack(2, outer_obj, inner_obj);
        if (!((py_op *)result)->parts)
            Py_CLEAR(result);
    }
    return result;
}

static PyObject *
py_warp(PyObject *mod, PyObject *args)
{
    static const char fn[] = "warp";
    core_state *st = PyModule_GetState(mod);
    const char *dtype;
    PyObject *shape_obj, *displacement_obj;
    bool f64;
    dsg_shape shape;
    if (!PyArg_ParseTuple(args, "sO!O:warp", &dtype, &PyTuple_Type, &shape_obj,
                          &displacement_obj) ||
        dsg_parse_precision(fn, dtype, &f64) < 0 ||
        dsg_parse_shape(fn, shape_obj, &shape) < 0)
        return NULL;

    PyObject *result = NULL;
    dsg_borrow d = {0};
    if (dsg_borrow_in(st, fn, displacement_obj, "displacement", f64 ? DSG_F64 : DSG_F32,
                      3, &d) < 0)
        goto done;
    size_t expected[3] = {2, shape.h, shape.w};
    if (dsg_expect_shape(fn, &d, 3, expected) < 0)
        goto done;

    void *op = NULL;
    dsg_status err = f64 ? dsg_warp_create_f64((dsg_op_f64 **)&op, shape, d.data)
                         : dsg_warp_create_f32((dsg_op_f32 **)&op, shape, d.data);
    result = wrap(st, fn, err, op, f64);
done:
    dsg_release(&d);
    return result;
}

/* ---- gradients with respect to what an operator is made of, for one image ---- */

static PyObject *
py_blur_kernel_gradient(PyObject *mod, PyObject *args)
{
    static const char fn[] = "blur_kernel_gradient";
    core_state *st = PyModule_GetState(mod);
    PyObject *g_obj, *x_obj, *v_obj;
    Py_ssize_t row, column, grow_h, grow_w, border;
    if (!PyArg_ParseTuple(args, "OOO(nn)(nn)n:blur_kernel_gradient", &g_obj, &x_obj,
                          &v_obj, &row, &column, &grow_h, &grow_w, &border))
        return NULL;

    PyObject *result = NULL;
    dsg_borrow g = {0}, x = {0}, v = {0};
    dsg_blur_geometry geometry;
    if (dsg_borrow_out(st, fn, g_obj, "out", DSG_REAL, 2, &g) < 0 ||
        parse_geometry(fn, g.shape, row, column, grow_h, grow_w, border, &geometry) < 0)
        goto done;
    dsg_dtype dtype = g.f64 ? DSG_F64 : DSG_F32;
    if (dsg_borrow_in(st, fn, x_obj, "x", dtype, 3, &x) < 0 ||
        dsg_borrow_in(st, fn, v_obj, "v", dtype, 3, &v) < 0)
        goto done;
    dsg_shape shape = {x.shape[0], x.shape[1], x.shape[2]};
    size_t expected[3] = {shape.c, shape.h + geometry.grow_h,
                          shape.w + geometry.grow_w};
    if (dsg_expect_shape(fn, &v, 3, expected) < 0 || dsg_expect_apart(fn, &g, &x) < 0 ||
        dsg_expect_apart(fn, &g, &v) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(g.f64, dsg_blur_kernel_gradient, g.data, x.data, v.data, shape,
                       &geometry);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&v);
    dsg_release(&x);
    dsg_release(&g);
    return result;
}

static PyObject *
py_warp_displacement_gradient(PyObject *mod, PyObject *args)
{
    static const char fn[] = "warp_displacement_gradient";
    core_state *st = PyModule_GetState(mod);
    PyObject *g_obj, *op_obj, *x_obj, *v_obj;
    if (!PyArg_ParseTuple(args, "OO!OO:warp_displacement_gradient", &g_obj, st->op_type,
                          &op_obj, &x_obj, &v_obj))
        return NULL;

    PyObject *result = NULL;
    py_op *o = (py_op *)op_obj;
    dsg_dtype dtype = o->f64 ? DSG_F64 : DSG_F32;
    dsg_borrow g = {0}, x = {0}, v = {0};
    bool warp = o->f64 ? dsg_is_warp_f64(o->op) : dsg_is_warp_f32(o->op);
    if (!warp) {
        PyErr_Format(PyExc_TypeError, "%s: the operator must be a warp", fn);
        goto done;
    }
    size_t image[3] = {o->in.c, o->in.h, o->in.w}, field[3] = {2, o->in.h, o->in.w};
    if (dsg_borrow_out(st, fn, g_obj, "out", dtype, 3, &g) < 0 ||
        dsg_borrow_in(st, fn, x_obj, "x", dtype, 3, &x) < 0 ||
        dsg_borrow_in(st, fn, v_obj, "v", dtype, 3, &v) < 0 ||
        dsg_expect_shape(fn, &g, 3, field) < 0 ||
        dsg_expect_shape(fn, &x, 3, image) < 0 ||
        dsg_expect_shape(fn, &v, 3, image) < 0 || dsg_expect_apart(fn, &g, &x) < 0 ||
        dsg_expect_apart(fn, &g, &v) < 0)
        goto done;

    Py_BEGIN_ALLOW_THREADS
    DSG_DISPATCH(o->f64, dsg_warp_displacement_gradient, o->op, g.data, x.data, v.data);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    dsg_release(&v);
    dsg_release(&x);
    dsg_release(&g);
    return result;
}

PyMethodDef dsg_create_functions[] = {
    {"mask", py_mask, METH_VARARGS,
     "mask(dtype, shape, mask, /)\n--\n\n"
     "Inpainting operator on images of shape (c, h, w); mask (1 or c, h, w) of 0 and "
     "1, uint8."},
    {"blur", py_blur, METH_VARARGS,
     "blur(dtype, shape, kernel, centre, grow, border, form=0, /)\n--\n\n"
     "Correlation with a float64 kernel (kh, kw) whose entry `centre` meets the pixel; "
     "y is larger by `grow`; border 0 reflect, 1 circular, 2 zero, 3 replicate; form 0 "
     "automatic, 1 separable, 2 sparse, 3 FFT, 4 sparse or FFT."},
    {"resize", py_resize, METH_VARARGS,
     "resize(dtype, shape, factor, /)\n--\n\n"
     "Bicubic antialiased downsampling; factor at most 16 max(h, w)."},
    {"phase", py_phase, METH_VARARGS,
     "phase(dtype, shape, pad, scale, shift, /)\n--\n\n"
     "Magnitude of the orthonormal FFT of scale x + shift, padded with zeros."},
    {"pointwise", py_pointwise, METH_VARARGS,
     "pointwise(dtype, shape, kind, a, /)\n--\n\n"
     "Kind 0 clips a x to [-1, 1]; 1 encodes linear light with gamma a; 2 decodes."},
    {"matrix", py_matrix, METH_VARARGS,
     "matrix(dtype, shape, out_shape, matrix, /)\n--\n\n"
     "A float64 matrix (size of out_shape, size of shape)."},
    {"compose", py_compose, METH_VARARGS,
     "compose(outer, inner, /)\n--\n\nouter after inner; keeps both alive."},
    {"warp", py_warp, METH_VARARGS,
     "warp(dtype, shape, displacement, /)\n--\n\n"
     "Bilinear sampling at places displaced by (2, h, w) pixels: right, down."},
    {"blur_kernel_gradient", py_blur_kernel_gradient, METH_VARARGS,
     "blur_kernel_gradient(out, x, v, centre, grow, border, /)\n--\n\n"
     "out (kh, kw) = the gradient of <A(x), v> with respect to the kernel, for one "
     "image x (c, h, w)."},
    {"warp_displacement_gradient", py_warp_displacement_gradient, METH_VARARGS,
     "warp_displacement_gradient(out, op, x, v, /)\n--\n\n"
     "out (2, h, w) = the gradient of <A(x), v> with respect to the displacement, for "
     "one image x (c, h, w)."},
    {0},
};
