//! GPU form of adamw: counts and coefficients, then one launch over a table of tensors.

use super::{AdamW, Args, Goal, Slot};
use crate::device::Run;
use crate::device::gpu::{Arg, Define, Gpu, Source, Spec};
use crate::error::Result;
use crate::kernels::Unit;
use crate::{DType, params};
use smallvec::smallvec;

params! {
    /// What `adamw_prepare` makes coefficients from.
    Prepare as "adamw_prepare_params" {
        tensors: u32, has_lr: u32, has_grad_scale: u32, has_found_inf: u32, maximize: u32,
        lr: f64, weight_decay: f64, log_beta1: f64, log_beta2: f64,
    }
}
params! {
    /// Scalars of the update.
    Update as "adamw_params" { slots: u32, beta1: f64, one_minus_beta1: f64, beta2: f64, one_minus_beta2: f64, eps: f64 }
}

static SOURCE: Source = Source {
    file: "adamw/kernel.metal",
    body: include_str!("kernel.metal"),
    declarations: &[Prepare::DECLARATION, Update::DECLARATION],
};

/// Elements that a threadgroup updates (`ADAMW_CHUNK`).
const CHUNK: usize = 4096;
/// Tensors of one launch where kernels take tables of addresses: 56 bytes each, of 32764. The driver copies all of them.
const TABLES: [usize; 5] = [1, 32, 128, 320, 512];
/// Tensors of one launch on Metal.
const BOUND: usize = 5;

fn spec(problem: &AdamW, entry: &'static str, slots: usize, amsgrad: bool) -> Spec {
    use Define::{Number, Word};
    Spec {
        source: &SOURCE,
        entry,
        threads: 256,
        defines: smallvec![
            Number("GK_F64", u32::from(problem.param == DType::F64)),
            Word("ADAMW_P", problem.param.kernel_word()),
            Word("ADAMW_G", problem.grad.kernel_word()),
            Number("ADAMW_AMSGRAD", u32::from(amsgrad)),
            Number("ADAMW_SLOTS", slots as u32),
        ],
    }
}

impl<D: Gpu> Run<AdamW> for D {
    fn run(&self, problem: &AdamW, args: Args<'_, Self::Buffer>) -> Result<()> {
        if args.slots.is_empty() {
            return Ok(());
        }
        let amsgrad = args.slots[0].max_exp_avg_sq.is_some();
        let coefficients = self.alloc(args.slots.len() * 4 * problem.state().size())?;
        prepare(self, problem, &args, &coefficients)?;
        if self.address(args.steps).is_some() {
            let most = TABLES[TABLES.len() - 1];
            for (n, slots) in args.slots.chunks(most).enumerate() {
                update_table(self, problem, slots, &coefficients, n * most, amsgrad)?;
            }
        } else {
            for (n, slots) in args.slots.chunks(BOUND).enumerate() {
                update_bound(self, problem, slots, &coefficients, n * BOUND, amsgrad)?;
            }
        }
        Ok(())
    }
}

fn prepare<D: Gpu>(device: &D, problem: &AdamW, args: &Args<'_, D::Buffer>, coefficients: &D::Buffer) -> Result<()> {
    let options = &problem.options;
    let words = Prepare {
        tensors: args.slots.len() as u32,
        has_lr: u32::from(args.lr.is_some()),
        has_grad_scale: u32::from(args.grad_scale.is_some()),
        has_found_inf: u32::from(args.found_inf.is_some()),
        maximize: u32::from(options.goal == Goal::Maximize),
        lr: options.lr,
        weight_decay: options.weight_decay,
        // exp(-1e4) is 0 in every type, and so is every power of beta = 0.
        log_beta1: options.beta1.ln().max(-1e4),
        log_beta2: options.beta2.ln().max(-1e4),
    }
    .words();
    // An absent scalar is bound to a moment, whose type suits it, and not read.
    let scalar = |buffer: Option<_>| Arg::Buffer(buffer.unwrap_or(args.slots[0].exp_avg));
    let list = [
        Arg::Buffer(args.steps),
        Arg::Buffer(coefficients),
        scalar(args.lr),
        scalar(args.grad_scale),
        scalar(args.found_inf),
        Arg::Params(&words),
    ];
    device.launch(&spec(problem, "adamw_prepare", BOUND, false), args.slots.len().div_ceil(256), &list)
}

fn scalars(problem: &AdamW, slots: usize) -> Vec<u32> {
    let options = &problem.options;
    Update {
        slots: slots as u32,
        beta1: options.beta1,
        one_minus_beta1: 1.0 - options.beta1,
        beta2: options.beta2,
        one_minus_beta2: 1.0 - options.beta2,
        eps: options.eps,
    }
    .words()
}

