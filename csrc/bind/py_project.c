/* The projector object: factors of one batch of states, applied to gradients. */
#include "core.h"

#include "dsg/project.h"

int
dsg_projector_enter(const char *function, py_projector *p)
{
    if (p->writing) {
        PyErr_Format(PyExc_RuntimeError, "%s: the projector is being prepared",
                     function);
        return -1;
    }
    p->users++;
    return 0;
}

void
dsg_projector_leave(py_projector *p)
{
    p->users--;
}

static PyObject *
projector_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static const char fn[] = "Projector";
    core_state *st = PyType_GetModuleState(type);
    if (kwargs && PyDict_Size(kwargs))
        return PyErr_Format(PyExc_TypeError, "%s takes no keyword arguments", fn);
    const char *dtype;
    Py_ssize_t b;
    PyObject *shape_obj;
    bool f64;
    dsg_shape shape;
    if (!PyArg_ParseTuple(args, "snO!:Projector", &dtype, &b, &PyTuple_Type,
                          &shape_obj) ||
        dsg_parse_precision(fn, dtype, &f64) < 0 ||
        dsg_parse_shape(fn, shape_obj, &shape) < 0)
        return NULL;
    if (dsg_expect_int(fn, "batch", b, 0, PY_SSIZE_T_MAX) < 0)
        return NULL;

    void *projector = NULL;
    dsg_status err = f64 ? dsg_projector_create_f64((dsg_projector_f64 **)&projector,
                                                    (size_t)b, shape)
                         : dsg_projector_create_f32((dsg_projector_f32 **)&projector,
                                                    (size_t)b, shape);
    if (err != DSG_OK)
        return dsg_raise(st, fn, err);
    py_projector *self = (py_projector *)type->tp_alloc(type, 0);
    if (!self) {
        DSG_DISPATCH(f64, dsg_projector_destroy, projector);
        return NULL;
    }
    self->projector = projector;
    self->f64 = f64;
    self->shape = shape;
    self->b = (size_t)b;
    return (PyObject *)self;
}

static void
projector_dealloc(PyObject *self)
{
    py_projector *p = (py_projector *)self;
    PyTypeObject *type = Py_TYPE(self);
    DSG_DISPATCH(p->f64, dsg_projector_destroy, p->projector);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
projector_prepare(PyObject *self, PyObject *args)
{
    static const char fn[] = "prepare";
    core_state *st = PyType_GetModuleState(Py_TYPE(self));
    py_projector *p = (py_projector *)self;
    PyObject *state_obj;
    double energy;
    Py_ssize_t rule, fixed_rank, sides;
    if (!PyArg_ParseTuple(args, "Odnnn:prepare", &state_obj, &energy, &rule,
                          &fixed_rank, &sides))
        return NULL;

    PyObject *result = NULL;
    dsg_borrow state = {0};
    if (dsg_borrow_in(st, fn, state_obj, "state", p->f64 ? DSG_F64 : DSG_F32, 4,
                      &state) < 0 ||
        dsg_expect_image(fn, &state, p->shape, p->b) < 0 ||
        dsg_expect_int(fn, "rule", rule, DSG_RANK_PER_CHANNEL, DSG_RANK_FIXED) < 0 ||
        dsg_expect_int(fn, "sides", sides, DSG_LEFT, DSG_BOTH) < 0 ||
        dsg_expect_int(fn, "fixed_rank", fixed_rank, rule == DSG_RANK_FIXED ? 1 : 0,
                       PY_SSIZE_T_MAX) < 0 ||
        dsg_expect_number(fn, "energy", energy,
                          rule == DSG_RANK_FIXED || (energy > 0.0 && energy <= 1.0),
                          "in the range (0, 1]") < 0)
        goto done;
    if (p->writing || p->users) {
        PyErr_Format(PyExc_RuntimeError, "%s: the projector is in use", fn);
        goto done;
    }

    dsg_project_options options = {.energy = energy,
                                   .rule = (dsg_rank_rule)rule,
                                   .fixed_rank = (size_t)fixed_rank,
                                   .sides = (unsigned)sides};
    dsg_status err;
    p->writing = true;
    Py_BEGIN_ALLOW_THREADS
    err =
        DSG_DISPATCH(p->f64, dsg_projector_prepare, p->projector, state.data, &options);
    Py_END_ALLOW_THREADS
    p->writing = false;
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&state);
    return result;
}

