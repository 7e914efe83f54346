/* Arguments that are no tensors: taken from Python, checked, refused by name. */
#include "core.h"

int
dsg_parse_precision(const char *function, const char *dtype, bool *f64)
{
    *f64 = strcmp(dtype, "float64") == 0;
    if (*f64 || strcmp(dtype, "float32") == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: dtype must be float32 or float64, got %s",
                 function, dtype);
    return -1;
}

int
dsg_parse_shape(const char *function, PyObject *tuple, dsg_shape *shape)
{
    Py_ssize_t c, h, w;
    if (!PyArg_ParseTuple(tuple, "nnn;shape must be (c, h, w)", &c, &h, &w))
        return -1;
    if (c <= 0 || h <= 0 || w <= 0) {
        PyErr_Format(PyExc_ValueError,
                     "%s: sizes must be positive, got (%zd, %zd, %zd)", function, c, h,
                     w);
        return -1;
    }
    *shape = (dsg_shape){(size_t)c, (size_t)h, (size_t)w};
    return 0;
}

int
dsg_parse_uint(const char *function, PyObject *object, const char *name, uint64_t most,
               uint64_t *value)
{
    if (!PyIndex_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s: %s must be an int, got %s", function, name,
                     Py_TYPE(object)->tp_name);
        return -1;
    }
    PyObject *number = PyNumber_Index(object);
    if (!number)
        return -1;
    int status = -1;
    *value = PyLong_AsUnsignedLongLong(number);
    bool outside = false;
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            goto done;
        PyErr_Clear();
        outside = true;
    }
    if (outside || *value > most)
        PyErr_Format(PyExc_ValueError, "%s: %s must be in the range 0..%llu, got %R",
                     function, name, (unsigned long long)most, number);
    else
        status = 0;
done:
    Py_DECREF(number);
    return status;
}

int
dsg_expect_int(const char *function, const char *name, Py_ssize_t value,
               Py_ssize_t least, Py_ssize_t most)
{
    if (value >= least && value <= most)
        return 0;
    if (most == PY_SSIZE_T_MAX && least == 0)
        PyErr_Format(PyExc_ValueError, "%s: %s must not be negative, got %zd", function,
                     name, value);
    else if (most == PY_SSIZE_T_MAX)
        PyErr_Format(PyExc_ValueError, "%s: %s must be at least %zd, got %zd", function,
                     name, least, value);
    else
        PyErr_Format(PyExc_ValueError, "%s: %s must be in the range %zd..%zd, got %zd",
                     function, name, least, most, value);
    return -1;
}

int
dsg_expect_number(const char *function, const char *name, double value, bool good,
                  const char *expected)
{
    if (good)
        return 0;
    PyObject *got = PyFloat_FromDouble(value); /* PyErr_Format knows no %g */
    if (got)
        PyErr_Format(PyExc_ValueError, "%s: %s must be %s, got %R", function, name,
                     expected, got);
    Py_XDECREF(got);
    return -1;
}
