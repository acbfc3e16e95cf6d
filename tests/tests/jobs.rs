//! Programs run by the built program: what `spare job try` prints, keeps and says when something is wrong.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use spare_tests::net::program;

/// A program in the text format that prints what it is given as standard input, and leaves it in a file.
const ECHO: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "out/copy")
  (func (export "_start")
    ;; An iovec of 64 bytes at 1000, for what is read, and then for as much.
    (i32.store (i32.const 0) (i32.const 1000))
    (i32.store (i32.const 4) (i32.const 64))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.store (i32.const 4) (i32.load (i32.const 8)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (if (call $open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 8) (i32.const 1)
          (i64.const -1) (i64.const -1) (i32.const 0) (i32.const 16))
      (then (call $exit (i32.const 9))))
    (drop (call $write (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 8)))
    ;; Sixteen random bytes to standard error.
    (drop (call $random (i32.const 1000) (i32.const 16)))
    (i32.store (i32.const 4) (i32.const 16))
    (drop (call $write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $exit (i32.const 3))))"#;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn module(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
        path
    }

    fn run(&self, home: &str, args: &[&str]) -> Output {
        let mut command = Command::new(program());
        command.arg("--home").arg(self.path(home)).args(["job", "try"]).args(args);
        command.output().unwrap()
    }

    fn json(&self, home: &str, args: &[&str]) -> Value {
        let out = self.run(home, &[&["--json"], args].concat());
        serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_program_runs_with_one_result_everywhere() {
    let bench = Bench::new();
    let echo = bench.module("echo.wasm", ECHO);
    let input = bench.path("input");
    std::fs::write(&input, "what is said").unwrap();
    let out = bench.path("out");
    let args = [text(&echo), "--stdin", text(&input), "--output", text(&out)];
    let out = bench.run("one", &args);
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    assert_eq!(out.stdout, b"what is said");
    assert_eq!(std::fs::read(bench.path("out/copy")).unwrap(), b"what is said");
    assert!(String::from_utf8_lossy(&out.stderr).contains("ended with code 3"));
    // On another node, with nothing cached, it comes to the same; with another input it does not.
    let (one, two) = (bench.json("one", &args), bench.json("two", &args));
    for field in ["work", "result", "fuel", "memory_peak_bytes", "outputs"] {
        assert_eq!(one[field], two[field], "{field}");
    }
    assert!(one["compiled_s"].is_null() && two["compiled_s"].is_number(), "compiled once on each");
    std::fs::write(&input, "something else").unwrap();
    assert_ne!(bench.json("one", &args)["result"], one["result"]);
    // The machine's own random bytes differ from run to run.
    let free = [&args[..], &["--free"]].concat();
    assert_ne!(bench.json("one", &free)["result"], bench.json("one", &free)["result"]);
}

#[test]
fn what_is_wrong_is_said_and_ends_in_time() {
    let bench = Bench::new();
    let endless = bench.module(
        "endless.wasm",
        r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#,
    );
    let out = bench.run("home", &[text(&endless), "--fuel", "50M"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("allow it more with --fuel"), "{out:?}");
    assert_eq!(bench.json("home", &[text(&endless), "--fuel", "50M"])["fuel"], 50_000_000);
    let out = bench.run("home", &[text(&endless), "--fuel", "9000T", "--time", "1"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("time limit"), "{out:?}");
    let large =
        bench.module("large.wasm", r#"(module (memory (export "memory") 1000) (func (export "_start")))"#);
    let out = bench.run("home", &[text(&large), "--memory", "1MiB"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("was not started"), "{out:?}");
    let no_module = bench.path("input");
    std::fs::write(&no_module, "no module").unwrap();
    let out = bench.run("home", &[text(&no_module)]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("not WebAssembly"), "{out:?}");
    assert_eq!(bench.run("home", &[text(&endless), "--input", "../x=/etc/hostname"]).status.code(), Some(1));
    assert_eq!(bench.run("home", &[text(&endless), "--fuel", "much"]).status.code(), Some(2));
}
