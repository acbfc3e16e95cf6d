//! What fuel costs and what the sandbox costs, each beside the same without it, and both beside native programs.
//!
//! ```text
//! sh sandbox/benches/payloads.sh DIRECTORY
//! SPARE_PAYLOADS=DIRECTORY cargo bench --workspace --bench factors
//! ```
//!
//! | variant | what it is |
//! |---|---|
//! | native | the program as its makers compile it for this processor, on one thread |
//! | no fuel | the module in this process: the engine's settings, but for fuel |
//! | fuel | the same with fuel |
//! | worker | the same as a job: a jailed process, limits, steps, inputs and outputs through its socket |
//!
//! The variants take turns, and a ratio is the median of the ratios of each turn, so that what else the machine does
//! disturbs both of its sides. Beside it stand the quartiles, and a mark where they are more than [`NOISY`] apart. A
//! busy machine tells more by the time that its processors spent, so that is compared too, over all processes that
//! took part; it is counted in steps of 10 ms.

mod common;

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use common::{CLIENT, LONG, file_of, hello, measure_rested, prepared, task, timed, workers};
use spare_sandbox::cache::{Artefact, Cache, Found, Key};
use spare_sandbox::compile::compile;
use spare_sandbox::host::{Stop, Workers};
use spare_sandbox::run::{Go, Program, load, run, unmetered};
use spare_sandbox::task::{Exit, Input, Outcome, Task};

/// Where the payloads are.
const VARIABLE: &str = "SPARE_PAYLOADS";

/// What the middle half of ratios may spread by, as a part of their median.
const NOISY: f64 = 0.05;

/// Turns for each payload: at least some, and more while there is time.
const TURNS_MIN: usize = 3;
const TURNS_MAX: usize = 15;
const TURNS_WITHIN: Duration = Duration::from_secs(40);

/// In which a worker that has ended is buried, and so counted.
const BURIAL: Duration = Duration::from_millis(200);

/// More than a payload burns.
const FUEL: u64 = 1 << 40;

/// What `squeeze` does is repeated so often.
const SQUEEZE_ROUNDS: &str = "8";

/// Modules that esbuild bundles.
const MODULES: usize = 1_000;

fn main() -> ExitCode {
    if let Some(code) = common::as_worker() {
        return code;
    }
    let Some(directory) = env::var_os(VARIABLE).map(PathBuf::from).filter(|path| is_complete(path)) else {
        eprintln!(
            "Set {VARIABLE} to a directory with the programs that are measured. This makes it:\n\n    \
             sh sandbox/benches/payloads.sh DIRECTORY\n\n\
             It takes a C compiler (pip install ziglang) and a bundler, for WASI and native \
             (npm install @esbuild/wasi-preview1 esbuild, of one version)."
        );
        return ExitCode::FAILURE;
    };
    let scratch = tempfile::tempdir().expect("a directory");
    let cache = Cache::open(&scratch.path().join("cache"), 1 << 30).expect("a cache");
    let bench = Bench { workers: workers(2, 1), cache, scratch: scratch.path().to_owned() };
    bench.factors(&squeeze(&directory));
    let bundler = esbuild(&directory);
    bench.factors(&bundler);
    bench.second_run(&bundler.module);
    bench.small_job();
    ExitCode::SUCCESS
}

fn is_complete(directory: &Path) -> bool {
    ["squeeze", "squeeze.wasm", "esbuild", "esbuild.wasm"].iter().all(|name| directory.join(name).is_file())
}

/// A program, native and as a module, with what it is to do.
struct Payload {
    name: &'static str,
    native: PathBuf,
    module: Vec<u8>,
    arguments: Vec<String>,
    inputs: Vec<Input>,
    /// What it writes, in its directory natively, in `/out` otherwise. It prints if there is none.
    output: Option<&'static str>,
}

fn squeeze(directory: &Path) -> Payload {
    Payload {
        name: "squeeze (C: compresses, restores and sorts)",
        native: directory.join("squeeze"),
        module: fs::read(directory.join("squeeze.wasm")).expect("it is there"),
        arguments: vec![SQUEEZE_ROUNDS.into()],
        inputs: vec![],
        output: None,
    }
}

fn esbuild(directory: &Path) -> Payload {
    let arguments = ["main.js", "--bundle", "--minify", "--log-level=error"];
    Payload {
        name: "esbuild (Go: bundles a thousand modules)",
        native: directory.join("esbuild"),
        module: fs::read(directory.join("esbuild.wasm")).expect("it is there"),
        arguments: arguments.map(Into::into).into(),
        inputs: (0..MODULES).map(source).chain([main_source()]).collect(),
        output: Some("bundle.js"),
    }
}

