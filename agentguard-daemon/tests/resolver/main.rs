//! The resolver between scripted resolvers and clients, on loopback. It needs neither root nor a kernel of ours.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod aliases;
mod client;
mod corpus;
mod failover;
mod gate;
mod mutate;
mod names;
mod order;
mod servers;
mod types;
mod upstream;
