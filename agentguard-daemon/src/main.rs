//! The one binary: daemon and command line. Everything is in the library.

fn main() -> std::process::ExitCode {
    agentguard::cli::main()
}
