// Blocked Householder QR (LAPACK geqrf + orgqr; Golub & Van Loan 5.2.3): a panel of QR_COLS columns is factored in
// registers by one threadgroup (panel.metal), and all groups apply its reflectors to the columns after it (update.metal).
// A block of reflectors is applied without the triangular factor T: z_j = tau_j (v_j' x - sum_i v_j' v_i z_i), x -= V z, the
// sum over the reflectors applied before; so it needs the products v_j' v_i, which the panel has at hand.
//
// Work: W (rows, cols), the columns that are not factored yet; V, the reflectors of each panel by rows, QR_COLS of each
// row; gram (QR_COLS, QR_COLS) of each panel, their products, with tau on the diagonal. QR_COLS is a multiple of 4.
G_FN gk_i64 qr_v_at(uint mat, uint row, PREF(qr_blocked_params) p) {
  return (((gk_i64)mat * p.panels + p.first / QR_COLS) * p.rows + row) * QR_COLS;
}
G_FN gk_i64 qr_gram_at(uint mat, PREF(qr_blocked_params) p) {
  return ((gk_i64)mat * p.panels + p.first / QR_COLS) * (QR_COLS * QR_COLS);
}
