// One step of Gaussian elimination with partial pivoting on a matrix whose rows are held by lanes and whose columns by
// simd groups: lane l of simd group w holds rows l + 32 i, i < LU_R, of columns w + LU_W c. Rows are not moved: `place`
// is where a row of the matrix stands after the swaps so far, and every simd group knows it.
#define LU_ROWS (32 * LU_R)
#define LU_THREADS (32 * LU_W)
#if LU_W == 1
#define lu_sync() sg_barrier()
#else
#define lu_sync() tg_barrier()
#endif

// The row that becomes row k, where it stands, and its entry in column k.
struct lu_pivot { uint row; uint place; real value; };

// Of the entries of column k in rows that stand at k or after it the largest; of equal ones the first to stand there. A NaN is larger
// than all numbers.
G_FN lu_pivot lu_search(TG(real) column, PRIV(uint) place, uint k, uint rows, uint lane) {
  real sizes[LU_R];
  real largest = -1.0f;
  G_UNROLL for (uint i = 0; i < LU_R; ++i) {
    const real x = column[lane + 32 * i];
    sizes[i] = place[i] < k || place[i] >= rows ? real(-1.0f) : g_isnan(x) ? g_inf() : g_abs(x);
    largest = g_max(largest, sizes[i]);
  }
  largest = sg_max(largest);
  uint found = 0xffffffffu;
  G_UNROLL for (uint i = 0; i < LU_R; ++i)
    if (sizes[i] == largest) found = g_minu(found, (place[i] << 16) | (lane + 32 * i));
  found = sg_min(found);
  lu_pivot p;
  p.row = found & 0xffffu;
  p.place = found >> 16;
  p.value = column[p.row];
  return p;
}

// Swaps the pivot's row with row k, and gives the multipliers of the rows after it; those of others are 0.
G_FN void lu_multipliers(TG(real) column, PRIV(uint) place, PRIV(real) factors, lu_pivot p, uint k, uint rows,
                         uint lane) {
  G_UNROLL for (uint i = 0; i < LU_R; ++i) {
    const uint row = lane + 32 * i;
    place[i] = row == p.row ? k : place[i] == k ? p.place : place[i];
    const bool after = place[i] > k && place[i] < rows && p.value != 0.0f;
    factors[i] = after ? column[row] / p.value : real(0.0f);
  }
}

// What a column has in row `row`, in all lanes.
G_FN real lu_entry(PRIV(real) x, uint row) {
  real held = x[0];
  G_UNROLL for (uint i = 1; i < LU_R; ++i)
    if (row / 32 == i) held = x[i];
  return sg_shfl(held, row & 31u);
}
