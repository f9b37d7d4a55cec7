// The sum of the rows' losses, or their mean over rows that are not ignored, and how many those are; in a fixed order.
G_KERNEL(cross_entropy_reduce, 1024, IN(0, real, losses), IN(1, CE_I, targets), OUT(2, real, loss), OUT(3, real, count),
         PARAMS(4, cross_entropy_params, p)) {
  TG_ARRAY(real, scratch, 32);
  const gk_ctx c = G_CTX();
  real s = 0.0f;
  uint counted = 0;
  for (uint row = c.tid; row < p.rows; row += 1024) {
    s += losses[row];
    counted += gk_i64(targets[row]) == ce_ignored(p) ? 0u : 1u;
  }
  s = gk_tg_sum<1024>(s, scratch, c);
  const real n = gk_tg_sum<1024>(real(counted), scratch, c);
  if (c.tid == 0) {
    loss[0] = p.mean != 0 ? s / n : s;
    count[0] = n;
  }
}
