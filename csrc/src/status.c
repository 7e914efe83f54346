#include "dsg/status.h"

const char *
dsg_strerror(dsg_status status)
{
    switch (status) {
    case DSG_OK:
        return "no error";
    case DSG_ENOMEM:
        return "out of memory";
    case DSG_EVALUE:
        return "an option is outside its range";
    case DSG_ESHAPE:
        return "the sizes do not fit";
    case DSG_ENONFINITE:
        return "NaN or Inf where a finite number is needed";
    case DSG_ENOCONV:
        return "an iterative routine did not converge";
    case DSG_EINTERNAL:
        return "a numerical library refused a valid call";
    case DSG_ENOTREADY:
        return "work was asked for before set-up";
    }
    return "unknown status";
}
