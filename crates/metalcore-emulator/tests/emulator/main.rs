//! Tests of the emulator, and through it of the kernel vocabulary.

mod conversions;
mod library;
mod planted_bugs;
mod support;
mod vocabulary;
