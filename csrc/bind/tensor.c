#include "core.h"

#include "dlpack_abi.h"

#include "dsg/mem.h"

static const char *const dtype_names[] = {"float32 or float64", "float32", "float64",
                                          "uint8 or bool"};

/* The capsule of object.__dlpack__(max_version=(1, 0)); producers older than that
 * argument are asked again without it. */
static PyObject *
take_capsule(core_state *st, const char *function, PyObject *object, const char *name)
{
    PyObject *method = PyObject_GetAttr(object, st->str_dlpack);
    if (!method) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError))
            PyErr_Format(PyExc_TypeError,
                         "%s: %s must be a tensor with __dlpack__, got %s", function,
                         name, Py_TYPE(object)->tp_name);
        return NULL;
    }
    PyObject *args = PyTuple_New(0);
    PyObject *capsule = args ? PyObject_Call(method, args, st->dlpack_kwargs) : NULL;
    if (!capsule && args && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        capsule = PyObject_CallNoArgs(method);
    }
    Py_XDECREF(args);
    Py_DECREF(method);
    return capsule;
}

static bool
dtype_matches(dl_dtype d, dsg_dtype want)
{
    if (d.lanes != 1)
        return false;
    switch (want) {
    case DSG_REAL:
        return d.code == DL_FLOAT && (d.bits == 32 || d.bits == 64);
    case DSG_F32:
        return d.code == DL_FLOAT && d.bits == 32;
    case DSG_F64:
        return d.code == DL_FLOAT && d.bits == 64;
    case DSG_U8:
        return (d.code == DL_UINT || d.code == DL_BOOL) && d.bits == 8;
    }
    return false;
}

/* Axes of size 1 may have any stride, and an empty tensor any at all. */
static bool
is_dense(const dl_tensor *t, size_t n)
{
    if (!t->strides || n == 0)
        return true;
    int64_t expected = 1;
    for (int axis = t->ndim - 1; axis >= 0; axis--) {
        if (t->shape[axis] != 1 && t->strides[axis] != expected)
            return false;
        expected *= t->shape[axis];
    }
    return true;
}

static int
borrow(core_state *st, const char *function, PyObject *object, const char *name,
       dsg_dtype dtype, int ndim, bool writable, dsg_borrow *tensor)
{
    *tensor = (dsg_borrow){.name = name};
    tensor->capsule = take_capsule(st, function, object, name);
    if (!tensor->capsule)
        return -1;

    const dl_tensor *t;
    uint64_t flags = 0;
    if (PyCapsule_IsValid(tensor->capsule, "dltensor_versioned")) {
        const dl_managed_versioned *m =
            PyCapsule_GetPointer(tensor->capsule, "dltensor_versioned");
        if (m->major != 1) {
            PyErr_Format(PyExc_BufferError, "%s: %s speaks DLPack %u.%u, expected 1.x",
                         function, name, m->major, m->minor);
            return -1;
        }
        flags = m->flags;
        t = &m->tensor;
    } else if (PyCapsule_IsValid(tensor->capsule, "dltensor")) {
        const dl_managed *m = PyCapsule_GetPointer(tensor->capsule, "dltensor");
        t = &m->tensor;
    } else {
        PyErr_Format(PyExc_TypeError, "%s: %s.__dlpack__ returned no DLPack capsule",
                     function, name);
        return -1;
    }

    if (t->device.type != DL_CPU) {
        PyErr_Format(PyExc_BufferError,
                     "%s: %s must be on the CPU, got DLPack device type %d", function,
                     name, (int)t->device.type);
        return -1;
    }
    if (!dtype_matches(t->dtype, dtype)) {
        static const char *const codes[] = {"int",    "uint",    "float", "opaque",
                                            "bfloat", "complex", "bool"};
        PyErr_Format(PyExc_TypeError, "%s: %s must be %s, got %s%d", function, name,
                     dtype_names[dtype], t->dtype.code < 7 ? codes[t->dtype.code] : "?",
                     (int)t->dtype.bits);
        return -1;
    }
    if (t->ndim != ndim) {
        PyErr_Format(PyExc_ValueError, "%s: %s must have %d axes, got %d", function,
                     name, ndim, (int)t->ndim);
        return -1;
    }
    size_t n = 1, bytes;
    bool sane = true;
    for (int axis = 0; axis < ndim; axis++) {
        sane = sane && t->shape[axis] >= 0 && dsg_mul(n, (size_t)t->shape[axis], &n);
        tensor->shape[axis] = (size_t)t->shape[axis];
    }
    sane = sane && dsg_mul(n, t->dtype.bits / 8, &bytes) && bytes <= PTRDIFF_MAX;
    if (!sane) {
        PyErr_Format(PyExc_BufferError, "%s: %s has sizes that no memory can have",
                     function, name);
        return -1;
    }
    char *data = t->data ? (char *)t->data + t->byte_offset : NULL;
    if (n > 0 && (!data || (uintptr_t)data % (t->dtype.bits / 8) != 0)) {
        PyErr_Format(PyExc_BufferError, "%s: %s must lie at an aligned address, got %p",
                     function, name, (void *)data);
        return -1;
    }
    if (!is_dense(t, n)) {
        PyErr_Format(PyExc_BufferError, "%s: %s must be contiguous", function, name);
        return -1;
    }
    if (writable && (flags & DL_READ_ONLY)) {
        PyErr_Format(PyExc_BufferError, "%s: %s must be writable", function, name);
        return -1;
    }
    if (writable && (flags & DL_IS_COPIED)) {
        PyErr_Format(PyExc_BufferError, "%s: %s must not be a copy", function, name);
        return -1;
    }
    tensor->data = data;
    tensor->ndim = ndim;
    tensor->n = n;
    tensor->itemsize = t->dtype.bits / 8;
    tensor->f64 = t->dtype.bits == 64;
    return 0;
}

