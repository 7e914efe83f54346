/* The argument noise: a key (seed, images, samples, draw), recorded normals, or None.
 */
#include "core.h"

#include "dsg/mem.h"

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

int
dsg_parse_key(const char *fn, PyObject *tuple, size_t b, size_t steps, size_t draws,
              dsg_noise_arg *arg)
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
    if (steps > (((uint64_t)1 << 32) - draw) / draws) {
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
    arg->key = (dsg_noise){.seed = seed,
                           .image = arg->ids,
                           .sample = arg->ids + b,
                           .draw = (uint32_t)draw};
    arg->noise = &arg->key;
    return 0;
}

int
dsg_parse_noise(core_state *st, const char *fn, PyObject *object, dsg_dtype dtype,
                dsg_shape shape, size_t b, size_t steps, size_t draws,
                dsg_noise_arg *arg)
{
    if (PyTuple_Check(object))
        return dsg_parse_key(fn, object, b, steps, draws, arg);
    size_t recorded;
    if (!dsg_mul(steps, b, &recorded)) {
        PyErr_Format(PyExc_ValueError, "%s: %zu steps of %zu images are too many", fn,
                     steps, b);
        return -1;
    }
    if (dsg_borrow_in(st, fn, object, "noise", dtype, 4, &arg->recorded) < 0)
        return -1;
    return dsg_expect_image(fn, &arg->recorded, shape, recorded);
}

void
dsg_release_noise(dsg_noise_arg *arg)
{
    PyMem_Free(arg->ids);
    dsg_release(&arg->recorded);
}
