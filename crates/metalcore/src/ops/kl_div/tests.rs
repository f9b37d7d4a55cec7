//! One body for every device. The bounds are those of CONTRACT 3.4.

use super::{Backward, Forward, kl_div, kl_div_backward, reference};
use crate::device::{Device, Run};
use crate::testing::{Random, bits, gamma, has_float64, wide, within};
use crate::{Element, Error, Tensor, each_device};
use half::{bf16, f16};

/// Where p would be subnormal it counts as 0.
const SUBNORMAL: f64 = 64.0 * f32::MIN_POSITIVE as f64;
/// Around every threshold of the plans: threads per row, rows per group, vectors, rows of several tiles.
const COLS: [usize; 13] = [1, 2, 3, 8, 33, 64, 127, 1000, 1023, 4096, 4097, 8192, 17000];

/// Rows of log-probabilities.
fn rows<T: Element>(random: &mut Random, rows: usize, cols: usize) -> Vec<T> {
    let mut values: Vec<f64> = random.normals::<f64>(rows * cols).iter().map(|x| 2.0 * x).collect();
    for row in values.chunks_mut(cols) {
        let lse = row.iter().map(|x| x.exp()).sum::<f64>().ln();
        row.iter_mut().for_each(|x| *x -= lse);
    }
    values.iter().map(|x| T::from_f64(*x)).collect()
}

fn check<T: Element, C: Element, D: Run<Forward> + Run<Backward>>(device: &D, batch: usize, cols: usize) {
    let mut random = Random::new((batch * 31 + cols) as u64);
    let (x, y): (Vec<T>, Vec<T>) = (rows(&mut random, batch, cols), rows(&mut random, batch, cols));
    let grad: Vec<C> = random.normals(batch);
    let tensor = |values: &[T]| Tensor::from_slice(device, values, &[batch, cols]).unwrap();
    let (log_p, log_q, grad_device) = (tensor(&x), tensor(&y), Tensor::from_slice(device, &grad, &[batch]).unwrap());
    let what = format!("{batch}x{cols} {:?}", T::DTYPE);
    let g = gamma(cols, T::DTYPE);

    let losses = kl_div(log_p.view(), log_q.view()).unwrap().to_vec::<C>().unwrap();
    let (exact, scale) = reference::forward(&wide(&x), &wide(&y), cols);
    within(&format!("loss {what}"), &losses, &exact, SUBNORMAL, |i| g * scale[i]);

    let (dp, dq, scale) = reference::backward(&wide(&grad), &wide(&x), &wide(&y), cols);
    for wanted in [(true, true), (false, true), (true, false), (false, false)] {
        let found = kl_div_backward(grad_device.view(), log_p.view(), log_q.view(), wanted).unwrap();
        assert_eq!((found.dp.is_some(), found.dq.is_some()), wanted);
        for (name, got, exact) in [("dp", found.dp, &dp), ("dq", found.dq, &dq)] {
            if let Some(got) = got {
                within(&format!("{name} {what}"), &got.to_vec::<T>().unwrap(), exact, SUBNORMAL, |i| g * scale[i]);
            }
        }
    }
    assert_eq!(bits(&log_p.to_vec::<T>().unwrap()), bits(&x), "log_p was changed");
}

fn every_length_and_type<D: Run<Forward> + Run<Backward>>(device: &D) {
    for cols in COLS {
        check::<f32, f32, D>(device, 5, cols);
        check::<bf16, f32, D>(device, 3, cols);
        check::<f16, f32, D>(device, 3, cols);
        if has_float64(device) {
            check::<f64, f64, D>(device, 3, cols);
        }
    }
    check::<f32, f32, D>(device, 700, 12);
}

fn what_the_teacher_excludes_contributes_nothing<D: Run<Forward> + Run<Backward>>(device: &D) {
    let (low, nan) = (f32::NEG_INFINITY, f32::NAN);
    // p = 0 where log p is -inf, or so low that p would be subnormal; NaN stays.
    let x = [[0.0, low, low, -90.0], [low, 0.0, low, low], [low, nan, 0.0, low]].concat();
    let y = [[0.0, low, -1.0, low], [0.0, low, 0.0, 0.0], [low, 0.0, 0.0, nan]].concat();
    let tensor = |values: &[f32]| Tensor::from_slice(device, values, &[3, 4]).unwrap();
    let (log_p, log_q) = (tensor(&x), tensor(&y));
    let losses = kl_div(log_p.view(), log_q.view()).unwrap().to_vec::<f32>().unwrap();
    assert!(losses[0] == 0.0 && losses[1] == f32::INFINITY && losses[2].is_nan());
    let g = Tensor::from_slice(device, &[f32::INFINITY, 1.0, 1.0], &[3]).unwrap();
    let found = kl_div_backward(g.view(), log_p.view(), log_q.view(), (true, true)).unwrap();
    let [dp, dq] = [found.dp, found.dq].map(|gradient| gradient.unwrap().to_vec::<f32>().unwrap());
    assert_eq!(dp[1..4], [0.0; 3]);
    assert_eq!(dq[1..4], [0.0; 3]);
    assert_eq!((dp[4], dp[5], dq[5]), (0.0, f32::INFINITY, -1.0));
    assert!(dp[9].is_nan() && dq[9].is_nan() && dp[8] == 0.0 && dp[11] == 0.0);
}

fn nothing_gives_nothing<D: Run<Forward> + Run<Backward>>(device: &D) {
    for shape in [[0, 40], [40, 0]] {
        let x = Tensor::from_slice::<f32>(device, &[], &shape).unwrap();
        let losses = kl_div(x.view(), x.view()).unwrap();
        assert_eq!(losses.to_vec::<f32>().unwrap(), vec![0.0; shape[0]]);
        let found = kl_div_backward(losses.view(), x.view(), x.view(), (true, true)).unwrap();
        assert_eq!(found.dp.unwrap().shape(), shape);
    }
}

each_device!(every_length_and_type, what_the_teacher_excludes_contributes_nothing, nothing_gives_nothing);

#[test]
fn wrong_input_is_named() {
    let cpu = crate::device::cpu::Cpu::new();
    assert_eq!(cpu.caps().kind, "cpu");
    let x = Tensor::from_slice(&cpu, &[0f32; 6], &[2, 3]).unwrap();
    let other = Tensor::from_slice(&cpu, &[0f32; 2], &[2]).unwrap();
    let error = kl_div(x.view(), other.view()).err().unwrap();
    assert_eq!(error.to_string(), "kl_div: log_q: got shape [2], expected shape [2, 3]");
    let wide = Tensor::from_slice(&cpu, &[0f64; 6], &[2, 3]).unwrap();
    assert!(matches!(kl_div(x.view(), wide.view()), Err(Error::DType { argument: "log_q", .. })));
    let error = kl_div_backward(x.view(), x.view(), x.view(), (true, true)).err().unwrap();
    assert_eq!(error.to_string(), "kl_div: grad: got shape [2, 3], expected shape [2]");
}
