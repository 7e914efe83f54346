/* The structs of DLPack 1.0 that cross the boundary, and checks that they lie in memory
 * as the standard says.  https://dmlc.github.io/dlpack/latest/c_api.html */
#ifndef DSG_DLPACK_ABI_H
#define DSG_DLPACK_ABI_H

#include <stddef.h>
#include <stdint.h>

enum { DL_CPU = 1 };
enum { DL_INT = 0, DL_UINT = 1, DL_FLOAT = 2, DL_BOOL = 6 };
enum { DL_READ_ONLY = 1, DL_IS_COPIED = 2 };

typedef struct dl_device {
    int32_t type, id;
} dl_device;

typedef struct dl_dtype {
    uint8_t code, bits;
    uint16_t lanes;
} dl_dtype;

typedef struct dl_tensor {
    void *data;
    dl_device device;
    int32_t ndim;
    dl_dtype dtype;
    int64_t *shape;
    int64_t *strides; /* in elements; NULL means dense */
    uint64_t byte_offset;
} dl_tensor;

/* Before version 1.0, capsule name "dltensor". */
typedef struct dl_managed {
    dl_tensor tensor;
    void *context;
    void (*deleter)(struct dl_managed *);
} dl_managed;

/* Since version 1.0, capsule name "dltensor_versioned". */
typedef struct dl_managed_versioned {
    uint32_t major, minor;
    void *context;
    void (*deleter)(struct dl_managed_versioned *);
    uint64_t flags;
    dl_tensor tensor;
} dl_managed_versioned;

#if UINTPTR_MAX == UINT64_MAX
_Static_assert(sizeof(dl_tensor) == 48, "dl_tensor");
_Static_assert(offsetof(dl_tensor, ndim) == 16, "dl_tensor.ndim");
_Static_assert(offsetof(dl_tensor, shape) == 24, "dl_tensor.shape");
_Static_assert(offsetof(dl_tensor, byte_offset) == 40, "dl_tensor.byte_offset");
_Static_assert(offsetof(dl_managed_versioned, flags) == 24, "flags");
_Static_assert(offsetof(dl_managed_versioned, tensor) == 32, "tensor");
#endif

#endif
