/* What the files of the binding share: module state, borrowed tensors, errors. */
#ifndef DSG_BIND_CORE_H
#define DSG_BIND_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

#include "dsg/op.h"
#include "dsg/sampler.h"
#include "dsg/status.h"

typedef struct core_state {
    PyObject *numerical_error; /* diffstategrad.NumericalError */
    PyObject *dlpack_kwargs;   /* {"max_version": (1, 0)} */
    PyObject *str_dlpack;      /* "__dlpack__" */
    PyTypeObject *op_type, *projector_type, *data_step_type;
} core_state;

/* The one call of a function that exists in both precisions; pointers are void *. */
#define DSG_DISPATCH(f64, function, ...) \
    ((f64) ? function##_f64(__VA_ARGS__) : function##_f32(__VA_ARGS__))

/* ---- errors.c ---- */

/* Sets the exception that belongs to a failed status, unless one is set; NULL. */
PyObject *dsg_raise(core_state *st, const char *function, dsg_status status);

/* None for DSG_OK, else dsg_raise. */
PyObject *dsg_none_or_raise(core_state *st, const char *function, dsg_status status);

/* ---- tensor.c ---- */

enum { DSG_MAX_NDIM = 5 };

typedef enum dsg_dtype {
    DSG_REAL = 0, /* float32 or float64 */
    DSG_F32,
    DSG_F64,
    DSG_U8, /* bool counts as uint8 */
} dsg_dtype;

/* A tensor of somebody else's, held for the length of one call. */
typedef struct dsg_borrow {
    PyObject *capsule; /* owned; dropping it lets the tensor go */
    const char *name;
    void *data;
    int ndim;
    size_t shape[DSG_MAX_NDIM];
    size_t n, itemsize;
    bool f64; /* of a DSG_REAL */
} dsg_borrow;

/* Takes `object` (anything with __dlpack__) as a dense CPU tensor of the given dtype
 * and number of axes.  -1 with an exception that names function and argument.  Release
 * in either case. */
int dsg_borrow_in(core_state *st, const char *function, PyObject *object,
                  const char *name, dsg_dtype dtype, int ndim, dsg_borrow *tensor);
/* The same for a result: must be writable. */
int dsg_borrow_out(core_state *st, const char *function, PyObject *object,
                   const char *name, dsg_dtype dtype, int ndim, dsg_borrow *tensor);
void dsg_release(dsg_borrow *tensor);

/* -1 with ValueError when shapes differ. */
int dsg_expect_shape(const char *function, const dsg_borrow *tensor, int ndim,
                     const size_t *shape);
/* The shape of (b, c, h, w) with the sizes of one image fixed; b is free. */
int dsg_expect_image(const char *function, const dsg_borrow *tensor, dsg_shape shape,
                     size_t b);
/* -1 with TypeError when precisions differ. */
int dsg_expect_precision(const char *function, const dsg_borrow *tensor, bool f64);
/* -1 with ValueError when a result shares memory with another tensor. */
int dsg_expect_apart(const char *function, const dsg_borrow *out,
                     const dsg_borrow *other);

/* ---- py_op.c ---- */

typedef struct py_op {
    PyObject_HEAD void *op; /* dsg_op_f32 or dsg_op_f64 */
    bool f64;
    dsg_shape in, out;
    PyObject *parts; /* handles of the operators it is composed of, or NULL */
} py_op;

/* ---- py_project.c ---- */

typedef struct py_projector {
    PyObject_HEAD void *projector; /* dsg_projector_f32 or dsg_projector_f64 */
    bool f64;
    dsg_shape shape;
    size_t b;
    int users;    /* calls that read the factors just now, without the GIL */
    bool writing; /* prepare is at work */
} py_projector;

/* -1 with RuntimeError when the factors are being written, else counts a reader. */
int dsg_projector_enter(const char *function, py_projector *p);
void dsg_projector_leave(py_projector *p);

/* ---- parse.c ---- */

/* dtype name to precision; -1 with ValueError for anything else. */
int dsg_parse_precision(const char *function, const char *dtype, bool *f64);
/* Positive sizes only; -1 with ValueError. */
int dsg_parse_shape(const char *function, PyObject *tuple, dsg_shape *shape);
/* An int in 0..most; -1 with TypeError or ValueError. */
int dsg_parse_uint(const char *function, PyObject *object, const char *name,
                   uint64_t most, uint64_t *value);
/* -1 with ValueError unless least <= value <= most; PY_SSIZE_T_MAX is no bound. */
int dsg_expect_int(const char *function, const char *name, Py_ssize_t value,
                   Py_ssize_t least, Py_ssize_t most);
/* -1 with ValueError unless `good`, which is what `expected` says of value. */
int dsg_expect_number(const char *function, const char *name, double value, bool good,
                      const char *expected);

/* ---- noise.c ---- */

/* Normals for a batch: from a key, recorded, or neither. */
typedef struct dsg_noise_arg {
    const dsg_noise *noise; /* NULL, or the key below */
    dsg_noise key;
    uint32_t *ids; /* owned: images, then samples */
    dsg_borrow recorded;
} dsg_noise_arg;

/* A key (seed, images, samples, draw) of b images, with room for `draws` draws in each
 * of the steps.  -1 with an exception.  Release in either case, as below. */
int dsg_parse_key(const char *function, PyObject *tuple, size_t b, size_t steps,
                  size_t draws, dsg_noise_arg *noise);
/* Such a key, or recorded normals (steps * b, c, h, w). */
int dsg_parse_noise(core_state *st, const char *function, PyObject *object,
                    dsg_dtype dtype, dsg_shape shape, size_t b, size_t steps,
                    size_t draws, dsg_noise_arg *noise);
void dsg_release_noise(dsg_noise_arg *noise);

/* ---- tables of the other files, gathered by module.c ---- */

extern PyType_Spec dsg_op_spec, dsg_projector_spec, dsg_data_step_spec;
extern PyMethodDef dsg_create_functions[], dsg_sampler_functions[];
extern PyMethodDef dsg_update_functions[];
extern PyMethodDef dsg_metric_functions[];

#endif
