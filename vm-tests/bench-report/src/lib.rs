//! What `cargo xtask bench` measured: the format of its files, how two of them compare, what was
//! promised, and the page and plots that are written from them. It measures nothing itself, and must
//! never state a figure that is not in a file.

pub mod compare;
pub mod figures;
pub mod markdown;
pub mod number;
pub mod plot;
pub mod promises;
pub mod text;
pub mod trace;

#[cfg(test)]
mod sample;
