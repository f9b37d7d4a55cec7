//! What CUDA, Metal and the emulator have in common: kernel text, its specialisation, and a launch.

pub mod rows;
mod text;

pub use text::{Define, Defines, Source, Spec, Target, metal_to_emulator};

use super::Device;
use crate::error::Result;

/// An argument of a kernel, in the order of its signature.
pub enum Arg<'a, B> {
    /// A buffer, which starts at its first byte.
    Buffer(&'a B),
    /// The parameter block, always last: 32-bit words.
    Params(&'a [u32]),
}

/// A device that runs the kernels of the dialect.
pub trait Gpu: Device {
    /// Enqueues `groups` groups of `spec.threads` threads.
    fn launch(&self, spec: &Spec, groups: usize, args: &[Arg<'_, Self::Buffer>]) -> Result<()>;
    /// Whether a buffer starts at a multiple of `bytes`.
    fn aligned(&self, buffer: &Self::Buffer, bytes: u64) -> bool;
    /// The address that a kernel sees, where kernels may be given tables of addresses.
    fn address(&self, buffer: &Self::Buffer) -> Option<u64>;
}

/// A field of a parameter block.
pub trait Field {
    /// Its 32-bit words, in order.
    fn words(self, out: &mut Vec<u32>);
}
impl Field for u32 {
    fn words(self, out: &mut Vec<u32>) {
        out.push(self);
    }
}
impl Field for f32 {
    fn words(self, out: &mut Vec<u32>) {
        out.push(self.to_bits());
    }
}
/// A size of 64 bits as two words (`gk_size`).
impl Field for u64 {
    fn words(self, out: &mut Vec<u32>) {
        out.extend([self as u32, (self >> 32) as u32]);
    }
}
impl<T: Field, const N: usize> Field for [T; N] {
    fn words(self, out: &mut Vec<u32>) {
        self.into_iter().for_each(|field| field.words(out));
    }
}
/// A float64 as the sum of three float32 (`gk_wide`), exact within float32's range: kernels have no 64-bit fields.
impl Field for f64 {
    fn words(self, out: &mut Vec<u32>) {
        let mut rest = self;
        for _ in 0..3 {
            let part = rest as f32;
            part.words(out);
            rest = if part.is_finite() { rest - f64::from(part) } else { 0.0 };
        }
    }
}

/// Declares a parameter block once for Rust and for the kernel: a struct, its words, and the C text
/// put in front of the kernel.
#[macro_export]
macro_rules! params {
    ($(#[$doc:meta])* $name:ident as $c_name:literal { $($field:ident: $type:tt),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name { $(pub $field: $type),* }
        impl $name {
            /// The same struct in the kernel's language.
            pub const DECLARATION: &'static str =
                concat!("struct ", $c_name, " { ", $($crate::params!(@c $type, stringify!($field)), "; ",)* "};\n");
            /// Its memory as 32-bit words.
            pub fn words(&self) -> Vec<u32> {
                let mut words = Vec::with_capacity(64);
                $($crate::device::gpu::Field::words(self.$field, &mut words);)*
                words
            }
        }
    };
    (@c u32, $name:expr) => { concat!("uint ", $name) };
    (@c u64, $name:expr) => { concat!("gk_size ", $name) };
    (@c f32, $name:expr) => { concat!("float ", $name) };
    (@c f64, $name:expr) => { concat!("gk_wide ", $name) };
    (@c [$type:tt; $n:literal], $name:expr) => { concat!($crate::params!(@c $type, $name), "[", $n, "]") };
}
