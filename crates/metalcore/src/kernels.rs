//! The kernel specialisations that plans choose for common sizes and types, for the checks that compile them all.

use crate::device::gpu::{Spec, Target};
use crate::ops;

/// A specialised kernel text.
#[derive(Clone, Debug)]
pub struct Unit {
    spec: Spec,
    metal: bool,
}

impl Unit {
    /// For CUDA, and for Metal unless it computes in float64, which Metal does not have.
    pub(crate) fn everywhere(spec: Spec) -> Unit {
        Unit { metal: !spec.float64(), spec }
    }
    /// For CUDA alone.
    pub(crate) fn cuda(spec: Spec) -> Unit {
        Unit { metal: false, spec }
    }

    /// The specialisation itself.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }
    /// Entry and specialisation, such as `qr_tile_8_2_16_1_1`.
    pub fn name(&self) -> String {
        self.spec.name()
    }
    /// The kernel function.
    pub fn entry(&self) -> &'static str {
        self.spec.entry
    }
    /// The kernel's file.
    pub fn file(&self) -> &'static str {
        self.spec.source.file
    }
    /// Threads in a group.
    pub fn threads(&self) -> u32 {
        self.spec.threads
    }
    /// Whether it exists on Metal.
    pub fn metal(&self) -> bool {
        self.metal
    }
    /// The exact text for Apple's compiler.
    pub fn metal_text(&self) -> String {
        self.spec.text(Target::Metal)
    }
    /// The exact text for NVRTC.
    pub fn cuda_text(&self) -> String {
        self.spec.text(Target::Cuda)
    }
    /// The text for the emulator, without its prelude.
    pub fn emulator_text(&self) -> String {
        self.spec.text(Target::Emulator)
    }
}

/// All of them.
pub fn all() -> Vec<Unit> {
    let units = [
        ops::activations::units(),
        ops::adamw::units(),
        ops::cross_entropy::units(),
        ops::embedding_bag::units(),
        ops::indexing::units(),
        ops::kl_div::units(),
        ops::layer_norm::units(),
        ops::trsm::units(),
        ops::cholesky::units(),
        ops::svd::units(),
        ops::eigh::units(),
        ops::qr::units(),
        ops::rms_norm::units(),
        ops::rope::units(),
        ops::softmax::units(),
        ops::solve::units(),
    ];
    units.into_iter().flatten().collect()
}
