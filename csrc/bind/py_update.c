/* What samplers do between two network calls: elementwise updates, the prox of TV. */
#include "core.h"

#include <math.h>

#include "dsg/tv.h"
#include "dsg/update.h"

/* ---- tensors ---- */

/* What most functions here have: x to write to, and up to four tensors of its shape. */
enum { MOST_INPUTS = 4 };

typedef struct frame {
    dsg_borrow x;
    dsg_borrow in[MOST_INPUTS]; /* empty where there is none */
    dsg_noise_arg noise;
} frame;

static int
take_x(core_state *st, const char *fn, PyObject *object, frame *f)
{
    return dsg_borrow_out(st, fn, object, "x", DSG_REAL, 4, &f->x);
}

/* -1 unless `t`, just borrowed, is like x and lies apart from it. */
static int
expect_like_x(const char *fn, const frame *f, const dsg_borrow *t)
{
    if (dsg_expect_precision(fn, t, f->x.f64) < 0 ||
        dsg_expect_shape(fn, t, 4, f->x.shape) < 0 ||
        dsg_expect_apart(fn, &f->x, t) < 0)
        return -1;
    return 0;
}

/* Number `k` of the inputs. */
static int
take_in(core_state *st, const char *fn, PyObject *object, const char *name, size_t k,
        frame *f)
{
    if (dsg_borrow_in(st, fn, object, name, DSG_REAL, 4, &f->in[k]) < 0)
        return -1;
    return expect_like_x(fn, f, &f->in[k]);
}

/* The same for one that is written to. */
static int
take_out(core_state *st, const char *fn, PyObject *object, const char *name, size_t k,
         frame *f)
{
    if (dsg_borrow_out(st, fn, object, name, DSG_REAL, 4, &f->in[k]) < 0 ||
        expect_like_x(fn, f, &f->in[k]) < 0)
        return -1;
    return 0;
}

/* A key, recorded normals of the shape of x, or None. */
static int
take_noise(core_state *st, const char *fn, PyObject *object, frame *f)
{
    if (object == Py_None)
        return 0;
    dsg_shape image = {f->x.shape[1], f->x.shape[2], f->x.shape[3]};
    dsg_dtype dtype = f->x.f64 ? DSG_F64 : DSG_F32;
    if (dsg_parse_noise(st, fn, object, dtype, image, f->x.shape[0], 1, 1, &f->noise) <
            0 ||
        dsg_expect_apart(fn, &f->x, &f->noise.recorded) < 0)
        return -1;
    return 0;
}

static void
release(frame *f)
{
    dsg_release_noise(&f->noise);
    for (size_t k = 0; k < MOST_INPUTS; k++)
        dsg_release(&f->in[k]);
    dsg_release(&f->x);
}

static size_t
image_size(const frame *f)
{
    return f->x.shape[1] * f->x.shape[2] * f->x.shape[3];
}

/* ---- numbers ---- */

static int
expect_finite(const char *fn, const char *name, double value)
{
    return dsg_expect_number(fn, name, value, isfinite(value), "finite");
}

static int
expect_not_negative(const char *fn, const char *name, double value)
{
    return dsg_expect_number(fn, name, value, isfinite(value) && value >= 0.0,
                             ">= 0 and finite");
}

static int
expect_positive(const char *fn, const char *name, double value)
{
    return dsg_expect_number(fn, name, value, isfinite(value) && value > 0.0,
                             "> 0 and finite");
}

/* ---- functions ---- */

