// What both passes of kl_div share, behind rows.h.
G_FN void kl_take(DEV(const ROW_T) log_p, DEV(const ROW_T) log_q, gk_i64 base, uint tile, uint t, uint cols,
                  PRIV(row_chunk) x, PRIV(row_chunk) y) {
  G_UNROLL for (uint v = 0; v < ROW_V; ++v) {
    const uint i = ROW_AT(tile, v);
    if (i < cols) {
      row_hold(log_p, base + i, x[v]);
      row_hold(log_q, base + i, y[v]);
    }
  }
}
// p; 0 where it would be subnormal, on every device.
#if GK_F64
#define KL_LEAST gk_lit(-708.396)
#else
#define KL_LEAST gk_lit(-87.33654)
#endif
G_FN real kl_p(real log_p) { return log_p < KL_LEAST ? real(0.0f) : g_exp(log_p); }
