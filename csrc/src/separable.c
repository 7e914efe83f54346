#include "dsg/separable.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <string.h>

#include "dsg/lapack.h"
#include "dsg/mem.h"

/* A factor (rows, columns) as U diag(s) V^T in double, the way LAPACK leaves it. */
typedef struct thin_svd {
    size_t k; /* min(rows, columns) */
    double *u, *s, *vt;
} thin_svd;

static void
free_svd(thin_svd *d)
{
    dsg_free(d->u);
    dsg_free(d->s);
    dsg_free(d->vt);
}

static bool
all_finite(const double *a, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(a[i]))
            return false;
    return true;
}

/* Decomposes a; d is for free_svd whatever happens. */
static dsg_status
decompose(thin_svd *d, const double *a, size_t rows, size_t columns)
{
    size_t k = rows < columns ? rows : columns, n = rows * columns;
    size_t bytes = dsg_svd_workspace(rows, columns);
    if (!all_finite(a, n))
        return DSG_ENONFINITE;
    if (bytes == SIZE_MAX)
        return DSG_ESHAPE;
    dsg_status err = DSG_ENOMEM;
    d->k = k;
    d->u = dsg_alloc(rows * k, sizeof *d->u);
    d->s = dsg_alloc(k, sizeof *d->s);
    d->vt = dsg_alloc(k * columns, sizeof *d->vt);
    double *copy = dsg_alloc(n, sizeof *copy);
    void *work = dsg_alloc(bytes, 1);
    if (d->u && d->s && d->vt && copy && work) {
        memcpy(copy, a, n * sizeof *copy);
        err = dsg_svd_f64(d->u, d->s, d->vt, copy, rows, columns, work);
    }
    dsg_free(work);
    dsg_free(copy);
    if (err != DSG_OK)
        return err;

    double noise = DBL_EPSILON * (double)(rows > columns ? rows : columns) * d->s[0];
    for (size_t i = 0; i < k; i++)
        if (d->s[i] <= noise)
            d->s[i] = 0.0;
    return DSG_OK;
}

/* a * b * c == n, without overflow. */
static bool
product_is(size_t a, size_t b, size_t c, size_t n)
{
    size_t ab, abc;
    return dsg_mul(a, b, &ab) && dsg_mul(ab, c, &abc) && abc == n;
}

static bool
too_large(const double *a, size_t rows, size_t columns)
{
    return a && rows > DSG_SEPARABLE_MOST && columns > DSG_SEPARABLE_MOST;
}

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "separable.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "separable.inc.h"
#undef DSG_PRECISION
