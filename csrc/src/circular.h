/* The data step of an operator that commutes with cyclic shifts of the image and does
 * the same to every channel, A = F^-1 B F with F the transform of one channel:
 *
 *     prox   x = F^-1 [(conj(B) F y + rho F v) / (|B|^2 + rho)]
 *     pinv   x = F^-1 [F y / B], entries with |B| <= cutoff max |B| dropped
 *     norm   max |B|
 *
 * B is the transform of the operator's answer to a single pixel at (0, 0): whatever the
 * operator rounds, B has rounded too. */
#ifndef DSG_CIRCULAR_H
#define DSG_CIRCULAR_H

#include "dsg/data_step.h"

/* op has out == in.  DSG_ESHAPE for an image FFTW cannot transform. */
dsg_status dsg_circular_create_f32(dsg_data_step_f32 **step, const dsg_op_f32 *op);
dsg_status dsg_circular_create_f64(dsg_data_step_f64 **step, const dsg_op_f64 *op);

#endif
