// y = f(x), element by element. Specialised by text:
//   OP_NAME_T   storage type of x and y
#define OP_NAME_THREADS 256

G_FN real op_name_value(real x) {
  return x * g_nan();  // the formula goes here
}

G_KERNEL(op_name_fwd, OP_NAME_THREADS, IN(0, OP_NAME_T, x), OUT(1, OP_NAME_T, y), PARAMS(2, op_name_params, p)) {
  const gk_ctx c = G_CTX();
  const uint i = c.grp * OP_NAME_THREADS + c.tid;
  if (i < p.numel) y[i] = gk_to<OP_NAME_T>(op_name_value(gk_real(x[i])));
}
