// Threads that exchange values: through threadgroup memory, inside a simd group, through device memory.
struct exchange_params { uint n; };

// y = x reversed within each group of 64, by way of threadgroup memory.
G_KERNEL(reverse_group, 64, IN(0, float, x), OUT(1, float, y), PARAMS(2, exchange_params, p)) {
  TG_ARRAY(float, tile, 64);
  const gk_ctx c = G_CTX();
  tile[c.tid] = x[64 * c.grp + c.tid];
  tg_barrier();
  y[64 * c.grp + c.tid] = tile[63 - c.tid];
}

// Each simd group's lane k hands its value to all lanes, for every k; y is the sum.
G_KERNEL(simd_total, 64, IN(0, float, x), OUT(1, float, y), PARAMS(2, exchange_params, p)) {
  TG_ARRAY(float, box, 2);
  const gk_ctx c = G_CTX();
  const uint i = 64 * c.grp + c.tid;
  float sum = 0.0f;
  for (uint k = 0; k < 32; ++k) {
    if (c.lane == k) box[c.sg] = x[i];
    sg_barrier();
    sum += box[c.sg];
    sg_barrier();
  }
  y[i] = sum;
}

// y = x + its neighbour's x, which the neighbour has doubled in place.
G_KERNEL(device_neighbour, 64, IO(0, float, x), OUT(1, float, y), PARAMS(2, exchange_params, p)) {
  const gk_ctx c = G_CTX();
  x[c.tid] *= 2.0f;
  tg_barrier_dev();
  y[c.tid] = x[c.tid ^ 1u] + x[c.tid];
}
