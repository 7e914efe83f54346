/* The operator handle: an opaque object with forward, vjp and residual_gradient, and
 * one create function for each operator of the core. */
#include "core.h"

#include "dsg/blur.h"
#include "dsg/mask.h"
#include "dsg/resize.h"

/* ---- the object ---- */

static void
op_dealloc(PyObject *self)
{
    py_op *o = (py_op *)self;
    PyTypeObject *type = Py_TYPE(self);
    DSG_DISPATCH(o->f64, dsg_op_destroy, o->op);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
op_forward(PyObject *self, PyObject *args)
{
    static const char fn[] = "forward";
    core_state *st = PyType_GetModuleState(Py_TYPE(self));
    py_op *o = (py_op *)self;
    PyObject *y_obj, *x_obj;
    if (!PyArg_ParseTuple(args, "OO:forward", &y_obj, &x_obj))
        return NULL;

    PyObject *result = NULL;
    dsg_borrow y = {0}, x = {0};
    if (dsg_borrow_out(st, fn, y_obj, "out", o->f64 ? DSG_F64 : DSG_F32, 4, &y) < 0 ||
        dsg_borrow_in(st, fn, x_obj, "x", o->f64 ? DSG_F64 : DSG_F32, 4, &x) < 0 ||
        dsg_expect_image(fn, &x, o->in, x.shape[0]) < 0 ||
        dsg_expect_image(fn, &y, o->out, x.shape[0]) < 0 ||
        dsg_expect_apart(fn, &y, &x) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(o->f64, dsg_op_forward_batch, o->op, y.data, x.data, x.shape[0]);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&x);
    dsg_release(&y);
    return result;
}

static PyObject *
op_vjp(PyObject *self, PyObject *args)
{
    static const char fn[] = "vjp";
    core_state *st = PyType_GetModuleState(Py_TYPE(self));
    py_op *o = (py_op *)self;
    PyObject *g_obj, *x_obj, *v_obj;
    if (!PyArg_ParseTuple(args, "OOO:vjp", &g_obj, &x_obj, &v_obj))
        return NULL;

    PyObject *result = NULL;
    dsg_dtype dtype = o->f64 ? DSG_F64 : DSG_F32;
    dsg_borrow g = {0}, x = {0}, v = {0};
    if (dsg_borrow_out(st, fn, g_obj, "out", dtype, 4, &g) < 0 ||
        dsg_borrow_in(st, fn, v_obj, "v", dtype, 4, &v) < 0 ||
        dsg_expect_image(fn, &v, o->out, v.shape[0]) < 0 ||
        dsg_expect_image(fn, &g, o->in, v.shape[0]) < 0 ||
        dsg_expect_apart(fn, &g, &v) < 0)
        goto done;
    if (x_obj != Py_None && (dsg_borrow_in(st, fn, x_obj, "x", dtype, 4, &x) < 0 ||
                             dsg_expect_image(fn, &x, o->in, v.shape[0]) < 0 ||
                             dsg_expect_apart(fn, &g, &x) < 0))
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(o->f64, dsg_op_vjp_batch, o->op, g.data, x.data, v.data,
                       v.shape[0]);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&v);
    dsg_release(&x);
    dsg_release(&g);
    return result;
}

static PyObject *
op_residual_gradient(PyObject *self, PyObject *args)
{
    static const char fn[] = "residual_gradient";
    core_state *st = PyType_GetModuleState(Py_TYPE(self));
    py_op *o = (py_op *)self;
    PyObject *g_obj, *sqnorm_obj, *x_obj, *y_obj;
    if (!PyArg_ParseTuple(args, "OOOO:residual_gradient", &g_obj, &sqnorm_obj, &x_obj,
                          &y_obj))
        return NULL;

    PyObject *result = NULL;
    dsg_dtype dtype = o->f64 ? DSG_F64 : DSG_F32;
    dsg_borrow g = {0}, sqnorm = {0}, x = {0}, y = {0};
    if (dsg_borrow_out(st, fn, g_obj, "out", dtype, 4, &g) < 0 ||
        dsg_borrow_out(st, fn, sqnorm_obj, "sqnorm", DSG_F64, 1, &sqnorm) < 0 ||
        dsg_borrow_in(st, fn, x_obj, "x", dtype, 4, &x) < 0 ||
        dsg_borrow_in(st, fn, y_obj, "y", dtype, 4, &y) < 0 ||
        dsg_expect_image(fn, &x, o->in, x.shape[0]) < 0 ||
        dsg_expect_image(fn, &y, o->out, x.shape[0]) < 0 ||
        dsg_expect_image(fn, &g, o->in, x.shape[0]) < 0 ||
        dsg_expect_shape(fn, &sqnorm, 1, x.shape) < 0 ||
        dsg_expect_apart(fn, &g, &x) < 0 || dsg_expect_apart(fn, &g, &y) < 0 ||
        dsg_expect_apart(fn, &sqnorm, &g) < 0 ||
        dsg_expect_apart(fn, &sqnorm, &x) < 0 || dsg_expect_apart(fn, &sqnorm, &y) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(o->f64, dsg_op_residual_gradient_batch, o->op, g.data,
                       sqnorm.data, x.data, y.data, x.shape[0]);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&y);
    dsg_release(&x);
    dsg_release(&sqnorm);
    dsg_release(&g);
    return result;
}

