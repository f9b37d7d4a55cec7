// Where elements of the index stand, and what belongs to them. The dimensions are those of the index, the fastest first.
// A thread takes INDEXING_AHEAD elements, whose loads are under way together.
#define INDEXING_THREADS 256
#define INDEXING_AHEAD 4

// Offsets of elements first, first + INDEXING_THREADS, ...: without the index in the table, of the index, in the values.
// U holds the number of all elements.
template <typename U>
G_FN void indexing_offsets(gk_i64 first, PREF(indexing_params) p, PRIV(gk_i64) table, PRIV(gk_i64) index, PRIV(gk_i64) values) {
  U rest[INDEXING_AHEAD];
  G_UNROLL for (uint k = 0; k < INDEXING_AHEAD; ++k) {
    rest[k] = U(first + gk_i64(k * INDEXING_THREADS));
    table[k] = 0;
    index[k] = 0;
    values[k] = 0;
  }
  for (uint d = 0; d < p.dims; ++d) {
    const U size = U(gk_size_i64(p.sizes[d]));
    const gk_i64 t = gk_size_i64(p.table[d]), i = gk_size_i64(p.index[d]), v = gk_size_i64(p.values[d]);
    const bool last = d + 1 == p.dims;
    G_UNROLL for (uint k = 0; k < INDEXING_AHEAD; ++k) {
      U here = rest[k];
      if (!last) {
        rest[k] = here / size;
        here -= rest[k] * size;
      }
      table[k] += gk_i64(here) * t;
      index[k] += gk_i64(here) * i;
      values[k] += gk_i64(here) * v;
    }
  }
}

// Offsets in the table and in the values; the former is -1 where there is none: behind the last element, or of an index
// out of range.
G_FN void indexing_places(gk_i64 first, DEV(const int) narrow, DEV(const gk_i64) wide, PREF(indexing_params) p,
                          PRIV(gk_i64) table, PRIV(gk_i64) values) {
  const gk_i64 total = gk_size_i64(p.total), limit = gk_size_i64(p.limit), step = gk_size_i64(p.step);
  gk_i64 index[INDEXING_AHEAD];
  if (p.total.hi == 0) {
    indexing_offsets<uint>(first, p, table, index, values);
  } else {
    indexing_offsets<gk_i64>(first, p, table, index, values);
  }
  G_UNROLL for (uint k = 0; k < INDEXING_AHEAD; ++k) {
    const bool there = first + gk_i64(k * INDEXING_THREADS) < total;
    if (p.wide != 0) {
      index[k] = there ? wide[index[k]] : gk_i64(-1);
    } else {
      index[k] = there ? gk_i64(narrow[index[k]]) : gk_i64(-1);
    }
  }
  G_UNROLL for (uint k = 0; k < INDEXING_AHEAD; ++k) {
    table[k] = index[k] >= 0 && index[k] < limit ? table[k] + index[k] * step : gk_i64(-1);
  }
}