int
dsg_borrow_in(core_state *st, const char *function, PyObject *object, const char *name,
              dsg_dtype dtype, int ndim, dsg_borrow *tensor)
{
    return borrow(st, function, object, name, dtype, ndim, false, tensor);
}

int
dsg_borrow_out(core_state *st, const char *function, PyObject *object, const char *name,
               dsg_dtype dtype, int ndim, dsg_borrow *tensor)
{
    return borrow(st, function, object, name, dtype, ndim, true, tensor);
}

void
dsg_release(dsg_borrow *tensor)
{
    Py_CLEAR(tensor->capsule);
}

/* "(2, 3, 4)" */
static PyObject *
shape_tuple(int ndim, const size_t *shape)
{
    PyObject *tuple = PyTuple_New(ndim);
    for (int axis = 0; tuple && axis < ndim; axis++) {
        PyObject *size = PyLong_FromSize_t(shape[axis]);
        if (!size)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, axis, size);
    }
    return tuple;
}

int
dsg_expect_shape(const char *function, const dsg_borrow *tensor, int ndim,
                 const size_t *shape)
{
    bool same = tensor->ndim == ndim;
    for (int axis = 0; same && axis < ndim; axis++)
        same = tensor->shape[axis] == shape[axis];
    if (same)
        return 0;
    PyObject *expected = shape_tuple(ndim, shape);
    PyObject *got = shape_tuple(tensor->ndim, tensor->shape);
    if (expected && got)
        PyErr_Format(PyExc_ValueError, "%s: %s must have shape %S, got %S", function,
                     tensor->name, expected, got);
    Py_XDECREF(expected);
    Py_XDECREF(got);
    return -1;
}

int
dsg_expect_image(const char *function, const dsg_borrow *tensor, dsg_shape shape,
                 size_t b)
{
    size_t expected[4] = {b, shape.c, shape.h, shape.w};
    return dsg_expect_shape(function, tensor, 4, expected);
}

int
dsg_expect_precision(const char *function, const dsg_borrow *tensor, bool f64)
{
    if (tensor->f64 == f64)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s: %s must be %s, got %s", function, tensor->name,
                 f64 ? "float64" : "float32", f64 ? "float32" : "float64");
    return -1;
}

int
dsg_expect_apart(const char *function, const dsg_borrow *out, const dsg_borrow *other)
{
    const char *a = out->data, *b = other->data;
    if (out->n == 0 || other->n == 0 || a + out->n * out->itemsize <= b ||
        b + other->n * other->itemsize <= a)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: %s must not share memory with %s", function,
                 out->name, other->name);
    return -1;
}
