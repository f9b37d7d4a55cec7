// dw[i] = sum over slots of parts[slot, i], in a fixed order: 32 columns and 32 lanes of slots per threadgroup.
// ROW_BIAS 1: a slot's part is that of dw, then that of db.
#if ROW_BIAS
G_KERNEL(row_sums, 1024, IN(0, real, parts), OUT(1, ROW_W, dw), OUT(2, ROW_B, db), PARAMS(3, row_sums_params, p)) {
#else
G_KERNEL(row_sums, 1024, IN(0, real, parts), OUT(1, ROW_W, dw), PARAMS(2, row_sums_params, p)) {
#endif
  TG_ARRAY(real, sums, 32 * 33);
  const gk_ctx c = G_CTX();
  const uint width = p.cols * (1 + ROW_BIAS);
  const uint col = c.grp * 32 + c.lane;
  real s = 0.0f;
  if (col < width) {
    for (uint slot = c.sg; slot < p.slots; slot += 32) s += parts[(gk_i64)slot * width + col];
  }
  sums[c.lane * 33 + c.sg] = s;
  tg_barrier();
  s = sg_sum(sums[c.sg * 33 + c.lane]);
  const uint out = c.grp * 32 + c.sg;
  if (c.lane == 0 && out < p.cols) dw[out] = gk_to<ROW_W>(s);
#if ROW_BIAS
  if (c.lane == 0 && out >= p.cols && out < width) db[out - p.cols] = gk_to<ROW_B>(s);
#endif
}