/// Whether every tensor of the slot may be read four elements at a time.
fn vectors<D: Gpu>(device: &D, slot: &Slot<'_, D::Buffer>) -> u32 {
    let [p, g, m, v] = [slot.param, slot.grad, slot.exp_avg, slot.exp_avg_sq].map(|b| device.aligned(b, 32));
    u32::from(p && g && m && v && slot.max_exp_avg_sq.is_none_or(|b| device.aligned(b, 32)))
}

/// One launch with the addresses in its parameters.
fn update_table<D: Gpu>(
    device: &D,
    problem: &AdamW,
    slots: &[Slot<'_, D::Buffer>],
    coefficients: &D::Buffer,
    first: usize,
    amsgrad: bool,
) -> Result<()> {
    let room =
        TABLES.into_iter().find(|room| *room >= slots.len()).expect("chunks are no longer than the largest table");
    let mut words = vec![0u32; 14 * room];
    let mut groups = 0;
    for (i, slot) in slots.iter().enumerate() {
        let buffers = [slot.param, slot.grad, slot.exp_avg, slot.exp_avg_sq, slot.max_exp_avg_sq.unwrap_or(slot.param)];
        let addresses = buffers.map(|b| device.address(b).expect("a device of tables has addresses"));
        for (column, value) in addresses.into_iter().chain([slot.numel as u64]).enumerate() {
            let at = 2 * (column * room + i);
            words[at] = value as u32;
            words[at + 1] = (value >> 32) as u32;
        }
        words[12 * room + i] = groups as u32;
        words[13 * room + i] = vectors(device, slot);
        groups += slot.numel.div_ceil(CHUNK);
    }
    words.extend(scalars(problem, slots.len()));
    words.push(first as u32);
    words.resize(words.len().next_multiple_of(2), 0); // the struct has the alignment of its addresses
    if groups == 0 {
        return Ok(());
    }
    device.launch(
        &spec(problem, "adamw_update", room, amsgrad),
        groups,
        &[Arg::Buffer(coefficients), Arg::Params(&words)],
    )
}

/// One launch with the tensors bound one by one.
fn update_bound<D: Gpu>(
    device: &D,
    problem: &AdamW,
    slots: &[Slot<'_, D::Buffer>],
    coefficients: &D::Buffer,
    first: usize,
    amsgrad: bool,
) -> Result<()> {
    let mut list = Vec::with_capacity(31);
    let mut columns = [[0u32; BOUND]; 5];
    let mut groups = 0;
    for i in 0..BOUND {
        let slot = slots.get(i).unwrap_or(&slots[0]); // an unused place is bound, and has no groups
        list.extend([slot.param, slot.grad, slot.exp_avg, slot.exp_avg_sq].map(Arg::Buffer));
        list.extend(slot.max_exp_avg_sq.map(Arg::Buffer));
        let count = slots.get(i).map_or(0, |slot| slot.numel.div_ceil(CHUNK));
        let column = [
            groups as u32,
            (groups + count) as u32,
            slot.numel as u32,
            (slot.numel >> 32) as u32,
            vectors(device, slot),
        ];
        for (row, value) in columns.iter_mut().zip(column) {
            row[i] = value;
        }
        groups += count;
    }
    if groups == 0 {
        return Ok(());
    }
    let mut words = scalars(problem, slots.len());
    words.push(first as u32);
    words.extend(columns.as_flattened());
    list.extend([Arg::Buffer(coefficients), Arg::Params(&words)]);
    device.launch(&spec(problem, "adamw_update", BOUND, amsgrad), groups, &list)
}

/// The specialisations: types, amsgrad, table sizes.
pub(crate) fn units() -> Vec<Unit> {
    use DType::{BF16, F16, F32, F64};
    let mut units = Vec::new();
    for (param, grad) in [(F32, F32), (F16, F16), (BF16, BF16), (F32, BF16), (BF16, F32), (F64, F64)] {
        let options =
            super::Options { lr: 0.0, beta1: 0.0, beta2: 0.0, eps: 0.0, weight_decay: 0.0, goal: Goal::Minimize };
        let problem = AdamW { options, param, grad };
        for amsgrad in [false, true] {
            units.extend(TABLES.map(|slots| Unit::cuda(spec(&problem, "adamw_update", slots, amsgrad))));
            units.push(Unit::everywhere(spec(&problem, "adamw_update", BOUND, amsgrad)));
        }
        units.push(Unit::everywhere(spec(&problem, "adamw_prepare", BOUND, false)));
    }
    units
}
