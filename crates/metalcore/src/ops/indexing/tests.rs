//! One body for every device. The bounds are those of CONTRACT 3.4.

use super::{Gather, GatherArgs, Indexing, ScatterAdd, ScatterAddArgs, Strided, gather, reference, scatter_add};
use crate::device::{Device, Run, cpu::Cpu};
use crate::testing::{Random, bits, gamma, has_float64, wide, within};
use crate::{DType, Element, Error, Index, Tensor, each_device};
use half::{bf16, f16};

fn upload<D: Device>(device: &D, values: &[i64], index: Index) -> D::Buffer {
    let bytes: Vec<u8> = match index {
        Index::I64 => values.iter().flat_map(|t| t.to_ne_bytes()).collect(),
        Index::I32 => values.iter().flat_map(|t| (*t as i32).to_ne_bytes()).collect(),
    };
    let buffer = device.alloc(bytes.len().max(1)).unwrap();
    device.write(&buffer, 0, &bytes).unwrap();
    buffer
}

/// gather and scatter_add of one shape of table and index, along each dimension, against the oracle.
fn check<T: Element, D: Run<Gather> + Run<ScatterAdd>>(device: &D, table: &[usize], shape: &[usize]) {
    for dim in 0..table.len() {
        if (0..table.len()).any(|d| d != dim && shape[d] > table[d]) {
            continue;
        }
        let mut random = Random::new((table.len() * 31 + shape.iter().sum::<usize>() + dim) as u64);
        let kind = if dim % 2 == 0 { Index::I64 } else { Index::I32 };
        let (len, count) = (table.iter().product(), shape.iter().product());
        let index: Vec<i64> = (0..count).map(|_| (random.uniform() * table[dim] as f64) as i64).collect();
        let (values, terms): (Vec<T>, Vec<T>) = (random.normals(len), random.normals(count));
        let places = reference::places(table, shape, dim, &index);
        let what = format!("{shape:?} of {table:?} along {dim} {}", T::DTYPE);

        let index = upload(device, &index, kind);
        let src = Tensor::from_slice(device, &values, table).unwrap();
        let found = gather(src.view(), dim as i64, (&index, shape), kind).unwrap();
        assert_eq!(found.shape(), shape);
        assert_eq!(bits(&found.to_vec::<T>().unwrap()), bits(&reference::gather(&wide(&values), &places)), "{what}");
        let terms_there = Tensor::from_slice(device, &terms, shape).unwrap();
        let dim = dim as i64 - table.len() as i64;
        let added = scatter_add(src.view(), dim, &index, kind, terms_there.view()).unwrap();
        let (exact, sizes, counts) = reference::scatter_add(&wide(&values), &wide(&terms), &places);
        let bound = |i: usize| 2.0 * gamma(counts[i], T::DTYPE) * sizes[i];
        within(&what, &added.to_vec::<T>().unwrap(), &exact, f32::MIN_POSITIVE as f64, bound);
        assert_eq!(bits(&src.to_vec::<T>().unwrap()), bits(&values), "src was changed");
    }
}

fn every_shape_and_type<D: Run<Gather> + Run<ScatterAdd>>(device: &D) {
    let shapes: [(&[usize], &[usize]); 9] = [
        (&[7], &[7]),
        (&[100], &[1500]),
        (&[5000], &[1]),
        (&[6, 5], &[6, 5]),
        (&[9, 64], &[3, 64]),
        (&[4, 3, 6], &[4, 3, 6]),
        (&[5, 13, 12], &[2, 9, 10]),
        (&[3, 1, 7, 2], &[3, 4, 5, 2]),
        (&[2, 3, 4, 5, 3], &[1, 2, 3, 4, 2]),
    ];
    for (i, (table, shape)) in shapes.into_iter().enumerate() {
        check::<f32, D>(device, table, shape);
        if i % 2 == 0 {
            check::<bf16, D>(device, table, shape);
        } else {
            check::<f16, D>(device, table, shape);
        }
        if has_float64(device) {
            check::<f64, D>(device, table, shape);
        }
    }
    check::<f32, D>(device, &[40, 70], &[700, 70]);
    check::<bf16, D>(device, &[3], &[20_000]);
}