static PyObject *
projector_apply(PyObject *self, PyObject *args)
{
    static const char fn[] = "apply";
    core_state *st = PyType_GetModuleState(Py_TYPE(self));
    py_projector *p = (py_projector *)self;
    PyObject *g_obj;
    if (!PyArg_ParseTuple(args, "O:apply", &g_obj))
        return NULL;

    PyObject *result = NULL;
    dsg_borrow g = {0};
    if (dsg_borrow_out(st, fn, g_obj, "grad", p->f64 ? DSG_F64 : DSG_F32, 4, &g) < 0 ||
        dsg_expect_image(fn, &g, p->shape, p->b) < 0 || dsg_projector_enter(fn, p) < 0)
        goto done;

    dsg_status err;
    Py_BEGIN_ALLOW_THREADS
    err = DSG_DISPATCH(p->f64, dsg_projector_apply_batch, p->projector, g.data);
    Py_END_ALLOW_THREADS
    dsg_projector_leave(p);
    result = dsg_none_or_raise(st, fn, err);
done:
    dsg_release(&g);
    return result;
}

/* A tuple of b tuples of c numbers, made by `number` from entry i. */
static PyObject *
per_channel(const py_projector *p, const void *entries,
            PyObject *(*number)(const void *entries, size_t i))
{
    PyObject *images = PyTuple_New((Py_ssize_t)p->b);
    for (size_t i = 0; images && i < p->b; i++) {
        PyObject *channels = PyTuple_New((Py_ssize_t)p->shape.c);
        for (size_t j = 0; channels && j < p->shape.c; j++) {
            PyObject *value = number(entries, i * p->shape.c + j);
            if (!value)
                Py_CLEAR(channels);
            else
                PyTuple_SET_ITEM(channels, (Py_ssize_t)j, value);
        }
        if (!channels)
            Py_CLEAR(images);
        else
            PyTuple_SET_ITEM(images, (Py_ssize_t)i, channels);
    }
    return images;
}

static PyObject *
rank_number(const void *entries, size_t i)
{
    return PyLong_FromSize_t(((const size_t *)entries)[i]);
}

static PyObject *
kept_number(const void *entries, size_t i)
{
    return PyFloat_FromDouble(((const double *)entries)[i]);
}

static PyObject *
projector_ranks(PyObject *self, void *closure)
{
    (void)closure;
    py_projector *p = (py_projector *)self;
    const size_t *ranks =
        p->writing ? NULL : DSG_DISPATCH(p->f64, dsg_projector_ranks, p->projector);
    return ranks ? per_channel(p, ranks, rank_number) : Py_NewRef(Py_None);
}

static PyObject *
projector_kept(PyObject *self, void *closure)
{
    (void)closure;
    py_projector *p = (py_projector *)self;
    const double *kept =
        p->writing ? NULL : DSG_DISPATCH(p->f64, dsg_projector_kept, p->projector);
    return kept ? per_channel(p, kept, kept_number) : Py_NewRef(Py_None);
}

static PyMethodDef projector_methods[] = {
    {"prepare", projector_prepare, METH_VARARGS,
     "prepare($self, state, energy, rule, fixed_rank, sides, /)\n--\n\n"
     "Factors of state (b, c, h, w); rule 0 per channel, 1 mean, 2 official, 3 fixed; "
     "sides 1 left, 2 right, 3 both."},
    {"apply", projector_apply, METH_VARARGS,
     "apply($self, grad, /)\n--\n\nProjects grad (b, c, h, w) in place."},
    {0},
};

static PyGetSetDef projector_getset[] = {
    {"ranks", projector_ranks, NULL,
     "Rank of every channel of every image, b tuples of c; None unless prepared.",
     NULL},
    {"kept", projector_kept, NULL,
     "Fraction of the state's energy kept, b tuples of c; None unless prepared.", NULL},
    {0},
};

static PyType_Slot projector_slots[] = {
    {Py_tp_new, projector_new},
    {Py_tp_dealloc, projector_dealloc},
    {Py_tp_methods, projector_methods},
    {Py_tp_getset, projector_getset},
    {Py_tp_doc, "Projector(dtype, batch, shape, /)\n--\n\n"
                "Room for the subspaces of a batch of states of shape (c, h, w)."},
    {0},
};

PyType_Spec dsg_projector_spec = {
    .name = "diffstategrad._core.Projector",
    .basicsize = sizeof(py_projector),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = projector_slots,
};
