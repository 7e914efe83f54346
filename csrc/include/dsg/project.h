/* Projection onto the dominant singular subspace of the diffusion state.
 *
 * For one channel with state Z (h, w) = U diag(s) V^T, k = min(h, w), and a gradient G,
 *
 *   P(G) = U_r U_r^T G V_r V_r^T,   r = min { j : s_1^2 + .. + s_j^2 >= energy |Z|^2 }
 *
 * (Zirvi, Tolooshams, Anandkumar, ICLR 2025, section 3).  `sides` may keep only the
 * left or only the right factor.  How the ranks of channels combine:
 *
 *     per channel   every channel its own r
 *     mean          one r, the floor of the mean of the channels' r
 *     official      one r, as the published code computes it: the squared singular
 *                   values of all channels in one running sum, decided in float,
 *                   position / 3
 *     fixed         one r, given
 *
 * r is at most k.  energy = 1 keeps everything: r = k.  A side of length r is the
 * identity, so a square state at r = k returns G bit for bit.
 *
 * A zero channel has r = 0 and its gradient is left as it is; but under the official
 * rule it has the image's r, and when that is 0 its gradient becomes zero like the
 * others'.
 *
 * Factors are found in double: Gram matrix M M^T of the shorter side, all its
 * eigenvalues, the eigenvectors of one half, the other side from M^T u / s.  Where the
 * singular values needed are too small for that (limits in project.inc.h), the SVD
 * itself.  Of every side the smaller half is stored, the r leading vectors or the
 * complement's with P = I - B B^T; of the longer side of a state that is not square,
 * always the r leading ones.  That takes at most an image, or one and a half. */
#ifndef DSG_PROJECT_H
#define DSG_PROJECT_H

#include "dsg/op.h"

typedef enum dsg_rank_rule {
    DSG_RANK_PER_CHANNEL = 0,
    DSG_RANK_MEAN = 1,
    DSG_RANK_OFFICIAL = 2,
    DSG_RANK_FIXED = 3,
} dsg_rank_rule;

enum { DSG_LEFT = 1, DSG_RIGHT = 2, DSG_BOTH = 3 };

typedef struct dsg_project_options {
    double energy; /* in (0, 1]; not read by the fixed rule */
    dsg_rank_rule rule;
    size_t fixed_rank; /* >= 1, clamped to k; read by the fixed rule only */
    unsigned sides;    /* DSG_LEFT, DSG_RIGHT or DSG_BOTH */
} dsg_project_options;

#define DSG_PRECISION 32
#include "dsg/precision.h"
#include "dsg/project.inc.h"
#undef DSG_PRECISION
#define DSG_PRECISION 64
#include "dsg/precision.h"
#include "dsg/project.inc.h"
#undef DSG_PRECISION

#endif
