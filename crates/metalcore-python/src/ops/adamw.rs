//! The step of metalcore::adamw_, over lists of tensors.

use crate::host::{Foreign, Host, Shim};
use crate::metal::{Metal, Objects};
use crate::shim::{CUDA, Peek};
use metalcore::device::{Device, Run};
use metalcore::ops::adamw::{AdamW, Args, Goal, Options, Slot};
use metalcore::{DType, Error, Result};
use pyo3::prelude::*;
use pyo3::types::PyList;

/// Scalars of a step, as Python passes them.
#[derive(FromPyObject)]
pub struct Scalars {
    #[pyo3(item)]
    lr: f64,
    #[pyo3(item)]
    beta1: f64,
    #[pyo3(item)]
    beta2: f64,
    #[pyo3(item)]
    eps: f64,
    #[pyo3(item)]
    weight_decay: f64,
    #[pyo3(item)]
    maximize: bool,
}

impl From<Scalars> for Options {
    fn from(s: Scalars) -> Options {
        let goal = if s.maximize { Goal::Maximize } else { Goal::Minimize };
        Options { lr: s.lr, beta1: s.beta1, beta2: s.beta2, eps: s.eps, weight_decay: s.weight_decay, goal }
    }
}

/// The lists of a step: parameters, gradients, moments, largest second moments (empty without amsgrad).
pub struct Lists<T> {
    params: Vec<T>,
    grads: Vec<T>,
    exp_avgs: Vec<T>,
    exp_avg_sqs: Vec<T>,
    max_exp_avg_sqs: Vec<T>,
}

/// What is known of a tensor without its host.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Facts {
    numel: usize,
    dtype: Option<DType>,
    contiguous: bool,
}

/// Problem of the lists, after checking every tensor against its parameter.
fn problem(facts: &Lists<Facts>, options: Options) -> Result<Option<AdamW>> {
    let Some(first) = facts.params.first() else { return Ok(None) };
    let known = |argument, dtype: Option<DType>| {
        dtype.ok_or(Error::DType {
            op: "adamw_",
            argument,
            got: "another one".to_owned(),
            expected: "float16, bfloat16, float32 or float64".to_owned(),
        })
    };
    let param = known("params", first.dtype)?;
    let grad = known("grads", facts.grads.first().and_then(|g| g.dtype))?;
    let state = param.compute();
    let lists = [
        ("params", &facts.params, param),
        ("grads", &facts.grads, grad),
        ("exp_avgs", &facts.exp_avgs, state),
        ("exp_avg_sqs", &facts.exp_avg_sqs, state),
        ("max_exp_avg_sqs", &facts.max_exp_avg_sqs, state),
    ];
    for (argument, list, dtype) in lists {
        if list.len() != facts.params.len() && !(argument == "max_exp_avg_sqs" && list.is_empty()) {
            let (got, expected) = (format!("{} tensors", list.len()), facts.params.len().to_string());
            return Err(Error::Argument { op: "adamw_", argument, got, expected });
        }
        for (i, tensor) in list.iter().enumerate() {
            let expected = Facts { numel: facts.params[i].numel, dtype: Some(dtype), contiguous: true };
            if *tensor != expected {
                let (got, expected) = (format!("{tensor:?} at {i}"), format!("{expected:?}"));
                return Err(Error::Argument { op: "adamw_", argument, got, expected });
            }
        }
    }
    AdamW::new(options, param, grad).map(Some)
}

fn step<D: Device + Run<AdamW>>(
    device: &D,
    problem: &AdamW,
    buffers: &Lists<(usize, D::Buffer)>,
    steps: &D::Buffer,
    scalars: [Option<&D::Buffer>; 3],
) -> Result<()> {
    let slots: Vec<_> = buffers
        .params
        .iter()
        .enumerate()
        .map(|(i, (numel, param))| Slot {
            numel: *numel,
            param,
            grad: &buffers.grads[i].1,
            exp_avg: &buffers.exp_avgs[i].1,
            exp_avg_sq: &buffers.exp_avg_sqs[i].1,
            max_exp_avg_sq: buffers.max_exp_avg_sqs.get(i).map(|(_, buffer)| buffer),
        })
        .collect();
    let [lr, grad_scale, found_inf] = scalars;
    device.run(problem, Args { slots: &slots, steps, lr, grad_scale, found_inf })
}

impl<T> Lists<T> {
    fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Lists<U> {
        let mut one = |list: &Vec<T>| list.iter().map(&mut f).collect::<Vec<U>>();
        Lists {
            params: one(&self.params),
            grads: one(&self.grads),
            exp_avgs: one(&self.exp_avgs),
            exp_avg_sqs: one(&self.exp_avg_sqs),
            max_exp_avg_sqs: one(&self.max_exp_avg_sqs),
        }
    }
}

/// Addresses of the TensorImpl of every tensor of a list.
fn impls(list: &Bound<'_, PyList>) -> PyResult<Vec<usize>> {
    let name = pyo3::intern!(list.py(), "_cdata");
    list.iter().map(|tensor| tensor.getattr(name)?.extract()).collect()
}

