// What the passes of embedding_bag share. Indices and offsets are words: p.wide of them is 1 for int64, 0 for int32.
#define BAG_NONE 0xffffffffu

G_FN gk_i64 bag_read(DEV(const uint) words, uint i, PREF(embedding_bag_params) p) {
  if (p.wide == 0) return gk_i64(int(words[i]));
  return (gk_i64(int(words[2 * gk_i64(i) + 1])) << 32) | gk_i64(words[2 * gk_i64(i)]);
}
// The row of an index, or BAG_NONE outside the weight.
G_FN uint bag_row(DEV(const uint) indices, uint i, PREF(embedding_bag_params) p) {
  const gk_i64 row = bag_read(indices, i, p);
  return row >= 0 && row < gk_i64(p.rows) ? uint(row) : BAG_NONE;
}
// Where a bag begins: within the entries, whatever the offset.
G_FN uint bag_begin(DEV(const uint) offsets, uint bag, PREF(embedding_bag_params) p) {
  if (bag >= p.offsets) return p.entries;
  const gk_i64 begin = bag_read(offsets, bag, p);
  return begin < 0 ? 0u : begin > gk_i64(p.entries) ? p.entries : uint(begin);
}
// The bag of an entry, or BAG_NONE.
G_FN uint bag_of(DEV(const uint) offsets, uint entry, PREF(embedding_bag_params) p) {
  uint low = 0, high = p.offsets;  // those before low begin at the entry or before, those from high on after it
  while (low < high) {
    const uint middle = low + (high - low) / 2;
    if (bag_begin(offsets, middle, p) <= entry) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low > 0 && low <= p.bags ? low - 1 : BAG_NONE;
}

// total += sum, with what earlier additions lost (Kahan): a row may have any number of entries, and equal ones.
G_FN void bag_add(PRIVREF(real) total, PRIVREF(real) lost, real sum) {
  const real term = sum - lost;
  const real next = total + term;
  lost = g_abs(next) <= GK_HUGE ? (next - total) - term : real(0.0f);
  total = next;
}