static PyObject *
py_ddpm_step(PyObject *mod, PyObject *args)
{
    static const char fn[] = "ddpm_step";
    core_state *st = PyModule_GetState(mod);
    PyObject *x_obj, *x0_obj, *code_obj, *noise_obj, *gradient_obj, *scale_obj;
    dsg_ddpm_options o;
    if (!PyArg_ParseTuple(args, "OOddOddOOO:ddpm_step", &x_obj, &x0_obj, &o.c1, &o.c2,
                          &code_obj, &o.minlog, &o.maxlog, &noise_obj, &gradient_obj,
                          &scale_obj))
        return NULL;
    if (expect_finite(fn, "c1", o.c1) < 0 || expect_finite(fn, "c2", o.c2) < 0 ||
        expect_finite(fn, "minlog", o.minlog) < 0 ||
        expect_finite(fn, "maxlog", o.maxlog) < 0)
        return NULL;
    if ((gradient_obj == Py_None) != (scale_obj == Py_None))
        return PyErr_Format(PyExc_TypeError,
                            "%s: gradient and scale must both be given or both be None",
                            fn);

    PyObject *result = NULL;
    frame f = {0};
    dsg_borrow *x0 = &f.in[0], *code = &f.in[1], *gradient = &f.in[2],
               *scale = &f.in[3];
    if (take_x(st, fn, x_obj, &f) < 0 || take_in(st, fn, x0_obj, "x0", 0, &f) < 0 ||
        (code_obj != Py_None && take_in(st, fn, code_obj, "code", 1, &f) < 0) ||
        take_noise(st, fn, noise_obj, &f) < 0)
        goto done;
    if (gradient_obj != Py_None &&
        (take_in(st, fn, gradient_obj, "gradient", 2, &f) < 0 ||
         dsg_borrow_in(st, fn, scale_obj, "scale", DSG_F64, 1, scale) < 0 ||
         dsg_expect_shape(fn, scale, 1, f.x.shape) < 0 ||
         dsg_expect_apart(fn, &f.x, scale) < 0))
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(f.x.f64, dsg_ddpm_step, f.x.data, x0->data, code->data,
                       gradient->data, scale->data, f.x.shape[0], image_size(&f),
                       f.noise.noise, f.noise.recorded.data, &o);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    release(&f);
    return result;
}

