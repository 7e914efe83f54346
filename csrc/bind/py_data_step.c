/* The data step: prox, pseudo-inverse and norm of a linear operator. */
#include "core.h"

#include <math.h>

#include "dsg/data_step.h"
#include "dsg/mem.h"

typedef struct py_data_step {
    PyObject_HEAD void *step; /* dsg_data_step_f32 or dsg_data_step_f64 */
    py_op *op;                /* owned: the step reads it */
} py_data_step;

static PyObject *
step_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char fn[] = "DataStep";
    core_state *st = PyType_GetModuleState(type);
    if (kwargs && PyDict_Size(kwargs))
        return PyErr_Format(PyExc_TypeError, "%s takes no keyword arguments", fn);
    PyObject *op_obj;
    if (!PyArg_ParseTuple(args, "O!:DataStep", st->op_type, &op_obj))
        return NULL;
    py_op *op = (py_op *)op_obj;

    void *step = NULL;
    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = op->f64 ? dsg_data_step_create_f64((dsg_data_step_f64 **)&step, op->op)
                  : dsg_data_step_create_f32((dsg_data_step_f32 **)&step, op->op);
    Py_END_ALLOW_THREADS
    if (err == DSG_EVALUE)
        return PyErr_Format(PyExc_ValueError, "%s: the operator is not linear", fn);
    if (err != DSG_OK)
        return dsg_raise(st, fn, err);
    py_data_step *self = (py_data_step *)type->tp_alloc(type, 0);
    if (!self) {
        DSG_DISPATCH(op->f64, dsg_data_step_destroy, step);
        return NULL;
    }
    self->step = step;
    self->op = (py_op *)Py_NewRef(op_obj);
    return (PyObject *)self;
}

static void
step_dealloc(PyObject *self)
{
    py_data_step *s = (py_data_step *)self;
    PyTypeObject *type = Py_TYPE(self);
    DSG_DISPATCH(s->op->f64, dsg_data_step_destroy, s->step);
    Py_DECREF(s->op);
    type->tp_free(self);
    Py_DECREF(type);
}

/* [(residual, iterations), ...] */
static PyObject *
info_list(const dsg_cg_info *info, size_t b)
{
    PyObject *list = PyList_New((Py_ssize_t)b);
    for (size_t i = 0; list && i < b; i++) {
        PyObject *entry =
            Py_BuildValue("(dn)", info[i].residual, (Py_ssize_t)info[i].iterations);
        if (!entry)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, entry);
    }
    return list;
}

static int
expect_cg(const char *fn, double tolerance, Py_ssize_t iterations)
{
    if (dsg_expect_number(fn, "tolerance", tolerance,
                          isfinite(tolerance) && tolerance > 0.0, "finite and > 0") < 0)
        return -1;
    return dsg_expect_int(fn, "iterations", iterations, 1, PY_SSIZE_T_MAX);
}

static PyObject *
step_prox(PyObject *self, PyObject *args)
{
    static const char fn[] = "prox";
    core_state *st = PyType_GetModuleState(Py_TYPE(self));
    py_data_step *s = (py_data_step *)self;
    py_op *o = s->op;
    PyObject *x_obj, *v_obj, *y_obj;
    double rho, tolerance;
    Py_ssize_t iterations;
    if (!PyArg_ParseTuple(args, "OOOddn:prox", &x_obj, &v_obj, &y_obj, &rho, &tolerance,
                          &iterations) ||
        dsg_expect_number(fn, "rho", rho, isfinite(rho) && rho > 0.0,
                          "finite and > 0") < 0 ||
        expect_cg(fn, tolerance, iterations) < 0)
        return NULL;

    PyObject *result = NULL;
    dsg_cg_info *info = NULL;
    dsg_dtype dtype = o->f64 ? DSG_F64 : DSG_F32;
    dsg_borrow x = {0}, v = {0}, y = {0};
    if (dsg_borrow_out(st, fn, x_obj, "out", dtype, 4, &x) < 0 ||
        dsg_borrow_in(st, fn, v_obj, "v", dtype, 4, &v) < 0 ||
        dsg_borrow_in(st, fn, y_obj, "y", dtype, 4, &y) < 0 ||
        dsg_expect_image(fn, &v, o->in, v.shape[0]) < 0 ||
        dsg_expect_image(fn, &y, o->out, v.shape[0]) < 0 ||
        dsg_expect_image(fn, &x, o->in, v.shape[0]) < 0 ||
        dsg_expect_apart(fn, &x, &v) < 0 || dsg_expect_apart(fn, &x, &y) < 0)
        goto done;
    size_t b = v.shape[0];
    if (!(info = dsg_alloc(b, sizeof *info))) {
        PyErr_NoMemory();
        goto done;
    }

    dsg_cg_options options = {.tolerance = tolerance, .iterations = (size_t)iterations};
    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(o->f64, dsg_data_step_prox_batch, s->step, x.data, v.data,
                       y.data, rho, &options, info, b);
    Py_END_ALLOW_THREADS
    result = err ? dsg_raise(st, fn, err) : info_list(info, b);
done:
    dsg_free(info);
    dsg_release(&y);
    dsg_release(&v);
    dsg_release(&x);
    return result;
}

