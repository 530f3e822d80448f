//! Sinks, and pushed metrics, against receivers that behave, and that do not: what arrives is compared with the log, number by number.

mod bench;
mod collectors;
mod otlp;
mod push;
mod pushed;
mod real;
mod receiver;
mod syslog;