fn sizes_of_zero<D: Run<Gather> + Run<ScatterAdd>>(device: &D) {
    check::<f32, D>(device, &[0, 4], &[0, 4]);
    check::<bf16, D>(device, &[3, 4], &[0, 4]);
    check::<f32, D>(device, &[3, 0], &[3, 0]);
    let single = Tensor::from_slice(device, &[3f32], &[]).unwrap();
    let index = upload(device, &[0], Index::I64);
    let found = gather(single.view(), 0, (&index, &[]), Index::I64).unwrap();
    assert_eq!((found.shape(), found.to_vec::<f32>().unwrap()), (&[][..], vec![3.0]));
}

/// Slices that an index repeated along their elements names, in words of every size.
fn slices_move_in_words_of_every_size<D: Run<Gather> + Run<ScatterAdd>>(device: &D) {
    for cols in [1, 2, 3, 4, 6, 8, 12, 16, 33] {
        let (rows, picks) = (5, [4i64, 0, 2, 2, 1, 4, 0]);
        let values: Vec<f32> = Random::new(cols as u64).normals(rows * cols);
        let index = upload(device, &picks, Index::I32);
        for bytes in [1, 2, 4, 8, 16] {
            if (cols * 4) % bytes != 0 {
                continue;
            }
            let src = Tensor::from_slice(device, &values, &[rows, cols]).unwrap();
            let out = Tensor::empty(device, &[picks.len(), cols], DType::F32).unwrap();
            let width = cols * 4 / bytes;
            let table = Strided { shape: &[rows, width], strides: &[width, 1] };
            let index_of = Strided { shape: &[picks.len(), width], strides: &[1, 0] };
            let indexing = Indexing::new("gather", 0, ("src", table), (index_of, Index::I32), None).unwrap();
            let problem = Gather { indexing, bytes, missing: [0; 4] };
            device.run(&problem, GatherArgs { src: src.buffer(), index: &index, out: out.buffer() }).unwrap();
            let expected: Vec<f32> =
                picks.iter().flat_map(|pick| values[*pick as usize * cols..][..cols].to_vec()).collect();
            assert_eq!(bits(&out.to_vec::<f32>().unwrap()), bits(&expected), "{cols} columns by {bytes} bytes");
        }
        // Their sum, the index repeated, and src a row that is repeated.
        let (dst, term) = (vec![1f32; rows * cols], vec![0.5f32; cols]);
        let (out, src) = (
            Tensor::from_slice(device, &dst, &[rows, cols]).unwrap(),
            Tensor::from_slice(device, &term, &[cols]).unwrap(),
        );
        let shape = [picks.len(), cols];
        let indexing = Indexing::new(
            "scatter_add",
            0,
            ("dst", Strided { shape: &[rows, cols], strides: &[cols, 1] }),
            (Strided { shape: &shape, strides: &[1, 0] }, Index::I32),
            Some(("src", Strided { shape: &shape, strides: &[0, 1] })),
        );
        let problem = ScatterAdd { indexing: indexing.unwrap(), dtype: DType::F32, len: rows * cols };
        let args = ScatterAddArgs { index: &index, src: src.buffer(), dst: None, out: out.buffer() };
        device.run(&problem, args).unwrap();
        for (row, sums) in out.to_vec::<f32>().unwrap().chunks(cols).enumerate() {
            let count = picks.iter().filter(|pick| **pick as usize == row).count();
            assert!(sums.iter().all(|sum| *sum == 1.0 + 0.5 * count as f32), "row {row} of {cols}");
        }
    }
}

