//! What fuzzing found worth keeping, run once more.

use std::fs;
use std::path::Path;

#[test]
fn every_target_takes_what_is_in_its_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in fuzz::TARGETS {
        let mut inputs: Vec<_> = fs::read_dir(corpus.join(name))
            .unwrap_or_else(|error| panic!("corpus/{name}: {error}"))
            .map(|entry| entry.unwrap().path())
            .collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "corpus/{name} is empty");
        for input in inputs {
            // Told by name if it panics.
            println!("{}", input.display());
            target(&fs::read(&input).unwrap());
        }
    }
}

#[test]
fn manifests_of_the_acceptance_tests_are_inputs_too() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    let mut read = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            fuzz::manifests::run(&fs::read(path).unwrap());
            read += 1;
        }
    }
    assert!(read > 20);
}
