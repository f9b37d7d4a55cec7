//! The step of metalcore::adamw_, over lists of tensors.

use crate::host::{Foreign, Host, Shim};
use crate::metal::{Metal, Objects};
use crate::object;
use crate::shim::{CUDA, Description, Peek};
use metalcore::device::{Device, Run};
use metalcore::ops::adamw::{AdamW, Args, Goal, Options, Slot};
use metalcore::{DType, Error, Result};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use pyo3::{ffi, intern};
use std::sync::Arc;

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
    device: (i32, i32),
}

impl From<&Description> for Facts {
    fn from(t: &Description) -> Facts {
        Facts { numel: t.numel, dtype: t.dtype, contiguous: t.contiguous, device: t.device }
    }
}

/// Types of parameters and gradients, after checking every tensor against its parameter.
fn check(facts: &Lists<Facts>) -> Result<Option<(DType, DType)>> {
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
            let expected =
                Facts { numel: facts.params[i].numel, dtype: Some(dtype), contiguous: true, device: first.device };
            if *tensor != expected {
                let (got, expected) = (format!("{tensor:?} at {i}"), format!("{expected:?}"));
                return Err(Error::Argument { op: "adamw_", argument, got, expected });
            }
        }
    }
    Ok(Some((param, grad)))
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
    list.iter().map(|tensor| object::tensor_impl(&tensor)).collect()
}

/// Describes a tensor by the address of its TensorImpl.
///
/// # Safety
/// The tensor is alive.
unsafe fn describe(imp: &usize) -> Description {
    // SAFETY: the caller's promise.
    unsafe { Peek::from_impl(imp) }.describe()
}

fn on_shim<D: Foreign + Run<AdamW>>(
    device: &D,
    tensors: &Lists<Description>,
    steps: &Description,
    scalars: &[Option<Description>; 3],
    options: Options,
) -> Result<()> {
    let Some((param, grad)) = check(&tensors.map(|t| Facts::from(t)))? else { return Ok(()) };
    let problem = AdamW::new(options, param, grad)?;
    // SAFETY: the Python lists keep the tensors alive through the call, and on a GPU torch frees memory in stream order.
    let buffer = |t: &Description, size: usize| unsafe { D::foreign(t.address, t.numel * size) };
    let buffers = tensors.map(|t| (t.numel, buffer(t, t.dtype.map_or(1, DType::size))));
    let steps = buffer(steps, 4);
    let [lr, grad_scale, found_inf] =
        scalars.each_ref().map(|t| t.as_ref().map(|t| buffer(t, t.dtype.map_or(4, DType::size))));
    step(device, &problem, &buffers, &steps, [lr.as_ref(), grad_scale.as_ref(), found_inf.as_ref()])
}

/// On the device of `steps`.
fn anywhere(
    tensors: &Lists<Description>,
    steps: &Description,
    scalars: &[Option<Description>; 3],
    options: Options,
) -> Result<()> {
    match steps.device {
        (CUDA, index) => on_shim(Shim::cuda(index)?.device(), tensors, steps, scalars, options),
        _ => on_shim(Shim::cpu().device(), tensors, steps, scalars, options),
    }
}

fn describe_scalars(tensors: [Option<Bound<'_, PyAny>>; 3]) -> PyResult<[Option<Description>; 3]> {
    let one = |t: Option<Bound<'_, PyAny>>| -> PyResult<Option<Description>> {
        let Some(tensor) = t else { return Ok(None) };
        let imp = object::tensor_impl(&tensor)?;
        // SAFETY: the caller holds the tensor.
        Ok(Some(unsafe { describe(&imp) }))
    };
    let [a, b, c] = tensors.map(one);
    Ok([a?, b?, c?])
}

