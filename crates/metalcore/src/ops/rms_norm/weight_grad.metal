// dw[i] = sum over slots of parts[slot, i], in a fixed order: 32 columns and 32 lanes of slots per threadgroup.
G_KERNEL(rms_norm_dw, 1024, IN(0, real, parts), OUT(1, RMS_W, dw), PARAMS(2, rms_norm_dw_params, p)) {
  TG_ARRAY(real, sums, 32 * 33);
  const gk_ctx c = G_CTX();
  const uint col = c.grp * 32 + c.lane;
  real s = 0.0f;
  if (col < p.cols) {
    for (uint slot = c.sg; slot < p.slots; slot += 32) s += parts[(gk_i64)slot * p.cols + col];
  }
  sums[c.lane * 33 + c.sg] = s;
  tg_barrier();
  s = sg_sum(sums[c.sg * 33 + c.lane]);
  const uint out = c.grp * 32 + c.sg;
  if (c.lane == 0 && out < p.cols) dw[out] = gk_to<RMS_W>(s);
}
