/* The operator handle: an opaque object with forward, its derivatives and the fused
 * residual gradient. */
#include "core.h"

static void
op_dealloc(PyObject *self)
{
    py_op *o = (py_op *)self;
    PyTypeObject *type = Py_TYPE(self);
    DSG_DISPATCH(o->f64, dsg_op_destroy, o->op);
    Py_XDECREF(o->parts);
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

/* The point x of a derivative, (b, *in); None leaves x.data NULL, which is for linear
 * operators alone.  -1 with an exception. */
static int
borrow_point(core_state *st, const char *fn, PyObject *object, const py_op *o, size_t b,
             const dsg_borrow *out, dsg_borrow *x)
{
    bool linear = o->f64 ? ((dsg_op_f64 *)o->op)->class->linear
                         : ((dsg_op_f32 *)o->op)->class->linear;
    if (object == Py_None && linear)
        return 0;
    if (object == Py_None) {
        PyErr_Format(PyExc_ValueError,
                     "%s: x must be given, the operator is not linear", fn);
        return -1;
    }
    if (dsg_borrow_in(st, fn, object, "x", o->f64 ? DSG_F64 : DSG_F32, 4, x) < 0 ||
        dsg_expect_image(fn, x, o->in, b) < 0 || dsg_expect_apart(fn, out, x) < 0)
        return -1;
    return 0;
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
        dsg_expect_apart(fn, &g, &v) < 0 ||
        borrow_point(st, fn, x_obj, o, v.shape[0], &g, &x) < 0)
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
op_jvp(PyObject *self, PyObject *args)
{
    static const char fn[] = "jvp";
    core_state *st = PyType_GetModuleState(Py_TYPE(self));
    py_op *o = (py_op *)self;
    PyObject *t_obj, *x_obj, *w_obj;
    if (!PyArg_ParseTuple(args, "OOO:jvp", &t_obj, &x_obj, &w_obj))
        return NULL;

    PyObject *result = NULL;
    dsg_dtype dtype = o->f64 ? DSG_F64 : DSG_F32;
    dsg_borrow t = {0}, x = {0}, w = {0};
    if (dsg_borrow_out(st, fn, t_obj, "out", dtype, 4, &t) < 0 ||
        dsg_borrow_in(st, fn, w_obj, "w", dtype, 4, &w) < 0 ||
        dsg_expect_image(fn, &w, o->in, w.shape[0]) < 0 ||
        dsg_expect_image(fn, &t, o->out, w.shape[0]) < 0 ||
        dsg_expect_apart(fn, &t, &w) < 0 ||
        borrow_point(st, fn, x_obj, o, w.shape[0], &t, &x) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(o->f64, dsg_op_jvp_batch, o->op, t.data, x.data, w.data,
                       w.shape[0]);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&w);
    dsg_release(&x);
    dsg_release(&t);
    return result;
}

static PyObject *
op_curvature(PyObject *self, PyObject *args)
{
    static const char fn[] = "curvature";
    core_state *st = PyType_GetModuleState(Py_TYPE(self));
    py_op *o = (py_op *)self;
    PyObject *h_obj, *x_obj, *v_obj, *w_obj;
    if (!PyArg_ParseTuple(args, "OOOO:curvature", &h_obj, &x_obj, &v_obj, &w_obj))
        return NULL;

    PyObject *result = NULL;
    dsg_dtype dtype = o->f64 ? DSG_F64 : DSG_F32;
    dsg_borrow h = {0}, x = {0}, v = {0}, w = {0};
    if (dsg_borrow_out(st, fn, h_obj, "out", dtype, 4, &h) < 0 ||
        dsg_borrow_in(st, fn, v_obj, "v", dtype, 4, &v) < 0 ||
        dsg_borrow_in(st, fn, w_obj, "w", dtype, 4, &w) < 0 ||
        dsg_expect_image(fn, &v, o->out, v.shape[0]) < 0 ||
        dsg_expect_image(fn, &w, o->in, v.shape[0]) < 0 ||
        dsg_expect_image(fn, &h, o->in, v.shape[0]) < 0 ||
        dsg_expect_apart(fn, &h, &v) < 0 || dsg_expect_apart(fn, &h, &w) < 0 ||
        borrow_point(st, fn, x_obj, o, v.shape[0], &h, &x) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(o->f64, dsg_op_curvature_batch, o->op, h.data, x.data, v.data,
                       w.data, v.shape[0]);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&w);
    dsg_release(&v);
    dsg_release(&x);
    dsg_release(&h);
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
    {"jvp", op_jvp, METH_VARARGS,
     "jvp($self, out, x, w, /)\n--\n\n"
     "out (b, *out_shape) = J(x) w, w (b, *in_shape); x may be None for a linear "
     "operator."},
    {"curvature", op_curvature, METH_VARARGS,
     "curvature($self, out, x, v, w, /)\n--\n\n"
     "out (b, *in_shape) = the gradient of <J(x)^T v, w> with respect to x."},
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
