// Matrices whose columns are in device memory, W (rows, width) and V (cols, width): a group rotates the columns of two
// blocks of SVD_PAIRS columns. Blocks meet in rounds (round robin, the last block fixed); in the first round of a sweep
// a group rotates all pairs of its columns, in the others those of one column of each block.
G_KERNEL(svd_block, SVD_NT, IO(0, real, W), IO(1, real, V), IO(2, real, ids), IO(3, uint, flags),
         PARAMS(4, svd_block_params, p)) {
  TG_ARRAY(real, partial, 2 * SVD_PARTIAL);
  TG_ARRAY(real, turns, 3 * SVD_PAIRS);
  TG_ARRAY(real, mail, SVD_MAIL);
  TG_ARRAY(uint, any, SVD_NT / 32);
  const gk_ctx c = G_CTX();
  const uint mat = c.grp / (p.blocks / 2), k = c.grp % (p.blocks / 2), others = p.blocks - 1;
  const gk_i64 flag = (gk_i64)mat * (p.most_sweeps + 1) + p.sweep;
  if (flags[flag] == 0) return;
  const uint pair = c.tid % SVD_PAIRS, chunk = c.tid / SVD_PAIRS;
  const uint i_col = (k == 0 ? others : (p.round + k) % others) * SVD_PAIRS + pair;
  const uint j_col = (p.round + others - k) % others * SVD_PAIRS + pair;
  svd_memory m;
  m.partial = partial;
  m.turns = turns;
  m.mail = mail;

  svd_pair d;
  const gk_i64 w0 = (gk_i64)mat * p.rows * p.width, v0 = (gk_i64)mat * p.cols * p.width, n0 = (gk_i64)mat * p.width;
  const bool vectors = p.vectors != 0;
  d.mx[1] = ids[n0 + i_col];
  d.my[1] = ids[n0 + j_col];
  G_UNROLL for (uint i = 0; i < SVD_R; ++i) {
    const uint row = chunk * SVD_R + i;
    const gk_i64 at = (gk_i64)row * p.width;
    d.x[i] = row < p.rows ? W[w0 + at + i_col] : real(0.0f);
    d.y[i] = row < p.rows ? W[w0 + at + j_col] : real(0.0f);
    d.vx[i] = vectors && row < p.cols ? V[v0 + at + i_col] : real(0.0f);
    d.vy[i] = vectors && row < p.cols ? V[v0 + at + j_col] : real(0.0f);
  }
  const bool turned = svd_sweep(d, svd_tolerance(p.rows, p.sweep), vectors, p.round != 0, m, c);
  tg_barrier_dev();  // every thread has read its columns' numbers
  if (!gk_tg_any<SVD_NT>(turned, any, c)) return;
  if (c.tid == 0) ga_put(flags, flag + 1, 1u);
  if (chunk == 0) {
    ids[n0 + i_col] = d.mx[1];
    ids[n0 + j_col] = d.my[1];
  }
  G_UNROLL for (uint i = 0; i < SVD_R; ++i) {
    const uint row = chunk * SVD_R + i;
    const gk_i64 at = (gk_i64)row * p.width;
    if (row < p.rows) {
      W[w0 + at + i_col] = d.x[i];
      W[w0 + at + j_col] = d.y[i];
    }
    if (vectors && row < p.cols) {
      V[v0 + at + i_col] = d.vx[i];
      V[v0 + at + j_col] = d.vy[i];
    }
  }
}
