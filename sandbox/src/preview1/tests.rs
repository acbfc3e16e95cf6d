use std::pin::pin;
use std::task::{Context, Poll, Waker};

use wasmtime::{MemoryType, Module, Store, Val, ValType};

use super::*;
use crate::engine::engine;
use crate::progress::Progress;
use crate::task::{Determinism, Input, Limits, Task};

const CALLS: u64 = 200_000;
const FUEL: u64 = 1 << 40;

fn guest() -> Guest {
    let limits = Limits {
        fuel: FUEL,
        memory_bytes: 1 << 20,
        output_bytes: 1 << 20,
        output_files: 50,
        log_bytes: 1 << 10,
    };
    let task = Task {
        args: vec!["program".into(), "argument".into()],
        env: vec![("NAME".into(), "value".into())],
        stdin: vec![1; 100],
        inputs: vec![Input { path: "in/data".into(), bytes: vec![2; 100] }],
        limits,
        seed: [0; 32],
        starts_at_s: 0,
        determinism: Determinism::Deterministic,
    };
    Guest::new(task, Progress::new(1 << 10, u64::MAX)).expect("the task makes sense")
}

/// A small generator of numbers (SplitMix64), so that each case can be repeated.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Numbers at which things go wrong, and those that are descriptors, lengths and addresses.
    fn parameter(&mut self) -> i64 {
        match self.next() % 8 {
            0 => self.next() as i64,
            1 => [-1, i64::MAX, i64::MIN, 1 << 31, 1 << 32, 1 << 60][(self.next() % 6) as usize],
            2 => 65_536 - (self.next() % 64) as i64,
            3 => (self.next() % 65_536) as i64,
            _ => (self.next() % 24) as i64,
        }
    }

    fn value(&mut self, kind: &ValType) -> Val {
        match kind {
            ValType::I64 => Val::I64(self.parameter()),
            _ => Val::I32(self.parameter() as i32),
        }
    }
}

/// Runs what does not wait.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nothing waits here"),
    }
}

#[test]
fn no_function_minds_what_it_is_passed() {
    let engine = engine();
    let mut linker = Linker::new(&engine);
    add_to_linker(&mut linker).expect("names are defined once");
    let mut store = Store::new(&engine, guest());
    store.set_fuel(FUEL).expect("fuel is configured");
    let memory = wasmtime::Memory::new(&mut store, MemoryType::new(1, Some(1))).expect("a page is little");
    store.data_mut().exported_memory = Some(memory);
    let functions: Vec<_> = linker
        .iter(&mut store)
        .map(|(_, name, item)| (name.to_owned(), item.into_func().expect("all are functions")))
        .collect();
    assert_eq!(functions.len(), 46);
    let mut numbers = Numbers(0);
    let mut answered = 0;
    for call in 0..CALLS {
        if call % 100 == 0 {
            fill(memory.data_mut(&mut store), &mut numbers);
        }
        let (_, function) = &functions[(numbers.next() % functions.len() as u64) as usize];
        let kind = function.ty(&store);
        let parameters: Vec<Val> = kind.params().map(|kind| numbers.value(&kind)).collect();
        let mut results = vec![Val::I32(-1); kind.results().len()];
        let answer = now(function.call_async(&mut store, &parameters, &mut results));
        answered += u64::from(answer.is_ok() && results.iter().all(|result| result.i32() == Some(0)));
    }
    assert!(answered > CALLS / 20, "{answered} calls succeeded, so they got somewhere");
}

/// Memory of which some is paths, some I/O vectors, and some noise.
fn fill(memory: &mut [u8], numbers: &mut Numbers) {
    const PATHS: [&[u8]; 8] = [b"out/a", b"out/b", b"tmp", b"in/data", b"..", b"out/a/b", b".", b"\xff"];
    memory.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&numbers.next().to_le_bytes()));
    for at in 0..24 {
        let path = PATHS[(numbers.next() % 8) as usize];
        memory[at * 8..at * 8 + path.len()].copy_from_slice(path);
    }
    for at in 24..64 {
        let vector = ((numbers.next() % 1_024) << 32) | (numbers.next() % 65_536);
        memory[at * 8..at * 8 + 8].copy_from_slice(&vector.to_le_bytes());
    }
}

#[test]
fn modules_find_the_standard_complete() {
    let engine = engine();
    let mut linker = Linker::new(&engine);
    add_to_linker(&mut linker).expect("names are defined once");
    let module = wat::parse_str(
        r#"(module (import "wasi_snapshot_preview1" "path_open" (func (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_seek" (func (param i32 i64 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "sock_recv" (func (param i32 i32 i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "path_filestat_set_times"
                (func (param i32 i32 i32 i32 i64 i64 i32) (result i32))))"#,
    )
    .expect("it is well-formed");
    let module = Module::new(&engine, module).expect("it is valid");
    linker.instantiate_pre(&module).map(drop).expect("the types are the standard's");
}
