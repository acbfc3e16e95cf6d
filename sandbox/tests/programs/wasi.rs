//! What a program gets from WASI.

use spare_sandbox::task::{Exit, Input, Output, Task};

use crate::{command, numbers, outcome, path, task};

#[test]
fn input_output_and_exit_code_pass() {
    let more = format!("{}{}", path(40, "in/data"), path(56, "out/copy"));
    let body = "
        (call $exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 40) (i32.const 7) (i32.const 0) (i64.const 2) (i64.const 0)
            (i32.const 0) (i32.const 24)))
        (i32.store (i32.const 0) (i32.const 512)) (i32.store (i32.const 4) (i32.const 100))
        (call $exit (call $fd_read (i32.load (i32.const 24)) (i32.const 0) (i32.const 1) (i32.const 4)))
        (call $exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 56) (i32.const 8) (i32.const 9) (i64.const 64) (i64.const 0)
            (i32.const 0) (i32.const 24)))
        (call $exit (call $fd_write (i32.load (i32.const 24)) (i32.const 0) (i32.const 1) (i32.const 8)))
        (i32.store (i32.const 4) (i32.const 100))
        (call $exit (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 4)))
        (call $print (i32.const 512) (i32.load (i32.const 4)))
        (call $exit (i32.const 42))";
    let outcome = outcome(&command(&more, body), task());
    assert_eq!((outcome.exit, outcome.stdout), (Exit::Code(42), b"standard input".to_vec()));
    assert_eq!(outcome.outputs, [Output { path: "copy".into(), bytes: b"input data".to_vec() }]);
}

#[test]
fn a_program_that_traps_keeps_what_it_printed_and_wrote() {
    let body = "
        (call $exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 40) (i32.const 8) (i32.const 1) (i64.const 64) (i64.const 0)
            (i32.const 0) (i32.const 24)))
        (call $print (i32.const 40) (i32.const 8))
        (call $exit (call $fd_write (i32.load (i32.const 24)) (i32.const 0) (i32.const 1) (i32.const 8)))
        (drop (i32.load (i32.const -4)))";
    let outcome = outcome(&command(&path(40, "out/part"), body), task());
    assert_eq!(outcome.exit, Exit::Trapped("out of bounds memory access".into()));
    assert_eq!(outcome.stdout, b"out/part");
    assert_eq!(outcome.outputs, [Output { path: "part".into(), bytes: b"out/part".to_vec() }]);
    assert!(outcome.fuel > 0);
}

#[test]
fn outputs_come_sorted_by_path_and_inputs_do_not_come_at_all() {
    let more =
        format!("{}{}{}{}", path(40, "out/b"), path(50, "out/a"), path(60, "out/a/z"), path(70, "tmp/x"));
    let open = |at: u32, length: u32| {
        format!(
            "(call $exit (call $path_open (i32.const 3) (i32.const 0) (i32.const {at}) (i32.const {length}) (i32.const 1) (i64.const 64)
                (i64.const 0) (i32.const 0) (i32.const 24)))"
        )
    };
    let body = format!(
        "{} (call $exit (call $path_create_directory (i32.const 3) (i32.const 50) (i32.const 5))) {} {}",
        open(40, 5),
        open(60, 7),
        open(70, 5)
    );
    let outcome = outcome(&command(&more, &body), task());
    assert_eq!(outcome.exit, Exit::Code(0));
    let paths: Vec<&str> = outcome.outputs.iter().map(|output| output.path.as_str()).collect();
    assert_eq!(paths, ["a/z", "b"]);
}

#[test]
fn tasks_that_make_no_sense_are_refused() {
    let input = |path: &str| Input { path: path.into(), bytes: Vec::new() };
    let long = "x".repeat(256);
    for paths in [
        &["/absolute"][..],
        &["a/../b"],
        &["a//b"],
        &["a/"],
        &[""],
        &["."],
        &["out/file"],
        &["tmp"],
        &["same", "same"],
        &["file", "file/below"],
        &["below/file", "below"],
        &[&long],
        &["zero\0"],
    ] {
        let inputs = paths.iter().map(|path| input(path)).collect();
        let outcome = outcome(&command("", ""), Task { inputs, ..task() });
        assert!(
            matches!(&outcome.exit, Exit::Refused(why) if why.contains("input path")),
            "{paths:?}: {}",
            outcome.exit
        );
    }
    for (args, env) in [(vec!["a\0b".into()], vec![]), (vec![], vec![("a=b".into(), String::new())])] {
        let outcome = outcome(&command("", ""), Task { args, env, ..task() });
        assert!(matches!(outcome.exit, Exit::Refused(_)));
    }
}

#[test]
fn what_was_listed_can_be_removed_while_listing() {
    // Makes eight files, lists with room for one entry at a time, removes each that is shown, and counts what is
    // left.
    let body = "(local $cookie i64) (local $count i32)
        (loop $make
            (i32.store8 (i32.const 44) (i32.add (i32.const 97) (local.get $count)))
            (call $exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 40) (i32.const 5) (i32.const 1) (i64.const 64) (i64.const 0)
                (i32.const 0) (i32.const 24)))
            (call $exit (call $fd_close (i32.load (i32.const 24))))
            (br_if $make (i32.lt_u (local.tee $count (i32.add (local.get $count) (i32.const 1))) (i32.const 8))))
        (call $exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 40) (i32.const 3) (i32.const 2) (i64.const 0) (i64.const 0)
            (i32.const 0) (i32.const 24)))
        (local.set $cookie (i64.const 2))
        (call $exit (call $fd_readdir (i32.load (i32.const 24)) (i32.const 256) (i32.const 25) (i64.const 0) (i32.const 16)))
        (block $end (loop $next
            (call $exit (call $fd_readdir (i32.load (i32.const 24)) (i32.const 256) (i32.const 25) (local.get $cookie) (i32.const 16)))
            (br_if $end (i32.eqz (i32.load (i32.const 16))))
            (local.set $cookie (i64.load (i32.const 256)))
            (i32.store8 (i32.const 44) (i32.load8_u (i32.const 280)))
            (call $exit (call $path_unlink_file (i32.const 3) (i32.const 40) (i32.const 5)))
            (call $number (i64.extend_i32_u (i32.load8_u (i32.const 280))))
            (br $next)))";
    let outcome = outcome(&command(&path(40, "out/a"), body), task());
    assert_eq!((&outcome.exit, outcome.outputs.len()), (&Exit::Code(0), 0));
    assert_eq!(numbers(&outcome), (97..105).collect::<Vec<u64>>(), "by name");
}
