/* Status codes of the core: 0 is good, a negative value names what went wrong.
 * Numbers are never reused. */
#ifndef DSG_STATUS_H
#define DSG_STATUS_H

typedef enum dsg_status {
    DSG_OK = 0,
    DSG_ENOMEM = -1,     /* an allocation failed */
    DSG_EVALUE = -2,     /* an option is outside its range */
    DSG_ESHAPE = -3,     /* sizes do not fit each other, or overflow */
    DSG_ENONFINITE = -4, /* NaN or Inf where a finite number is needed */
    DSG_ENOCONV = -5,    /* an iterative routine did not converge */
    DSG_EINTERNAL = -6,  /* a library refused a call that should be valid */
    DSG_ENOTREADY = -7,  /* work was asked for before set-up */
} dsg_status;

/* One sentence in English, static storage, never NULL. */
const char *dsg_strerror(dsg_status status);

#endif
