// LU factorisation and solution with A and B in registers, held as in pivot.metal and eliminated side by side.
// Specialised by text:
//   LU_R, LU_W       rows per lane; simd groups per matrix
//   LU_COLS, LU_SIDES  columns of A, of B per simd group
//   LU_MATS          matrices per threadgroup (1 unless LU_W is 1)
#define LU_WIDTH (LU_W * (LU_COLS > LU_SIDES ? LU_COLS : LU_SIDES))
#define LU_PITCH (LU_WIDTH | 1)
// Columns of each simd group that fit the stage.
#define LU_KEPT (LU_W == 1 ? LU_COLS : LU_W == 4 ? 8 : 2)
#define LU_LARGE 1.2676506002282294e30f  /* 2^100 */

// Rows pass through threadgroup memory 32 at a time, so that device memory is read and written by rows.
G_FN void lu_rows_in(DEV(const real) from, gk_i64 at, TG(real) stage, uint first, uint rows, uint cols, uint w, uint lane) {
  G_UNROLL for (uint r = 0; r < 32; r += LU_W) {
    const uint row = first + r + w;
    G_UNROLL for (uint j = 0; j < LU_WIDTH; j += 32)
      if (row < rows && j + lane < cols)
        stage[(r + w) * LU_PITCH + j + lane] = from[at + (gk_i64)row * cols + j + lane];
  }
}
G_FN void lu_rows_out(DEV(real) to, gk_i64 at, TG(real) stage, uint first, uint rows, uint cols, uint w, uint lane) {
  G_UNROLL for (uint r = 0; r < 32; r += LU_W) {
    const uint row = first + r + w;
    G_UNROLL for (uint j = 0; j < LU_WIDTH; j += 32)
      if (row < rows && j + lane < cols)
        to[at + (gk_i64)row * cols + j + lane] = stage[(r + w) * LU_PITCH + j + lane];
  }
}
// Rows that stand at `first` to `first` + 31 of columns in registers, to the stage.
G_FN void lu_stage(PRIV(real) x, PRIV(uint) place, TG(real) stage, uint first, uint count, uint cols, uint w) {
  G_UNROLL for (uint i = 0; i < LU_R; ++i) {
    const uint row = place[i] - first;
    if (place[i] >= first && row < 32)
      G_UNROLL for (uint j = 0; j < count; ++j)
        if (w + LU_W * j < cols) stage[row * LU_PITCH + w + LU_W * j] = x[j * LU_R + i];
  }
}

