//! Everything that the fuzzer found worth keeping, without the fuzzer: each input of the corpus goes through
//! its target. `cargo xtask fuzz` adds to it.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::path::Path;

#[test]
fn the_corpus_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, run) in targets::TARGETS {
        let mut inputs = 0;
        for entry in
            fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
        {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            // The name of the input that breaks it is what one needs to know.
            println!("{}", path.display());
            run(&input);
            inputs += 1;
        }
        assert!(inputs > 0, "the corpus of {name} is empty");
    }
}