fn on_shim<D: Foreign + Run<AdamW>>(
    device: &D,
    lists: &Lists<usize>,
    steps: usize,
    scalars: [Option<usize>; 3],
    options: Options,
) -> Result<()> {
    // SAFETY: the Python lists keep the tensors alive through the call.
    let peek = |imp: &usize| unsafe { Peek::from_impl(imp).describe() };
    let described = lists.map(peek);
    let Some(problem) = problem(&described.map(|t| Facts { numel: t.numel, dtype: t.dtype, contiguous: t.contiguous }), options)?
    else {
        return Ok(());
    };
    // SAFETY: as above; a buffer does not outlive the call, and on a GPU torch frees memory in stream order.
    let buffer = |address: *mut u8, bytes| unsafe { D::foreign(address, bytes) };
    let buffers = described.map(|t| (t.numel, buffer(t.address, t.numel * t.dtype.map_or(1, DType::size))));
    let steps = buffer(peek(&steps).address, 4 * lists.params.len());
    let scalars = scalars.map(|imp| imp.map(|imp| buffer(peek(&imp).address, 4)));
    let [lr, grad_scale, found_inf] = &scalars;
    step(device, &problem, &buffers, &steps, [lr.as_ref(), grad_scale.as_ref(), found_inf.as_ref()])
}

/// One step. Lists are of tensors of one device, contiguous, params of one dtype and grads of one; steps is (n,) float32;
/// lr, grad_scale and found_inf are float32 tensors of one element on the same device, or None.
#[pyfunction]
#[pyo3(signature = (params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, lr, grad_scale, found_inf, scalars, metal=None))]
pub fn adamw_(
    py: Python<'_>,
    params: &Bound<'_, PyList>,
    grads: &Bound<'_, PyList>,
    exp_avgs: &Bound<'_, PyList>,
    exp_avg_sqs: &Bound<'_, PyList>,
    max_exp_avg_sqs: &Bound<'_, PyList>,
    steps: &Bound<'_, PyAny>,
    lr: Option<Bound<'_, PyAny>>,
    grad_scale: Option<Bound<'_, PyAny>>,
    found_inf: Option<Bound<'_, PyAny>>,
    scalars: Scalars,
    metal: Option<PyRef<'_, crate::MetalDevice>>,
) -> PyResult<()> {
    let options = Options::from(scalars);
    let lists = Lists {
        params: impls(params)?,
        grads: impls(grads)?,
        exp_avgs: impls(exp_avgs)?,
        exp_avg_sqs: impls(exp_avg_sqs)?,
        max_exp_avg_sqs: impls(max_exp_avg_sqs)?,
    };
    let imp = |tensor: &Bound<'_, PyAny>| tensor.getattr("_cdata")?.extract::<usize>();
    if let Some(metal) = metal {
        let objects = |list: &Bound<'_, PyList>| list.iter().map(|t| std::sync::Arc::new(t.unbind())).collect::<Vec<_>>();
        let tensors = Lists {
            params: objects(params),
            grads: objects(grads),
            exp_avgs: objects(exp_avgs),
            exp_avg_sqs: objects(exp_avg_sqs),
            max_exp_avg_sqs: objects(max_exp_avg_sqs),
        };
        let scalars = [lr, grad_scale, found_inf].map(|t| t.map(|t| std::sync::Arc::new(t.unbind())));
        let steps = std::sync::Arc::new(steps.clone().unbind());
        return on_metal(&metal.0, &lists, &tensors, &steps, &scalars, options).map_err(crate::python_error);
    }
    let steps = imp(steps)?;
    let scalar = |tensor: Option<Bound<'_, PyAny>>| tensor.map(|t| imp(&t)).transpose();
    let scalars = [scalar(lr)?, scalar(grad_scale)?, scalar(found_inf)?];
    py.detach(|| {
        // SAFETY: the caller holds the tensors.
        let device = unsafe { Peek::from_impl(&steps) }.device();
        match device {
            (CUDA, index) => on_shim(Shim::cuda(index)?.device(), &lists, steps, scalars, options),
            _ => on_shim(Shim::cpu().device(), &lists, steps, scalars, options),
        }
    })
    .map_err(crate::python_error)
}

fn on_metal(
    metal: &Metal,
    lists: &Lists<usize>,
    tensors: &Lists<crate::metal::Buffer>,
    steps: &crate::metal::Buffer,
    scalars: &[Option<crate::metal::Buffer>; 3],
    options: Options,
) -> Result<()> {
    // SAFETY: the Python lists keep the tensors alive through the call.
    let described = lists.map(|imp| unsafe { Peek::from_impl(imp).describe() });
    let facts = described.map(|t| Facts { numel: t.numel, dtype: t.dtype, contiguous: t.contiguous });
    let Some(problem) = problem(&facts, options)? else { return Ok(()) };
    let host = Objects(metal.clone());
    let sized = tensors.map(|t| (host.shape(t).iter().product(), t.clone()));
    let [lr, grad_scale, found_inf] = scalars;
    step(metal, &problem, &sized, steps, [lr.as_ref(), grad_scale.as_ref(), found_inf.as_ref()])
}
