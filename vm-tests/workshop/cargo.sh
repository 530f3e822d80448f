# A crate with a build script, a macro that the compiler loads from the workspace, a library and a program.
mkdir -p shout/src library/src program/src
cat >Cargo.toml <<'END'
[workspace]
members = ["library", "program", "shout"]
resolver = "2"
END
printf '[package]\nname = "shout"\nversion = "0.1.0"\nedition = "2021"\n[lib]\nproc-macro = true\n' >shout/Cargo.toml
cat >shout/src/lib.rs <<'END'
#[proc_macro]
pub fn shout(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    format!("{:?}", input.to_string().to_uppercase()).parse().unwrap()
}
END
printf '[package]\nname = "library"\nversion = "0.1.0"\nedition = "2021"\nbuild = "build.rs"\n' >library/Cargo.toml
cat >library/build.rs <<'END'
fn main() {
    let out = std::env::var("OUT_DIR").unwrap();
    std::fs::write(format!("{out}/answer.rs"), "pub const ANSWER: u32 = 42;").unwrap();
}
END
cat >library/src/lib.rs <<'END'
include!(concat!(env!("OUT_DIR"), "/answer.rs"));
#[test]
fn it_is_the_answer() {
    assert_eq!(ANSWER, 42);
}
END
printf '[package]\nname = "program"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\nlibrary = { path = "../library" }\nshout = { path = "../shout" }\n' >program/Cargo.toml
cat >program/src/main.rs <<'END'
fn main() {
    println!("{} {}", shout::shout!(built), library::ANSWER);
}
END
cargo build --offline
cargo run --offline --quiet >said.txt
cargo test --offline --quiet
cargo install --offline --quiet --root installed --path program
