/* Normals and uniforms, the Euler step of the probability-flow ODE, the loops of a
 * level: Langevin, HMC, Metropolis-Hastings. */
#include "core.h"

#include <math.h>

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
    dsg_noise_arg noise = {0};
    if (dsg_borrow_out(st, fn, out_obj, "out", DSG_REAL, 2, &out) < 0 ||
        dsg_parse_key(fn, noise_obj, out.shape[0], 1, 1, &noise) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(out.f64, dsg_normal_batch, out.data, out.shape[0], out.shape[1],
                       noise.noise);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release_noise(&noise);
    dsg_release(&out);
    return result;
}

static PyObject *
py_uniform(PyObject *mod, PyObject *args)
{
    static const char fn[] = "uniform";
    core_state *st = PyModule_GetState(mod);
    PyObject *out_obj, *noise_obj;
    if (!PyArg_ParseTuple(args, "OO:uniform", &out_obj, &noise_obj))
        return NULL;

    PyObject *result = NULL;
    dsg_borrow out = {0};
    dsg_noise_arg noise = {0};
    if (dsg_borrow_out(st, fn, out_obj, "out", DSG_F64, 1, &out) < 0 ||
        dsg_parse_key(fn, noise_obj, out.n, 1, 1, &noise) < 0)
        goto done;

    Py_BEGIN_ALLOW_THREADS
    dsg_uniform_batch(out.data, out.n, noise.noise);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    dsg_release_noise(&noise);
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

/* ---- the loops of a level ---- */

/* What langevin, hmc and mh have in common. */
typedef struct level {
    PyObject *x_obj, *sqnorm_obj, *x0hat_obj, *y_obj, *op_obj, *noise_obj;
    PyObject *projector_obj; /* of mh none */
    Py_ssize_t steps;
    dsg_langevin_options options;

    py_op *op;
    py_projector *projector; /* NULL, or entered */
    dsg_dtype dtype;
    size_t b;
    dsg_borrow x, sqnorm, x0hat, y;
    dsg_noise_arg noise;
} level;

static int
check_numbers(const char *fn, level *k)
{
    dsg_langevin_options *o = &k->options;
    o->steps = (size_t)k->steps;
    if (dsg_expect_int(fn, "steps", k->steps, 1, PY_SSIZE_T_MAX) < 0 ||
        dsg_expect_number(fn, "eta", o->eta, isfinite(o->eta) && o->eta > 0.0,
                          "> 0 and finite") < 0 ||
        dsg_expect_number(fn, "likelihood", o->likelihood, isfinite(o->likelihood),
                          "finite") < 0 ||
        dsg_expect_number(fn, "prior", o->prior, isfinite(o->prior), "finite") < 0)
        return -1;
    return 0;
}

/* Takes all but the noise. */
static int
take_images(core_state *st, const char *fn, level *k)
{
    k->op = (py_op *)k->op_obj;
    k->dtype = k->op->f64 ? DSG_F64 : DSG_F32;
    if (dsg_borrow_out(st, fn, k->x_obj, "x", k->dtype, 4, &k->x) < 0 ||
        dsg_borrow_out(st, fn, k->sqnorm_obj, "sqnorm", DSG_F64, 1, &k->sqnorm) < 0 ||
        dsg_borrow_in(st, fn, k->x0hat_obj, "x0hat", k->dtype, 4, &k->x0hat) < 0 ||
        dsg_borrow_in(st, fn, k->y_obj, "y", k->dtype, 4, &k->y) < 0)
        return -1;
    k->b = k->x.shape[0];
    if (dsg_expect_image(fn, &k->x, k->op->in, k->b) < 0 ||
        dsg_expect_image(fn, &k->x0hat, k->op->in, k->b) < 0 ||
        dsg_expect_image(fn, &k->y, k->op->out, k->b) < 0 ||
        dsg_expect_shape(fn, &k->sqnorm, 1, &k->b) < 0 ||
        dsg_expect_apart(fn, &k->x, &k->x0hat) < 0 ||
        dsg_expect_apart(fn, &k->x, &k->y) < 0 ||
        dsg_expect_apart(fn, &k->sqnorm, &k->x) < 0 ||
        dsg_expect_apart(fn, &k->sqnorm, &k->x0hat) < 0 ||
        dsg_expect_apart(fn, &k->sqnorm, &k->y) < 0)
        return -1;
    return 0;
}

static int
take_noise(core_state *st, const char *fn, size_t draws, level *k)
{
    if (dsg_parse_noise(st, fn, k->noise_obj, k->dtype, k->op->in, k->b,
                        k->options.steps, draws, &k->noise) < 0 ||
        dsg_expect_apart(fn, &k->x, &k->noise.recorded) < 0 ||
        dsg_expect_apart(fn, &k->sqnorm, &k->noise.recorded) < 0)
        return -1;
    return 0;
}

/* One result more, and no place of its own yet: it must lie apart from all tensors. */
static int
expect_apart_from_all(const char *fn, const dsg_borrow *out, const level *k)
{
    const dsg_borrow *others[] = {&k->x, &k->sqnorm, &k->x0hat, &k->y,
                                  &k->noise.recorded};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (dsg_expect_apart(fn, out, others[i]) < 0)
            return -1;
    return 0;
}

/* The last to be called: nothing that could fail comes between this and the work. */
static int
enter_projector(core_state *st, const char *fn, level *k)
{
    if (k->projector_obj == Py_None)
        return 0;
    if (!Py_IS_TYPE(k->projector_obj, st->projector_type)) {
        PyErr_Format(PyExc_TypeError,
                     "%s: projector must be a Projector or None, got %s", fn,
                     Py_TYPE(k->projector_obj)->tp_name);
        return -1;
    }
    py_projector *p = (py_projector *)k->projector_obj;
    if (expect_projector(fn, p, k->op, k->b) < 0 || dsg_projector_enter(fn, p) < 0)
        return -1;
    k->projector = p;
    return 0;
}

static void
release_level(level *k)
{
    if (k->projector)
        dsg_projector_leave(k->projector);
    dsg_release_noise(&k->noise);
    dsg_release(&k->y);
    dsg_release(&k->x0hat);
    dsg_release(&k->sqnorm);
    dsg_release(&k->x);
}

static PyObject *
py_langevin(PyObject *mod, PyObject *args)
{
    static const char fn[] = "langevin";
    core_state *st = PyModule_GetState(mod);
    level k = {0};
    if (!PyArg_ParseTuple(args, "OOOOO!OOnddd:langevin", &k.x_obj, &k.sqnorm_obj,
                          &k.x0hat_obj, &k.y_obj, st->op_type, &k.op_obj,
                          &k.projector_obj, &k.noise_obj, &k.steps, &k.options.eta,
                          &k.options.likelihood, &k.options.prior) ||
        check_numbers(fn, &k) < 0)
        return NULL;

    PyObject *result = NULL;
    if (take_images(st, fn, &k) < 0 || take_noise(st, fn, 1, &k) < 0 ||
        enter_projector(st, fn, &k) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(k.op->f64, dsg_langevin, k.x.data, k.sqnorm.data, k.x0hat.data,
                       k.y.data, k.b, k.op->op,
                       k.projector ? k.projector->projector : NULL, k.noise.noise,
                       k.noise.recorded.data, &k.options);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    release_level(&k);
    return result;
}

static PyObject *
py_hmc(PyObject *mod, PyObject *args)
{
    static const char fn[] = "hmc";
    core_state *st = PyModule_GetState(mod);
    PyObject *velocity_obj;
    double momentum;
    level k = {0};
    if (!PyArg_ParseTuple(args, "OOOOOO!OOndddd:hmc", &k.x_obj, &velocity_obj,
                          &k.sqnorm_obj, &k.x0hat_obj, &k.y_obj, st->op_type, &k.op_obj,
                          &k.projector_obj, &k.noise_obj, &k.steps, &k.options.eta,
                          &k.options.likelihood, &k.options.prior, &momentum) ||
        check_numbers(fn, &k) < 0 ||
        dsg_expect_number(fn, "momentum", momentum, momentum >= 0.0 && momentum <= 1.0,
                          "in the range [0, 1]") < 0)
        return NULL;

    PyObject *result = NULL;
    dsg_borrow velocity = {0};
    if (take_images(st, fn, &k) < 0 || take_noise(st, fn, 1, &k) < 0 ||
        dsg_borrow_out(st, fn, velocity_obj, "velocity", k.dtype, 4, &velocity) < 0 ||
        dsg_expect_image(fn, &velocity, k.op->in, k.b) < 0 ||
        expect_apart_from_all(fn, &velocity, &k) < 0 || enter_projector(st, fn, &k) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(k.op->f64, dsg_hmc, k.x.data, velocity.data, k.sqnorm.data,
                       k.x0hat.data, k.y.data, k.b, k.op->op,
                       k.projector ? k.projector->projector : NULL, k.noise.noise,
                       k.noise.recorded.data, &k.options, momentum);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&velocity);
    release_level(&k);
    return result;
}

static PyObject *
py_mh(PyObject *mod, PyObject *args)
{
    static const char fn[] = "mh";
    core_state *st = PyModule_GetState(mod);
    PyObject *accepted_obj, *uniforms_obj;
    level k = {0};
    if (!PyArg_ParseTuple(args, "OOOOOO!OOnddd:mh", &k.x_obj, &k.sqnorm_obj,
                          &accepted_obj, &k.x0hat_obj, &k.y_obj, st->op_type, &k.op_obj,
                          &k.noise_obj, &uniforms_obj, &k.steps, &k.options.eta,
                          &k.options.likelihood, &k.options.prior) ||
        check_numbers(fn, &k) < 0)
        return NULL;

    PyObject *result = NULL;
    dsg_borrow accepted = {0}, uniforms = {0};
    if (take_images(st, fn, &k) < 0 || take_noise(st, fn, 2, &k) < 0 ||
        dsg_borrow_out(st, fn, accepted_obj, "accepted", DSG_F64, 1, &accepted) < 0 ||
        dsg_expect_shape(fn, &accepted, 1, &k.b) < 0 ||
        expect_apart_from_all(fn, &accepted, &k) < 0)
        goto done;
    if (!k.noise.noise) {
        size_t count = k.noise.recorded.shape[0];
        if (dsg_borrow_in(st, fn, uniforms_obj, "uniforms", DSG_F64, 1, &uniforms) <
                0 ||
            dsg_expect_shape(fn, &uniforms, 1, &count) < 0 ||
            dsg_expect_apart(fn, &k.x, &uniforms) < 0 ||
            dsg_expect_apart(fn, &k.sqnorm, &uniforms) < 0 ||
            dsg_expect_apart(fn, &accepted, &uniforms) < 0)
            goto done;
    } else if (uniforms_obj != Py_None) {
        PyErr_Format(PyExc_TypeError,
                     "%s: uniforms must be None with a noise key, got %s", fn,
                     Py_TYPE(uniforms_obj)->tp_name);
        goto done;
    }

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(k.op->f64, dsg_mh, k.x.data, k.sqnorm.data, accepted.data,
                       k.x0hat.data, k.y.data, k.b, k.op->op, k.noise.noise,
                       k.noise.recorded.data, uniforms.data, &k.options);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&uniforms);
    dsg_release(&accepted);
    release_level(&k);
    return result;
}

PyMethodDef dsg_sampler_functions[] = {
    {"normal", py_normal, METH_VARARGS,
     "normal(out, noise, /)\n--\n\nStandard normals into out (b, n); noise is "
     "(seed, images, samples, draw)."},
    {"uniform", py_uniform, METH_VARARGS,
     "uniform(out, noise, /)\n--\n\nOne number in (0, 1) for every image into out (b,) "
     "float64; noise is (seed, images, samples, draw)."},
    {"euler_step", py_euler_step, METH_VARARGS,
     "euler_step(x, denoised, sigma, sigma_next, /)\n--\n\n"
     "x += (sigma_next - sigma) (x - denoised) / sigma, in place."},
    {"langevin", py_langevin, METH_VARARGS,
     "langevin(x, sqnorm, x0hat, y, op, projector, noise, steps, eta, likelihood, "
     "prior, /)\n--\n\n"
     "All Langevin steps of one annealing level, x in place; noise is (seed, images, "
     "samples, draw) or recorded normals (steps * b, c, h, w).  sqnorm (b,) float64 is "
     "NaN for an image that diverged."},
    {"hmc", py_hmc, METH_VARARGS,
     "hmc(x, velocity, sqnorm, x0hat, y, op, projector, noise, steps, eta, likelihood, "
     "prior, momentum, /)\n--\n\n"
     "The same for damped HMC, velocity in place too: v = momentum v - sqrt(eta) g + "
     "sqrt(2 (1 - momentum)) n, x += sqrt(eta) v."},
    {"mh", py_mh, METH_VARARGS,
     "mh(x, sqnorm, accepted, x0hat, y, op, noise, uniforms, steps, eta, likelihood, "
     "prior, /)\n--\n\n"
     "The same for Metropolis-Hastings with proposals x + sqrt(eta) n; sqnorm is "
     "that of the last x, accepted (b,) float64 counts.  A step takes two draws of a "
     "noise key, uniforms being None; or uniforms (steps * b,) float64 go with "
     "recorded normals."},
    {0},
};
