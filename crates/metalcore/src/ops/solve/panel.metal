// Factors a panel of 32 columns, held as in pivot.metal, of all rows that are left. It is read from one buffer and
// written to another with its rows in their places; `order` says which row of the old buffer comes where.
#define LU_COLS (32 / LU_W)
#define LU_PITCH 33

G_KERNEL(lu_panel, LU_THREADS, IN(0, real, from), IO(1, real, to), IO(2, int, pivots), IO(3, int, info),
         IO(4, uint, order), PARAMS(5, lu_panel_params, p)) {
  TG_ARRAY(real, stage, 32 * LU_PITCH);
  TG_ARRAY(real, columns, 2 * LU_ROWS);
  TG_ARRAY(uint, places, 32);
  const gk_ctx c = G_CTX();
  const uint w = c.sg, lane = c.lane, rows = p.rows - p.first;
  const gk_i64 a0 = ((gk_i64)c.grp * p.rows + p.first) * p.cols + p.first;
  real a[LU_COLS * LU_R];
  uint place[LU_R];
  G_UNROLL for (uint i = 0; i < LU_R; ++i) {
    place[i] = lane + 32 * i;
    tg_barrier();
    G_UNROLL for (uint r = 0; r < 32; r += LU_W) {
      const uint row = 32 * i + r + w;
      stage[(r + w) * LU_PITCH + lane] = row < rows && lane < p.width ? from[a0 + (gk_i64)row * p.cols + lane] : real(0.0f);
    }
    tg_barrier();
    G_UNROLL for (uint j = 0; j < LU_COLS; ++j) a[j * LU_R + i] = stage[lane * LU_PITCH + w + LU_W * j];
  }
  uint singular = 0;
  G_UNROLL for (uint q = 0; q < LU_COLS; ++q) {
    for (uint owner = 0; owner < LU_W; ++owner) {
      const uint k = q * LU_W + owner;
      if (k >= p.width) break;
      TG(real) shared = columns + (k & 1u) * LU_ROWS;
      if (w == owner) {
        G_UNROLL for (uint i = 0; i < LU_R; ++i) shared[lane + 32 * i] = a[q * LU_R + i];
      }
      tg_barrier();
      const lu_pivot h = lu_search(shared, place, k, rows, lane);
      real factors[LU_R];
      lu_multipliers(shared, place, factors, h, k, rows, lane);
      if (h.value == 0.0f && singular == 0) singular = p.first + k + 1;
      if (c.tid == 0) pivots[(gk_i64)c.grp * p.steps + p.first + k] = (int)(p.first + h.place + 1);
      G_UNROLL for (uint j = q; j < LU_COLS; ++j) {
        const real u = lu_entry(a + j * LU_R, h.row);
        G_UNROLL for (uint i = 0; i < LU_R; ++i) {
          const real old = a[j * LU_R + i];
          const real next = g_fma(-factors[i], u, old);
          if (j > q || w > owner) a[j * LU_R + i] = next;
          else if (w == owner) a[j * LU_R + i] = place[i] > k ? factors[i] : old;
        }
      }
    }
  }
  if (c.tid == 0) {
    const int before = p.first == 0 ? 0 : info[c.grp];
    info[c.grp] = before != 0 ? before : (int)singular;
  }
  G_UNROLL for (uint i = 0; i < LU_R; ++i) {
    if (w == 0 && place[i] < rows) order[(gk_i64)c.grp * p.rows + p.first + place[i]] = p.first + lane + 32 * i;
    tg_barrier();
    G_UNROLL for (uint j = 0; j < LU_COLS; ++j) stage[lane * LU_PITCH + w + LU_W * j] = a[j * LU_R + i];
    if (w == 0) places[lane] = place[i];
    tg_barrier();
    G_UNROLL for (uint r = 0; r < 32; r += LU_W) {
      const uint row = places[r + w];
      if (row < rows && lane < p.width) to[a0 + (gk_i64)row * p.cols + lane] = stage[(r + w) * LU_PITCH + lane];
    }
  }
}