G_KERNEL(lu_tile, LU_THREADS * LU_MATS, IN(0, real, A), IN(1, real, B), OUT(2, real, X), OUT(3, real, LU),
         OUT(4, int, pivots), OUT(5, int, info), PARAMS(6, lu_tile_params, p)) {
  TG_ARRAY(real, stages, LU_MATS * 32 * LU_PITCH);
  TG_ARRAY(real, columns, LU_MATS * 2 * LU_ROWS);
  TG_ARRAY(uint, orders, LU_MATS * LU_ROWS);
  const gk_ctx c = G_CTX();
  const uint slot = LU_MATS == 1 ? 0 : c.sg / LU_W, w = c.sg - slot * LU_W, lane = c.lane;
  const bool live = LU_MATS == 1 || c.grp * LU_MATS + slot < p.batch;
  const uint mat = live ? c.grp * LU_MATS + slot : p.batch - 1;  // a spare slot repeats the last matrix, and stores nothing
  TG(real) stage = stages + slot * (32 * LU_PITCH);
  TG(real) column = columns + slot * (2 * LU_ROWS);
  TG(uint) order = orders + slot * LU_ROWS;
  const gk_i64 a0 = (gk_i64)mat * p.rows * p.cols, b0 = (gk_i64)mat * p.rows * p.sides;

  real a[LU_COLS * LU_R], b[LU_SIDES * LU_R];
  uint place[LU_R];
  G_UNROLL for (uint i = 0; i < LU_R; ++i) {
    const uint row = lane + 32 * i;
    place[i] = row;
    if (i > 0) lu_sync();
    lu_rows_in(A, a0, stage, 32 * i, p.rows, p.cols, w, lane);
    lu_sync();
    G_UNROLL for (uint j = 0; j < LU_COLS; ++j) {
      const uint col = w + LU_W * j;
      a[j * LU_R + i] = row < p.rows && col < p.cols ? stage[lane * LU_PITCH + col] : real(0.0f);
    }
  }
  G_UNROLL for (uint i = 0; i < LU_R; ++i) {
    const uint row = lane + 32 * i;
    if (p.identity == 0 && p.sides > 0) {
      lu_sync();
      lu_rows_in(B, b0, stage, 32 * i, p.rows, p.sides, w, lane);
      lu_sync();
    }
    G_UNROLL for (uint j = 0; j < LU_SIDES; ++j) {
      const uint col = w + LU_W * j;
      real x = col == row ? 1.0f : 0.0f;
      if (p.identity == 0) x = row < p.rows && col < p.sides ? stage[lane * LU_PITCH + col] : real(0.0f);
      b[j * LU_R + i] = x;
    }
  }

  const uint steps = g_minu(p.rows, p.cols);
  uint singular = 0;
  G_UNROLL for (uint q = 0; q < LU_COLS; ++q) {
    for (uint owner = 0; owner < LU_W; ++owner) {
      const uint k = q * LU_W + owner;
      if (k >= steps) break;
      TG(real) shared = column + (k & 1u) * LU_ROWS;
      if (w == owner) {
        G_UNROLL for (uint i = 0; i < LU_R; ++i) shared[lane + 32 * i] = a[q * LU_R + i];
      }
      lu_sync();
      const lu_pivot h = lu_search(shared, place, k, p.rows, lane);
      real factors[LU_R];
      lu_multipliers(shared, place, factors, h, k, p.rows, lane);
      if (h.value == 0.0f && singular == 0) singular = k + 1;
      if (w == 0 && lane == 0) {
        order[k] = h.row;
        if (live && p.keep != 0) pivots[(gk_i64)mat * steps + k] = (int)(h.place + 1);
      }
      G_UNROLL for (uint j = q; j < LU_COLS; ++j) {
        const real u = lu_entry(a + j * LU_R, h.row);
        G_UNROLL for (uint i = 0; i < LU_R; ++i) {
          const real old = a[j * LU_R + i];
          const real next = g_fma(-factors[i], u, old);
          if (j > q || w > owner) a[j * LU_R + i] = next;
          else if (w == owner) a[j * LU_R + i] = place[i] > k ? factors[i] : old;
        }
      }
      G_UNROLL for (uint j = 0; j < LU_SIDES; ++j) {
        const real u = lu_entry(b + j * LU_R, h.row);
        G_UNROLL for (uint i = 0; i < LU_R; ++i) b[j * LU_R + i] = g_fma(-factors[i], u, b[j * LU_R + i]);
      }
    }
  }
  if (live && w == 0 && lane == 0) info[mat] = (int)singular;

  // U X = Y from the last row to the first; the stage holds the columns of U that come next.
  if (p.sides > 0) {
    G_UNROLL for (uint n = LU_KEPT; n <= LU_COLS; n += LU_KEPT) {
      const uint q = LU_COLS - n, begin = q * LU_W;
      lu_sync();
      G_UNROLL for (uint j = 0; j < LU_KEPT; ++j)
        G_UNROLL for (uint i = 0; i < LU_R; ++i)
          stage[(j * LU_W + w) * LU_ROWS + lane + 32 * i] = a[(q + j) * LU_R + i];
      lu_sync();
      for (uint k = g_minu(steps, begin + LU_KEPT * LU_W); k-- > begin;) {
        TG(real) u = stage + (k - begin) * LU_ROWS;
        const uint row = order[k];
        // A power of two keeps the reciprocal in the range of normal numbers.
        const real diagonal = u[row], size = g_abs(diagonal);
        const real scale = size > LU_LARGE ? real(1.0f / LU_LARGE) : size < 1.0f / LU_LARGE ? real(LU_LARGE) : real(1.0f);
        const real reciprocal = 1.0f / (diagonal * scale);
        G_UNROLL for (uint j = 0; j < LU_SIDES; ++j) {
          const real x = lu_entry(b + j * LU_R, row) * scale * reciprocal;
          G_UNROLL for (uint i = 0; i < LU_R; ++i) {
            const real old = b[j * LU_R + i];
            const real next = g_fma(-u[lane + 32 * i], x, old);
            b[j * LU_R + i] = place[i] < k ? next : place[i] == k ? x : old;
          }
        }
      }
    }
    for (uint first = 0; first < p.rows; first += 32) {
      lu_sync();
      lu_stage(b, place, stage, first, LU_SIDES, p.sides, w);
      lu_sync();
      if (live) lu_rows_out(X, b0, stage, first, p.rows, p.sides, w, lane);
    }
  }
  if (p.keep != 0) {
    for (uint first = 0; first < p.rows; first += 32) {
      lu_sync();
      lu_stage(a, place, stage, first, LU_COLS, p.cols, w);
      lu_sync();
      if (live) lu_rows_out(LU, a0, stage, first, p.rows, p.cols, w, lane);
    }
  }
}
