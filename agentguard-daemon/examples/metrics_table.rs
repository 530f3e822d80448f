//! Prints the table of metrics for `docs/metrics.md`: `cargo run -p agentguard-daemon --example metrics_table`.

fn main() {
    print!("{}", agentguard::metrics::list::table());
}