static PyObject *
op_get_in_shape(PyObject *self, void *closure)
{
    (void)closure;
    dsg_shape s = ((py_op *)self)->in;
    return Py_BuildValue("(nnn)", (Py_ssize_t)s.c, (Py_ssize_t)s.h, (Py_ssize_t)s.w);
}

static PyObject *
op_get_out_shape(PyObject *self, void *closure)
{
    (void)closure;
    dsg_shape s = ((py_op *)self)->out;
    return Py_BuildValue("(nnn)", (Py_ssize_t)s.c, (Py_ssize_t)s.h, (Py_ssize_t)s.w);
}

static PyMethodDef op_methods[] = {
    {"forward", op_forward, METH_VARARGS,
     "forward($self, out, x, /)\n--\n\nout (b, *out_shape) = A(x), x (b, *in_shape)."},
    {"vjp", op_vjp, METH_VARARGS,
     "vjp($self, out, x, v, /)\n--\n\n"
     "out (b, *in_shape) = J(x)^T v, v (b, *out_shape); x may be None for a linear "
     "operator."},
    {"residual_gradient", op_residual_gradient, METH_VARARGS,
     "residual_gradient($self, out, sqnorm, x, y, /)\n--\n\n"
     "out = J(x)^T (A(x) - y) and sqnorm (b,) float64 = ||A(x) - y||^2 per image."},
    {0},
};

static PyGetSetDef op_getset[] = {
    {"in_shape", op_get_in_shape, NULL, "(c, h, w) of an image.", NULL},
    {"out_shape", op_get_out_shape, NULL, "(c, h, w) of a measurement.", NULL},
    {0},
};

static PyType_Slot op_slots[] = {
    {Py_tp_dealloc, op_dealloc},
    {Py_tp_methods, op_methods},
    {Py_tp_getset, op_getset},
    {Py_tp_doc, "Handle of an operator of the core, for one image size and dtype."},
    {0},
};

PyType_Spec dsg_op_spec = {
    .name = "diffstategrad._core.Op",
    .basicsize = sizeof(py_op),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION |
             Py_TPFLAGS_IMMUTABLETYPE,
    .slots = op_slots,
};

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
    self->in = f64 ? ((dsg_op_f64 *)op)->in : ((dsg_op_f32 *)op)->in;
    self->out = f64 ? ((dsg_op_f64 *)op)->out : ((dsg_op_f32 *)op)->out;
    return (PyObject *)self;
}

/* ---- one create function for each operator ---- */

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

static PyObject *
py_blur(PyObject *mod, PyObject *args)
{
    static const char fn[] = "blur";
    core_state *st = PyModule_GetState(mod);
    const char *dtype;
    PyObject *shape_obj, *kernel_obj;
    Py_ssize_t form = DSG_BLUR_AUTO;
    bool f64;
    dsg_shape shape;
    if (!PyArg_ParseTuple(args, "sO!O|n:blur", &dtype, &PyTuple_Type, &shape_obj,
                          &kernel_obj, &form) ||
        dsg_parse_precision(fn, dtype, &f64) < 0 ||
        dsg_parse_shape(fn, shape_obj, &shape) < 0 ||
        dsg_expect_int(fn, "form", form, DSG_BLUR_AUTO, DSG_BLUR_FFT) < 0)
        return NULL;

    PyObject *result = NULL;
    dsg_borrow k = {0};
    if (dsg_borrow_in(st, fn, kernel_obj, "kernel", DSG_F64, 2, &k) < 0)
        goto done;

    void *op = NULL;
    dsg_status err = f64 ? dsg_blur_create_f64((dsg_op_f64 **)&op, shape, k.data,
                                               k.shape[0], k.shape[1], form)
                         : dsg_blur_create_f32((dsg_op_f32 **)&op, shape, k.data,
                                               k.shape[0], k.shape[1], form);
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

PyMethodDef dsg_op_functions[] = {
    {"mask", py_mask, METH_VARARGS,
     "mask(dtype, shape, mask, /)\n--\n\n"
     "Inpainting operator on images of shape (c, h, w); mask (1 or c, h, w) of 0 and "
     "1, uint8."},
    {"blur", py_blur, METH_VARARGS,
     "blur(dtype, shape, kernel, form=0, /)\n--\n\n"
     "Reflected correlation with a float64 kernel (kh, kw); form 0 automatic, "
     "1 separable, 2 sparse, 3 FFT."},
    {"resize", py_resize, METH_VARARGS,
     "resize(dtype, shape, factor, /)\n--\n\n"
     "Bicubic antialiased downsampling; factor at most 16 max(h, w)."},
    {0},
};