/// A module that needs two others, and has some functions.
fn source(number: usize) -> Input {
    let mut text = String::new();
    for other in [2 * number + 1, 2 * number + 2].into_iter().filter(|other| *other < MODULES) {
        text += &format!(
            "import {{ f0 as g{other} }} from './m{other}.js';\nexport const needed{other} = g{other}(1);\n"
        );
    }
    for function in 0..12 {
        text += &format!(
            "/** Sums what is in a list, in a way of its own. */\n\
             export function f{function}(list, factor = {number}) {{\n  \
               const entries = Array.isArray(list) ? list : [list];\n  \
               let sum = 0;\n  \
               for (const [index, entry] of entries.entries()) {{\n    \
                 if (index % 2 === 0 && entry > {function}) sum += entry * factor;\n    \
                 else sum -= Math.abs(entry) ?? `none of ${{index}}`.length;\n  \
               }}\n  \
               return {{ sum, name: 'm{number}f{function}', of: entries.map((entry) => entry + factor) }};\n\
             }}\n"
        );
    }
    Input { path: format!("m{number}.js"), bytes: text.into_bytes() }
}

fn main_source() -> Input {
    Input { path: "main.js".into(), bytes: b"import * as all from './m0.js';\nconsole.log(all);\n".to_vec() }
}

impl Payload {
    fn task(&self) -> Task {
        let mut task = task(FUEL);
        task.args.extend(self.arguments.iter().cloned());
        task.args.extend(self.output.map(|name| format!("--outfile=/out/{name}")));
        task.inputs.clone_from(&self.inputs);
        task
    }

    /// What came of it, natively: what it wrote or printed.
    fn run_natively(&self, directory: &Path) -> Vec<u8> {
        let mut command = Command::new(&self.native);
        command.args(&self.arguments).current_dir(directory).env("GOMAXPROCS", "1").stderr(Stdio::inherit());
        command.args(self.output.map(|name| format!("--outfile={name}")));
        let ended = command.output().expect("it starts");
        assert!(ended.status.success(), "{} {}", self.name, ended.status);
        self.output.map_or(ended.stdout, |name| fs::read(directory.join(name)).expect("it was written"))
    }

    /// The same of an outcome.
    fn result(&self, outcome: Outcome) -> Vec<u8> {
        let said = String::from_utf8_lossy(&outcome.stderr);
        assert_eq!(outcome.exit, Exit::Code(0), "{}: {said}", self.name);
        let mut outputs = outcome.outputs.into_iter();
        match self.output {
            Some(name) => outputs.find(|output| output.path == name).expect("it was written").bytes,
            None => outcome.stdout,
        }
    }
}

/// What one variant took in each turn.
#[derive(Default)]
struct Times {
    wall: Vec<Duration>,
    processor: Vec<Duration>,
}

impl Times {
    fn measure(&mut self, what: impl FnOnce()) {
        let before = processor_time();
        self.wall.push(timed(what));
        std::thread::sleep(BURIAL);
        self.processor.push(processor_time() - before);
    }
}

/// Time that processors spent on this process, and on those of its children that are buried.
fn processor_time() -> Duration {
    const TICKS_PER_S: u64 = 100;
    let stat = fs::read_to_string("/proc/self/stat").expect("it is there");
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    // Of proc(5): 14 to 17 of all fields, of which this is the third.
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(4).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1_000 / TICKS_PER_S)
}

/// All variants of one payload.
#[derive(Default)]
struct Variants {
    native: Times,
    no_fuel: Times,
    fuel: Times,
    worker: Times,
}

struct Bench {
    workers: Workers,
    cache: Cache,
    scratch: PathBuf,
}

impl Bench {
    /// How much longer a payload takes with fuel, and in a worker.
    fn factors(&self, payload: &Payload) {
        let directory = self.scratch.join(payload.output.unwrap_or("nothing"));
        fs::create_dir_all(&directory).expect("the disk has room");
        for input in &payload.inputs {
            fs::write(directory.join(&input.path), &input.bytes).expect("the disk has room");
        }
        let expected = payload.run_natively(&directory);
        let plain = file_of(&unmetered::compile(&payload.module).expect("it compiles"));
        let artefact = prepared(&self.workers, &self.cache, &payload.module);
        let metered = self.kept_file(&artefact);
        let check = |result: Vec<u8>| assert!(result == expected, "{}: another result", payload.name);

        let mut all = Variants::default();
        let (mut turns, mut fuel) = (0, 0);
        std::thread::sleep(BURIAL); // Of the compiler.
        let started = Instant::now();
        while turns < TURNS_MIN || (turns < TURNS_MAX && started.elapsed() < TURNS_WITHIN) {
            turns += 1;
            all.native.measure(|| check(payload.run_natively(&directory)));
            let task = payload.task();
            all.no_fuel.measure(|| {
                let program = unmetered::load(open(plain.path())).expect("it loads");
                check(payload.result(unmetered::run(&program, task)));
            });
            let task = payload.task();
            all.fuel.measure(|| {
                let program = load(open(&metered)).expect("it loads");
                check(payload.result(in_process(&program, task)));
            });
            let task = payload.task();
            all.worker.measure(|| {
                let outcome = self.job(&artefact, &task);
                fuel = outcome.fuel;
                check(payload.result(outcome));
            });
        }
        all.print(payload, turns, fuel);
    }