/// One step. Lists are of tensors of one device, contiguous, params of one dtype and grads of one; steps is (n,) float32;
/// lr, grad_scale and found_inf are float32 tensors of one element on the same device, or None.
#[pyfunction]
#[pyo3(signature = (lists, steps, lr, grad_scale, found_inf, scalars, metal=None))]
pub fn adamw_(
    py: Python<'_>,
    lists: [Bound<'_, PyList>; 5],
    steps: &Bound<'_, PyAny>,
    lr: Option<Bound<'_, PyAny>>,
    grad_scale: Option<Bound<'_, PyAny>>,
    found_inf: Option<Bound<'_, PyAny>>,
    scalars: Scalars,
    metal: Option<PyRef<'_, crate::MetalDevice>>,
) -> PyResult<()> {
    let options = Options::from(scalars);
    let named = |lists: [Vec<usize>; 5]| {
        let [params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs] = lists;
        Lists { params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs }
    };
    let [a, b, c, d, e] = &lists;
    let addresses = named([impls(a)?, impls(b)?, impls(c)?, impls(d)?, impls(e)?]);
    let scalar_tensors = [lr, grad_scale, found_inf];
    if let Some(metal) = metal {
        let objects = |list: &Bound<'_, PyList>| list.iter().map(|t| Arc::new(t.unbind())).collect::<Vec<_>>();
        let [params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs] = lists.each_ref().map(objects);
        let tensors = Lists { params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs };
        let scalars = scalar_tensors.map(|t| t.map(|t| Arc::new(t.unbind())));
        let steps = Arc::new(steps.clone().unbind());
        return on_metal(&metal.0, &addresses, &tensors, &steps, &scalars, options).map_err(crate::python_error);
    }
    let scalars = describe_scalars(scalar_tensors)?;
    let steps = object::tensor_impl(steps)?;
    // SAFETY: the caller holds the tensors.
    let (tensors, steps) = unsafe { (addresses.map(|t| describe(t)), describe(&steps)) };
    py.detach(|| anywhere(&tensors, &steps, &scalars, options)).map_err(crate::python_error)
}

/// A parameter group as it was when its state was last looked at: says whether everything is still the same object, and
/// then makes the step without a Python loop.
#[pyclass(frozen, module = "metalcore._native")]
pub struct AdamWGroup {
    /// Tensors by address, as they were; the Python lists keep them alive.
    tensors: Lists<(usize, Description)>,
    steps: usize,
    params: Py<PyList>,
    /// Each parameter's state dict, and the tensors that belong in it.
    states: Vec<Py<PyDict>>,
    exp_avgs: Py<PyList>,
    exp_avg_sqs: Py<PyList>,
    max_exp_avg_sqs: Py<PyList>,
    step_views: Py<PyList>,
    /// Every state dict of the optimizer, in order.
    all_states: Vec<Py<PyAny>>,
    _steps: Py<PyAny>,
}

#[pymethods]
impl AdamWGroup {
    /// Lists as in `adamw_`, without gradients; `states` are the state dicts of the parameters, `state` the optimizer's.
    #[new]
    fn new(
        params: Bound<'_, PyList>,
        states: Vec<Py<PyDict>>,
        exp_avgs: Bound<'_, PyList>,
        exp_avg_sqs: Bound<'_, PyList>,
        max_exp_avg_sqs: Bound<'_, PyList>,
        steps: Bound<'_, PyAny>,
        step_views: Bound<'_, PyList>,
        state: &Bound<'_, PyDict>,
    ) -> PyResult<AdamWGroup> {
        let tensors = Lists {
            params: impls(&params)?,
            grads: Vec::new(),
            exp_avgs: impls(&exp_avgs)?,
            exp_avg_sqs: impls(&exp_avg_sqs)?,
            max_exp_avg_sqs: impls(&max_exp_avg_sqs)?,
        };
        Ok(AdamWGroup {
            // SAFETY: the lists hold the tensors.
            tensors: tensors.map(|imp| (*imp, unsafe { describe(imp) })),
            steps: object::tensor_impl(&steps)?,
            params: params.unbind(),
            states,
            exp_avgs: exp_avgs.unbind(),
            exp_avg_sqs: exp_avg_sqs.unbind(),
            max_exp_avg_sqs: max_exp_avg_sqs.unbind(),
            step_views: step_views.unbind(),
            all_states: state.iter().map(|(_, value)| value.unbind()).collect(),
            _steps: steps.unbind(),
        })
    }

    /// The next step, or None where a parameter, a gradient or a state is not what the group was made for. Nothing is
    /// changed yet.
    fn prepare(
        &self,
        params: &Bound<'_, PyList>,
        grads: &Bound<'_, PyList>,
        state: &Bound<'_, PyDict>,
    ) -> PyResult<Option<AdamWStep>> {
        if !self.unchanged(params, state)? || grads.iter().any(|g| g.is_none()) {
            return Ok(None);
        }
        let grads = impls(grads)?;
        // SAFETY: the lists hold the tensors. The state's layout is that of when it was made; its memory may be another. A
        // parameter at its old address has its old layout, or its gradient's will not fit; a gradient is where its
        // parameter is.
        let (tensors, steps) = unsafe {
            let again = |list: &Vec<(usize, Description)>| {
                list.iter()
                    .map(|(imp, known)| Description { address: Peek::from_impl(imp).address(), ..*known })
                    .collect()
            };
            let param = |(imp, known): &(usize, Description)| {
                let tensor = Peek::from_impl(imp);
                if tensor.address() == known.address { *known } else { tensor.describe() }
            };
            let params: Vec<_> = self.tensors.params.iter().map(param).collect();
            let tensors = Lists {
                grads: grads.iter().zip(&params).map(|(imp, p)| Peek::from_impl(imp).describe_on(p.device)).collect(),
                params,
                exp_avgs: again(&self.tensors.exp_avgs),
                exp_avg_sqs: again(&self.tensors.exp_avg_sqs),
                max_exp_avg_sqs: again(&self.tensors.max_exp_avg_sqs),
            };
            (tensors, describe(&self.steps))
        };
        let dtypes = check(&tensors.map(|t| Facts::from(t)));
        Ok(dtypes.is_ok().then_some(AdamWStep { tensors, steps }))
    }
}

/// A step of an [`AdamWGroup`], looked at and ready. Its tensors must be kept alive until it has run.
#[pyclass(frozen, module = "metalcore._native")]
pub struct AdamWStep {
    tensors: Lists<Description>,
    steps: Description,
}

#[pymethods]
impl AdamWStep {
    fn run(&self, py: Python<'_>, scalar_tensors: [Option<Bound<'_, PyAny>>; 3], scalars: Scalars) -> PyResult<()> {
        let scalar_tensors = describe_scalars(scalar_tensors)?;
        py.detach(|| anywhere(&self.tensors, &self.steps, &scalar_tensors, scalars.into())).map_err(crate::python_error)
    }
}

