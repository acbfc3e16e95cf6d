//! Artefacts on disk: found again, checked, bounded, and nobody else's.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod common;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{LONG, Marked, compiled, module, task};
use spare_sandbox::cache::{Cache, Client, Found, Key};
use spare_sandbox::task::Exit;

const ONE: Client = [1; 32];
const TWO: Client = [2; 32];

fn put(cache: &Cache, client: &Client, name: &[u8], len: usize) {
    let mut new = cache.begin(client).unwrap();
    new.write_all(&vec![name[0]; len]).unwrap();
    new.keep(Key::of(name)).unwrap();
}

fn has(cache: &Cache, client: &Client, name: &[u8]) -> bool {
    match cache.get(client, Key::of(name)).unwrap() {
        Found::Artefact(_) => true,
        Found::Nothing => false,
        Found::Rotten => panic!("{name:?} is rotten"),
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()))
        } else {
            found.push(entry.path())
        }
    }
    found.sort();
    found
}

#[test]
fn what_was_kept_is_found_by_its_client_alone_also_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path(), 1000).unwrap();
    put(&cache, &ONE, b"a", 10);
    for cache in [cache, Cache::open(directory.path(), 1000).unwrap()] {
        assert!(has(&cache, &ONE, b"a"));
        assert!(!has(&cache, &TWO, b"a"), "it is the same module, and another client");
        assert!(!has(&cache, &ONE, b"b"));
        assert_eq!(cache.used_bytes(), 10);
    }
}

#[test]
fn files_are_for_the_owner_only() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(&directory.path().join("cache"), 1000).unwrap();
    put(&cache, &ONE, b"a", 10);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let file = &files(directory.path())[0];
    assert_eq!(mode(file), 0o600);
    assert_eq!(mode(file.parent().unwrap()), 0o700);
    assert_eq!(mode(&directory.path().join("cache")), 0o700);
}

#[test]
fn a_flipped_bit_is_noticed_and_never_run() {
    let (marked, (cache, directory)) = (Marked::start(), common::cache());
    let module = module("");
    drop(compiled(&marked.workers, &cache, &module));
    let file = files(directory.path()).remove(0);
    let whole = std::fs::read(&file).unwrap();
    for place in [0, whole.len() / 2, whole.len() - 1] {
        let mut rotten = whole.clone();
        rotten[place] ^= 1;
        std::fs::write(&file, &rotten).unwrap();
        assert!(
            matches!(cache.get(&common::CLIENT, Key::of(&module)).unwrap(), Found::Rotten),
            "a bit of byte {place}"
        );
        assert!(
            matches!(cache.get(&common::CLIENT, Key::of(&module)).unwrap(), Found::Nothing),
            "it is removed"
        );
        assert!(!file.exists());
        let artefact = compiled(&marked.workers, &cache, &module);
        assert_eq!(marked.run(&artefact, &task(), LONG).unwrap().exit, Exit::Code(0), "and compiled again");
    }
}

#[test]
fn torn_and_unfinished_files_are_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path(), 1000).unwrap();
    put(&cache, &ONE, b"a", 100);
    let file = files(directory.path()).remove(0);
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(50).unwrap();
    std::fs::write(file.with_file_name("new-7"), "half").unwrap();
    drop(cache.begin(&ONE).unwrap());
    let cache = Cache::open(directory.path(), 1000).unwrap();
    assert!(matches!(cache.get(&ONE, Key::of(b"a")).unwrap(), Found::Rotten));
    assert_eq!(files(directory.path()).len(), 0);
    assert_eq!(cache.used_bytes(), 0);
}

#[test]
fn the_budget_holds_and_what_was_used_longest_ago_goes_first() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path(), 30).unwrap();
    put(&cache, &ONE, b"a", 10);
    put(&cache, &ONE, b"b", 10);
    put(&cache, &ONE, b"c", 10);
    assert!(has(&cache, &ONE, b"a"), "which makes b the oldest");
    put(&cache, &ONE, b"d", 10);
    assert_eq!(cache.used_bytes(), 30);
    assert_eq!([b"a", b"b", b"c", b"d"].map(|name| has(&cache, &ONE, name)), [true, false, true, true]);
    let cache = Cache::open(directory.path(), 10).unwrap();
    assert_eq!(cache.used_bytes(), 10, "a smaller budget holds from the start");
    assert!(has(&cache, &ONE, b"d"), "uses are remembered over restarts");
    assert_eq!(files(directory.path()).len(), 1);
}

#[test]
fn a_client_that_stores_much_pushes_out_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path(), 100).unwrap();
    put(&cache, &TWO, b"small", 10);
    for name in 0..20u8 {
        put(&cache, &ONE, &[name], 10);
    }
    assert!(has(&cache, &TWO, b"small"), "though it was used longest ago");
    assert_eq!(cache.used_bytes(), 100);
}

#[test]
fn an_artefact_beyond_the_whole_budget_still_runs_once() {
    let directory = tempfile::tempdir().unwrap();
    let (marked, cache) = (Marked::start(), Cache::open(directory.path(), 10).unwrap());
    let artefact = compiled(&marked.workers, &cache, &module(""));
    assert_eq!(cache.used_bytes(), 0);
    assert_eq!(marked.run(&artefact, &task(), LONG).unwrap().exit, Exit::Code(0));
}

#[test]
fn compiling_again_replaces() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::open(directory.path(), 1000).unwrap();
    put(&cache, &ONE, b"a", 10);
    put(&cache, &ONE, b"a", 10);
    put(&cache, &ONE, b"a", 20);
    assert_eq!(cache.used_bytes(), 20);
    assert_eq!(files(directory.path()).len(), 1);
}
