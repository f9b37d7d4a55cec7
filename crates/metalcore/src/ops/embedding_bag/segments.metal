// From the sorted indices: where the entries of each row of the weight begin, and the bag and factor of each entry.
G_KERNEL(embedding_bag_segments, 256, IN(0, uint, keys), IN(1, uint, order), IN(2, uint, offsets), IN(3, ROW_T, samples),
         IN(4, real, scale), OUT(5, uint, starts), OUT(6, uint, bags), OUT(7, real, factors), OUT(8, uint, places),
         PARAMS(9, embedding_bag_params, p)) {
  const gk_ctx c = G_CTX();
  const uint i = c.grp * 256 + c.tid;
  if (i <= p.rows) {
    uint low = 0, high = p.entries;  // keys before low are below the row, those from high on are not
    while (low < high) {
      const uint middle = low + (high - low) / 2;
      if (bag_read(keys, middle, p) < gk_i64(i)) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    starts[i] = low;
  }
  if (i < p.entries) {
    const uint at = g_minu(order[2 * gk_i64(i)], p.entries - 1);  // int64, whatever the indices are
    uint bag = bag_of(offsets, at, p);
    real factor = 0.0f;
    if (bag != BAG_NONE) {
      factor = scale[bag];
      if (factor == real(0.0f)) bag = BAG_NONE;
      if (p.weighted != 0) factor *= gk_real(samples[at]);
    }
    bags[i] = bag;
    factors[i] = factor;
    places[i] = at;
  }
}