impl AdamWGroup {
    /// Compares objects by address, through the C interface: three objects of each tensor, in every step.
    fn unchanged(&self, params: &Bound<'_, PyList>, state: &Bound<'_, PyDict>) -> PyResult<bool> {
        let py = params.py();
        if !same_items(params, self.params.bind(py)) || state.len() != self.all_states.len() {
            return Ok(false);
        }
        let mut position = 0;
        let mut value = std::ptr::null_mut();
        for known in &self.all_states {
            // SAFETY: the dict is alive and not changed meanwhile; the value is borrowed and only compared.
            let found = unsafe { ffi::PyDict_Next(state.as_ptr(), &mut position, std::ptr::null_mut(), &mut value) };
            if found == 0 || value != known.as_ptr() {
                return Ok(false);
            }
        }
        let lists = [
            (intern!(py, "exp_avg"), &self.exp_avgs),
            (intern!(py, "exp_avg_sq"), &self.exp_avg_sqs),
            (intern!(py, "max_exp_avg_sq"), &self.max_exp_avg_sqs),
            (intern!(py, "step"), &self.step_views),
        ];
        for (name, tensors) in lists {
            if tensors.bind(py).is_empty() {
                continue; // without amsgrad
            }
            for (i, dict) in self.states.iter().enumerate() {
                // SAFETY: both are alive; the results are borrowed and only compared, and a missing key is null.
                let same = unsafe {
                    ffi::PyDict_GetItemWithError(dict.as_ptr(), name.as_ptr())
                        == ffi::PyList_GetItem(tensors.as_ptr(), i as ffi::Py_ssize_t)
                };
                if !same {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// Whether two lists hold the same objects.
fn same_items(a: &Bound<'_, PyList>, b: &Bound<'_, PyList>) -> bool {
    // SAFETY: indices are in range; the results are borrowed and only compared.
    let item = |list: &Bound<'_, PyList>, i| unsafe { ffi::PyList_GetItem(list.as_ptr(), i as ffi::Py_ssize_t) };
    a.len() == b.len() && (0..a.len()).all(|i| item(a, i) == item(b, i))
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
    let described = lists.map(|imp| unsafe { describe(imp) });
    let Some((param, grad)) = check(&described.map(|t| Facts::from(t)))? else { return Ok(()) };
    let problem = AdamW::new(options, param, grad)?;
    let host = Objects(metal.clone());
    let sized = tensors.map(|t| (host.shape(t).iter().product(), t.clone()));
    let [lr, grad_scale, found_inf] = scalars;
    step(metal, &problem, &sized, steps, [lr.as_ref(), grad_scale.as_ref(), found_inf.as_ref()])
}