static PyObject *
py_ddim_step(PyObject *mod, PyObject *args)
{
    static const char fn[] = "ddim_step";
    core_state *st = PyModule_GetState(mod);
    PyObject *x_obj, *x0_obj, *noise_obj;
    dsg_ddim_options o;
    if (!PyArg_ParseTuple(args, "OOdddO:ddim_step", &x_obj, &x0_obj, &o.alpha_bar,
                          &o.alpha_bar_next, &o.std, &noise_obj))
        return NULL;
    double a = o.alpha_bar, next = o.alpha_bar_next;
    if (dsg_expect_number(fn, "alpha_bar", a, a > 0.0 && a < 1.0,
                          "in the range (0, 1)") < 0 ||
        dsg_expect_number(fn, "alpha_bar_next", next, next > 0.0 && next <= 1.0,
                          "in the range (0, 1]") < 0 ||
        dsg_expect_number(fn, "std", o.std, dsg_ddim_std_fits(next, o.std),
                          ">= 0 and its square at most 1 - alpha_bar_next") < 0)
        return NULL;

    PyObject *result = NULL;
    frame f = {0};
    if (take_x(st, fn, x_obj, &f) < 0 || take_in(st, fn, x0_obj, "x0", 0, &f) < 0 ||
        take_noise(st, fn, noise_obj, &f) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(f.x.f64, dsg_ddim_step, f.x.data, f.in[0].data, f.x.shape[0],
                       image_size(&f), f.noise.noise, f.noise.recorded.data, &o);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    release(&f);
    return result;
}

static PyObject *
py_renoise(PyObject *mod, PyObject *args)
{
    static const char fn[] = "renoise";
    core_state *st = PyModule_GetState(mod);
    PyObject *x_obj, *noise_obj;
    double scale, sigma;
    if (!PyArg_ParseTuple(args, "OddO:renoise", &x_obj, &scale, &sigma, &noise_obj))
        return NULL;
    if (expect_finite(fn, "scale", scale) < 0 || expect_finite(fn, "sigma", sigma) < 0)
        return NULL;

    PyObject *result = NULL;
    frame f = {0};
    if (take_x(st, fn, x_obj, &f) < 0 || take_noise(st, fn, noise_obj, &f) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(f.x.f64, dsg_renoise, f.x.data, f.x.shape[0], image_size(&f),
                       scale, sigma, f.noise.noise, f.noise.recorded.data);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    release(&f);
    return result;
}

static PyObject *
py_ald_step(PyObject *mod, PyObject *args)
{
    static const char fn[] = "ald_step";
    core_state *st = PyModule_GetState(mod);
    PyObject *x_obj, *denoised_obj, *gradient_obj, *noise_obj;
    dsg_ald_options o;
    if (!PyArg_ParseTuple(args, "OOOdddO:ald_step", &x_obj, &denoised_obj,
                          &gradient_obj, &o.sigma, &o.weight, &o.eta, &noise_obj))
        return NULL;
    if (expect_positive(fn, "sigma", o.sigma) < 0 ||
        expect_finite(fn, "weight", o.weight) < 0 ||
        expect_not_negative(fn, "eta", o.eta) < 0)
        return NULL;

    PyObject *result = NULL;
    frame f = {0};
    if (take_x(st, fn, x_obj, &f) < 0 ||
        take_in(st, fn, denoised_obj, "denoised", 0, &f) < 0 ||
        take_in(st, fn, gradient_obj, "gradient", 1, &f) < 0 ||
        take_noise(st, fn, noise_obj, &f) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(f.x.f64, dsg_ald_step, f.x.data, f.in[0].data, f.in[1].data,
                       f.x.shape[0], image_size(&f), f.noise.noise,
                       f.noise.recorded.data, &o);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    release(&f);
    return result;
}

static PyObject *
py_adam_step(PyObject *mod, PyObject *args)
{
    static const char fn[] = "adam_step";
    core_state *st = PyModule_GetState(mod);
    PyObject *x_obj, *m_obj, *v_obj, *gradient_obj;
    Py_ssize_t step;
    dsg_adam_options o;
    if (!PyArg_ParseTuple(args, "OOOOndddd:adam_step", &x_obj, &m_obj, &v_obj,
                          &gradient_obj, &step, &o.lr, &o.beta1, &o.beta2, &o.eps))
        return NULL;
    if (dsg_expect_int(fn, "step", step, 1, PY_SSIZE_T_MAX) < 0 ||
        expect_not_negative(fn, "lr", o.lr) < 0 ||
        dsg_expect_number(fn, "beta1", o.beta1, o.beta1 >= 0.0 && o.beta1 < 1.0,
                          "in the range [0, 1)") < 0 ||
        dsg_expect_number(fn, "beta2", o.beta2, o.beta2 >= 0.0 && o.beta2 < 1.0,
                          "in the range [0, 1)") < 0 ||
        expect_not_negative(fn, "eps", o.eps) < 0)
        return NULL;
    o.step = (size_t)step;

    PyObject *result = NULL;
    frame f = {0};
    dsg_borrow *m = &f.in[0], *v = &f.in[1], *gradient = &f.in[2];
    if (take_x(st, fn, x_obj, &f) < 0 || take_out(st, fn, m_obj, "m", 0, &f) < 0 ||
        take_out(st, fn, v_obj, "v", 1, &f) < 0 ||
        take_in(st, fn, gradient_obj, "gradient", 2, &f) < 0 ||
        dsg_expect_apart(fn, m, v) < 0 || dsg_expect_apart(fn, m, gradient) < 0 ||
        dsg_expect_apart(fn, v, gradient) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(f.x.f64, dsg_adam_step, f.x.data, m->data, v->data,
                       gradient->data, f.x.shape[0], image_size(&f), &o);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    release(&f);
    return result;
}

static PyObject *
py_tv_prox(PyObject *mod, PyObject *args)
{
    static const char fn[] = "tv_prox";
    core_state *st = PyModule_GetState(mod);
    PyObject *out_obj, *v_obj, *dual_obj;
    Py_ssize_t iterations;
    int coupled;
    dsg_tv_options o;
    if (!PyArg_ParseTuple(args, "OOdnOp:tv_prox", &out_obj, &v_obj, &o.weight,
                          &iterations, &dual_obj, &coupled))
        return NULL;
    if (expect_positive(fn, "weight", o.weight) < 0 ||
        dsg_expect_int(fn, "iterations", iterations, 1, PY_SSIZE_T_MAX) < 0)
        return NULL;
    o.iterations = (size_t)iterations;
    o.coupled = coupled;

    PyObject *result = NULL;
    dsg_borrow out = {0}, v = {0}, dual = {0};
    if (dsg_borrow_out(st, fn, out_obj, "out", DSG_REAL, 4, &out) < 0 ||
        dsg_borrow_in(st, fn, v_obj, "v", DSG_REAL, 4, &v) < 0 ||
        dsg_borrow_out(st, fn, dual_obj, "dual", DSG_REAL, 5, &dual) < 0)
        goto done;
    size_t of_dual[5] = {out.shape[0], 2, out.shape[1], out.shape[2], out.shape[3]};
    if (dsg_expect_precision(fn, &v, out.f64) < 0 ||
        dsg_expect_precision(fn, &dual, out.f64) < 0 ||
        dsg_expect_shape(fn, &v, 4, out.shape) < 0 ||
        dsg_expect_shape(fn, &dual, 5, of_dual) < 0 ||
        dsg_expect_apart(fn, &out, &v) < 0 || dsg_expect_apart(fn, &out, &dual) < 0 ||
        dsg_expect_apart(fn, &dual, &v) < 0)
        goto done;

    dsg_shape shape = {out.shape[1], out.shape[2], out.shape[3]};
    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(out.f64, dsg_tv_prox, out.data, v.data, dual.data, out.shape[0],
                       shape, &o);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&dual);
    dsg_release(&v);
    dsg_release(&out);
    return result;
}

static PyObject *
py_tv_norm(PyObject *mod, PyObject *args)
{
    static const char fn[] = "tv_norm";
    core_state *st = PyModule_GetState(mod);
    PyObject *out_obj, *x_obj;
    int coupled;
    if (!PyArg_ParseTuple(args, "OOp:tv_norm", &out_obj, &x_obj, &coupled))
        return NULL;

    PyObject *result = NULL;
    dsg_borrow out = {0}, x = {0};
    if (dsg_borrow_out(st, fn, out_obj, "out", DSG_F64, 1, &out) < 0 ||
        dsg_borrow_in(st, fn, x_obj, "x", DSG_REAL, 4, &x) < 0 ||
        dsg_expect_shape(fn, &out, 1, x.shape) < 0 ||
        dsg_expect_apart(fn, &out, &x) < 0)
        goto done;

    dsg_shape shape = {x.shape[1], x.shape[2], x.shape[3]};
    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err =
        DSG_DISPATCH(x.f64, dsg_tv_norm, out.data, x.data, x.shape[0], shape, coupled);
    Py_END_ALLOW_THREADS
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&x);
    dsg_release(&out);
    return result;
}

PyMethodDef dsg_update_functions[] = {
    {"ddpm_step", py_ddpm_step, METH_VARARGS,
     "ddpm_step(x, x0, c1, c2, code, minlog, maxlog, noise, gradient, scale, /)\n--\n\n"
     "x = c1 x0 + c2 x + exp(l / 2) n - scale[i] gradient, in place; l between minlog "
     "and maxlog by code, or minlog.  noise is (seed, images, samples, draw), recorded "
     "normals like x, or None; code and gradient with scale (b,) float64 may be None."},
    {"ddim_step", py_ddim_step, METH_VARARGS,
     "ddim_step(x, x0, alpha_bar, alpha_bar_next, std, noise, /)\n--\n\n"
     "x = sqrt(alpha_bar_next) x0 + sqrt(1 - alpha_bar_next - std^2) eps + std n, in "
     "place, eps = (x - sqrt(alpha_bar) x0) / sqrt(1 - alpha_bar)."},
    {"renoise", py_renoise, METH_VARARGS,
     "renoise(x, scale, sigma, noise, /)\n--\n\nx = scale x + sigma n, in place."},
    {"ald_step", py_ald_step, METH_VARARGS,
     "ald_step(x, denoised, gradient, sigma, weight, eta, noise, /)\n--\n\n"
     "x += eta ((denoised - x) / sigma^2 - weight gradient) + sqrt(2 eta) n, in "
     "place."},
    {"adam_step", py_adam_step, METH_VARARGS,
     "adam_step(x, m, v, gradient, step, lr, beta1, beta2, eps, /)\n--\n\n"
     "One step of Adam on x and its moments m, v, in place; step counts from 1."},
    {"tv_prox", py_tv_prox, METH_VARARGS,
     "tv_prox(out, v, weight, iterations, dual, coupled, /)\n--\n\n"
     "out = argmin 1/2 ||x - v||^2 + weight TV(x) by iterations on dual "
     "(b, 2, c, h, w), to the right before downwards, in place."},
    {"tv_norm", py_tv_norm, METH_VARARGS,
     "tv_norm(out, x, coupled, /)\n--\n\nTV of every image into out (b,) float64."},
    {0},
};
