// Rows of the weight's gradient, dense: the sum over a row's entries, in order and in blocks, of factor dy[bag]. A slot of
// 2^lane_bits threads takes a row at a time, BAG_ROWS in all.
#define BAG_ROWS 4
#define BAG_BLOCK 64
#define BAG_AHEAD 4

G_KERNEL(embedding_bag_bwd, ROW_THREADS, IN(0, ROW_T, dy), IN(1, uint, starts), IN(2, uint, bags), IN(3, real, factors),
         IN(4, uint, places), IN(5, uint, largest), OUT(6, ROW_T, dw), PARAMS(7, embedding_bag_params, p)) {
  const gk_ctx c = G_CTX();
  const uint lanes = 1u << p.lane_bits;
  const uint slots = ROW_THREADS >> p.lane_bits;
  const uint column = (c.grp % p.tiles * lanes + (c.tid & (lanes - 1))) * ROW_VEC;
  const uint first = c.grp / p.tiles * (slots * BAG_ROWS) + (c.tid >> p.lane_bits);
  if (column < p.cols) {
    uint from[BAG_ROWS], to[BAG_ROWS];
    G_UNROLL for (uint r = 0; r < BAG_ROWS; ++r) {
      const uint row = first + r * slots;
      from[r] = 0;
      to[r] = 0;
      if (row < p.rows && row != p.padding) {
        from[r] = starts[row];
        to[r] = starts[row + 1];
      }
    }
    G_UNROLL for (uint r = 0; r < BAG_ROWS; ++r) {
      const uint row = first + r * slots;
      if (row < p.rows) {
        real total[ROW_VEC], lost[ROW_VEC];
        G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) {
          total[i] = 0.0f;
          lost[i] = 0.0f;
        }
        for (uint begin = from[r]; begin < to[r]; begin += BAG_BLOCK) {
          const uint end = g_minu(begin + BAG_BLOCK, to[r]);
          real sum[ROW_VEC];
          G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) sum[i] = 0.0f;
          for (uint entry = begin; entry < end; entry += BAG_AHEAD) {
            row_chunk chunks[BAG_AHEAD];
            uint bag[BAG_AHEAD];
            G_UNROLL for (uint k = 0; k < BAG_AHEAD; ++k) {
              bag[k] = entry + k < end ? bags[entry + k] : BAG_NONE;
              if (bag[k] != BAG_NONE) row_hold(dy, gk_i64(bag[k]) * p.cols + column, chunks[k]);
            }
            G_UNROLL for (uint k = 0; k < BAG_AHEAD; ++k) {
              if (bag[k] != BAG_NONE) {
                real x[ROW_VEC];
                row_open(chunks[k], x);
                const real factor = factors[entry + k];
                G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) {
                  const bool counts =
                      p.max == 0 || largest[gk_i64(bag[k]) * p.cols + column + i] == places[entry + k];
                  if (counts) sum[i] = g_fma(x[i], factor, sum[i]);
                }
              }
            }
          }
          G_UNROLL for (uint i = 0; i < ROW_VEC; ++i) bag_add(total[i], lost[i], sum[i]);
        }
        row_store(dw, gk_i64(row) * p.cols + column, total);
      }
    }
  }
}