fn an_index_out_of_range_is_an_error_on_the_host_and_missing_elsewhere<D: Run<Gather> + Run<ScatterAdd>>(device: &D) {
    for outside in [3, -1, i32::MIN as i64, i32::MAX as i64] {
        let index = upload(device, &[2, outside, 0], Index::I32);
        let src = Tensor::from_slice(device, &[1f32, 2.0, 3.0], &[3]).unwrap();
        let halves = Tensor::from_slice(device, &[1.0, 2.0, 3.0].map(bf16::from_f32), &[3]).unwrap();
        let found = gather(src.view(), 0, (&index, &[3]), Index::I32);
        let terms = Tensor::from_slice(device, &[1f32; 3], &[3]).unwrap();
        let added = scatter_add(src.view(), 0, &index, Index::I32, terms.view());
        if device.caps().kind == "cpu" {
            assert!(matches!(found.err().unwrap(), Error::Index { op: "gather", got, .. } if got == outside));
            assert!(matches!(added.err().unwrap(), Error::Index { op: "scatter_add", got, .. } if got == outside));
            continue;
        }
        let found = found.unwrap().to_vec::<f32>().unwrap();
        assert!(found[0] == 3.0 && found[1].is_nan() && found[2] == 1.0, "{outside}: {found:?}");
        assert_eq!(added.unwrap().to_vec::<f32>().unwrap(), [2.0, 2.0, 4.0]);
        let found = gather(halves.view(), 0, (&index, &[3]), Index::I32).unwrap().to_vec::<bf16>().unwrap();
        assert!(found[1].is_nan() && !found[0].is_nan());
    }
}

each_device!(
    every_shape_and_type,
    sizes_of_zero,
    slices_move_in_words_of_every_size,
    an_index_out_of_range_is_an_error_on_the_host_and_missing_elsewhere,
);

fn dense<'a>(shape: &'a [usize], strides: &'a [usize]) -> Strided<'a> {
    Strided { shape, strides }
}

#[test]
fn dimensions_that_lie_as_one_are_joined() {
    let new = |table: Strided<'_>, index: Strided<'_>, dim| {
        Indexing::new("gather", dim, ("src", table), (index, Index::I64), None).unwrap().dims.len()
    };
    let (all, strides) = ([4, 1, 6, 5], [30, 30, 5, 1]);
    assert_eq!(new(dense(&all, &strides), dense(&all, &strides), 1), 1);
    assert_eq!(new(dense(&all, &strides), dense(&all, &strides), 2), 3);
    assert_eq!(new(dense(&all, &strides), dense(&all, &strides), 3), 2);
    assert_eq!(new(dense(&[9], &[1]), dense(&[1], &[1]), 0), 1);
    assert_eq!(new(dense(&[4, 6], &[6, 1]), dense(&[3, 2], &[2, 1]), 0), 2);
}

#[test]
fn wrong_input_is_named() {
    let new = |dim, table: &[usize], index: &[usize], src: &[usize]| {
        let (t, i, s) = (super::contiguous(table), super::contiguous(index), super::contiguous(src));
        let values = Some(("src", dense(src, &s)));
        let index = (dense(index, &i), Index::I64);
        Indexing::new("scatter_add", dim, ("dst", dense(table, &t)), index, values).err().unwrap().to_string()
    };
    let shape = "scatter_add: index: got shape";
    assert_eq!(new(2, &[3, 4], &[1, 1], &[1, 1]), "scatter_add: dim: got 2, expected one of the 2 dimensions of dst");
    assert_eq!(new(0, &[3, 4], &[2], &[2]), format!("{shape} [2], expected 2 dimensions"));
    let large = "[1, 5], expected at most that of dst, [3, 4], but in dimension 0";
    assert_eq!(new(0, &[3, 4], &[1, 5], &[1, 5]), format!("{shape} {large}"));
    assert!(new(0, &[3, 4], &[2, 4], &[1, 4]).starts_with("scatter_add: src: got shape [1, 4], expected at least"));
    let cpu = Cpu::new();
    let dst = Tensor::from_slice(&cpu, &[1f32; 3], &[3]).unwrap();
    let src = Tensor::from_slice(&cpu, &[f16::ONE; 3], &[3]).unwrap();
    let index = upload(&cpu, &[0, 1, 2], Index::I64);
    let error = scatter_add(dst.view(), 0, &index, Index::I64, src.view()).err().unwrap();
    assert!(matches!(error, Error::DType { argument: "src", .. }));
}