    /// An artefact's file: the only one in the cache of that length.
    fn kept_file(&self, artefact: &Artefact) -> PathBuf {
        let mut clients = fs::read_dir(self.scratch.join("cache")).expect("it is there");
        let client = clients.next().expect("one client").expect("it can be read");
        let files = fs::read_dir(client.path()).expect("it is there").flatten();
        let is_meant = |file: &fs::DirEntry| {
            file.metadata().is_ok_and(|metadata| metadata.len() == artefact.len_bytes())
        };
        files.into_iter().find(is_meant).expect("it was kept").path()
    }

    fn job(&self, artefact: &Artefact, task: &Task) -> Outcome {
        self.workers.run(artefact, task, LONG, &Stop::new(), &mut |_| Go::On).expect("a worker runs it")
    }

    /// A job whose program is kept already, up to its first instruction.
    fn second_run(&self, module: &[u8]) {
        let key = Key::of(module);
        let found = || match self.cache.get(&CLIENT, key) {
            Ok(Found::Artefact(artefact)) => artefact,
            other => panic!("it was kept, and not {other:?}"),
        };
        println!("\na program of {:.1} MB for the second time", module.len() as f64 / 1e6);
        let hashed = measure_rested(20, || drop(found()));
        // It burns its fuel at the first instructions, so that this is the way there.
        let asked = measure_rested(20, || {
            assert_eq!(self.job(&found(), &task(10)).exit, Exit::OutOfFuel);
        });
        let file = self.kept_file(&found());
        let bare = measure_rested(20, || {
            let program = load(open(&file)).expect("it loads");
            assert_eq!(in_process(&program, task(10)).exit, Exit::OutOfFuel);
        });
        print_time("found in the cache, and hashed", &hashed);
        print_time("from asking the cache to the first instruction", &asked);
        print_time("loaded and started in this process", &bare);
        print_ratio("asking / in this process", &asked, &bare);
    }

    /// What remains of a job when the program does next to nothing.
    fn small_job(&self) {
        let module = hello();
        let artefact = prepared(&self.workers, &self.cache, &module);
        let file = file_of(&compile(&module).expect("it compiles"));
        let program = load(open(file.path())).expect("it loads");
        let job = measure_rested(200, || assert_eq!(self.job(&artefact, &task(FUEL)).exit, Exit::Code(0)));
        let bare = measure_rested(200, || {
            assert_eq!(in_process(&program, task(FUEL)).exit, Exit::Code(0));
        });
        println!("\na job that prints a line");
        print_time("in a warm worker, all in all", &job);
        print_time("instantiated and run in this process", &bare);
        print_ratio("worker / in this process", &job, &bare);
    }
}

impl Variants {
    fn print(&self, payload: &Payload, turns: usize, fuel: u64) {
        let Self { native, no_fuel, fuel: with_fuel, worker } = self;
        println!("\n{}: {turns} turns, {:.2} billion fuel", payload.name, fuel as f64 / 1e9);
        print_time("native, one thread", &native.wall);
        print_time("no fuel, in this process", &no_fuel.wall);
        print_time("fuel, in this process", &with_fuel.wall);
        print_time("worker", &worker.wall);
        print_ratios("the fuel factor: fuel / no fuel", with_fuel, no_fuel);
        print_ratios("the sandbox factor: worker / fuel", worker, with_fuel);
        print_ratios("no fuel / native", no_fuel, native);
        print_ratios("fuel / native", with_fuel, native);
        print_ratios("worker / native", worker, native);
    }
}

/// The middle half of some numbers.
struct Quartiles {
    low: f64,
    median: f64,
    high: f64,
}

impl Quartiles {
    fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_unstable_by(f64::total_cmp);
        let at = |quarters: usize| numbers[(numbers.len() - 1) * quarters / 4];
        Self { low: at(1), median: at(2), high: at(3) }
    }
}

fn print_time(what: &str, times: &[Duration]) {
    let Quartiles { low, median, high } = Quartiles::of(times.iter().map(|time| time.as_secs_f64() * 1e3));
    println!("  {what:<48} {median:>10.3} ms  {low:.3} to {high:.3}{}", mark(low, median, high));
}

fn print_ratios(what: &str, one: &Times, other: &Times) {
    print_ratio(what, &one.wall, &other.wall);
    print_ratio("    in time of processors", &one.processor, &other.processor);
}

fn print_ratio(what: &str, one: &[Duration], other: &[Duration]) {
    let pairs = one.iter().zip(other);
    let ratios = pairs.map(|(one, other)| one.as_secs_f64() / other.as_secs_f64());
    let Quartiles { low, median, high } = Quartiles::of(ratios);
    println!("  {what:<48} {median:>10.3} x   {low:.3} to {high:.3}{}", mark(low, median, high));
}

fn mark(low: f64, median: f64, high: f64) -> &'static str {
    if high - low > NOISY * median { "   NOISY" } else { "" }
}

fn in_process(program: &Program, task: Task) -> Outcome {
    run(program, task, &mut |_| Go::On).expect("the machine has memory")
}

fn open(path: &Path) -> File {
    File::open(path).expect("it is there")
}
