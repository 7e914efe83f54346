/* The extension module diffstategrad._core: state, types, function table. */
#include "core.h"

#include "dsg/fft.h"
#include "dsg/lapack.h"
#include "dsg/real.h"
#include "dsg/threads.h"

#ifndef DSG_VERSION
#error "setup.py defines DSG_VERSION"
#endif

static PyObject *
py_set_num_threads(PyObject *mod, PyObject *args)
{
    (void)mod;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "n:set_num_threads", &n))
        return NULL;
    if (n < 1)
        return PyErr_Format(PyExc_ValueError,
                            "set_num_threads: n must be at least 1, got %zd", n);
    dsg_set_num_threads((size_t)n);
    Py_RETURN_NONE;
}

/* What the processor has of what the kernels are compiled for, a list of names; the
 * kernels take the clone of the last one. */
static PyObject *
instruction_sets(void)
{
    PyObject *names = PyList_New(0);
#if DSG_HAVE_CLONES
    __builtin_cpu_init();
    const char *found[] = {
        "x86-64",
        __builtin_cpu_supports("x86-64-v3") ? "x86-64-v3" : NULL,
        __builtin_cpu_supports("x86-64-v4") ? "x86-64-v4" : NULL,
    };
#else
    const char *found[] = {"baseline"};
#endif
    for (size_t i = 0; names && i < sizeof found / sizeof *found; i++) {
        PyObject *name = found[i] ? PyUnicode_FromString(found[i]) : NULL;
        if (found[i] && (!name || PyList_Append(names, name) < 0))
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

static PyObject *
py_info(PyObject *mod, PyObject *args)
{
    (void)mod;
    (void)args;
    PyObject *isa = instruction_sets();
    if (!isa)
        return NULL;
    return Py_BuildValue("{s:s,s:s,s:N,s:n,s:s,s:s}", "version", DSG_VERSION,
                         "compiler", __VERSION__, "isa", isa, "threads",
                         (Py_ssize_t)dsg_num_threads(), "blas", dsg_blas_config(),
                         "fft", dsg_fft_version());
}

static PyMethodDef functions[] = {
    {"set_num_threads", py_set_num_threads, METH_VARARGS,
     "set_num_threads(n, /)\n--\n\nUpper bound on the threads over a batch."},
    {"info", py_info, METH_NOARGS,
     "info()\n--\n\nVersion, compiler, instruction set in use, threads, BLAS."},
    {0},
};

static PyTypeObject *
add_type(PyObject *mod, PyType_Spec *spec, const char *name)
{
    PyObject *type = PyType_FromModuleAndSpec(mod, spec, NULL);
    if (type && PyModule_AddObjectRef(mod, name, type) < 0)
        Py_CLEAR(type);
    return (PyTypeObject *)type;
}

static int
core_exec(PyObject *mod)
{
    /* now, with the GIL held: nobody writes the environment while they read it */
    dsg_blas_set_up();
    dsg_threads_set_up();

    core_state *st = PyModule_GetState(mod);
    if (!(st->numerical_error = PyErr_NewExceptionWithDoc(
              "diffstategrad.NumericalError", "A numerical routine did not converge.",
              PyExc_ArithmeticError, NULL)) ||
        !(st->dlpack_kwargs = Py_BuildValue("{s:(ii)}", "max_version", 1, 0)) ||
        !(st->str_dlpack = PyUnicode_InternFromString("__dlpack__")) ||
        !(st->op_type = add_type(mod, &dsg_op_spec, "Op")) ||
        !(st->projector_type = add_type(mod, &dsg_projector_spec, "Projector")) ||
        !(st->data_step_type = add_type(mod, &dsg_data_step_spec, "DataStep")))
        return -1;
    if (PyModule_AddObjectRef(mod, "NumericalError", st->numerical_error) < 0 ||
        PyModule_AddStringConstant(mod, "__version__", DSG_VERSION) < 0)
        return -1;
    PyMethodDef *tables[] = {functions, dsg_create_functions, dsg_sampler_functions,
                             dsg_update_functions, dsg_metric_functions};
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        if (PyModule_AddFunctions(mod, tables[i]) < 0)
            return -1;
    return 0;
}

static int
core_traverse(PyObject *mod, visitproc visit, void *arg)
{
    core_state *st = PyModule_GetState(mod);
    Py_VISIT(st->numerical_error);
    Py_VISIT(st->dlpack_kwargs);
    Py_VISIT(st->str_dlpack);
    Py_VISIT(st->op_type);
    Py_VISIT(st->projector_type);
    Py_VISIT(st->data_step_type);
    return 0;
}

static int
core_clear(PyObject *mod)
{
    core_state *st = PyModule_GetState(mod);
    Py_CLEAR(st->numerical_error);
    Py_CLEAR(st->dlpack_kwargs);
    Py_CLEAR(st->str_dlpack);
    Py_CLEAR(st->op_type);
    Py_CLEAR(st->projector_type);
    Py_CLEAR(st->data_step_type);
    return 0;
}

static void
core_free(void *mod)
{
    core_clear(mod);
}

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0},
};

static PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "diffstategrad._core",
    .m_doc = "Operators, projector, samplers and metrics on DLPack tensors.",
    .m_size = sizeof(core_state),
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
    .m_free = core_free,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