static PyObject *
step_pinv(PyObject *self, PyObject *args)
{
    static const char fn[] = "pinv";
    core_state *st = PyType_GetModuleState(Py_TYPE(self));
    py_data_step *s = (py_data_step *)self;
    py_op *o = s->op;
    PyObject *x_obj, *y_obj;
    double cutoff, tolerance;
    Py_ssize_t iterations;
    if (!PyArg_ParseTuple(args, "OOddn:pinv", &x_obj, &y_obj, &cutoff, &tolerance,
                          &iterations) ||
        dsg_expect_number(fn, "cutoff", cutoff, cutoff > 0.0 && cutoff < 1.0,
                          "in the range (0, 1)") < 0 ||
        expect_cg(fn, tolerance, iterations) < 0)
        return NULL;

    PyObject *result = NULL;
    dsg_cg_info *info = NULL;
    dsg_dtype dtype = o->f64 ? DSG_F64 : DSG_F32;
    dsg_borrow x = {0}, y = {0};
    if (dsg_borrow_out(st, fn, x_obj, "out", dtype, 4, &x) < 0 ||
        dsg_borrow_in(st, fn, y_obj, "y", dtype, 4, &y) < 0 ||
        dsg_expect_image(fn, &y, o->out, y.shape[0]) < 0 ||
        dsg_expect_image(fn, &x, o->in, y.shape[0]) < 0 ||
        dsg_expect_apart(fn, &x, &y) < 0)
        goto done;
    size_t b = y.shape[0];
    if (!(info = dsg_alloc(b, sizeof *info))) {
        PyErr_NoMemory();
        goto done;
    }

    dsg_cg_options options = {.tolerance = tolerance, .iterations = (size_t)iterations};
    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(o->f64, dsg_data_step_pinv_batch, s->step, x.data, y.data,
                       cutoff, &options, info, b);
    Py_END_ALLOW_THREADS
    result = err ? dsg_raise(st, fn, err) : info_list(info, b);
done:
    dsg_free(info);
    dsg_release(&y);
    dsg_release(&x);
    return result;
}

static PyObject *
step_norm(PyObject *self, PyObject *args)
{
    static const char fn[] = "norm";
    core_state *st = PyType_GetModuleState(Py_TYPE(self));
    py_data_step *s = (py_data_step *)self;
    (void)args;
    double norm = 0.0;
    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(s->op->f64, dsg_data_step_norm, s->step, &norm);
    Py_END_ALLOW_THREADS
    return err ? dsg_raise(st, fn, err) : PyFloat_FromDouble(norm);
}

static PyObject *
step_closed_form(PyObject *self, void *closure)
{
    (void)closure;
    py_data_step *s = (py_data_step *)self;
    bool closed = s->op->f64 ? ((dsg_data_step_f64 *)s->step)->class != NULL
                             : ((dsg_data_step_f32 *)s->step)->class != NULL;
    return PyBool_FromLong(closed);
}

static PyMethodDef step_methods[] = {
    {"prox", step_prox, METH_VARARGS,
     "prox($self, out, v, y, rho, tolerance, iterations, /)\n--\n\n"
     "out = argmin ||A x - y||^2 + rho ||x - v||^2; the last two are for conjugate "
     "gradients.  A list of (relative residual, iterations), one an image."},
    {"pinv", step_pinv, METH_VARARGS,
     "pinv($self, out, y, cutoff, tolerance, iterations, /)\n--\n\n"
     "out = A^+ y without the singular values below cutoff * norm; by conjugate "
     "gradients regularised by (cutoff * norm)^2.  A list as prox's."},
    {"norm", step_norm, METH_NOARGS,
     "norm($self, /)\n--\n\nThe largest singular value."},
    {0},
};

static PyGetSetDef step_getset[] = {
    {"closed_form", step_closed_form, NULL, "False: conjugate gradients.", NULL},
    {0},
};

static PyType_Slot step_slots[] = {
    {Py_tp_new, step_new},
    {Py_tp_dealloc, step_dealloc},
    {Py_tp_methods, step_methods},
    {Py_tp_getset, step_getset},
    {Py_tp_doc, "DataStep(op, /)\n--\n\nThe exact data step of a linear operator."},
    {0},
};

PyType_Spec dsg_data_step_spec = {
    .name = "diffstategrad._core.DataStep",
    .basicsize = sizeof(py_data_step),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = step_slots,
};
