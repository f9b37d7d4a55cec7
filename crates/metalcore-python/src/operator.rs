//! One declaration of an operator, `operator!(name: "schema")` beside a function `name` over [`Host`]: its boxed kernels
//! for cpu and cuda and its form for Python objects follow from the function's types.
//!
//! | schema | Rust |
//! |---|---|
//! | `Tensor` | `H::Tensor` |
//! | `int` `float` `bool` | `i64` `f64` `bool` |
//! | `T?` | `Option<T>` |
//! | `T[]` | `Vec<T>`; torch passes lists to boxed kernels from 2.10 on |
//!
//! A function takes up to 16 arguments, and returns a tensor or a tuple of up to four.

use crate::host::{Host, Shim};
use crate::metal::{Buffer, Objects};
use crate::shim::{self, Boxed, CUDA, Handle, Tensor};
use crate::throw::boxed;
use metalcore::device::{cpu::Cpu, cuda::Cuda};
use metalcore::{Error, Result};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use std::sync::Arc;

pub use crate::shim::Value;

/// An operator of `torch.ops.metalcore`.
pub struct Operator {
    /// Name without the namespace.
    pub name: &'static str,
    /// What follows the name in the schema.
    pub signature: &'static str,
    /// The types of arguments in a schema of the function, and how many tensors it returns.
    pub types: fn() -> (Vec<String>, usize),
    /// The kernel where every tensor is on the cpu.
    pub cpu: Boxed,
    /// The kernel where one is on a GPU.
    pub cuda: Boxed,
    /// The same for Python objects.
    pub metal: fn(&Objects, &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>>,
}

impl Operator {
    /// An error where the signature is not that of the function: arguments are taken by the function's types.
    pub fn check(&self) -> Result<()> {
        let (takes, returns) = self.signature.split_once(") -> ").unwrap_or_default();
        // The rest of a default that is a list has no space.
        let takes = takes.trim_start_matches('(').split(", ").filter_map(|argument| argument.split_once(' '));
        // What is written to is a tensor too.
        let takes = takes.map(|(kind, _)| kind.replace("(a!)", ""));
        let found = (takes.collect(), returns.matches("Tensor").count());
        let expected = (self.types)();
        if found == expected {
            return Ok(());
        }
        let (got, expected) = (self.signature.to_owned(), format!("{expected:?}, as the function has"));
        Err(Error::Argument { op: self.name, argument: "signature", got, expected })
    }
}

/// `operator!(name: "signature")` for the function `name<H: Host>(host: &H, ...)`; `cuda = f` has
/// `f(host: &Shim<Cuda>, ...)` in its place on CUDA.
macro_rules! operator {
    ($name:ident: $signature:literal) => {
        $crate::operator::operator!($name: $signature, cuda = $name)
    };
    ($name:ident: $signature:literal, cuda = $cuda:expr) => {{
        use $crate::operator::{Operator, Value, call_cpu, call_cuda, call_metal, types};
        unsafe extern "C-unwind" fn cpu(stack: *mut Value, _: u64, _: u64) {
            // SAFETY: the dispatcher passes the stack of the schema, which was checked.
            unsafe { call_cpu(stack, $name) }
        }
        unsafe extern "C-unwind" fn cuda(stack: *mut Value, _: u64, _: u64) {
            // SAFETY: as above.
            unsafe { call_cuda(stack, $name, $cuda) }
        }
        Operator {
            name: stringify!($name),
            signature: $signature,
            types: || types($name),
            cpu,
            cuda,
            metal: |host, args| call_metal(host, args, $name),
        }
    }};
}
pub(crate) use operator;

/// An operator's function for the tensors of one host; `A` is the tuple of its arguments.
pub trait Function<H, A> {
    /// A tensor, or a tuple of them.
    type Returns;
    /// Calls it.
    fn call(&self, host: &H, args: A) -> Result<Self::Returns>;
}

/// What a function returns.
pub trait Returns<T> {
    /// How many tensors.
    const COUNT: usize;
    /// Gives them away in order.
    fn each(self, take: impl FnMut(T));
}

/// A value as torch's dispatcher passes it to a boxed kernel, or a tuple of values: the whole stack.
pub trait FromStack: Sized {
    /// Its types in a schema.
    fn types() -> Vec<String>;
    /// Takes it over.
    ///
    /// # Safety
    /// `stack` points to a value of this type, which is taken once.
    unsafe fn take(stack: *const Value) -> Self;
    /// Device of its first tensor.
    fn place(&self) -> Option<(i32, i32)> {
        None
    }
}

/// A value as Python passes it, or a tuple of values.
pub trait FromObject: Sized {
    /// Reads it.
    fn read(object: &Bound<'_, PyAny>) -> PyResult<Self>;
}

/// Calls a function on the cpu, as the last thing of a boxed kernel.
///
/// # Safety
/// The stack is that of a schema with the function's types, and nothing is left to drop.
pub unsafe fn call_cpu<A: FromStack, F>(stack: *mut Value, function: F)
where
    F: Function<Shim<Cpu>, A, Returns: Returns<Tensor>>,
{
    // SAFETY: the caller's promise.
    unsafe {
        boxed(|| {
            put(stack, function.call(&Shim::cpu(), A::take(stack))?);
            Ok(())
        });
    }
}

/// Calls `cuda` on the GPU of the first tensor; `cpu`, which names the tensor that is elsewhere, if that is on the cpu.
///
/// # Safety
/// As [`call_cpu`].
pub unsafe fn call_cuda<A: FromStack, F, G>(stack: *mut Value, cpu: F, cuda: G)
where
    F: Function<Shim<Cpu>, A, Returns: Returns<Tensor>>,
    G: Function<Shim<Cuda>, A, Returns = F::Returns>,
{
    // SAFETY: the caller's promise.
    unsafe {
        boxed(|| {
            let args = A::take(stack);
            let returned = match args.place() {
                Some((CUDA, index)) => cuda.call(&Shim::cuda(index)?, args)?,
                _ => cpu.call(&Shim::cpu(), args)?,
            };
            put(stack, returned);
            Ok(())
        });
    }
}

/// Calls a function with Python objects.
pub fn call_metal<A: FromObject, F>(host: &Objects, args: &Bound<'_, PyTuple>, function: F) -> PyResult<Py<PyAny>>
where
    F: Function<Objects, A, Returns: Returns<Buffer>>,
{
    let returned = function.call(host, A::read(args)?).map_err(crate::python_error)?;
    let mut tensors = Vec::with_capacity(F::Returns::COUNT);
    returned.each(|tensor| tensors.push(tensor.clone_ref(args.py())));
    match <[_; 1]>::try_from(tensors) {
        Ok([tensor]) => Ok(tensor),
        Err(tensors) => Ok(PyTuple::new(args.py(), tensors)?.into_any().unbind()),
    }
}

/// The types of a function in a schema.
pub fn types<A: FromStack, F>(_: F) -> (Vec<String>, usize)
where
    F: Function<Shim<Cpu>, A, Returns: Returns<Tensor>>,
{
    (A::types(), F::Returns::COUNT)
}

/// Puts what a function returned where its arguments were.
///
/// # Safety
/// The stack is that of the function's schema.
unsafe fn put(stack: *mut Value, returned: impl Returns<Tensor>) {
    let mut place = stack;
    // SAFETY: the stack has room for every result.
    returned.each(|tensor| unsafe {
        *place = tensor.into_handle() as Value;
        place = place.add(1);
    });
}

impl FromStack for Tensor {
    fn types() -> Vec<String> {
        vec!["Tensor".to_owned()]
    }
    unsafe fn take(stack: *const Value) -> Tensor {
        // SAFETY: the caller's promise.
        unsafe { Tensor::from_handle(*stack as Handle) }
    }
    fn place(&self) -> Option<(i32, i32)> {
        Some(self.peek().device())
    }
}
impl FromObject for Buffer {
    fn read(object: &Bound<'_, PyAny>) -> PyResult<Buffer> {
        // torch's dispatcher passes None for an undefined tensor, whatever the schema says.
        if object.is_none() {
            return Err(PyTypeError::new_err("got None, expected a tensor"));
        }
        Ok(Arc::new(object.clone().unbind()))
    }
}

macro_rules! scalars {
    ($($T:ty = $name:literal: $value:ident => $convert:expr;)*) => { $(
        impl FromStack for $T {
            fn types() -> Vec<String> {
                vec![$name.to_owned()]
            }
            unsafe fn take(stack: *const Value) -> $T {
                // SAFETY: the caller's promise.
                let $value = unsafe { *stack };
                $convert
            }
        }
        impl FromObject for $T {
            fn read(object: &Bound<'_, PyAny>) -> PyResult<$T> {
                object.extract()
            }
        }
    )* };
}
scalars! {
    i64 = "int": value => value as i64;
    f64 = "float": value => f64::from_bits(value);
    bool = "bool": value => value != 0;
}

impl<T: FromStack> FromStack for Option<T> {
    fn types() -> Vec<String> {
        vec![T::types().concat() + "?"]
    }
    unsafe fn take(stack: *const Value) -> Option<T> {
        // SAFETY: the caller's promise.
        unsafe { shim::take_cell(*stack).map(|value| T::take(&value)) }
    }
    fn place(&self) -> Option<(i32, i32)> {
        self.as_ref().and_then(T::place)
    }
}
impl<T: FromObject> FromObject for Option<T> {
    fn read(object: &Bound<'_, PyAny>) -> PyResult<Option<T>> {
        if object.is_none() { Ok(None) } else { T::read(object).map(Some) }
    }
}

impl<T: FromStack> FromStack for Vec<T> {
    fn types() -> Vec<String> {
        vec![T::types().concat() + "[]"]
    }
    unsafe fn take(stack: *const Value) -> Vec<T> {
        // SAFETY: the caller's promise.
        unsafe { shim::take_list(*stack).iter().map(|value| T::take(value)).collect() }
    }
    fn place(&self) -> Option<(i32, i32)> {
        self.iter().find_map(T::place)
    }
}
impl<T: FromObject> FromObject for Vec<T> {
    fn read(object: &Bound<'_, PyAny>) -> PyResult<Vec<T>> {
        object.try_iter()?.map(|item| T::read(&item?)).collect()
    }
}

impl<T> Returns<T> for T {
    const COUNT: usize = 1;
    fn each(self, mut take: impl FnMut(T)) {
        take(self);
    }
}
macro_rules! returns {
    ($($T:ident)* = $count:literal) => {
        impl<T> Returns<T> for ($($T,)*) {
            const COUNT: usize = $count;
            fn each(self, take: impl FnMut(T)) {
                <[T; $count]>::from(self).into_iter().for_each(take);
            }
        }
    };
}
returns!(T T = 2);
returns!(T T T = 3);
returns!(T T T T = 4);

macro_rules! functions {
    ([$($done:tt)*]) => {};
    ([$($T:ident $i:tt)*] $U:ident $j:tt $($rest:tt)*) => {
        functions!(@one $($T $i)* $U $j);
        functions!([$($T $i)* $U $j] $($rest)*);
    };
    (@one $($T:ident $i:tt)*) => {
        impl<H: Host, Fun, Out, $($T),*> Function<H, ($($T,)*)> for Fun
        where
            Fun: Fn(&H, $($T),*) -> Result<Out>,
        {
            type Returns = Out;
            fn call(&self, host: &H, args: ($($T,)*)) -> Result<Out> {
                self(host, $(args.$i),*)
            }
        }
        impl<$($T: FromStack),*> FromStack for ($($T,)*) {
            fn types() -> Vec<String> {
                [$($T::types()),*].concat()
            }
            unsafe fn take(stack: *const Value) -> Self {
                // SAFETY: the caller's promise, for as many values.
                unsafe { ($($T::take(stack.add($i)),)*) }
            }
            fn place(&self) -> Option<(i32, i32)> {
                None$(.or_else(|| self.$i.place()))*
            }
        }
        impl<$($T: FromObject),*> FromObject for ($($T,)*) {
            fn read(object: &Bound<'_, PyAny>) -> PyResult<Self> {
                Ok(($($T::read(&object.get_item($i)?)?,)*))
            }
        }
    };
}
functions!([] A 0 B 1 C 2 D 3 E 4 F 5 G 6 I 7 J 8 K 9 L 10 M 11 N 12 O 13 P 14 Q 15);
