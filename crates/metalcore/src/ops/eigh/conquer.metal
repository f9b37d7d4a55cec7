// Tridiagonal eigenproblems by divide and conquer (Cuppen; Gu & Eisenstat 1995; LAPACK laed1 to laed4), from matrices of
// one element upwards: two neighbours with eigenvalues d and eigenvectors Q, joined by an off-diagonal e, have the
// eigenproblem of diag(d) + rho z z', rho = 2 |e|, z = (last row of the left Q, +-first row of the right Q) / sqrt 2.
// A merge (merge.metal) finds what it leaves alone, the roots of its secular equation and the z that makes them exact
// (Loewner's formula), so that eigenvectors are orthogonal to working precision; join.metal then multiplies Q by them.
//
// A matrix in `work`: the reflectors of the tridiagonalisation (n, ld), Q' twice, an old and a new one, (n, ld), and vectors
// of ldv elements.
#define EIGH_D 0       // eigenvalues of each node, ascending
#define EIGH_E 1       // off-diagonal of T
#define EIGH_TAU 2     // of each reflector
#define EIGH_POLE 3    // d of what takes part in a merge, ascending
#define EIGH_Z 4       // z of the same
#define EIGH_ROW 5     // its row of the old Q'
#define EIGH_ORIGIN 6  // the pole next to each root
#define EIGH_MU 7      // the distance of the root from it
#define EIGH_INV 8     // 1 / norm of the root's eigenvector
#define EIGH_CODE 9    // of each row of the new Q': its root, or EIGH_ALONE + its old row
#define EIGH_COUNT 10  // at a node's first place: how many take part
#define EIGH_SCALE 11  // 0: 1 / scale of A, 1: whether A is not finite
#define EIGH_ALONE 8192
#if GK_F64
#define EIGH_TINY_SQUARE 1.1830521861667747e-271  // 2^-900
#else
#define EIGH_TINY_SQUARE 7.888609052210118e-31f   // 2^-100
#endif
G_FN gk_i64 eigh_vector(uint mat, uint which, PREF(eigh_params) p) {
  return (gk_i64)mat * p.stride + 3 * (gk_i64)p.n * p.lda + (gk_i64)which * p.ldq;
}
G_FN gk_i64 eigh_q(uint mat, uint which, PREF(eigh_params) p) {
  return (gk_i64)mat * p.stride + (gk_i64)(1 + which) * p.n * p.lda;
}
