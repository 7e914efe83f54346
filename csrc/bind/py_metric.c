/* Metrics: one float64 for each image of a batch. */
#include "core.h"

#include "dsg/metric.h"

typedef struct metric_args {
    dsg_borrow out, x, ref;
    dsg_shape shape;
} metric_args;

static int
borrow_args(core_state *st, const char *fn, PyObject *out, PyObject *x, PyObject *ref,
            metric_args *a)
{
    if (dsg_borrow_out(st, fn, out, "out", DSG_F64, 1, &a->out) < 0 ||
        dsg_borrow_in(st, fn, x, "x", DSG_REAL, 4, &a->x) < 0 ||
        dsg_borrow_in(st, fn, ref, "ref", DSG_REAL, 4, &a->ref) < 0 ||
        dsg_expect_precision(fn, &a->ref, a->x.f64) < 0 ||
        dsg_expect_shape(fn, &a->ref, 4, a->x.shape) < 0 ||
        dsg_expect_shape(fn, &a->out, 1, a->x.shape) < 0 ||
        dsg_expect_apart(fn, &a->out, &a->x) < 0 ||
        dsg_expect_apart(fn, &a->out, &a->ref) < 0)
        return -1;
    a->shape = (dsg_shape){a->x.shape[1], a->x.shape[2], a->x.shape[3]};
    if (dsg_shape_size(a->shape) == 0) {
        PyErr_Format(PyExc_ValueError, "%s: images must not be empty", fn);
        return -1;
    }
    return 0;
}

static void
release_args(metric_args *a)
{
    dsg_release(&a->ref);
    dsg_release(&a->x);
    dsg_release(&a->out);
}

static PyObject *
py_psnr(PyObject *mod, PyObject *args)
{
    static const char fn[] = "psnr";
    core_state *st = PyModule_GetState(mod);
    PyObject *out, *x, *ref;
    double range, floor;
    if (!PyArg_ParseTuple(args, "OOOdd:psnr", &out, &x, &ref, &range, &floor))
        return NULL;

    PyObject *result = NULL;
    metric_args a = {0};
    if (borrow_args(st, fn, out, x, ref, &a) < 0)
        goto done;
    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(a.x.f64, dsg_psnr, a.out.data, a.x.data, a.ref.data,
                       a.x.shape[0], a.shape, range, floor);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    release_args(&a);
    return result;
}

static PyObject *
py_nmse(PyObject *mod, PyObject *args)
{
    static const char fn[] = "nmse";
    core_state *st = PyModule_GetState(mod);
    PyObject *out, *x, *ref;
    if (!PyArg_ParseTuple(args, "OOO:nmse", &out, &x, &ref))
        return NULL;

    PyObject *result = NULL;
    metric_args a = {0};
    if (borrow_args(st, fn, out, x, ref, &a) < 0)
        goto done;
    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(a.x.f64, dsg_nmse, a.out.data, a.x.data, a.ref.data,
                       a.x.shape[0], a.shape);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    release_args(&a);
    return result;
}

static PyObject *
py_ssim(PyObject *mod, PyObject *args)
{
    static const char fn[] = "ssim";
    core_state *st = PyModule_GetState(mod);
    PyObject *out, *x, *ref;
    double range;
    Py_ssize_t window;
    if (!PyArg_ParseTuple(args, "OOOdn:ssim", &out, &x, &ref, &range, &window))
        return NULL;

    PyObject *result = NULL;
    metric_args a = {0};
    if (borrow_args(st, fn, out, x, ref, &a) < 0 ||
        dsg_expect_int(fn, "window", window, DSG_SSIM_GAUSSIAN, DSG_SSIM_UNIFORM) < 0)
        goto done;
    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(a.x.f64, dsg_ssim, a.out.data, a.x.data, a.ref.data,
                       a.x.shape[0], a.shape, range, (dsg_ssim_window)window);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    release_args(&a);
    return result;
}

PyMethodDef dsg_metric_functions[] = {
    {"psnr", py_psnr, METH_VARARGS,
     "psnr(out, x, ref, range, floor, /)\n--\n\nPeak signal-to-noise ratio in dB."},
    {"nmse", py_nmse, METH_VARARGS,
     "nmse(out, x, ref, /)\n--\n\nNormalised mean squared error."},
    {"ssim", py_ssim, METH_VARARGS,
     "ssim(out, x, ref, range, window, /)\n--\n\n"
     "Structural similarity; window 0 Gaussian 11x11, 1 uniform 7x7."},
    {0},
};
