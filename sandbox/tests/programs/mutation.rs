//! Programs with wrong bytes in them. They are refused, or run, or trap; the sandbox survives all of them.

use std::panic::catch_unwind;

use spare_sandbox::compile::{compile, kind_of};
use spare_sandbox::run::{Go, run};

use crate::{command, loaded, path, with_fuel};

const MUTATIONS: u64 = 2_000;
const FUEL: u64 = 1_000_000;

/// A program with some of everything: data, tables, calls, loops, numbers of all kinds, bulk instructions,
/// exceptions.
fn varied() -> Vec<u8> {
    let more = format!(
        "{} (table $table 4 funcref) (elem (i32.const 0) $deeper $mixed) (global $global (mut i64) (i64.const 5)) (tag $tag (param i32))
        (func $deeper (param i32) (result i32)
            (if (result i32) (local.get 0) (then (i32.add (i32.const 1) (call $deeper (i32.sub (local.get 0) (i32.const 1))))) (else (i32.const 0))))
        (func $mixed (param i32) (result i32)
            (f64.store (i32.const 64) (f64.sqrt (f64.convert_i32_s (local.get 0))))
            (v128.store (i32.const 80) (i32x4.add (v128.load (i32.const 64)) (i32x4.splat (local.get 0))))
            (i32.trunc_sat_f64_s (f64.load (i32.const 64))))",
        path(40, "out/file")
    );
    let body = "
        (drop (call $deeper (i32.const 20)))
        (global.set $global (i64.extend_i32_s (call_indirect $table (param i32) (result i32) (i32.const 30) (i32.const 1))))
        (memory.fill (i32.const 1000) (i32.const 7) (i32.const 100))
        (drop (block $caught (result i32) (try_table (catch $tag $caught) (throw $tag (i32.const 3))) (i32.const 1)))
        (call $exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 40) (i32.const 8) (i32.const 1) (i64.const 66) (i64.const 66)
            (i32.const 0) (i32.const 24)))
        (call $print (i32.const 1000) (i32.const 100))
        (call $exit (call $random_get (i32.const 256) (i32.const 32)))
        (drop (memory.grow (i32.const 1)))
        (call $number (global.get $global))";
    wat::parse_str(command(&more, body)).expect("it is well-formed")
}

/// A small generator of numbers (SplitMix64), so that each case can be repeated.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % below as u64) as usize
    }
}

fn mutated(original: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut program = original.to_vec();
    for _ in 0..=numbers.next(3) {
        let at = numbers.next(program.len());
        match numbers.next(5) {
            0 => program[at] ^= 1 << numbers.next(8),
            1 => program[at] = numbers.next(256) as u8,
            2 => drop(program.remove(at)),
            3 => program.insert(at, [0, 1, 0x7f, 0x80, 0xff][numbers.next(5)]),
            _ => program.truncate(at.max(8)),
        }
    }
    program
}

#[test]
fn wrong_bytes_do_not_panic() {
    let original = varied();
    assert!(compile(&original).is_ok());
    let mut ran = 0;
    for seed in 0..MUTATIONS {
        let program = mutated(&original, &mut Numbers(seed));
        let survived = catch_unwind(|| match compile(&program) {
            Ok(artefact) => {
                let outcome = run(&loaded(&artefact), with_fuel(FUEL), &mut |_| Go::On).unwrap();
                assert!(outcome.fuel <= FUEL);
                1
            }
            Err(_) => {
                let _ = kind_of(&program);
                0
            }
        });
        ran += survived.unwrap_or_else(|_| panic!("mutation {seed} made the sandbox panic"));
    }
    assert!(ran > MUTATIONS / 20, "{ran} ran, so there is something between refused and unharmed");
}
