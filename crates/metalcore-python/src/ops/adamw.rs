//! The step of metalcore::adamw_, over lists of tensors.

use crate::host::{Foreign, Host, Shim};
use crate::internals::Internals;
use crate::metal::Metal;
use crate::object;
use crate::shim::{self, CUDA, Description, Peek};
use metalcore::device::{Device, Run};
use metalcore::ops::adamw::{AdamW, Args, Goal, Options, Slot};
use metalcore::{DType, Error, Result};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
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

/// One tensor with its gradient and state.
struct Row<T> {
    numel: usize,
    param: T,
    grad: T,
    exp_avg: T,
    exp_avg_sq: T,
    max_exp_avg_sq: Option<T>,
}

impl<T> Row<T> {
    fn slot(&self) -> Slot<'_, T> {
        Slot {
            numel: self.numel,
            param: &self.param,
            grad: &self.grad,
            exp_avg: &self.exp_avg,
            exp_avg_sq: &self.exp_avg_sq,
            max_exp_avg_sq: self.max_exp_avg_sq.as_ref(),
        }
    }
}

fn step<D: Device + Run<AdamW>>(
    device: &D,
    problem: &AdamW,
    rows: &[Row<D::Buffer>],
    steps: &D::Buffer,
    scalars: [Option<&D::Buffer>; 3],
) -> Result<()> {
    let slots: Vec<_> = rows.iter().map(Row::slot).collect();
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
    /// What belongs together; `numel` says how many elements.
    fn rows<U>(&self, numel: impl Fn(usize) -> usize, one: impl Fn(&T) -> U) -> Vec<Row<U>> {
        let row = |i: usize| Row {
            numel: numel(i),
            param: one(&self.params[i]),
            grad: one(&self.grads[i]),
            exp_avg: one(&self.exp_avgs[i]),
            exp_avg_sq: one(&self.exp_avg_sqs[i]),
            max_exp_avg_sq: self.max_exp_avg_sqs.get(i).map(&one),
        };
        (0..self.params.len()).map(row).collect()
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

/// Rows of addresses, on the device of `steps`.
fn anywhere(
    problem: &AdamW,
    rows: impl Iterator<Item = Row<usize>>,
    steps: &Description,
    scalars: &[Option<Description>; 3],
) -> Result<()> {
    match steps.device {
        (CUDA, index) => on_shim(Shim::cuda(index)?.device(), problem, rows, steps, scalars),
        _ => on_shim(Shim::cpu().device(), problem, rows, steps, scalars),
    }
}

fn on_shim<D: Foreign + Run<AdamW>>(
    device: &D,
    problem: &AdamW,
    rows: impl Iterator<Item = Row<usize>>,
    steps: &Description,
    scalars: &[Option<Description>; 3],
) -> Result<()> {
    // SAFETY: the caller keeps the tensors alive through the call, and on a GPU torch frees memory in stream order.
    let foreign = |address: usize, bytes: usize| unsafe { D::foreign(address as *mut u8, bytes) };
    let state = problem.state().size();
    let mut buffers = Vec::with_capacity(rows.size_hint().0);
    buffers.extend(rows.map(|row| Row {
        numel: row.numel,
        param: foreign(row.param, row.numel * problem.param.size()),
        grad: foreign(row.grad, row.numel * problem.grad.size()),
        exp_avg: foreign(row.exp_avg, row.numel * state),
        exp_avg_sq: foreign(row.exp_avg_sq, row.numel * state),
        max_exp_avg_sq: row.max_exp_avg_sq.map(|address| foreign(address, row.numel * state)),
    }));
    let one = |t: &Description, size: usize| foreign(t.address as usize, t.numel * size);
    let [lr, grad_scale, found_inf] =
        scalars.each_ref().map(|t| t.as_ref().map(|t| one(t, t.dtype.map_or(4, DType::size))));
    step(device, problem, &buffers, &one(steps, 4), [lr.as_ref(), grad_scale.as_ref(), found_inf.as_ref()])
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
    let Some((param, grad)) = check(&tensors.map(|t| Facts::from(t))).map_err(crate::python_error)? else {
        return Ok(());
    };
    let rows = tensors.rows(|i| tensors.params[i].numel, |t| t.address as usize);
    let problem = AdamW::new(options, param, grad).map_err(crate::python_error)?;
    py.detach(|| anywhere(&problem, rows.into_iter(), &steps, &scalars)).map_err(crate::python_error)
}

/// A tensor as it was: the object, which is kept alive, its TensorImpl and its first element.
struct Known {
    object: Py<PyAny>,
    imp: usize,
    address: usize,
}

impl Known {
    fn new(object: &Bound<'_, PyAny>) -> PyResult<Known> {
        let imp = object::tensor_impl(object)?;
        // SAFETY: the object holds it.
        let address = unsafe { Peek::from_impl(&imp) }.address() as usize;
        Ok(Known { object: object.clone().unbind(), imp, address })
    }
    fn peek(&self) -> Peek<'_> {
        // SAFETY: the object holds its TensorImpl, and whoever asks has seen that it is still this one.
        unsafe { Peek::from_impl(&self.imp) }
    }
    /// Whether the object is still the same tensor (`swap_tensors`) in the same memory (`.data = ...`).
    fn stays(&self, py: Python<'_>) -> PyResult<bool> {
        let imp = object::tensor_impl(self.object.bind(py))?;
        Ok(imp == self.imp && self.peek().address() as usize == self.address)
    }
}

/// A parameter group as it was when its state was last looked at: says whether everything is still the same, and then
/// makes the step without a Python loop.
#[pyclass(frozen, module = "metalcore._native")]
pub struct AdamWGroup {
    internals: &'static Internals,
    param: DType,
    /// Addresses, but for the gradients.
    rows: Vec<Row<usize>>,
    params: Vec<Known>,
    /// exp_avg, exp_avg_sq, max_exp_avg_sq of all parameters.
    moments: Vec<Known>,
    /// One for each parameter, of `steps`.
    step_views: Vec<Known>,
    steps: Known,
    /// The state dict of each parameter, behind the number of its items; these in order: keys, and values that are ours.
    states: Vec<(usize, Py<PyDict>)>,
    items: Vec<(Py<PyAny>, Option<Py<PyAny>>)>,
    /// Every state dict of the optimizer, in order.
    all_states: Vec<Py<PyAny>>,
}

#[pymethods]
impl AdamWGroup {
    /// Lists as in `adamw_`, without gradients; `states` are the state dicts of the parameters, `state` the optimizer's.
    /// None of the tensors was made in inference mode. None where this torch, or a tensor's layout, is not fit for it.
    #[staticmethod]
    fn of(
        params: Bound<'_, PyList>,
        states: Vec<Bound<'_, PyDict>>,
        exp_avgs: Bound<'_, PyList>,
        exp_avg_sqs: Bound<'_, PyList>,
        max_exp_avg_sqs: Bound<'_, PyList>,
        steps: Bound<'_, PyAny>,
        step_views: Bound<'_, PyList>,
        state: &Bound<'_, PyDict>,
    ) -> PyResult<Option<AdamWGroup>> {
        let Some(internals) = shim::get().internals.as_ref() else { return Ok(None) };
        let addresses = Lists {
            params: impls(&params)?,
            grads: impls(&params)?, // in their place
            exp_avgs: impls(&exp_avgs)?,
            exp_avg_sqs: impls(&exp_avg_sqs)?,
            max_exp_avg_sqs: impls(&max_exp_avg_sqs)?,
        };
        // SAFETY: the lists hold the tensors.
        let tensors = addresses.map(|imp| unsafe { describe(imp) });
        let Ok(Some((param, _))) = check(&tensors.map(|t| Facts::from(t))) else { return Ok(None) };
        let known = |list: &Bound<'_, PyList>| list.iter().map(|t| Known::new(&t)).collect::<PyResult<Vec<_>>>();
        let mut moments = known(&exp_avgs)?;
        moments.extend(known(&exp_avg_sqs)?);
        moments.extend(known(&max_exp_avg_sqs)?);
        let lists = [&exp_avgs, &exp_avg_sqs, &max_exp_avg_sqs, &step_views];
        let mut items = Vec::new();
        for (i, dict) in states.iter().enumerate() {
            for (key, value) in dict.iter() {
                let ours = lists.iter().any(|list| list.get_item(i).is_ok_and(|tensor| tensor.is(&value)));
                items.push((key.unbind(), ours.then(|| value.unbind())));
            }
        }
        Ok(Some(AdamWGroup {
            internals,
            param,
            rows: tensors.rows(|i| tensors.params[i].numel, |t| t.address as usize),
            params: known(&params)?,
            moments,
            step_views: known(&step_views)?,
            steps: Known::new(&steps)?,
            states: states.into_iter().map(|dict| (dict.len(), dict.unbind())).collect(),
            items,
            all_states: state.iter().map(|(_, value)| value.unbind()).collect(),
        }))
    }

    /// The next step, or None where a parameter, a gradient or a state is not what the group was made for. Nothing is
    /// changed yet. Neither may the tensors be, until the step has run.
    fn prepare(
        slf: &Bound<'_, Self>,
        params: &Bound<'_, PyList>,
        state: &Bound<'_, PyDict>,
    ) -> PyResult<Option<AdamWStep>> {
        let (group, py) = (slf.get(), slf.py());
        if !group.has_its_objects(params, state) || !group.stays(py)? {
            return Ok(None);
        }
        let mut grads = Vec::with_capacity(group.rows.len());
        let mut dtype = None;
        for (known, row) in group.params.iter().zip(&group.rows) {
            // SAFETY: the object holds the TensorImpl, as `stays` has seen.
            match unsafe { group.internals.gradient(known.imp) } {
                Some(grad) if grad.numel == row.numel && *dtype.get_or_insert(grad.dtype) == grad.dtype => {
                    grads.push(grad.address);
                }
                _ => return Ok(None),
            }
        }
        Ok(dtype.map(|grad| AdamWStep { group: slf.clone().unbind(), grads, grad }))
    }
}

impl AdamWGroup {
    /// Whether lists and dicts have the objects that they had: the parameters, the state of each, and the tensors there.
    fn has_its_objects(&self, params: &Bound<'_, PyList>, state: &Bound<'_, PyDict>) -> bool {
        if params.len() != self.params.len() || state.len() != self.all_states.len() {
            return false;
        }
        // SAFETY: the list is alive and the index in range; the result is borrowed and only compared.
        let item = |i| unsafe { ffi::PyList_GetItem(params.as_ptr(), i as ffi::Py_ssize_t) };
        if self.params.iter().enumerate().any(|(i, known)| item(i) != known.object.as_ptr()) {
            return false;
        }
        let mut walk = Walk::new(state.as_ptr());
        if self.all_states.iter().any(|known| walk.next().is_none_or(|(_, value)| value != known.as_ptr())) {
            return false;
        }
        let mut items = self.items.iter();
        self.states.iter().all(|(len, dict)| {
            let mut walk = Walk::new(dict.as_ptr());
            items.by_ref().take(*len).all(|(known, tensor)| {
                walk.next().is_some_and(|(key, value)| {
                    key == known.as_ptr() && tensor.as_ref().is_none_or(|tensor| value == tensor.as_ptr())
                })
            })
        })
    }

    /// Whether the tensors are where they were. Memory that was given back may have come again for another type.
    fn stays(&self, py: Python<'_>) -> PyResult<bool> {
        for (known, row) in self.params.iter().zip(&self.rows) {
            let same = known.stays(py)?
                && known.peek().dtype() == Some(self.param)
                && known.peek().numel() == row.numel
                && self.internals.is_contiguous(known.peek());
            if !same {
                return Ok(false);
            }
        }
        let state = Some(self.param.compute());
        for known in &self.moments {
            if !(known.stays(py)? && known.peek().dtype() == state) {
                return Ok(false);
            }
        }
        for known in self.step_views.iter().chain([&self.steps]) {
            if !known.stays(py)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The items of a dict in order, through the C interface: borrowed, to be compared only.
struct Walk {
    dict: *mut ffi::PyObject,
    position: ffi::Py_ssize_t,
}

impl Walk {
    fn new(dict: *mut ffi::PyObject) -> Walk {
        Walk { dict, position: 0 }
    }
    fn next(&mut self) -> Option<(*mut ffi::PyObject, *mut ffi::PyObject)> {
        let (mut key, mut value) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the dict is alive and not changed meanwhile.
        let found = unsafe { ffi::PyDict_Next(self.dict, &mut self.position, &mut key, &mut value) };
        (found != 0).then_some((key, value))
    }
}

/// A step of an [`AdamWGroup`], looked at and ready: the addresses of its gradients.
#[pyclass(frozen, module = "metalcore._native")]
pub struct AdamWStep {
    group: Py<AdamWGroup>,
    grads: Vec<usize>,
    grad: DType,
}

#[pymethods]
impl AdamWStep {
    fn run(&self, py: Python<'_>, scalar_tensors: [Option<Bound<'_, PyAny>>; 3], scalars: Scalars) -> PyResult<()> {
        let group = self.group.get();
        let scalars_there = describe_scalars(scalar_tensors)?;
        let problem = AdamW::new(scalars.into(), group.param, self.grad).map_err(crate::python_error)?;
        let rows = group.rows.iter().zip(&self.grads).map(|(row, grad)| Row { grad: *grad, ..*row });
        let steps = group.steps.peek().describe();
        py.detach(|| anywhere(&problem, rows, &steps, &scalars_there)).map_err(crate::python_error)?;
        // After the launch, which waits for nothing. Step counts are views of one tensor, and have its version.
        for changed in group.params.iter().chain(&group.moments).chain([&group.steps]) {
            // SAFETY: alive, as `prepare` has seen, and not of inference mode.
            unsafe { group.internals.bump_version(changed.peek()) };
        }
        Ok(())
    }
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
    let rows = tensors.rows(|i| described.params[i].numel, Arc::clone);
    let [lr, grad_scale, found_inf] = scalars;
    step(metal, &problem, &rows, steps, [lr.as_ref(), grad_scale.as_ref(), found_inf.as_ref()])
}
