//! What the kernel programs and the daemon agree on: one definition of every type that crosses
//! the boundary. This crate holds layouts and constants only; it must never allocate, read the
//! environment or decide policy by itself.
//!
//! Kernel to daemon: [`record`] (ring buffers). Daemon to kernel: [`table`] (compiled policies),
//! [`label`] (who is governed) and [`offsets`] (where the running kernel keeps its fields).
#![no_std]

pub mod identity;
pub mod label;
pub mod offsets;
pub mod record;
pub mod selftest;
pub mod table;
pub mod verdict;
