//! The oracle of gather and scatter_add: plain loops over dense tensors, elements in float64.

/// Position in a table of each element of an index of `shape`, `table` being the table's: the index's own but along
/// `along`, where the index says. None for an index out of range.
pub fn places(table: &[usize], shape: &[usize], along: usize, index: &[i64]) -> Vec<Option<usize>> {
    let place = |(element, index): (usize, &i64)| {
        let (mut rest, mut position, mut stride) = (element, 0, 1);
        for d in (0..shape.len()).rev() {
            let here =
                if d == along { usize::try_from(*index).ok().filter(|i| *i < table[d])? } else { rest % shape[d] };
            rest /= shape[d];
            position += here * stride;
            stride *= table[d];
        }
        Some(position)
    };
    index.iter().enumerate().map(place).collect()
}

/// The elements of `src` at places; NaN where there is none.
pub fn gather(src: &[f64], places: &[Option<usize>]) -> Vec<f64> {
    places.iter().map(|place| place.map_or(f64::NAN, |place| src[place])).collect()
}

/// `dst` with `src` added at places; the sums of magnitudes; the number of terms of each sum.
pub fn scatter_add(dst: &[f64], src: &[f64], places: &[Option<usize>]) -> (Vec<f64>, Vec<f64>, Vec<usize>) {
    let mut sums = dst.to_vec();
    let mut sizes: Vec<f64> = dst.iter().map(|x| x.abs()).collect();
    let mut counts = vec![1; dst.len()];
    for (place, x) in places.iter().zip(src) {
        if let Some(place) = *place {
            sums[place] += x;
            sizes[place] += x.abs();
            counts[place] += 1;
        }
    }
    (sums, sizes, counts)
}
