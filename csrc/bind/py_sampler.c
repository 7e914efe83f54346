/* Normals, the Euler step of the probability-flow ODE, the Langevin loop of a level. */
#include "core.h"

#include <math.h>

#include "dsg/mem.h"

/* ---- noise: the tuple (seed, images, samples, draw) ---- */

typedef struct noise_arg {
    dsg_noise noise;
    uint32_t *ids; /* images, then samples */
} noise_arg;

static int
parse_ids(const char *fn, PyObject *sequence, const char *name, size_t b, uint32_t *ids)
{
    if (!PySequence_Check(sequence)) {
        PyErr_Format(PyExc_TypeError, "%s: %s must be a sequence of int, got %s", fn,
                     name, Py_TYPE(sequence)->tp_name);
        return -1;
    }
    /* a copy: __index__ of an entry could change the sequence itself */
    PyObject *tuple = PySequence_Tuple(sequence);
    if (!tuple)
        return -1;
    int status = -1;
    if ((size_t)PyTuple_GET_SIZE(tuple) != b) {
        PyErr_Format(PyExc_ValueError, "%s: %s must name %zu images, got %zd", fn, name,
                     b, PyTuple_GET_SIZE(tuple));
        goto done;
    }
    for (size_t i = 0; i < b; i++) {
        /* borrowed */
        PyObject *item = PyTuple_GET_ITEM(tuple, (Py_ssize_t)i);
        uint64_t id;
        if (dsg_parse_uint(fn, item, name, UINT32_MAX, &id) < 0)
            goto done;
        ids[i] = (uint32_t)id;
    }
    status = 0;
done:
    Py_DECREF(tuple);
    return status;
}

/* The draws are number draw .. draw + steps - 1.  Free arg->ids with PyMem_Free in
 * either case. */
static int
parse_noise(const char *fn, PyObject *tuple, size_t b, size_t steps, noise_arg *arg)
{
    PyObject *seed_obj, *images, *samples, *draw_obj;
    uint64_t seed, draw;
    if (!PyTuple_Check(tuple)) {
        PyErr_Format(PyExc_TypeError,
                     "%s: noise must be a tuple (seed, images, samples, draw), got %s",
                     fn, Py_TYPE(tuple)->tp_name);
        return -1;
    }
    if (!PyArg_ParseTuple(tuple, "OOOO;noise must be (seed, images, samples, draw)",
                          &seed_obj, &images, &samples, &draw_obj) ||
        dsg_parse_uint(fn, seed_obj, "noise seed", UINT64_MAX, &seed) < 0 ||
        dsg_parse_uint(fn, draw_obj, "noise draw", UINT32_MAX, &draw) < 0)
        return -1;
    if (steps - 1 > UINT32_MAX - draw) {
        PyErr_Format(PyExc_ValueError,
                     "%s: noise draw must leave room for %zu steps below 2^32, got %u",
                     fn, steps, (unsigned int)draw);
        return -1;
    }
    arg->ids = PyMem_Calloc(2 * b + 1, sizeof *arg->ids);
    if (!arg->ids) {
        PyErr_NoMemory();
        return -1;
    }
    if (parse_ids(fn, images, "noise images", b, arg->ids) < 0 ||
        parse_ids(fn, samples, "noise samples", b, arg->ids + b) < 0)
        return -1;
    arg->noise = (dsg_noise){.seed = seed,
                             .image = arg->ids,
                             .sample = arg->ids + b,
                             .draw = (uint32_t)draw};
    return 0;
}

/* ---- functions ---- */

