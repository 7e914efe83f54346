#include "core.h"

PyObject *
dsg_raise(core_state *st, const char *function, dsg_status status)
{
    if (PyErr_Occurred())
        return NULL;
    PyObject *type = PyExc_RuntimeError;
    switch (status) {
    case DSG_ENOMEM:
        type = PyExc_MemoryError;
        break;
    case DSG_EVALUE:
    case DSG_ESHAPE:
    case DSG_ENONFINITE:
        type = PyExc_ValueError;
        break;
    case DSG_ENOCONV:
        type = st->numerical_error;
        break;
    default:
        break;
    }
    PyErr_Format(type, "%s: %s", function, dsg_strerror(status));
    return NULL;
}

PyObject *
dsg_none_or_raise(core_state *st, const char *function, dsg_status status)
{
    if (status != DSG_OK)
        return dsg_raise(st, function, status);
    Py_RETURN_NONE;
}