static PyObject *
py_normal(PyObject *mod, PyObject *args)
{
    static const char fn[] = "normal";
    core_state *st = PyModule_GetState(mod);
    PyObject *out_obj, *noise_obj;
    if (!PyArg_ParseTuple(args, "OO:normal", &out_obj, &noise_obj))
        return NULL;

    PyObject *result = NULL;
    dsg_borrow out = {0};
    noise_arg noise = {0};
    if (dsg_borrow_out(st, fn, out_obj, "out", DSG_REAL, 2, &out) < 0 ||
        parse_noise(fn, noise_obj, out.shape[0], 1, &noise) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(out.f64, dsg_normal_batch, out.data, out.shape[0], out.shape[1],
                       &noise.noise);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    PyMem_Free(noise.ids);
    dsg_release(&out);
    return result;
}

static PyObject *
py_euler_step(PyObject *mod, PyObject *args)
{
    static const char fn[] = "euler_step";
    core_state *st = PyModule_GetState(mod);
    PyObject *x_obj, *denoised_obj;
    double sigma, sigma_next;
    if (!PyArg_ParseTuple(args, "OOdd:euler_step", &x_obj, &denoised_obj, &sigma,
                          &sigma_next))
        return NULL;

    PyObject *result = NULL;
    dsg_borrow x = {0}, denoised = {0};
    if (dsg_borrow_out(st, fn, x_obj, "x", DSG_REAL, 4, &x) < 0 ||
        dsg_borrow_in(st, fn, denoised_obj, "denoised", DSG_REAL, 4, &denoised) < 0 ||
        dsg_expect_precision(fn, &denoised, x.f64) < 0 ||
        dsg_expect_shape(fn, &denoised, 4, x.shape) < 0 ||
        dsg_expect_apart(fn, &x, &denoised) < 0 ||
        dsg_expect_number(fn, "sigma", sigma, isfinite(sigma) && sigma > 0.0,
                          "> 0 and finite") < 0 ||
        dsg_expect_number(fn, "sigma_next", sigma_next,
                          isfinite(sigma_next) && sigma_next >= 0.0,
                          ">= 0 and finite") < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(x.f64, dsg_euler_step, x.data, denoised.data, x.n, sigma,
                       sigma_next);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&denoised);
    dsg_release(&x);
    return result;
}

/* -1 with an exception unless the projector is for b images of the operator. */
static int
expect_projector(const char *fn, const py_projector *p, const py_op *op, size_t b)
{
    if (p->f64 != op->f64) {
        PyErr_Format(PyExc_TypeError, "%s: projector must be %s like the operator", fn,
                     op->f64 ? "float64" : "float32");
        return -1;
    }
    dsg_shape s = op->in, got = p->shape;
    if (p->b == b && got.c == s.c && got.h == s.h && got.w == s.w)
        return 0;
    PyErr_Format(PyExc_ValueError,
                 "%s: projector must be for %zu images of shape (%zu, %zu, %zu), "
                 "got %zu of (%zu, %zu, %zu)",
                 fn, b, s.c, s.h, s.w, p->b, got.c, got.h, got.w);
    return -1;
}

static PyObject *
py_langevin(PyObject *mod, PyObject *args)
{
    static const char fn[] = "langevin";
    core_state *st = PyModule_GetState(mod);
    PyObject *x_obj, *sqnorm_obj, *x0hat_obj, *y_obj, *op_obj, *projector_obj,
        *noise_obj;
    Py_ssize_t steps;
    dsg_langevin_options options;
    if (!PyArg_ParseTuple(args, "OOOOO!OOnddd:langevin", &x_obj, &sqnorm_obj,
                          &x0hat_obj, &y_obj, st->op_type, &op_obj, &projector_obj,
                          &noise_obj, &steps, &options.eta, &options.likelihood,
                          &options.prior))
        return NULL;
    if (dsg_expect_int(fn, "steps", steps, 1, PY_SSIZE_T_MAX) < 0 ||
        dsg_expect_number(fn, "eta", options.eta,
                          isfinite(options.eta) && options.eta > 0.0,
                          "> 0 and finite") < 0 ||
        dsg_expect_number(fn, "likelihood", options.likelihood,
                          isfinite(options.likelihood), "finite") < 0 ||
        dsg_expect_number(fn, "prior", options.prior, isfinite(options.prior),
                          "finite") < 0)
        return NULL;
    options.steps = (size_t)steps;
    if (projector_obj != Py_None && !Py_IS_TYPE(projector_obj, st->projector_type))
        return PyErr_Format(PyExc_TypeError,
                            "%s: projector must be a Projector or None, got %s", fn,
                            Py_TYPE(projector_obj)->tp_name);

    PyObject *result = NULL;
    py_op *op = (py_op *)op_obj;
    py_projector *p = projector_obj == Py_None ? NULL : (py_projector *)projector_obj;
    dsg_dtype dtype = op->f64 ? DSG_F64 : DSG_F32;
    dsg_borrow x = {0}, sqnorm = {0}, x0hat = {0}, y = {0}, recorded = {0};
    noise_arg noise = {0};
    if (dsg_borrow_out(st, fn, x_obj, "x", dtype, 4, &x) < 0 ||
        dsg_borrow_out(st, fn, sqnorm_obj, "sqnorm", DSG_F64, 1, &sqnorm) < 0 ||
        dsg_borrow_in(st, fn, x0hat_obj, "x0hat", dtype, 4, &x0hat) < 0 ||
        dsg_borrow_in(st, fn, y_obj, "y", dtype, 4, &y) < 0 ||
        dsg_expect_image(fn, &x, op->in, x.shape[0]) < 0 ||
        dsg_expect_image(fn, &x0hat, op->in, x.shape[0]) < 0 ||
        dsg_expect_image(fn, &y, op->out, x.shape[0]) < 0 ||
        dsg_expect_shape(fn, &sqnorm, 1, x.shape) < 0 ||
        dsg_expect_apart(fn, &x, &x0hat) < 0 || dsg_expect_apart(fn, &x, &y) < 0 ||
        dsg_expect_apart(fn, &sqnorm, &x) < 0 ||
        dsg_expect_apart(fn, &sqnorm, &x0hat) < 0 ||
        dsg_expect_apart(fn, &sqnorm, &y) < 0)
        goto done;
    if (p && expect_projector(fn, p, op, x.shape[0]) < 0)
        goto done;
    if (PyTuple_Check(noise_obj)) {
        if (parse_noise(fn, noise_obj, x.shape[0], options.steps, &noise) < 0)
            goto done;
    } else {
        /* (steps * b, c, h, w): recorded normals */
        size_t draws;
        if (!dsg_mul(options.steps, x.shape[0], &draws)) {
            PyErr_Format(PyExc_ValueError, "%s: %zu steps of %zu images are too many",
                         fn, options.steps, x.shape[0]);
            goto done;
        }
        if (dsg_borrow_in(st, fn, noise_obj, "noise", dtype, 4, &recorded) < 0 ||
            dsg_expect_image(fn, &recorded, op->in, draws) < 0 ||
            dsg_expect_apart(fn, &x, &recorded) < 0 ||
            dsg_expect_apart(fn, &sqnorm, &recorded) < 0)
            goto done;
    }
    if (p && dsg_projector_enter(fn, p) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(op->f64, dsg_langevin, x.data, sqnorm.data, x0hat.data, y.data,
                       x.shape[0], op->op, p ? p->projector : NULL,
                       noise.ids ? &noise.noise : NULL, recorded.data, &options);
    Py_END_ALLOW_THREADS
    if (p)
        dsg_projector_leave(p);
    result = dsg_none_or_raise(st, fn, err);
done:
    PyMem_Free(noise.ids);
    dsg_release(&recorded);
    dsg_release(&y);
    dsg_release(&x0hat);
    dsg_release(&sqnorm);
    dsg_release(&x);
    return result;
}

PyMethodDef dsg_sampler_functions[] = {
    {"normal", py_normal, METH_VARARGS,
     "normal(out, noise, /)\n--\n\nStandard normals into out (b, n); noise is "
     "(seed, images, samples, draw)."},
    {"euler_step", py_euler_step, METH_VARARGS,
     "euler_step(x, denoised, sigma, sigma_next, /)\n--\n\n"
     "x += (sigma_next - sigma) (x - denoised) / sigma, in place."},
    {"langevin", py_langevin, METH_VARARGS,
     "langevin(x, sqnorm, x0hat, y, op, projector, noise, steps, eta, likelihood, "
     "prior, /)\n--\n\n"
     "All Langevin steps of one annealing level, x in place; noise is (seed, images, "
     "samples, draw) or recorded normals (steps * b, c, h, w).  sqnorm (b,) float64 is "
     "NaN for an image that diverged."},
    {0},
};
